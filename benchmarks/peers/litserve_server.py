"""LitServe with batching. https://lightning.ai/docs/litserve/features/batching and the docstrings of LitServer."""

import os
from typing import Any

import litserve as ls  # pyright: ignore[reportMissingImports]
import numpy as np
from fastapi import Request
from model import MAX_BATCH_SIZE, PORT, Model, answer, decode

BATCH_TIMEOUT_S = 0.01


class Classifier(ls.LitAPI):
    """The hooks in the order in which LitServe calls them; `batch` and `unbatch` are its own."""

    def setup(self, device: str) -> None:  # noqa: ARG002, D102
        self.model = Model()

    def decode_request(self, request: Request, **_: Any) -> np.ndarray:  # noqa: D102
        form: Any = request  # LitServe reads the form of what is declared as a request
        return decode(form["file"].file.read())

    def predict(self, x: np.ndarray, **_: Any) -> np.ndarray:  # noqa: D102
        return self.model.predict(x)

    def encode_response(self, output: np.ndarray, **_: Any) -> dict[str, Any]:  # noqa: D102
        return answer(output)


if __name__ == "__main__":
    server = ls.LitServer(
        Classifier(max_batch_size=MAX_BATCH_SIZE, batch_timeout=BATCH_TIMEOUT_S),
        accelerator="cpu",
        workers_per_device=int(os.environ["BENCHMARK_WORKERS"]),
    )
    server.run(host="127.0.0.1", port=PORT, generate_client_file=False)
