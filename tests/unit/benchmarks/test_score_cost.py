"""The benchmark of the score of foreign images: its copy of a bundle without the score, and its percents."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from benchmarks import score_cost
from benchmarks.score_cost import BurstPair, Settings
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
PAIRS = [
    BurstPair(with_score_s=0.505, without_score_s=0.5),
    BurstPair(with_score_s=0.792, without_score_s=0.8),
    BurstPair(with_score_s=1.04, without_score_s=1.0),
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


def test_the_cost_is_the_time_that_a_burst_takes_longer():
    assert [each.cost for each in PAIRS] == pytest.approx([0.01, -0.01, 0.04])


@pytest.fixture
def endpoint(monkeypatch) -> list[tuple[str, bytes]]:
    """Answers in place of two endpoints: "scored" takes a tenth longer than "plain". Keeps what was sent."""
    sent, now_s = [], [0.0]

    def send(url: str, form: bytes) -> list[dict[str, Any]]:
        sent.append((url, form))
        now_s[0] += {"scored": 1.1, "plain": 1.0}[url] / score_cost.BURST_FORMS
        return [{"ood_score": 0.5 if url == "scored" else None}] * score_cost.FORM_IMAGES

    monkeypatch.setattr(score_cost, "send", send)
    monkeypatch.setattr(score_cost.time, "perf_counter", lambda: now_s[0])
    return sent


def bursts(urls: dict[bool, str], num_pairs: int) -> list[BurstPair]:
    with ThreadPoolExecutor(1) as pool:
        return score_cost.send_bursts(urls, [b"first", b"second", b"third"], pool, num_pairs)


def test_bursts_take_turns_and_send_the_same_to_both(endpoint):
    pairs = bursts({True: "scored", False: "plain"}, num_pairs=2)
    assert [each.cost for each in pairs] == pytest.approx([0.1, 0.1])
    size = score_cost.BURST_FORMS
    firsts = [endpoint[at : at + size] for at in range(0, len(endpoint), size)]
    assert len(firsts) == 2 * (2 + score_cost.NUM_WARMUP_PAIRS)
    for number, (one, other) in enumerate(zip(firsts[::2], firsts[1::2], strict=True)):
        assert (one[0][0], other[0][0]) == (("scored", "plain") if number % 2 == 0 else ("plain", "scored"))
        assert [form for _, form in one] == [form for _, form in other]


@pytest.mark.parametrize("name", ["plain", "scored"])
def test_an_endpoint_with_the_wrong_bundle_ends_the_benchmark(endpoint, name):  # noqa: ARG001
    with pytest.raises(SystemExit, match="would mean nothing"):
        bursts({True: name, False: name}, num_pairs=1)


def test_a_prediction_that_is_missing_ends_the_benchmark():
    with pytest.raises(SystemExit, match="would mean nothing"):
        score_cost.check_scores([{"ood_score": 0.5}] * (score_cost.FORM_IMAGES - 1), has_score=True)


@pytest.mark.parametrize(("num_files", "num_forms"), [(1, 1), (16, 1), (17, 2), (200, 13)])
def test_every_form_is_full_and_every_file_is_in_one(num_files, num_forms):
    files = [f"<{number}>".encode() for number in range(num_files)]
    forms = score_cost.make_forms(files)
    assert len(forms) == num_forms
    assert [form.count(b'name="file"') for form in forms] == [score_cost.FORM_IMAGES] * num_forms
    assert all(any(file in form for form in forms) for file in files)


def test_the_goal_is_of_the_median_with_its_interval():
    goal = score_cost.endpoint_goal(PAIRS)
    assert (goal.found, goal.is_met) == ("1.0% (-1.0% to 4.0%)", True)
    assert score_cost.endpoint_goal([PAIRS[2]]).is_met is False
    many = [BurstPair(with_score_s=1 + number / 100, without_score_s=1.0) for number in range(1, 101)]
    # The 40th and the 61st of 100 enclose the median with 96.5 %, the 41st and the 60th with 94.3 %.
    assert score_cost.endpoint_goal(many).found == "50.5% (40.0% to 61.0%)"


def test_the_page_has_the_rates():
    (text,) = score_cost.endpoint_lines(PAIRS)
    assert "80.8 images/s with the score, 80.0 without it" in text


@pytest.mark.parametrize(("name", "value"), [("pairs", 0), ("burst_pairs", 5)])
def test_too_few_pairs_are_refused(name, value):
    with pytest.raises(ValueError, match="at least"):
        dataclasses.replace(Settings(bundle="b"), **{name: value})
