"""The benchmark of the score of foreign images: its copy of a bundle without the score, and its percents."""

import dataclasses
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from benchmarks import score_cost
from benchmarks.score_cost import Round, Settings
from tlray.bundle import store
from tlray.bundle.novelty import Novelty
from tlray.bundle.spec import NOVELTY, BundleSpec
from tlray.data.drift import Distribution, ValidationPredictions
from tlray.engines import converted
from tlray.inference.predictor import Predictor
from tlray.models import classifier as models
from tlray.models.artifact import save_artifact

SIZE_PX, NUM_FEATURES = 24, 6
SPEC = BundleSpec(
    classes=("a", "b", "c"), image_size_px=SIZE_PX, preprocessing="unit", backbone="b", weights="w",
    thresholds={"refer_below": 0.5, "max_ood_score": 0.25},
    validation_predictions=ValidationPredictions(
        class_counts=(1, 1, 0), confidence=Distribution(edges=(0.5,), counts=(1, 1)), confidences=(0.4, 0.6),
        ood_scores=(0.1, 0.2),
    ),
)  # fmt: skip
ROUNDS = [
    Round(with_score_per_s=100.0, without_score_per_s=101.0, num_failed=0),
    Round(with_score_per_s=80.0, without_score_per_s=79.2, num_failed=2),
    Round(with_score_per_s=100.0, without_score_per_s=104.0, num_failed=1),
]


@pytest.fixture
def bundle(tmp_path) -> Path:
    """A bundle of a small network, with a score of foreign images."""
    keras.utils.set_random_seed(3)
    images = keras.Input((SIZE_PX, SIZE_PX, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(images)
    x = keras.layers.Conv2D(NUM_FEATURES, 3, strides=2, activation="relu")(x)
    x = keras.layers.GlobalAveragePooling2D(name=models.FEATURES_LAYER)(x)
    directory = tmp_path / "bundle"
    save_artifact(keras.Model(images, keras.layers.Softmax()(keras.layers.Dense(3)(x))), directory)
    assert converted.add_to(str(directory))[1] == ()
    basis = np.eye(2, NUM_FEATURES, dtype=np.float32)
    arrays: dict[str, Any] = dict(
        Novelty(mean=np.zeros(NUM_FEATURES, np.float32), basis=basis, threshold=0.25).arrays()
    )
    np.savez(directory / NOVELTY, **arrays)
    store.seal(str(directory), SPEC)
    return directory


def test_a_copy_without_the_score_predicts_the_same_and_gives_no_score(bundle, tmp_path):
    original = store.load(str(bundle))
    score_cost.copy_without_score(original, tmp_path / "copy")
    copy = store.load(str(tmp_path / "copy"))
    assert copy.novelty() is None
    assert set(original.spec.files) - set(copy.spec.files) == {NOVELTY}
    assert not (copy.directory / NOVELTY).exists()
    assert copy.spec.thresholds == {"refer_below": 0.5}
    predictions = copy.spec.validation_predictions
    assert predictions is not None
    assert (predictions.confidences, predictions.ood_scores, predictions.ood_score) == ((0.4, 0.6), (), None)
    assert store.load(str(bundle)) == original  # as it was

    images = np.random.default_rng(0).integers(0, 256, (4, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
    with_score, without = (
        Predictor(str(each.directory), precision="float32", num_threads=1).score(images) for each in (original, copy)
    )
    assert np.isfinite(with_score.ood_scores).all()
    assert np.isnan(without.ood_scores).all()
    np.testing.assert_allclose(without.probs_BK, with_score.probs_BK, atol=1e-6)


def test_a_bundle_whose_validation_predictions_are_not_known_is_copied(tmp_path):
    directory = tmp_path / "bundle"
    (directory / "saved_model").mkdir(parents=True)
    for name in ("model.keras", "saved_model/saved_model.pb", NOVELTY):
        (directory / name).write_bytes(b"content")
    spec = BundleSpec(classes=("a",), image_size_px=8, preprocessing="unit", backbone="b", weights="w")
    store.seal(str(directory), spec)
    score_cost.copy_without_score(store.load(str(directory)), tmp_path / "copy")
    copy = store.load(str(tmp_path / "copy"))
    assert set(copy.spec.files) == {"model.keras", "saved_model/saved_model.pb"}
    assert copy.spec.validation_predictions is None


def test_the_cost_is_the_time_that_an_image_takes_longer():
    assert [each.cost for each in ROUNDS] == pytest.approx([0.01, -0.01, 0.04])
    assert Round(with_score_per_s=50.0, without_score_per_s=100.0, num_failed=0).cost == 1  # twice the time


def test_a_round_counts_the_requests_that_failed_with_either_bundle():
    scored = {"images_per_s": 90.0, "outcomes": {"200": 1000, "429": 2}}
    plain = {"images_per_s": 91.0, "outcomes": {"200": 1001, "timed_out": 1, "disconnected": 3}}
    assert score_cost.round_of(scored, plain) == Round(with_score_per_s=90.0, without_score_per_s=91.0, num_failed=6)


def test_the_goal_is_of_the_median_of_the_rounds_beside_the_least_and_the_most():
    goal = score_cost.endpoint_goal(ROUNDS)
    assert (goal.found, goal.is_met) == ("1.0% (-1.0% to 4.0%)", True)
    assert score_cost.endpoint_goal([ROUNDS[2]]).is_met is False


def test_the_page_has_a_row_for_each_round_and_their_medians():
    *_, first, second, third, medians = score_cost.endpoint_lines(ROUNDS, Settings(bundle="b"))
    assert first == "| 1 | 100.0 | 101.0 | 1.00% | 0 |"
    assert second == "| 2 | 80.0 | 79.2 | -1.00% | 2 |"
    assert third == "| 3 | 100.0 | 104.0 | 4.00% | 1 |"
    assert medians == "| median | 100.0 | 101.0 | 1.00% | 3 in all |"


@pytest.mark.parametrize("name", ["pairs", "rounds", "clients"])
def test_numbers_below_one_are_refused(name):
    with pytest.raises(ValueError, match="at least 1"):
        dataclasses.replace(Settings(bundle="b"), **{name: 0})
