"""`tlray serve` itself, with `@serve.batch` in the place of `serve_app.model.batching.Batcher`: nothing else differs.

https://docs.ray.io/en/latest/serve/advanced-guides/dyn-req-batch.html; the model off the event loop, as
https://docs.ray.io/en/latest/serve/advanced-guides/asyncio-best-practices.html has it ("Batching").
"""

import asyncio
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from model import BUNDLE, PORT, PRECISION
from ray import serve

from serve_app import app, foreground
from serve_app.model import classifier
from tlray.config.prediction import ServeConfig

BATCH_WAIT_TIMEOUT_S = 0.01  # the decorator's default


class PlainBatcher:
    """What a model calls of `Batcher`. Its queue has no end, as that of `@serve.batch` has none."""

    num_waiting = 0

    def __init__(
        self,
        run: Callable[[list[bytes]], Sequence[np.ndarray]],
        *,
        max_batch_size: int,
        max_queue: int,  # noqa: ARG002
        on_batch: Callable[[int], None],
    ) -> None:
        @serve.batch(max_batch_size=max_batch_size, batch_wait_timeout_s=BATCH_WAIT_TIMEOUT_S)
        async def predict_batch(items: list[bytes]) -> list[np.ndarray]:
            on_batch(len(items))
            return list(await asyncio.to_thread(run, items))

        self._predict: Any = predict_batch

    async def submit_all(self, items: Sequence[bytes]) -> list[np.ndarray]:
        """Returns the model's results for some items, in their order."""
        return list(await asyncio.gather(*(self._predict(item) for item in items)))


class PlainIngress(app.Ingress):
    """The replica, whose process the exchange is made in."""

    async def __init__(self, *args: Any) -> None:
        classifier.Batcher = PlainBatcher
        await super().__init__(*args)  # pyright: ignore[reportGeneralTypeIssues] (Serve makes it a coroutine)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, lambda *_: sys.exit())
    app.Ingress = PlainIngress
    with foreground.started(ServeConfig(bundle=str(BUNDLE), port=PORT, precision=PRECISION, quiet=True)) as endpoint:
        endpoint.wait()
