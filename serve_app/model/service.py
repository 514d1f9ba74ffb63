"""The service behind all protocols: it admits and decodes images, asks a model, and keeps to the time limit."""

import asyncio
import functools
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np

from serve_app.errors import RETRY_AFTER_S, RequestError, image_error
from serve_app.http.request_log import note
from serve_app.model.classifier import Answer, Explained, ModelInfo, Pixels
from serve_app.model.decoding import Decoded, decode
from serve_app.model.renewal import renewed
from serve_app.options import Options
from serve_app.watch.drift import STATISTICS, DriftWindow, Look
from serve_app.watch.telemetry import Telemetry
from tlray.bundle.judgement import Judgement, judge
from tlray.bundle.spec import BundleSpec
from tlray.errors import ImageError, ImageErrorCode
from tlray.inference.lookalikes import Lookalike

_LOG = logging.getLogger("ray.serve")  # Serve's logger, which writes into the replica's log

T = TypeVar("T")

MAX_PIXELS_AT_ONCE = 2**22
"""Maximum pixels of an image that is decoded in parallel with others.

Larger ones are decoded one after another, because each may take a gigabyte.
"""


class Model(Protocol):
    """The interface of a model, here or elsewhere in the cluster; see `RemoteModel` and `LocalModel`."""

    async def describe(self) -> ModelInfo:
        """Returns the description of the loaded model."""
        ...

    async def predict(self, pixels: Pixels) -> Answer:
        """Returns the predictions for some images."""
        ...

    async def explain(self, pixels: Pixels, bundle_sha256: str) -> Answer:
        """Returns predictions and overlays for some images; no probabilities if another bundle is loaded."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The predictions for the images of a request.

    Attributes:
        info: The model that answered.
        probabilities: float32 [readable images, classes].
        ood_scores: How foreign the readable images are, float32 [readable images]; NaN where it is not known.
        judgement: Their judgement by the limits of the model.
        errors: The error of each image; None if it is readable.
        explanations: The Grad-CAM overlay of each readable image for its predicted class, PNG; empty: not asked for, or
            not possible.
        not_explained: Why there are no overlays though they were asked for; otherwise empty.
        lookalikes: The training images that are most like each readable image; none where the model's bundle keeps
            none. None: not asked for.
        decode_s: Seconds for decoding.
        predict_s: Seconds for the queue and the model.
    """

    info: ModelInfo
    probabilities: np.ndarray
    ood_scores: np.ndarray
    judgement: Judgement
    errors: Sequence[ImageError | None]
    explanations: Sequence[bytes]
    not_explained: str
    lookalikes: Sequence[Sequence[Lookalike]] | None
    decode_s: float
    predict_s: float


Mirror = Callable[[ModelInfo, Sequence[bytes | np.ndarray], Pixels, np.ndarray], None]
"""A function that is given the images of an answered request; see `Shadow.offer`."""


class Service:
    """Answers requests for predictions with the versions of a model. Each ingress replica has one.

    Args:
        options: The operator's settings.
        models: The model's versions, by number.
        telemetry: The metrics in which images and errors are counted; None: new ones.
        mirror: Called with the images that the main version has answered; None: nothing is called.
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
        self._num_held = self._num_explained = 0
        # An overlay takes many times as long as a prediction: they get half of the queue, or one largest request.
        self._max_explained = max(options.max_images_per_request, options.max_queued_images // 2)
        self._decoders = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="decode")
        self._large_decoder = ThreadPoolExecutor(1, thread_name_prefix="decode-large")
        # One thread, because JSON of many small lists takes twenty times as much memory as the body.
        self._parsers = ThreadPoolExecutor(1, thread_name_prefix="parse")

    async def model_info(self, version: int | None = None) -> ModelInfo:
        """Returns the description of a version's loaded model.

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
        """Returns the last known `model_info` of a version; asks for it only if there is none."""
        return self._infos.get(self.number(version)) or await self.model_info(version)

    @property
    def versions(self) -> list[int]:
        """The numbers of the model's versions, in order."""
        return sorted(self._models)

    def check_name(self, name: str) -> None:
        """Checks that a name is that of this model.

        Raises:
            RequestError: 404: it is the name of another model.
        """
        if name != self.options.name:
            raise RequestError(
                404, f"There is no model {name[:100]!r}; this server has the model {self.options.name!r}."
            )

    def number(self, version: int | None) -> int:
        """Checks that a version exists and returns its number; for None, the number of the main version.

        Raises:
            RequestError: 404: there is no such version.
        """
        number = self.options.version if version is None else version
        if number not in self._models:
            raise RequestError(404, f"The model {self.options.name} has no version {version}.")
        return number

    def check_room(self, num_images: int = 1, *, explain: bool = False) -> None:
        """Checks that there is room for some images, and for their overlays if they are to be explained.

        Raises:
            RequestError: 429: too many images are waiting, or too many of them for an overlay.
        """
        if self._num_held + num_images > self.options.max_queued_images:
            problem = "Too many images are waiting. Try again a little later."
        elif explain and self._num_explained + num_images > self._max_explained:
            problem = "Too many images are waiting for an overlay. Try again a little later, or without explain=true."
        else:
            return
        raise RequestError(429, problem, retry_after_s=RETRY_AFTER_S)

    async def parse(self, function: Callable[..., T], body: bytes, **named: Any) -> T:
        """Returns a function's result for a request's body. It runs outside the event loop, one body after another.

        Raises:
            RequestError: 504: the result was not there in time; and the errors of the function.
        """
        call = functools.partial(function, body, **named)
        try:
            async with asyncio.timeout(self.options.timeout_s):
                return await asyncio.get_running_loop().run_in_executor(self._parsers, call)
        except TimeoutError:
            raise RequestError(504, f"The request was not parsed within {self.options.timeout_s:g} s.") from None

    async def predict(
        self,
        files: Sequence[bytes | np.ndarray],
        version: int | None = None,
        *,
        explain: bool = False,
        lookalikes: bool = False,
        all_of: str | None = None,
    ) -> Prediction:
        """Returns the predictions for the images of a request.

        Args:
            files: Image files, or pixels, uint8 [height, width, 3].
            version: Version of the model; None: the main one.
            explain: Whether to add Grad-CAM overlays.
            lookalikes: Whether to add the training images that are most like each image.
            all_of: For protocols that answer all images or none: the name of the list of images, for the message.
                None: an image that cannot be decoded has an error in the answer.

        Raises:
            RequestError: 413: too many images; 422: with `all_of`, an image cannot be decoded, and none is
                predicted; 429: too many others are waiting; 504: no answer in time.
        """
        number = self.number(version)
        note(num_images=len(files))
        most = min(self.options.max_images_per_request, self.options.max_queued_images)  # more would never find room
        if len(files) > most:
            raise RequestError(413, f"The request has {len(files)} images, but at most {most} are allowed.")
        self.check_room(len(files), explain=explain)
        self._hold(len(files), explain=explain)
        try:
            async with asyncio.timeout(self.options.timeout_s):
                return await self._predict(number, files, all_of, explain=explain, lookalikes=lookalikes)
        except TimeoutError:
            raise RequestError(504, f"The model did not answer within {self.options.timeout_s:g} s.") from None
        finally:
            self._hold(-len(files), explain=explain)

    async def _predict(
        self,
        number: int,
        files: Sequence[bytes | np.ndarray],
        all_of: str | None,
        *,
        explain: bool,
        lookalikes: bool,
    ) -> Prediction:
        info = await self.known_info(number)
        while True:
            start_s = time.monotonic()
            decoded = await self._decode(files, info)
            decode_s = time.monotonic() - start_s
            spec = info.spec
            errors = [each if isinstance(each, ImageError) else None for each in decoded]
            if all_of is not None and any(errors):
                known, info = info, await renewed(functools.partial(self.model_info, number), info)
                if info.bundle_sha256 != known.bundle_sha256:
                    continue  # another bundle has just replaced this one, and may take these images
                self.telemetry.undecodable(number, [each.code.value for each in errors if each is not None])
                raise image_error(errors, [f"{all_of}[{place}]" for place in range(len(errors))])
            images = [each.pixels for each in decoded if isinstance(each, Decoded)]
            pixels = Pixels(images=images, size_px=spec.image_size_px, intensity_range=spec.intensity_range)
            # The mirror gets the pixels alone.
            answer = await self._ask(number, replace(pixels, with_lookalikes=lookalikes), info, explain=explain)
            probs_BK = answer.probabilities
            if probs_BK is not None and answer.bundle_sha256 == info.bundle_sha256:
                unknown = np.full(len(probs_BK), np.nan, np.float32)
                ood_scores = unknown if answer.ood_scores is None else answer.ood_scores
                judged = judge(probs_BK, ood_scores, spec.limits)
                self._observe(number, info, decoded, probs_BK=probs_BK, ood_scores=ood_scores, judged=judged)
                if self._mirror is not None and number == self.options.version:
                    places = [place for place, each in enumerate(decoded) if isinstance(each, Decoded)]
                    self._mirror(info, [files[place] for place in places], pixels, probs_BK)
                explained = answer.explained or Explained()
                return Prediction(
                    info=info,
                    probabilities=probs_BK,
                    ood_scores=ood_scores,
                    judgement=judged,
                    errors=errors,
                    explanations=explained.overlays,
                    not_explained=explained.problem,
                    lookalikes=answer.lookalikes,
                    decode_s=decode_s,
                    predict_s=answer.predict_s,
                )
            info = await self.model_info(number)  # another bundle has just replaced this one

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

    def _hold(self, num_images: int, *, explain: bool) -> None:
        self._num_held += num_images
        self._num_explained += num_images if explain else 0
        self.telemetry.held_images.set(self._num_held, {})

    def _observe(
        self,
        number: int,
        info: ModelInfo,
        decoded: Sequence[Decoded | ImageError],
        *,
        probs_BK: np.ndarray,
        ood_scores: np.ndarray,
        judged: Judgement,
    ) -> None:
        """Counts the images of an answered request, and adds them to the version's drift window."""
        note(bundle_sha256=info.bundle_sha256)
        classes = probs_BK.argmax(axis=1).tolist()
        self.telemetry.predicted(
            number,
            labels=[info.spec.classes[each] for each in classes],
            reasons=[reason for reason in judged.reasons if reason],
        )
        self.telemetry.undecodable(number, [each.code.value for each in decoded if isinstance(each, ImageError)])
        window = self._window(number, info)
        if window is not None:
            greys = [each.grey for each in decoded if isinstance(each, Decoded) and each.grey is not None]
            look = window.add(greys, probs_BK, ood_scores)
            if look is not None:
                self.telemetry.looked(number, look, window.chance)
                if look.is_news:
                    _LOG.warning("Version %s of the model %s: %s", number, self.options.name, look.describe())

    def _window(self, number: int, info: ModelInfo) -> DriftWindow | None:
        """Returns the drift window of a version, a new one for a new bundle; None if the bundle has no reference."""
        sha256, window = self._windows.get(number, ("", None))
        if sha256 != info.bundle_sha256:
            if window is not None:
                unknown: dict[str, float] = dict.fromkeys(STATISTICS, math.nan)
                self.telemetry.looked(number, Look(indices=unknown, p_values=unknown), unknown)
            training, predictions = info.spec.training_images, info.spec.validation_predictions
            window = DriftWindow(training, predictions) if training or predictions else None
            if window is not None:
                # It loads SciPy: not in the event loop, and long before the window is full.
                asyncio.get_running_loop().run_in_executor(self._decoders, window.prepare)
            self._windows[number] = info.bundle_sha256, window
        return window
