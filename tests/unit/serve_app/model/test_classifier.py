"""A replica's model: exchanged, kept, explained; without Ray."""

import asyncio
import gc
import logging
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import keras
import numpy as np
import pytest

from serve_app.app import build
from serve_app.errors import RequestError
from serve_app.model import explaining
from serve_app.model.classifier import Answer, Classifier, Explained, Pixels, to_batch
from serve_app.model.remote import RemoteModel
from serve_app.model.service import Prediction, Service
from serve_app.options import Options
from tests.endpoint import LocalClassifier
from tlray import cli
from tlray.bundle import store
from tlray.bundle.lookalikes import KeptImages
from tlray.errors import BundleError
from tlray.inference.predictor import Predictor, Scores
from tlray.models import explain

SIZE_PX = 16
DEADLINE_S = 60


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two small models."""
    root = tmp_path_factory.mktemp("bundles")
    (root / "classes.txt").write_text("one\ntwo\n")
    found: dict[str, str] = {}
    for seed, name in enumerate(("first", "second")):
        keras.utils.set_random_seed(seed)
        image = keras.Input((SIZE_PX, SIZE_PX, 3))
        x = keras.layers.Conv2D(4, 5, strides=2, activation="relu")(image)
        x = keras.layers.Dense(2, activation="softmax")(keras.layers.Flatten()(x))
        keras.Model(image, x).save(root / f"{name}.keras")
        arguments = ["--model", root / f"{name}.keras", "--classes", root / "classes.txt"]
        with pytest.raises(SystemExit) as exit_info:
            cli.main(["export", *map(str, arguments), "--preprocessing", "raw", "--out", str(root / name)])
        assert not exit_info.value.code
        found[name] = str(root / name)
    return found


@pytest.fixture
def classifier(bundles) -> Iterator[LocalClassifier]:
    replica = LocalClassifier(bundles["first"])
    yield replica
    asyncio.run(replica._model.close())


@pytest.fixture
def explaining_here(monkeypatch) -> None:
    """Explains in a thread, so that tests can replace the explainer."""
    monkeypatch.setattr(explaining, "_new_pool", lambda _: ThreadPoolExecutor(1))
    monkeypatch.setattr(explaining, "_EXPLAINERS", {})


def pixels(classifier: LocalClassifier) -> Pixels:
    limits = classifier._model.info.spec.intensity_range
    image = np.random.default_rng(0).integers(0, 256, (SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
    return Pixels(images=[image.tobytes()] * 2, size_px=SIZE_PX, intensity_range=limits)


def sha256_of(bundle: str) -> str:
    return store.read_spec(bundle)[1]


def sha256(classifier: LocalClassifier) -> str:
    return asyncio.run(classifier.describe()).bundle_sha256


def test_another_bundle_takes_the_place_and_the_first_one_goes(classifier, bundles):
    first, before = weakref.ref(classifier._model.predictor), sha256(classifier)
    # As Ray does when a replica has been started, for speed.
    gc.collect()
    gc.freeze()
    try:
        asyncio.run(classifier.reconfigure({"bundle": bundles["second"]}))
    finally:
        gc.unfreeze()
    assert sha256(classifier) != before
    assert first() is None


def test_the_log_says_once_which_engine_predicts(bundles, caplog):
    logger = logging.getLogger("ray.serve")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(caplog.handler)  # Serve's logger hands nothing on
    try:
        replica = LocalClassifier(bundles["first"])
        before = list(caplog.records)
        asyncio.run(replica.predict(pixels(replica)))
        assert caplog.records == before
    finally:
        logger.removeHandler(caplog.handler)
        logger.setLevel(level)
    asyncio.run(replica._model.close())
    said = f"Loaded the bundle {sha256_of(bundles['first'])[:12]}: openvino float32 predicts."
    assert [record.getMessage() for record in before] == [said]
    assert asyncio.run(replica.describe()).engine == "openvino float32"


def test_the_present_bundle_is_not_loaded_again(classifier, bundles):
    model = classifier._model
    asyncio.run(classifier.reconfigure({"bundle": bundles["first"]}))
    assert classifier._model is model
    assert asyncio.run(classifier.predict(pixels(classifier))).probabilities is not None


def test_a_bundle_that_is_none_stops_a_start_and_no_service(classifier, bundles):
    before = sha256(classifier)
    with pytest.raises(BundleError):
        asyncio.run(classifier.reconfigure({"bundle": f"{bundles['first']}/nowhere"}))
    classifier.check_health()
    asyncio.run(classifier.reconfigure({"bundle": f"{bundles['first']}/nowhere"}))
    assert sha256(classifier) == before
    assert asyncio.run(classifier.predict(pixels(classifier))).probabilities is not None


class Storage:
    """Fails to load bundles as often as it is told, as a full /tmp or a storage that times out does."""

    def __init__(self, classifier: LocalClassifier, monkeypatch, num_failures: int) -> None:
        self.num_failures = num_failures
        self.locations: list[str] = []
        self._load = classifier._load
        monkeypatch.setattr(classifier, "_load", self)

    def __call__(self, location: str) -> Any:
        self.locations.append(location)
        if self.num_failures:
            self.num_failures -= 1
            raise OSError("No space left on device")
        return self._load(location)


class Pauses:
    """Notes the pauses between attempts in place of waiting; `between` is called in each."""

    def __init__(self, monkeypatch) -> None:
        self.seconds: list[float] = []
        self.between: Callable[[], Awaitable[None]] | None = None
        self._sleep = asyncio.sleep
        monkeypatch.setattr(f"{Classifier.__module__}.asyncio.sleep", self)

    async def __call__(self, seconds: float) -> None:
        if seconds < 1:  # those of the tests themselves
            await self._sleep(seconds)
            return
        self.seconds.append(seconds)
        if self.between is not None:
            await self.between()


async def caught_up(classifier: LocalClassifier) -> None:
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(*classifier._tasks)


def test_a_replica_that_alone_could_not_load_a_bundle_tries_again_until_it_has_it(
    classifier, bundles, monkeypatch, recorded
):
    storage, pauses = Storage(classifier, monkeypatch, num_failures=9), Pauses(monkeypatch)
    first, meanwhile = sha256(classifier), []
    classifier.check_health()

    async def predict() -> None:
        meanwhile.append((await classifier.predict(pixels(classifier))).bundle_sha256)

    async def exchange() -> None:
        pauses.between = predict
        await classifier.reconfigure({"bundle": bundles["second"]})
        await caught_up(classifier)

    asyncio.run(exchange())
    assert sha256(classifier) == sha256_of(bundles["second"])
    assert pauses.seconds == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    assert meanwhile == [first] * 9
    assert storage.locations == [bundles["second"]] * 10
    failed = [(value, tags) for name, value, tags in recorded if name == "tlray_failed_loads"]
    assert failed == [(count, {"version": "1"}) for count in (*range(1, 10), 0)]


@pytest.mark.parametrize("named", ["first", "second"])
def test_a_bundle_that_is_named_later_ends_the_attempts_for_the_former(classifier, bundles, monkeypatch, named):
    storage, pauses = Storage(classifier, monkeypatch, num_failures=1), Pauses(monkeypatch)
    classifier.check_health()

    async def exchange() -> None:
        pauses.between = lambda: classifier.reconfigure({"bundle": bundles[named]})
        await classifier.reconfigure({"bundle": f"{bundles['second']}/../second"})
        await caught_up(classifier)

    asyncio.run(exchange())
    assert sha256(classifier) == sha256_of(bundles[named])
    assert storage.locations[1:] == ([] if named == "first" else [bundles["second"]])


def test_a_bundle_is_dropped_if_another_one_is_named_while_it_is_loaded(classifier, bundles, monkeypatch):
    load, begun, gate = classifier._load, threading.Event(), threading.Event()
    loaded: list[Any] = []
    closed: list[Any] = []

    def load_when_let(location: str) -> Any:
        begun.set()
        assert gate.wait(DEADLINE_S)
        loaded.append(load(location))
        close = loaded[-1].close
        loaded[-1].close = lambda: (closed.append(loaded[-1]), close())[1]
        return loaded[-1]

    monkeypatch.setattr(classifier, "_load", load_when_let)
    classifier.check_health()
    model = classifier._model

    async def exchange() -> None:
        exchanging = asyncio.create_task(classifier.reconfigure({"bundle": bundles["second"]}))
        await asyncio.to_thread(begun.wait, DEADLINE_S)
        going_back = asyncio.create_task(classifier.reconfigure({"bundle": bundles["first"]}))
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(exchanging, going_back)

    asyncio.run(exchange())
    assert classifier._model is model
    assert len(loaded) == 1
    assert closed == loaded


@pytest.mark.usefixtures("explaining_here")
def test_a_model_that_cannot_be_explained_says_so_and_is_taken_apart_once(classifier, monkeypatch):
    loads: list[Any] = []

    def fail(bundle: Any) -> None:
        loads.append(bundle)
        raise BundleError("It has no feature map.")

    monkeypatch.setattr("tlray.models.explain.Explainer", fail)

    async def explain_twice() -> list[Any]:
        sha256 = (await classifier.describe()).bundle_sha256
        return [(await classifier.explain(pixels(classifier), sha256)).explained for _ in range(2)]

    assert asyncio.run(explain_twice()) == [Explained(problem="It has no feature map.")] * 2
    assert len(loads) == 1


class Placed:
    """Scores images as a bundle's predictor does, and finds dark ones at (0, 2) and light ones at (3, 0)."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def __call__(self, images_BHWC: np.ndarray) -> Scores:
        is_light = images_BHWC.mean(axis=(1, 2, 3)) > 127
        places_BC = np.where(is_light[:, np.newaxis], [[3.0, 0.0]], [[0.0, 2.0]]).astype(np.float32)
        return replace(Predictor.score(self._predictor, images_BHWC), places_BC=places_BC)


def test_lookalikes_are_found_only_if_asked_for(classifier, monkeypatch):
    model = classifier._model
    kept = KeptImages(directions=np.eye(2, dtype=np.float32), labels=np.array([1, 0]), jpegs=[b"light", b"dark"])
    images = [np.full((SIZE_PX, SIZE_PX), grey, np.uint8).tobytes() for grey in (0, 255)]
    plain = replace(pixels(classifier), images=images)

    async def ask() -> list[Answer]:
        without = await classifier.predict(replace(plain, with_lookalikes=True))
        monkeypatch.setattr(model, "_kept", kept)
        monkeypatch.setattr(model.predictor, "score", Placed(model.predictor))
        unasked = await classifier.predict(plain)
        return [without, unasked, await classifier.predict(replace(plain, with_lookalikes=True))]

    without, unasked, asked = asyncio.run(ask())
    assert without.lookalikes == [[], []]  # the bundle keeps no training images
    assert unasked.lookalikes is None
    assert asked.lookalikes is not None
    assert [[(each.class_index, each.similarity, each.jpeg) for each in found] for found in asked.lookalikes] == [
        [(0, 1.0, b"dark"), (1, 0.0, b"light")],
        [(1, 1.0, b"light"), (0, 0.0, b"dark")],
    ]
    for answer in (unasked, asked):
        assert answer.probabilities is not None
        assert without.probabilities is not None
        np.testing.assert_allclose(answer.probabilities, without.probabilities, atol=1e-6)
        assert answer.ood_scores is not None
        assert np.isnan(answer.ood_scores).tolist() == [True, True]


class GatedExplainer:
    """Explains nothing before it is let, and then with the seed of its bundle's name."""

    def __init__(self, bundle: Any) -> None:
        self.sha256 = bundle.sha256
        self.gate = threading.Event()
        self.begun = threading.Event()

    def heatmap(self, _image_HWC: np.ndarray, class_index: int) -> np.ndarray:
        self.begun.set()
        assert self.gate.wait(DEADLINE_S)
        return heat(self.sha256, class_index)


def heat(sha256: str, class_index: int) -> np.ndarray:
    return np.full((SIZE_PX, SIZE_PX), int(sha256[:2], 16) / 255 / (1 + class_index), np.float32)


@pytest.mark.usefixtures("explaining_here")
def test_an_exchange_waits_for_explanations_and_each_is_of_the_bundle_that_predicted(classifier, bundles, monkeypatch):
    images, first = pixels(classifier), classifier._model
    gated = {sha256: GatedExplainer(SimpleNamespace(sha256=sha256)) for sha256 in map(sha256_of, bundles.values())}
    monkeypatch.setattr(explaining, "_EXPLAINERS", gated)
    explainer = gated[first.info.bundle_sha256]

    async def exchange() -> tuple[Answer, Answer, Answer]:
        answering = asyncio.create_task(classifier.explain(images, first.info.bundle_sha256))
        await asyncio.to_thread(explainer.begun.wait, DEADLINE_S)
        exchanging = asyncio.create_task(classifier.reconfigure({"bundle": bundles["second"]}))
        while classifier._model is first:
            await asyncio.sleep(0.01)
        too_late = await classifier.explain(images, first.info.bundle_sha256)
        assert not exchanging.done()
        explainer.gate.set()
        before = await answering
        await exchanging
        gated[classifier._model.info.bundle_sha256].gate.set()
        return before, too_late, await classifier.explain(images, classifier._model.info.bundle_sha256)

    before, too_late, after = asyncio.run(exchange())
    assert (too_late.bundle_sha256, too_late.probabilities) == (after.bundle_sha256, None)
    assert before.bundle_sha256 != after.bundle_sha256
    batch_BHWC = to_batch(images.images, SIZE_PX)
    for answer, name in ((before, "first"), (after, "second")):
        expected_BK = Predictor(bundles[name]).predict(batch_BHWC)
        assert answer.probabilities is not None
        np.testing.assert_allclose(answer.probabilities, expected_BK, atol=1e-6)
        heats = [heat(answer.bundle_sha256, index) for index in expected_BK.argmax(axis=1)]
        overlays = [explain.to_png(explain.overlay(*pair)) for pair in zip(batch_BHWC, heats, strict=True)]
        assert answer.explained == Explained(overlays=overlays)


@pytest.mark.usefixtures("explaining_here")
@pytest.mark.parametrize("explain", [False, True])
def test_one_replica_takes_all_that_two_full_ingresses_hold(bundles, monkeypatch, explain):
    options = Options(bundle=bundles["first"], max_replicas=3)
    _, models = cast("tuple[Any, dict[int, Any]]", build(options)._bound_deployment.init_args)
    deployment = models[1]._bound_deployment
    _, version = deployment.init_args
    settings = deployment.init_kwargs
    replica = LocalClassifier(options.bundle, **{name: settings[name] for name in ("max_batch_size", "max_waiting")})
    gate, predictor = threading.Event(), replica._model.predictor
    score = predictor.score

    def score_when_let(batch_BHWC: np.ndarray) -> Scores:
        assert gate.wait(DEADLINE_S)
        return score(batch_BHWC)

    monkeypatch.setattr(predictor, "score", score_when_let)
    monkeypatch.setattr("tlray.models.explain.Explainer", GatedExplainer)
    monkeypatch.setattr(GatedExplainer, "heatmap", lambda *_: np.zeros((SIZE_PX, SIZE_PX), np.float32))
    handle = SimpleNamespace(
        **{name: SimpleNamespace(remote=getattr(replica, name)) for name in ("describe", "predict", "explain")}
    )
    ingresses = [Service(options, {version: RemoteModel(cast("Any", handle))}) for _ in range(2)]
    image = np.zeros((SIZE_PX, SIZE_PX, 3), np.uint8)
    size, share = options.max_images_per_request, 2 if explain else 1
    num_requests = options.max_queued_images // (size * share)

    async def fill() -> tuple[list[int], list[Prediction]]:
        full = [
            asyncio.create_task(ingress.predict([image] * size, explain=explain))
            for ingress in ingresses
            for _ in range(num_requests)
        ]
        num_waiting = len(full) * size - options.max_batch_size
        async with asyncio.timeout(DEADLINE_S):
            while replica._model.batcher.num_waiting < num_waiting:
                await asyncio.sleep(0.01)
        refused = await asyncio.gather(
            *(ingress.predict([image], explain=explain) for ingress in ingresses), return_exceptions=True
        )
        gate.set()
        answers = await asyncio.gather(*full)
        await replica._model.close()
        return [cast("RequestError", each).status for each in refused], answers

    refused, answers = asyncio.run(fill())
    assert refused == [429, 429]
    assert [len(answer.probabilities) for answer in answers] == [size] * 2 * num_requests
    assert [len(answer.explanations) for answer in answers] == [size * explain] * 2 * num_requests
