"""Grad-CAM overlays from a process of its own, so that a replica does not load TensorFlow because of them.

The process is started by the first request for an overlay, and ended when none has come for `IDLE_S`.
"""

import asyncio
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING

import numpy as np

from tlray.bundle.store import Bundle
from tlray.errors import BundleError

if TYPE_CHECKING:
    from tlray.models.explain import Explainer

IDLE_S = 300.0
"""Seconds without a request for an overlay after which the process ends. Its next start takes some ten seconds."""

_EXPLAINERS: "dict[str, Explainer | BundleError]" = {}
"""In the process that explains: the explainer by the bundle's sha256, or why there is none."""


class Explaining:
    """Computes overlays for the images of one model, one after another. For the coroutines of one event loop.

    Args:
        bundle: The model's bundle. Its files must stay where they are until `close`.
        num_threads: Threads to compute with; None: all CPUs.
        idle_s: See `IDLE_S`.
    """

    def __init__(self, bundle: Bundle, *, num_threads: int | None = None, idle_s: float = IDLE_S) -> None:
        # Without the handle to its temporary copy, which the other process must not delete.
        self._bundle = Bundle(spec=bundle.spec, directory=bundle.directory, sha256=bundle.sha256)
        self._num_threads = num_threads
        self._idle_s = idle_s
        self._pool: ProcessPoolExecutor | None = None
        self._num_waiting = 0
        self._timer: asyncio.TimerHandle | None = None

    async def overlays(self, images: Sequence[np.ndarray], class_indices: Sequence[int]) -> list[bytes]:
        """Returns the overlays of some images as PNG, each for one class.

        Args:
            images: uint8 [size, size, 3] each, RGB, at the model's size.
            class_indices: Indices into the model's classes.

        Raises:
            BundleError: The model cannot be explained, or the process died twice.
        """
        loop = asyncio.get_running_loop()
        self._num_waiting += 1
        if self._timer is not None:
            self._timer.cancel()
        try:
            return [await self._overlay(image, index) for image, index in zip(images, class_indices, strict=True)]
        finally:
            self._num_waiting -= 1
            if not self._num_waiting:
                self._timer = loop.call_later(self._idle_s, self.close)

    async def _overlay(self, image_HWC: np.ndarray, class_index: int) -> bytes:
        loop = asyncio.get_running_loop()
        for _ in range(2):  # the process may have been killed, as its memory is large
            pool = self._pool = self._pool or _new_pool(self._num_threads)
            try:
                return await loop.run_in_executor(pool, _explain, self._bundle, image_HWC, class_index)
            except BrokenProcessPool:
                if self._pool is pool:
                    self._pool = None
        raise BundleError(
            "The process that explains predictions was ended twice. It needs 2 GB of memory: free some, or ask without "
            "explain=true."
        )

    def close(self) -> None:
        """Ends the process; it is started anew when it is needed."""
        if self._timer is not None:
            self._timer.cancel()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


def _new_pool(num_threads: int | None) -> ProcessPoolExecutor:
    # spawn: a forked process would share the locks of this one's threads.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=context, initializer=_begin, initargs=(num_threads,))


def _begin(num_threads: int | None) -> None:
    """Prepares the process: it uses no GPU, and ends when its parent has ended, even if that was killed."""
    from tlray.models import devices  # noqa: PLC0415 (TensorFlow only in this process)

    devices.use_cpus(num_threads)
    parent = multiprocessing.parent_process()
    assert parent is not None  # noqa: S101 (the pool starts this process)

    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, name="end-with-parent", daemon=True).start()


def _explain(bundle: Bundle, image_HWC: np.ndarray, class_index: int) -> bytes:
    from tlray.models import explain  # noqa: PLC0415 (TensorFlow only in this process)

    if bundle.sha256 not in _EXPLAINERS:
        try:
            _EXPLAINERS[bundle.sha256] = explain.Explainer(bundle)
        except BundleError as error:
            _EXPLAINERS[bundle.sha256] = error
    explainer = _EXPLAINERS[bundle.sha256]
    if isinstance(explainer, BundleError):
        raise explainer.with_traceback(None)
    return explain.to_png(explain.overlay(image_HWC, explainer.heatmap(image_HWC, class_index)))
