"""The deployment that holds a model, `Classifier`, and the messages that it exchanges with the ingress."""

import asyncio
import contextlib
import dataclasses
import functools
import gc
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import ray

from serve_app.model.batching import Batcher
from serve_app.model.explaining import Explaining
from serve_app.watch.telemetry import ModelTelemetry
from tlray.bundle import store
from tlray.bundle.spec import BundleSpec
from tlray.config.training import EngineChoice, PrecisionChoice
from tlray.errors import BundleError, TlrayError
from tlray.files import storage
from tlray.inference import lookalikes
from tlray.inference.lookalikes import Lookalike
from tlray.inference.predictor import Predictor

_LOG = logging.getLogger("ray.serve")  # Serve's logger, which writes into the replica's log

FIRST_PAUSE_S, MAX_PAUSE_S = 5.0, 300.0
"""Seconds before a replica tries again to load a bundle: the first pause and the longest. Each is twice the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pixels:
    """Images on their way to a model.

    Attributes:
        images: The bytes of each image: uint8 [size, size, 3], RGB, or [size, size], grey, as most slices are.
        size_px: Height and width of each image.
        intensity_range: The range with which 16-bit pixels became 8-bit ones; see `tlray.data.decoding.decode`.
        with_lookalikes: The training images that are most like each image are asked for, too.
    """

    images: Sequence[bytes]
    size_px: int
    intensity_range: tuple[float, float] | None
    with_lookalikes: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """Overlays that show where a model looked.

    Attributes:
        overlays: The overlay of each image as PNG; see `explain.overlay`.
        problem: Why this model cannot be explained; then there are no overlays. Otherwise empty.
    """

    overlays: Sequence[bytes] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Predictions of one model for some images.

    Attributes:
        bundle_sha256: SHA-256 of the bundle that answered.
        probabilities: float32 [images, classes]; None: the pixels were made for another model.
        ood_scores: How foreign the images are, see `tlray.bundle.novelty`, float32 [images]; NaN where it is not known.
            None: nothing is known.
        predict_s: Seconds from arrival to answer, including the time in the queue.
        explained: Overlays for the predicted class of each image; None: not asked for.
        lookalikes: The training images that are most like each image; none where the bundle keeps none. None: not asked
            for.
    """

    bundle_sha256: str
    probabilities: np.ndarray | None
    predict_s: float
    ood_scores: np.ndarray | None = None
    explained: Explained | None = None
    lookalikes: Sequence[Sequence[Lookalike]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A model that is loaded and warmed up.

    Attributes:
        spec: Description of the model's bundle.
        bundle_sha256: SHA-256 of the model's bundle, which identifies the model.
        location: Path or URI of the model's bundle.
        engine: The engine and precision that predict, such as "openvino bfloat16".
        max_batch_size: Maximum number of images in a batch.
    """

    spec: BundleSpec
    bundle_sha256: str
    location: str
    engine: str
    max_batch_size: int


class Model:
    """A model in this process: the predictor of a bundle, its queue, and its explanations."""

    def __init__(
        self,
        location: str,
        *,
        telemetry: ModelTelemetry,
        max_batch_size: int,
        max_waiting: int,
        engine: EngineChoice,
        precision: PrecisionChoice,
        num_threads: int | None,
        use_gpu: bool,
    ) -> None:
        self.predictor = Predictor(
            location, engine=engine, precision=precision, num_threads=num_threads, use_gpu=use_gpu
        )
        self._kept = self.predictor.bundle.lookalikes()
        spec = self.predictor.bundle.spec
        self.info = ModelInfo(
            spec=spec,
            bundle_sha256=self.predictor.bundle.sha256,
            location=storage.absolute(location),
            engine=str(self.predictor.kind),
            max_batch_size=max_batch_size,
        )
        self.batcher: Batcher[bytes, np.ndarray] = Batcher(
            self.run,
            max_batch_size=max_batch_size,
            max_queue=max_waiting,
            on_batch=lambda size: telemetry.started(batch_size=size, num_waiting=self.batcher.num_waiting),
        )
        self._num_users = 0
        self._is_unused = asyncio.Event()
        self._is_unused.set()
        self._explaining = Explaining(self.predictor.bundle, num_threads=num_threads)
        for size in {1, max_batch_size}:  # warm up: the first call with a batch size is slow
            self.predictor.predict(np.zeros((size, spec.image_size_px, spec.image_size_px, 3), np.uint8))
        _LOG.info("Loaded the bundle %s: %s predicts.", self.info.bundle_sha256[:12], self.info.engine)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Keeps the model open during a `with` block: `close` waits until all such blocks have ended."""
        self._num_users += 1
        self._is_unused.clear()
        try:
            yield
        finally:
            self._num_users -= 1
            if not self._num_users:
                self._is_unused.set()

    async def explain(self, images: Sequence[bytes], class_indices: Sequence[int]) -> Explained:
        """Returns Grad-CAM overlays of some images, each for one class. The caller must be within `in_use`."""
        images_BHWC = to_batch(images, self.info.spec.image_size_px)
        try:
            return Explained(overlays=await self._explaining.overlays([*images_BHWC], class_indices))
        except BundleError as error:
            return Explained(problem=str(error))

    def run(self, images: list[bytes]) -> list[np.ndarray]:
        """Returns for each image of a batch an array: its probabilities, how foreign it is, and its place.

        The place is what `lookalikes` takes. It has no components where the model's bundle keeps no training images.
        """
        scores = self.predictor.score(to_batch(images, self.info.spec.image_size_px))
        columns = [scores.probs_BK, scores.ood_scores]
        if self._kept is not None and scores.places_BC is not None:
            columns.append(scores.places_BC)
        return list(np.column_stack(columns))

    def lookalikes(self, places_BC: np.ndarray) -> list[list[Lookalike]]:
        """Returns the training images that are most like each image; none where the bundle keeps none.

        Args:
            places_BC: The places of the images, float32 [images, components]; see `run`.
        """
        if self._kept is None or not places_BC.shape[1]:
            return [[] for _ in places_BC]
        return lookalikes.find(places_BC, self._kept)

    async def close(self) -> None:
        """Accepts no more images, and returns when all waiting predictions and explanations are done."""
        await self.batcher.close()
        await self._is_unused.wait()
        self._explaining.close()


def to_batch(images: Sequence[bytes], size_px: int) -> np.ndarray:
    """Returns the model's input: uint8 [images, size, size, 3]; see `Pixels`."""
    batch_BHWC = np.empty((len(images), size_px, size_px, 3), np.uint8)
    for place, data in enumerate(images):
        image_HWC = np.frombuffer(data, np.uint8).reshape(size_px, size_px, -1)
        for channel in range(3):  # one at a time, which copies a grey image several times faster
            batch_BHWC[place, :, :, channel] = image_HWC[:, :, channel % image_HWC.shape[2]]
    return batch_BHWC


class Classifier:
    """A replica with the model of one bundle, which is replaced if the deployment's `user_config` names another."""

    def __init__(
        self,
        location: str,
        version: int | str,
        *,
        max_batch_size: int,
        max_waiting: int,
        engine: EngineChoice = "auto",
        precision: PrecisionChoice = "auto",
        use_gpu: bool = False,
    ) -> None:
        # A replica with whole CPUs uses as many threads. One with a fraction of a CPU uses all CPUs of its node.
        cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 0.0)
        self._telemetry = ModelTelemetry(version)
        self._load = functools.partial(
            Model,
            telemetry=self._telemetry,
            max_batch_size=max_batch_size,
            max_waiting=max_waiting,
            engine=engine,
            precision=precision,
            num_threads=int(cpus) or None,
            use_gpu=use_gpu,
        )
        self._model = self._load(location)
        self._telemetry.loaded()
        self._is_started = False
        self._order = object()  # each `reconfigure` sets a new one, which ends the attempts of those before
        self._replacing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def check_health(self) -> None:
        """Notes that the replica has started. Serve calls this regularly, first after the model is configured."""
        self._is_started = True

    async def reconfigure(self, user_config: dict[str, str]) -> None:
        """Loads another bundle, `user_config["bundle"]`, while the present one goes on answering.

        If a bundle cannot be loaded, the present one stays, because Serve would end a replica that raised here, and the
        service with it. The replica tries again by itself, with growing pauses, until the bundle is loaded or another
        call names one. A replica that is just being started does raise: it would answer with another model than others.
        """
        location, order = user_config["bundle"], object()
        self._order = order
        try:
            await self._replace(location, order)
        except Exception as error:
            if not self._is_started:
                raise
            self._note_failure(order, error, 1, FIRST_PAUSE_S)
            task = asyncio.create_task(self._catch_up(location, order))
            self._tasks.add(task)  # the loop itself keeps no reference to it
            task.add_done_callback(self._tasks.discard)

    async def _catch_up(self, location: str, order: object) -> None:
        """Calls `_replace` after growing pauses until it succeeds, or until another `reconfigure` has come."""
        num_failed, pause_s = 1, FIRST_PAUSE_S
        while order is self._order:
            await asyncio.sleep(pause_s)
            try:
                await self._replace(location, order)
            except Exception as error:  # any error: it may be gone the next time
                num_failed, pause_s = num_failed + 1, min(2 * pause_s, MAX_PAUSE_S)
                self._note_failure(order, error, num_failed, pause_s)
            else:
                return

    def _note_failure(self, order: object, error: Exception, num_failed: int, pause_s: float) -> None:
        if order is not self._order:
            return  # another bundle is wanted by now
        known = isinstance(error, TlrayError)
        said = error if known else f"{error!r}."
        _LOG.error(
            "The bundle was not replaced: %s Trying again in %g s.", said, pause_s, exc_info=None if known else error
        )
        self._telemetry.not_loaded(num_failed)

    async def _replace(self, location: str, order: object) -> None:
        """Replaces the model by that of a bundle; does nothing once another `reconfigure` has come after `order`."""
        async with self._replacing:  # one after another, so that a replica never holds more than two models
            model = await asyncio.to_thread(self._load_other, location) if order is self._order else None
            unused = model
            if order is self._order:
                self._telemetry.loaded()
                unused, self._model = (self._model, model) if model else (None, self._model)
            if unused is None:
                return
            await unused.close()
            del unused, model
            # Ray hides all objects of a new replica from the garbage collector, which would never free its first model.
            gc.unfreeze()
            gc.collect()
            gc.freeze()

    def _load_other(self, location: str) -> Model | None:
        """Loads a bundle; returns None for the present one, which Serve also passes when it renumbers its replicas."""
        info = self._model.info
        is_same = (storage.absolute(location), store.read_spec(location)[1]) == (info.location, info.bundle_sha256)
        return None if is_same else self._load(location)

    async def describe(self) -> ModelInfo:
        """Returns the description of the loaded model."""
        return self._model.info

    async def predict(self, pixels: Pixels) -> Answer:
        """Returns the predictions for some images, which share batches with those of other requests."""
        return await _predict(self._model, pixels)

    async def explain(self, pixels: Pixels, bundle_sha256: str) -> Answer:
        """Predicts some images and explains the predicted class of each, with one model even while it is replaced.

        If another bundle than `bundle_sha256` is loaded, nothing is computed: the answer has the SHA-256 of the loaded
        bundle and no probabilities.
        """
        model = self._model
        if bundle_sha256 != model.info.bundle_sha256:
            return Answer(bundle_sha256=model.info.bundle_sha256, probabilities=None, predict_s=0.0)
        with model.in_use():
            answer = await _predict(model, pixels)
            if answer.probabilities is None:
                return answer
            explained = await model.explain(pixels.images, answer.probabilities.argmax(axis=1).tolist())
        return dataclasses.replace(answer, explained=explained)


async def _predict(model: Model, pixels: Pixels) -> Answer:
    start_s = time.monotonic()
    spec = model.info.spec
    probabilities = ood_scores = found = None
    if (pixels.size_px, pixels.intensity_range) == (spec.image_size_px, spec.intensity_range):
        rows = np.stack(await model.batcher.submit_all(pixels.images))
        num_classes = len(spec.classes)
        probabilities, ood_scores = np.ascontiguousarray(rows[:, :num_classes]), rows[:, num_classes]
        if pixels.with_lookalikes:
            found = model.lookalikes(rows[:, num_classes + 1 :])
    return Answer(
        bundle_sha256=model.info.bundle_sha256,
        probabilities=probabilities,
        ood_scores=ood_scores,
        lookalikes=found,
        predict_s=time.monotonic() - start_s,
    )
