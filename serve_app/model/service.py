"""What the endpoint does with images, whatever protocol they came by: admit, decode, ask a model, answer in time."""

import asyncio
import functools
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from serve_app.errors import RETRY_AFTER_S, RequestError
from serve_app.http.request_log import note
from serve_app.model.classifier import Answer, Explained, ModelInfo, Pixels
from serve_app.model.decoding import Decoded, decode
from serve_app.options import Options
from serve_app.watch.drift import STATISTICS, DriftWindow
from serve_app.watch.telemetry import Telemetry
from tlray.bundle.spec import BundleSpec
from tlray.errors import ImageError, ImageErrorCode

T = TypeVar("T")

MAX_PIXELS_AT_ONCE = 2**22
"""Of images that are decoded side by side. Those with more come one after another: each may take a gigabyte."""


class Model(Protocol):
    """A model somewhere in the cluster; see `Classifier`."""

    async def describe(self) -> ModelInfo:
        """Tells what is loaded."""
        ...

    async def predict(self, pixels: Pixels) -> Answer:
        """Predicts some images."""
        ...

    async def explain(self, pixels: Pixels, bundle_sha256: str) -> Answer:
        """Predicts and explains some images, if by this bundle; otherwise there are no probabilities."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What became of some images.

    Attributes:
        info: The model that answered.
        probabilities: float32 [readable images, classes].
        errors: For each image what is wrong with it, None for nothing.
        explanations: For each readable image the Grad-CAM overlay of the predicted class, PNG; empty: not asked for.
        not_explained: Why there are none, though asked for.
        decode_s: Time for decoding.
        predict_s: Time for the queue and the model.
    """

    info: ModelInfo
    probabilities: np.ndarray
    errors: Sequence[ImageError | None]
    explanations: Sequence[bytes]
    not_explained: str
    decode_s: float
    predict_s: float


Mirror = Callable[[ModelInfo, Sequence[bytes | np.ndarray], Pixels, np.ndarray], None]
"""What is shown images that have been answered; see `Shadow.offer`."""


class Service:
    """The models and what guards them. One in each ingress replica.

    Args:
        options: The operator's settings.
        models: The model's versions.
        telemetry: What counts.
        mirror: What is shown the images that the main version has answered.
    """

    def __init__(
        self,
        options: Options,
        models: Mapping[int, Model],
        telemetry: Telemetry | None = None,
        mirror: Mirror | None = None,
    ) -> None:
        self.options = options
        self.telemetry = telemetry or Telemetry(options.name)
        self._models = models
        self._mirror = mirror
        self._infos: dict[int, ModelInfo] = {}
        self._windows: dict[int, tuple[str, DriftWindow | None]] = {}
        self._num_held = 0
        self._decoders = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="decode")
        self._large_decoder = ThreadPoolExecutor(1, thread_name_prefix="decode-large")
        # One: of a body of many small lists JSON makes twenty times as much.
        self._parsers = ThreadPoolExecutor(1, thread_name_prefix="parse")

    async def model_info(self, version: int | None = None) -> ModelInfo:
        """Tells which bundle a version has.

        Raises:
            RequestError: 404: there is no such version; 503: it does not answer.
        """
        number = self.number(version)
        try:
            async with asyncio.timeout(self.options.timeout_s):
                info = self._infos[number] = await self._models[number].describe()
        except TimeoutError:
            raise RequestError(
                503, f"No model answered within {self.options.timeout_s:g} s.", retry_after_s=RETRY_AFTER_S
            ) from None
        return info

    async def known_info(self, version: int | None = None) -> ModelInfo:
        """Tells which bundle a version had when it was last asked; see `model_info`."""
        return self._infos.get(self.number(version)) or await self.model_info(version)

    @property
    def versions(self) -> list[int]:
        """The numbers of the model's versions, in order."""
        return sorted(self._models)

    def check_name(self, name: str) -> None:
        """Refuses the name of another model.

        Raises:
            RequestError: 404.
        """
        if name != self.options.name:
            raise RequestError(404, f"There is no model {name[:100]!r} here; this is {self.options.name!r}.")

    def number(self, version: int | None) -> int:
        """Returns the number of a version; None: that of the main one.

        Raises:
            RequestError: 404: there is no such version.
        """
        number = self.options.version if version is None else version
        if number not in self._models:
            raise RequestError(404, f"The model {self.options.name} has no version {version}.")
        return number

    def check_room(self, num_images: int = 1) -> None:
        """Refuses images for which there is no room.

        Raises:
            RequestError: 429.
        """
        if self._num_held + num_images > self.options.max_queued_images:
            raise RequestError(
                429, "Too many images are waiting. Try again a little later.", retry_after_s=RETRY_AFTER_S
            )

    async def parse(self, function: Callable[..., T], body: bytes, **named: Any) -> T:
        """Parses a request's body: the function's result, called off the event loop, one body after another.

        Raises:
            RequestError: 504: others took too long; and what the function raises.
        """
        call = functools.partial(function, body, **named)
        try:
            async with asyncio.timeout(self.options.timeout_s):
                return await asyncio.get_running_loop().run_in_executor(self._parsers, call)
        except TimeoutError:
            raise RequestError(504, f"The request was not read within {self.options.timeout_s:g} s.") from None

    async def predict(
        self, files: Sequence[bytes | np.ndarray], version: int | None = None, *, explain: bool = False
    ) -> Prediction:
        """Predicts images.

        Args:
            files: Image files, or pixels, uint8 [height, width, 3].
            version: Of the model; None: the main one.
            explain: With overlays.

        Raises:
            RequestError: 413: too many images; 429: too many others are waiting; 504: no answer in time.
        """
        number = self.number(version)
        note(num_images=len(files))
        most = min(self.options.max_images_per_request, self.options.max_queued_images)  # more would never find room
        if len(files) > most:
            raise RequestError(413, f"{len(files)} images in one request; the most are {most}.")
        self.check_room(len(files))
        self._hold(len(files))
        try:
            async with asyncio.timeout(self.options.timeout_s):
                return await self._predict(number, files, explain=explain)
        except TimeoutError:
            raise RequestError(504, f"The model did not answer within {self.options.timeout_s:g} s.") from None
        finally:
            self._hold(-len(files))

    async def _predict(self, number: int, files: Sequence[bytes | np.ndarray], *, explain: bool) -> Prediction:
        info = await self.known_info(number)
        while True:
            start_s = time.monotonic()
            decoded = await self._decode(files, info)
            decode_s = time.monotonic() - start_s
            spec = info.spec
            good = [each for each in decoded if not isinstance(each, ImageError)]
            pixels = Pixels(
                images=[each.pixels for each in good],
                size_px=spec.image_size_px,
                intensity_range=spec.intensity_range,
            )
            answer = await self._ask(number, pixels, info, explain=explain)
            probs_BK = answer.probabilities
            if probs_BK is not None and answer.bundle_sha256 == info.bundle_sha256:
                self._observe(number, info, decoded, probs_BK)
                if self._mirror is not None and number == self.options.version:
                    places = [place for place, each in enumerate(decoded) if isinstance(each, Decoded)]
                    self._mirror(info, [files[place] for place in places], pixels, probs_BK)
                explained = answer.explained or Explained()
                return Prediction(
                    info=info,
                    probabilities=probs_BK,
                    errors=[each if isinstance(each, ImageError) else None for each in decoded],
                    explanations=explained.overlays,
                    not_explained=explained.problem,
                    decode_s=decode_s,
                    predict_s=answer.predict_s,
                )
            info = await self.model_info(number)  # another bundle has just been put in its place

    async def _ask(self, number: int, pixels: Pixels, info: ModelInfo, *, explain: bool) -> Answer:
        if not pixels.images:
            none = np.zeros((0, len(info.spec.classes)), np.float32)
            return Answer(bundle_sha256=info.bundle_sha256, probabilities=none, predict_s=0.0)
        model = self._models[number]
        answer = await (model.explain(pixels, info.bundle_sha256) if explain else model.predict(pixels))
        if answer.probabilities is not None and not np.isfinite(answer.probabilities).all():
            raise RequestError(500, "The model gave no finite probabilities.", ImageErrorCode.PREDICT_FAILED.value)
        return answer

    async def _decode(self, files: Sequence[bytes | np.ndarray], info: ModelInfo) -> list[Decoded | ImageError]:
        return await asyncio.gather(*(self._decode_one(file, info.spec) for file in files))

    async def _decode_one(self, file: bytes | np.ndarray, spec: BundleSpec) -> Decoded | ImageError:
        run = asyncio.get_running_loop().run_in_executor
        decoded = await run(self._decoders, decode, file, spec, MAX_PIXELS_AT_ONCE)
        if isinstance(decoded, ImageError) and decoded.code == ImageErrorCode.TOO_LARGE:
            decoded = await run(self._large_decoder, decode, file, spec)
        return decoded

    def _hold(self, num_images: int) -> None:
        self._num_held += num_images
        self.telemetry.held_images.set(self._num_held, {})

    def _observe(
        self, number: int, info: ModelInfo, decoded: Sequence[Decoded | ImageError], probs_BK: np.ndarray
    ) -> None:
        """Counts what was answered."""
        note(bundle_sha256=info.bundle_sha256)
        classes = probs_BK.argmax(axis=1).tolist()
        self.telemetry.predicted(
            number,
            labels=[info.spec.classes[each] for each in classes],
            num_referred=sum(each < info.spec.refer_below for each in probs_BK.max(axis=1).tolist()),
            error_codes=[each.code.value for each in decoded if isinstance(each, ImageError)],
        )
        window = self._window(number, info)
        if window is not None:
            greys = [each.grey for each in decoded if isinstance(each, Decoded) and each.grey is not None]
            indices = window.add(greys, probs_BK)
            if indices is not None:
                self.telemetry.drifted(number, indices, window.chance)

    def _window(self, number: int, info: ModelInfo) -> DriftWindow | None:
        """Returns what watches a version's images; another bundle begins anew."""
        sha256, window = self._windows.get(number, ("", None))
        if sha256 != info.bundle_sha256:
            if window is not None:
                unknown: dict[str, float] = dict.fromkeys(STATISTICS, math.nan)
                self.telemetry.drifted(number, unknown, unknown)
            training, predictions = info.spec.training_images, info.spec.validation_predictions
            window = DriftWindow(training, predictions) if training or predictions else None
            self._windows[number] = info.bundle_sha256, window
        return window
