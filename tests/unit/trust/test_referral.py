"""Referral: that a threshold keeps its promise, and curves by hand."""

import math

import numpy as np
import pytest

from tlray.errors import ConfigError, DataError
from tlray.trust.referral import ALL_REFERRED, choose_threshold, risk_coverage


def test_without_errors_all_images_are_accepted_from_59_on():
    # log(0.05) / log(0.95) = 58.4; with 59 images the bound is 1 - 0.05^(1/59).
    confidence = np.linspace(0.5, 1, 59)
    found = choose_threshold(confidence, np.ones(59, bool))
    assert (found.value, found.coverage, found.error_rate, found.note) == (0.5, 1, 0, "")
    assert found.error_rate_high == pytest.approx(1 - 0.05 ** (1 / 59))
    too_few = choose_threshold(confidence[:58], np.ones(58, bool))
    assert (too_few.value, too_few.coverage, too_few.error_rate_high) == (ALL_REFERRED, 0, 1)
    assert math.isnan(too_few.error_rate)
    assert "these 58 images show no threshold with an error rate of at most 0.05" in too_few.note
    assert "takes 59 independent images" in too_few.note


def test_images_of_a_patient_do_not_count_as_independent():
    confidence = np.linspace(0.5, 1, 118)
    right = np.ones(118, bool)
    assert choose_threshold(confidence, right, groups=np.arange(118) // 2).value == 0.5
    assert choose_threshold(confidence, right, groups=np.arange(118) // 4).value == ALL_REFERRED


@pytest.mark.parametrize("num_slices", [1, 2, 5, 10, 30])
@pytest.mark.parametrize("num_patients", [59, 100, 160])
def test_more_images_of_the_same_patients_do_not_cost_the_threshold(num_patients, num_slices):
    """All are right."""
    groups = np.repeat(np.arange(num_patients), num_slices)
    found = choose_threshold(np.linspace(0.5, 1, len(groups)), np.ones(len(groups), bool), groups=groups)
    assert (found.value, found.coverage) == (0.5, 1)


def test_unsure_images_are_referred():
    confidence = np.r_[np.linspace(0.8, 1, 400), np.linspace(0.3, 0.6, 100)]
    is_right = np.r_[np.ones(400, bool), np.zeros(100, bool)]
    found = choose_threshold(confidence, is_right)
    # Of 400 and some images the bound bears 12 to 13 errors; a step takes (500 - 124) / 49 = 7.7 images.
    assert 0.55 < found.value < 0.6
    assert 405 / 500 <= found.coverage <= 413 / 500
    assert found.error_rate_high <= 0.05


@pytest.mark.parametrize(("num_images", "num_errors", "coverage"), [(612, 3, 1), (612, 4, 0), (400, 1, 1), (236, 1, 0)])
def test_errors_of_the_most_confident_images(num_images, num_errors, coverage):
    """The first test bears 3, 2, 1 or no errors of 153, 124, 93 or 59 images, at most a quarter of the images."""
    is_right = np.ones(num_images, bool)
    is_right[-num_errors:] = False
    assert choose_threshold(np.linspace(0.5, 1, num_images), is_right).coverage == coverage


def test_all_wrong_and_one_image():
    assert choose_threshold(np.linspace(0, 1, 200), np.zeros(200, bool)).value == ALL_REFERRED
    assert choose_threshold(np.array([1.0]), np.array([True])).value == ALL_REFERRED


def test_equal_confidences_are_accepted_together():
    found = choose_threshold(np.ones(200), np.ones(200, bool))
    assert (found.value, found.coverage) == (1, 1)
    assert choose_threshold(np.ones(200), np.arange(200) % 5 > 0).value == ALL_REFERRED


@pytest.mark.parametrize("by_patient", [False, True])
def test_the_error_rate_is_kept_as_often_as_promised(by_patient):
    """An image's error rate is (1 - confidence) / 2, with 1 - confidence from 0 to 0.7 and mostly near 0.

    The density of d = 1 - confidence is proportional to d^(-1/2), so the mean of d up to D is D / 3, and images with
    d up to 0.3 have the error rate 0.05: two thirds of all. With patients of 4 images, half of the patients have errors
    twice as often, and the other half have none.
    """
    rng = np.random.default_rng(0)
    num_images = 600
    groups = np.arange(num_images) // (4 if by_patient else 1)
    values, coverages = [], []
    for _ in range(200):
        doubt = 0.7 * rng.random(num_images) ** 2
        factor = 2 * rng.integers(0, 2, num_images)[groups] if by_patient else 1
        found = choose_threshold(1 - doubt, rng.random(num_images) >= doubt / 2 * factor, groups=groups)
        values.append(found.value)
        coverages.append(found.coverage)
    assert np.mean(np.array(values) < 0.7) <= 0.05
    assert (0.15 if by_patient else 0.4) < np.mean(coverages) < (0.3 / 0.7) ** 0.5


def test_the_threshold_is_useful_where_there_is_data():
    """Of 4,000 images as above with a tenth of the errors: half of the images can be accepted at 0.015."""
    rng = np.random.default_rng(0)
    confidence = rng.random(4000)
    is_right = rng.random(4000) >= 0.06 * (1 - confidence)
    found = choose_threshold(confidence, is_right, max_error=0.025)
    assert 0.03 * (1 - found.value) <= 0.025
    assert found.coverage > 0.5


def test_risk_and_coverage_by_hand():
    found = risk_coverage(np.array([0.6, 0.9, 0.8, 0.7]), np.array([False, True, False, True]))
    assert found.thresholds.tolist() == [0.9, 0.8, 0.7, 0.6]
    assert found.coverages.tolist() == [0.25, 0.5, 0.75, 1]
    assert found.risks == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]])
def test_images_of_equal_confidence_have_no_order(order):
    found = risk_coverage(np.array([0.9, 0.5, 0.5]), np.array([True, True, False])[[0, *np.array([1, 2])[:: order[1]]]])
    assert found.risks == pytest.approx([0, 1 / 4, 1 / 3])


def test_all_right_all_wrong_and_one_image():
    assert risk_coverage(np.array([0.5, 0.9]), np.ones(2, bool)).risks.tolist() == [0, 0]
    assert risk_coverage(np.array([0.5, 0.9]), np.zeros(2, bool)).risks.tolist() == [1, 1]
    assert risk_coverage(np.array([0.5]), np.ones(1, bool)).coverages.tolist() == [1]


def test_what_cannot_be_used_is_refused():
    for max_error, delta in ((0, 0.1), (1, 0.1), (0.1, 0), (0.1, math.nan)):
        with pytest.raises(ConfigError, match="must lie between 0 and 1"):
            choose_threshold(np.ones(2), np.ones(2, bool), max_error=max_error, delta=delta)
    for confidence in ([math.nan], [-0.1], [1.1]):
        with pytest.raises(DataError, match="confidence must lie in"):
            risk_coverage(np.array(confidence), np.ones(1, bool))
    with pytest.raises(DataError, match="one value in each array"):
        choose_threshold(np.ones(2), np.ones(3, bool))
