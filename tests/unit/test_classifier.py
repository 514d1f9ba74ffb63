"""A replica's model: exchanged, kept, explained; without Ray."""

import asyncio
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest

from serve_app.classifier import Explained, Pixels
from tests.endpoint import LocalClassifier
from tlray import cli
from tlray.errors import BundleError

SIZE_PX = 16


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


def pixels(classifier: LocalClassifier) -> Pixels:
    limits = classifier._model.info.spec.intensity_range
    image = np.random.default_rng(0).integers(0, 256, (SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
    return Pixels(images=[image.tobytes()] * 2, size_px=SIZE_PX, intensity_range=limits)


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


def test_a_model_that_cannot_be_explained_says_so_and_is_taken_apart_once(classifier, monkeypatch):
    loads: list[Any] = []

    def fail(bundle: Any) -> None:
        loads.append(bundle)
        raise BundleError("It has no feature map.")

    monkeypatch.setattr("tlray.explain.Explainer", fail)

    async def explain_twice() -> list[Any]:
        sha256 = (await classifier.describe()).bundle_sha256
        return [await classifier.explain(pixels(classifier), [0, 1], sha256) for _ in range(2)]

    assert asyncio.run(explain_twice()) == [Explained(problem="It has no feature map.")] * 2
    assert len(loads) == 1
