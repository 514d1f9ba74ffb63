"""Calibration: what it restores, what it refuses, and measures of calibration computed by hand."""

import math

import numpy as np
import pytest
from scipy import special

from tlray.errors import DataError
from tlray.trust.calibration import (
    TEMPERATURE_RANGE,
    Calibration,
    apply,
    brier_score,
    expected_calibration_error,
    fit,
    reliability,
)

FOUR_BK = np.array([[0.95, 0.05], [0.92, 0.08], [0.7, 0.3], [0.35, 0.65]])
"""Confidences 0.95, 0.92, 0.7 and 0.65; with the labels 0, 1, 0, 1 all are right but the second."""

FOUR = np.array([0, 1, 0, 1])


def simulated(seed, num_images, num_classes=3):
    """Logits whose softmax is the true probability, and labels drawn from it."""
    rng = np.random.default_rng(seed)
    logits_BK = 2 * rng.normal(size=(num_images, num_classes))
    thresholds = special.softmax(logits_BK, axis=1).cumsum(axis=1)[:, :-1]
    return logits_BK, (rng.random((num_images, 1)) > thresholds).sum(axis=1)


def test_overconfident_and_shifted_logits_come_back_calibrated():
    true_BK, labels = simulated(0, 4000)
    logits_BK = 3 * (true_BK + np.array([0.6, 0.0, -0.6]))
    calibration = fit(logits_BK[:2000], labels[:2000])
    assert calibration.temperature == pytest.approx(3, rel=0.1)
    assert calibration.biases == pytest.approx((-0.6, 0, 0.6), abs=0.15)
    assert sum(calibration.biases) == pytest.approx(0, abs=1e-12)
    before, after = special.softmax(logits_BK[2000:], axis=1), apply(logits_BK[2000:], calibration)
    errors = [expected_calibration_error(each, labels[2000:]) for each in (before, after)]
    assert errors[0] > 0.1
    assert errors[1] < errors[0] / 2
    assert errors[1] < 0.03
    assert brier_score(after, labels[2000:]) < brier_score(before, labels[2000:])


def test_calibrated_logits_stay_as_they_are():
    calibration = fit(*simulated(1, 5000))
    assert calibration.temperature == pytest.approx(1, abs=0.06)
    assert calibration.biases == pytest.approx((0, 0, 0), abs=0.1)
    assert (calibration.num_images, calibration.note) == (5000, "")


def test_a_fit_is_deterministic():
    logits_BK, labels = simulated(2, 300)
    assert fit(logits_BK, labels) == fit(logits_BK, labels)


def test_a_patients_images_count_as_one():
    """Fifty slices of each of eight patients are too few for four classes, and a hundred patients of four are not."""
    logits_BK, labels = simulated(2, 100)
    once = fit(logits_BK, labels)
    four_times = fit(np.repeat(logits_BK, 4, axis=0), np.repeat(labels, 4), np.full(400, 0.25))
    assert four_times.temperature == pytest.approx(once.temperature, rel=1e-5)
    assert four_times.biases == pytest.approx(once.biases, abs=1e-5)
    few = fit(np.repeat(logits_BK[:8], 50, axis=0), np.repeat(labels[:8], 50), np.full(400, 0.02))
    assert (few.temperature, few.note[:37]) == (1.0, "Not calibrated: 8 independent images ")


def test_a_weight_counts_as_repeated_images():
    logits_BK, labels = simulated(3, 2000)
    weights = np.arange(2000) % 3
    weighted = fit(logits_BK, labels, weights)
    repeated = fit(np.repeat(logits_BK, weights, axis=0), np.repeat(labels, weights))
    assert weighted.temperature == pytest.approx(repeated.temperature, rel=1e-3)
    assert weighted.biases == pytest.approx(repeated.biases, abs=1e-3)


def test_images_that_are_all_right_leave_the_calibration_finite():
    labels = np.arange(60) % 2
    calibration = fit(5.0 * np.eye(2)[labels], labels)
    assert TEMPERATURE_RANGE[0] < calibration.temperature < 1
    assert calibration.biases == pytest.approx((0, 0), abs=1e-6)
    wrong = fit(5.0 * np.eye(2)[1 - labels], labels)
    assert wrong.temperature > 3
    assert wrong.temperature <= TEMPERATURE_RANGE[1] * (1 + 1e-9)


def test_too_few_images_are_refused():
    logits_BK, labels = simulated(4, 29)
    assert fit(logits_BK, labels) == Calibration(
        temperature=1.0,
        biases=(0.0, 0.0, 0.0),
        num_images=29,
        note="Not calibrated: 29 independent images are fewer than 10 for each class.",
    )
    assert "Not calibrated: 1 independent images" in fit(np.array([[1.0, 2.0]]), np.array([0])).note
    few_count = fit(*simulated(5, 200), np.r_[np.ones(5), np.full(195, 1e-6)])
    assert few_count.note.startswith("Not calibrated: 5 independent images")


def test_a_class_with_few_images_gets_no_bias():
    labels = np.r_[np.zeros(50, int), np.ones(4, int)]
    calibration = fit(4 * np.eye(2)[labels] + [2, 0], labels)
    assert calibration.biases == (0, 0)
    assert calibration.temperature != 1
    assert calibration.note == "No class biases: a class has 4 independent images, fewer than 10."


def test_applying_a_calibration_by_hand():
    calibration = Calibration(temperature=2.0, biases=(0.5, -0.5), num_images=0)
    odds = math.exp((3 - 1) / 2 + 1)
    assert apply(np.array([[3.0, 1.0]]), calibration)[0] == pytest.approx([odds / (1 + odds), 1 / (1 + odds)])
    with pytest.raises(DataError, match="has 2 classes"):
        apply(np.zeros((1, 3)), calibration)


def test_bins_by_hand():
    found = reliability(FOUR_BK, FOUR)
    assert found.num_images.tolist() == [0, 0, 0, 0, 0, 0, 2, 0, 0, 2]  # 0.7 belongs to (0.6, 0.7]
    assert (found.low[6], found.high[6]) == (0.6, 0.7)
    assert found.confidence[[6, 9]] == pytest.approx([0.675, 0.935])
    assert found.accuracy[[6, 9]] == pytest.approx([1, 0.5])
    assert np.isnan(found.accuracy[0])
    assert expected_calibration_error(FOUR_BK, FOUR) == pytest.approx((0.325 + 0.435) / 2)


def test_two_bins_by_hand():
    found = reliability(FOUR_BK, FOUR, num_bins=2)
    assert found.num_images.tolist() == [0, 4]
    assert expected_calibration_error(FOUR_BK, FOUR, num_bins=2) == found.error == pytest.approx(0.805 - 0.75)


def test_one_image_and_certain_probabilities():
    certain = np.array([[1.0, 0.0]])
    assert expected_calibration_error(certain, np.array([0])) == 0
    assert expected_calibration_error(certain, np.array([1])) == 1
    assert brier_score(certain, np.array([1])) == 2


def test_brier_score_by_hand():
    assert brier_score(FOUR_BK, FOUR) == pytest.approx(2 * (0.05**2 + 0.92**2 + 0.3**2 + 0.35**2) / 4)


@pytest.mark.parametrize("measure", [reliability, brier_score, expected_calibration_error])
def test_probabilities_that_are_not_finite_are_refused(measure):
    with pytest.raises(DataError, match="finite"):
        measure(np.array([[math.nan, 0.5]]), np.array([0]))


def test_a_fit_refuses_what_it_cannot_use():
    with pytest.raises(DataError, match=r"Logits .* must be finite"):
        fit(np.array([[math.inf, 0.0]]), np.array([0]))
    with pytest.raises(DataError, match="must match"):
        fit(np.zeros((2, 2)), np.array([0]))
    for weights in ([0.0, 0.0], [-1.0, 1.0], [1.0], [math.nan, 1.0]):
        with pytest.raises(DataError, match="finite weight"):
            fit(np.zeros((2, 2)), np.array([0, 1]), np.array(weights))
