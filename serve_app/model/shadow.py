"""Shadow traffic: a second model predicts a share of the answered requests, for comparison only."""

import asyncio
import functools
import logging
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from serve_app.errors import RequestError
from serve_app.model.classifier import ModelInfo, Pixels
from serve_app.model.decoding import decode
from serve_app.model.service import Model
from serve_app.options import Options
from serve_app.watch.telemetry import Telemetry
from tlray.errors import ImageError, TlrayError

NUM_TRIES = 2
"""Maximum tries of a request if the shadow's own bundle is exchanged meanwhile."""

_LOG = logging.getLogger("ray.serve")


def _fits(shadow: ModelInfo, pixels: Pixels) -> bool:
    return (pixels.size_px, pixels.intensity_range) == (shadow.spec.image_size_px, shadow.spec.intensity_range)


def _size(file: bytes | np.ndarray) -> int:
    return file.nbytes if isinstance(file, np.ndarray) else len(file)


class Shadow:
    """Compares the shadow model with the main version.

    Nothing here reaches a client: errors are counted, and images that exceed the limits are dropped.

    Args:
        model: The shadow model.
        options: Has the share of requests to compare, how many images may wait for it, and for how long.
        telemetry: Counts the results.
    """

    def __init__(self, model: Model, options: Options, telemetry: Telemetry) -> None:
        self._model = model
        self._options = options
        self._telemetry = telemetry
        self._info: ModelInfo | None = None
        self._num_held = self._num_held_bytes = 0
        self._is_failing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._decoder = ThreadPoolExecutor(1, thread_name_prefix="shadow")  # separate, so that no client waits for it

    def offer(self, info: ModelInfo, files: Sequence[bytes | np.ndarray], pixels: Pixels, probs_BK: np.ndarray) -> None:
        """Accepts an answered request for comparison or skips it, and returns at once.

        Args:
            info: The model that answered.
            files: The images that this model could read, as they were sent. They are kept only for a shadow that needs
                other pixels, and at most `Options.max_body_bytes` of them in total.
            pixels: The same images as pixels for this model.
            probs_BK: This model's probabilities, float32 [images, classes].
        """
        if not files or random.random() >= self._options.shadow_share:  # noqa: S311 (no secret depends on it)
            return
        if self._info is not None and _fits(self._info, pixels):
            files = ()
        num_images, num_bytes = len(pixels.images), sum(_size(each) for each in files)
        has_room = self._num_held + num_images <= self._options.max_queued_images
        if not has_room or self._num_held_bytes + num_bytes > self._options.max_body_bytes:
            self._telemetry.not_compared("dropped", num_images)
            return
        self._num_held += num_images
        self._num_held_bytes += num_bytes
        task = asyncio.get_running_loop().create_task(self._compare(info, files, pixels, probs_BK))
        self._tasks.add(task)  # the loop itself keeps no reference to it
        task.add_done_callback(functools.partial(self._release, num_images, num_bytes))

    def _release(self, num_images: int, num_bytes: int, task: asyncio.Task[None]) -> None:
        self._num_held -= num_images
        self._num_held_bytes -= num_bytes
        self._tasks.discard(task)

    async def _compare(
        self, info: ModelInfo, files: Sequence[bytes | np.ndarray], pixels: Pixels, probs_BK: np.ndarray
    ) -> None:
        num_images = len(pixels.images)
        try:
            async with asyncio.timeout(self._options.timeout_s):
                shadow_BK = await self._predict(info, files, pixels)
            differences = np.abs(shadow_BK - probs_BK).mean(axis=1)
            if not np.isfinite(differences).all():
                raise TlrayError("The shadow bundle gave no finite probabilities.")
            num_agreeing = int((shadow_BK.argmax(axis=1) == probs_BK.argmax(axis=1)).sum())
            self._telemetry.compared(
                num_agreeing=num_agreeing,
                num_differing=num_images - num_agreeing,
                differences=float(differences.sum()),
            )
            self._is_failing = False
        except Exception as error:  # any error: nobody waits for it
            is_full = isinstance(error, RequestError) and error.status == 503
            self._telemetry.not_compared("dropped" if is_full else "error", num_images)
            if not is_full and not self._is_failing:  # log only the first of several in a row, to spare the disk
                self._is_failing = True
                _LOG.warning("The shadow bundle could not be compared: %r", error)

    async def _predict(self, info: ModelInfo, files: Sequence[bytes | np.ndarray], pixels: Pixels) -> np.ndarray:
        """Returns the shadow's probabilities, float32 [images, classes], in the order of the main version's classes."""
        for _ in range(NUM_TRIES):
            shadow = self._info = self._info or await self._model.describe()
            classes = shadow.spec.classes
            if set(classes) != set(info.spec.classes):
                raise TlrayError(f"The shadow bundle has other classes: {', '.join(classes)}.")
            answer = await self._model.predict(await self._fit(shadow, files, pixels))
            if answer.probabilities is not None and answer.bundle_sha256 == shadow.bundle_sha256:
                return answer.probabilities[:, [classes.index(name) for name in info.spec.classes]]
            self._info = None  # another bundle has just replaced the shadow's
        raise TlrayError("The shadow bundle was replaced more than once during a request.")

    async def _fit(self, shadow: ModelInfo, files: Sequence[bytes | np.ndarray], pixels: Pixels) -> Pixels:
        size_px, limits = shadow.spec.image_size_px, shadow.spec.intensity_range
        if _fits(shadow, pixels):
            return pixels
        if not files:
            raise RequestError(503, "The shadow bundle was replaced by one with another image size or intensity range.")
        loop = asyncio.get_running_loop()
        decoded = [await loop.run_in_executor(self._decoder, decode, file, shadow.spec) for file in files]
        images = []
        for each in decoded:
            if isinstance(each, ImageError):
                raise each
            images.append(each.pixels)
        return Pixels(images=images, size_px=size_px, intensity_range=limits)
