"""How foreign images are: what a bundle's model says by both engines, and what is written into predictions."""

import csv
import dataclasses
import io
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pytest

from tlray.bundle import store
from tlray.bundle.novelty import Novelty
from tlray.bundle.spec import NOVELTY, BundleSpec
from tlray.config.training import EngineChoice
from tlray.data.manifest import SCHEMA
from tlray.engines import converted
from tlray.errors import BundleError
from tlray.inference import predictions
from tlray.inference.predictor import Predictor
from tlray.models import classifier as models
from tlray.models.artifact import save_artifact
from tlray.progress import Progress

SIZE_PX, NUM_FEATURES = 24, 6
SPEC = BundleSpec(
    classes=("a", "b", "c"), image_size_px=SIZE_PX, preprocessing="unit", backbone="b", weights="w",
    thresholds={"refer_below": 0.5, "max_ood_score": 0.25},
)  # fmt: skip


@pytest.fixture(scope="module")
def network() -> keras.Model:
    """A small classifier whose pooled features have a name."""
    keras.utils.set_random_seed(3)
    images = keras.Input((SIZE_PX, SIZE_PX, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(images)
    x = keras.layers.Conv2D(NUM_FEATURES, 3, strides=2, activation="relu")(x)
    x = keras.layers.GlobalAveragePooling2D(name=models.FEATURES_LAYER)(x)
    return keras.Model(images, keras.layers.Softmax()(keras.layers.Dense(3)(x) * 10))


@pytest.fixture(scope="module")
def novelty() -> Novelty:
    """A plane, rounded as a stored one is."""
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(NUM_FEATURES, 2)))[0].T.astype(np.float16)
    mean = np.full(NUM_FEATURES, 0.1, np.float32)
    return Novelty(mean=mean, basis=basis.astype(np.float32), threshold=0.25)


def save(path: Path, arrays: Mapping[str, Any]) -> None:
    np.savez(path, **arrays)


@pytest.fixture(scope="module")
def bundle(network, novelty, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("bundle") / "bundle"
    save_artifact(network, directory)
    assert converted.add_to(str(directory))[1] == ()
    save(directory / NOVELTY, novelty.arrays())
    store.seal(str(directory), SPEC)
    return directory


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Images of one colour each, with noise, so that their features differ."""
    rng = np.random.default_rng(0)
    colours, noise = rng.integers(0, 200, (12, 1, 1, 3)), rng.integers(0, 50, (12, SIZE_PX, SIZE_PX, 3))
    return (colours + noise).astype(np.uint8)


@pytest.mark.parametrize("engine", ["openvino", "tensorflow"])
def test_both_engines_give_the_scores_of_the_features(network, novelty, bundle, images, engine: EngineChoice):
    features_BD = np.asarray(keras.Model(network.input, network.get_layer(models.FEATURES_LAYER).output)(images))
    expected = novelty.score(features_BD)
    assert np.ptp(expected) > 0.01  # not all alike
    predictor = Predictor(str(bundle), engine=engine, precision="float32", num_threads=2, batch_size=32)
    found = predictor.score(images)
    assert (found.probs_BK.dtype, found.ood_scores.dtype) == (np.float32, np.float32)
    np.testing.assert_allclose(found.probs_BK, np.asarray(network(images)), atol=1e-4)
    np.testing.assert_allclose(found.ood_scores, expected, atol=1e-4)
    np.testing.assert_array_equal(predictor.predict(images), found.probs_BK)
    np.testing.assert_allclose(predictor.score(images[:1]).ood_scores, expected[:1], atol=1e-4)


def test_no_images_have_no_scores(bundle):
    found = Predictor(str(bundle)).score(np.zeros((0, SIZE_PX, SIZE_PX, 3), np.uint8))
    assert (found.probs_BK.shape, found.ood_scores.shape) == ((0, 3), (0,))


@pytest.fixture
def copied(bundle, tmp_path) -> Path:
    """A copy of the bundle, to change and seal again."""
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


@pytest.mark.parametrize("lacks", ["file", "threshold", "both"])
def test_a_bundle_without_novelty_knows_no_score(copied, images, lacks):
    spec = SPEC
    if lacks != "threshold":
        (copied / NOVELTY).unlink()
    if lacks != "file":
        spec = dataclasses.replace(SPEC, thresholds={"refer_below": 0.5})
    store.seal(str(copied), spec)
    found = Predictor(str(copied), precision="float32").score(images[:2])
    assert np.isfinite(found.probs_BK).all()
    assert (found.ood_scores.dtype, np.isnan(found.ood_scores).tolist()) == (np.float32, [True, True])


def test_a_model_without_features_knows_no_score(novelty, images, tmp_path):
    pixels = keras.Input((SIZE_PX, SIZE_PX, 3), dtype="uint8")
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(pixels))
    save_artifact(keras.Model(pixels, keras.layers.Softmax()(x)), tmp_path / "bundle")
    assert converted.add_to(str(tmp_path / "bundle"))[1] == ()
    save(tmp_path / "bundle" / NOVELTY, novelty.arrays())
    store.seal(str(tmp_path / "bundle"), SPEC)
    assert np.isnan(Predictor(str(tmp_path / "bundle")).score(images[:2]).ood_scores).all()


def damage(path: Path, how: str, novelty: Novelty) -> None:
    content, arrays = path.read_bytes(), novelty.arrays()
    match how:
        case "other content":
            path.write_bytes(b"no array")
        case "empty":
            path.write_bytes(b"")
        case "cut off":
            path.write_bytes(content[:-30])
        case "one array":
            with path.open("wb") as file:
                np.save(file, arrays["mean"])
        case "other shapes":
            save(path, {**arrays, "mean": arrays["mean"][1:]})
        case "no basis":
            save(path, {"mean": arrays["mean"]})


@pytest.mark.parametrize("how", ["other content", "empty", "cut off", "one array", "other shapes", "no basis"])
def test_a_damaged_file_is_refused(copied, novelty, how):
    damage(copied / NOVELTY, how, novelty)
    store.seal(str(copied), SPEC)
    with pytest.raises(BundleError, match=NOVELTY):
        Predictor(str(copied))


@pytest.mark.parametrize("engine", ["openvino", "tensorflow"])
def test_a_score_for_another_number_of_features_is_refused_on_load(copied, engine: EngineChoice):
    basis = np.eye(2, NUM_FEATURES + 1, dtype=np.float32)
    save(copied / NOVELTY, Novelty(mean=np.zeros(NUM_FEATURES + 1, np.float32), basis=basis, threshold=0.25).arrays())
    store.seal(str(copied), SPEC)
    told = f"{NOVELTY} of the bundle is for images with 7 features, but the bundle's model gives 6"
    with pytest.raises(BundleError, match=told):
        Predictor(str(copied), engine=engine, precision="float32")


ABOUT = BundleSpec(
    classes=("a", "b"), image_size_px=8, preprocessing="unit", backbone="b", weights="w",
    thresholds={"refer_below": 0.7, "max_ood_score": 0.5}, set_thresholds=(0.75, 0.75),
)  # fmt: skip
NONE = [np.nan, np.nan]
PROBS_BK = np.array([[0.9, 0.1], [0.9, 0.1], [0.65, 0.35], [0.28, 0.72], NONE, NONE], np.float32)
OOD_SCORES = np.array([0.125, 0.875, np.nan, 0.125, np.nan, 0.875], np.float32)


def prediction_table(spec: BundleSpec, ood_scores: np.ndarray = OOD_SCORES) -> pa.Table:
    """Predictions of six images; the fifth is empty, and the model failed for the last one."""
    names = [f"{number}.png" for number in range(6)]
    codes = np.array(["", "", "", "", "empty", ""])
    batch = {"probabilities": PROBS_BK, "ood_score": ood_scores, "error_code": codes, "error": codes}
    batch["sha256"] = np.full(6, "f00")
    columns = dict.fromkeys(SCHEMA.names, names) | {"group_id": ["p1"] * 6}
    return predictions.prediction_table(pa.table(columns, schema=SCHEMA), batch, spec, "s")


def test_predictions_say_why_they_are_referred():
    found = prediction_table(ABOUT).to_pydict()
    assert found["refer"] == [False, True, True, True, None, None]
    assert found["refer_reason"] == [None, "out_of_distribution", "low_confidence", "ambiguous", None, None]
    assert found["prediction_set"] == [["a"], ["a"], ["a", "b"], ["a", "b"], None, None]
    assert found["ood_score"] == [0.125, 0.875, None, 0.125, None, None]
    assert found["predicted_label"] == ["a", "a", "a", "b", None, None]
    assert found["error_code"] == [None, None, None, None, "empty", "predict_failed"]


def test_what_a_bundle_cannot_tell_is_null():
    found = prediction_table(dataclasses.replace(ABOUT, thresholds={}, set_thresholds=None), np.full(6, np.nan))
    assert found["prediction_set"].null_count == found["ood_score"].null_count == 6
    assert found["refer"].to_pylist() == [False] * 4 + [None] * 2
    assert found["refer_reason"].null_count == 6
    assert found.schema == predictions.prediction_schema(ABOUT.classes)


def test_sets_are_joined_in_the_csv_and_lists_in_parquet(tmp_path):
    table = prediction_table(ABOUT)
    with Progress("", 6, quiet=True) as progress:
        predictions.write_predictions(iter([table]), str(tmp_path), schema=table.schema, progress=progress)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "predictions.csv").read_text())))
    assert [row["prediction_set"] for row in rows] == ["a", "a", "a | b", "a | b", "", ""]
    reasons = ["", "out_of_distribution", "low_confidence", "ambiguous", "", ""]
    assert [row["refer_reason"] for row in rows] == reasons
    assert [row["ood_score"] for row in rows] == ["0.125", "0.875", "", "0.125", "", ""]
    assert predictions.read_predictions(str(tmp_path)).to_pydict() == table.to_pydict()
