"""What judgements are worth, on six images by hand."""

import json
import math

import numpy as np
import pytest

from tlray.bundle.judgement import Limits
from tlray.evaluation.referrals import measure_judgement
from tlray.trust.intervals import share_interval

LABELS = np.array([0, 1, 0, 0, 1, 1])
PROBS_BK = np.array([[0.9, 0.1], [0.8, 0.2], [0.9, 0.1], [0.65, 0.35], [0.72, 0.28], [0.1, 0.9]])
"""The second and the fifth image are wrong."""

OOD_SCORES = np.array([0.1, 0.1, 0.9, 0.1, 0.1, math.nan])
ALONE = np.array(list("abcdef"))
SETS = (0.75, 0.75)
"""A class is in a set from a probability of 0.25 on: of the fourth and the fifth image both are."""


def measure(limits: Limits, groups: np.ndarray = ALONE):
    found = measure_judgement(LABELS, PROBS_BK, OOD_SCORES, groups, limits)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


def test_each_reason_once():
    found = measure(Limits(refer_below=0.7, max_ood_score=0.5, set_thresholds=SETS))
    assert found["num_referred"] == 3
    assert found["num_by_reason"] == {"out_of_distribution": 1, "low_confidence": 1, "ambiguous": 1}
    assert found["accepted_error_rate"] == pytest.approx(1 / 3)  # the first, the second and the last image
    assert found["set_coverage"] == pytest.approx(5 / 6)  # all but the second image
    assert found["mean_set_size"] == pytest.approx(8 / 6)
    assert found["referred_share"] == 3 / 6
    for name in ("referred_share", "accepted_error_rate", "set_coverage"):
        low, high = found[f"{name}_ci95"]
        assert 0 <= low < found[name] < high <= 1
    # Sets have one or two classes, so the mean size is 1 more than the share of those with two.
    expected = share_interval(np.array([False, False, False, True, True, False]), ALONE)
    assert found["mean_set_size_ci95"] == pytest.approx([1 + expected.low, 1 + expected.high])


def test_calibration_by_hand():
    found = measure(Limits())
    # Bins up to 0.7, 0.8 and 0.9: one right of 0.65, two wrong of 0.76 on average, three right of 0.9.
    assert found["ece"] == pytest.approx((0.35 + 2 * 0.76 + 3 * 0.1) / 6)
    assert found["brier"] == pytest.approx(2 * (3 * 0.1**2 + 0.8**2 + 0.35**2 + 0.72**2) / 6)
    for name, largest in (("ece", 1), ("brier", 2)):
        low, high = found[f"{name}_ci95"]
        assert 0 <= low < found[name] < high <= largest


def test_without_sets_and_scores_only_the_confidence_refers():
    found = measure(Limits(refer_below=0.7))
    assert found["num_by_reason"] == {"out_of_distribution": 0, "low_confidence": 1, "ambiguous": 0}
    assert found["accepted_error_rate"] == pytest.approx(2 / 5)
    for name in ("set_coverage", "mean_set_size"):
        assert (found[name], found[f"{name}_ci95"]) == (None, None)


def test_a_score_that_is_not_known_refers_nothing():
    found = measure(Limits(max_ood_score=0.0))
    assert found["num_by_reason"]["out_of_distribution"] == found["num_referred"] == 5
    assert (found["accepted_error_rate"], found["accepted_error_rate_ci95"]) == (0, [0, 1])  # one image is left


def test_if_all_are_referred_nothing_is_known_of_the_accepted():
    found = measure(Limits(refer_below=1.1, set_thresholds=SETS))
    assert found["num_referred"] == found["num_by_reason"]["low_confidence"] == 6
    assert (found["accepted_error_rate"], found["accepted_error_rate_ci95"]) == (None, None)
    assert found["set_coverage"] == pytest.approx(5 / 6)


def test_images_of_one_patient_leave_the_intervals_open():
    found = measure(Limits(set_thresholds=SETS), np.repeat("a", 6))
    for name in ("referred_share", "accepted_error_rate", "ece", "set_coverage"):
        assert found[f"{name}_ci95"] == [0, 1]
    assert (found["brier_ci95"], found["mean_set_size_ci95"]) == ([0, 2], [1, 2])


def test_sets_that_all_have_one_class_may_have_two_of_new_images():
    """Three classes, of which no set has more than one: a fourth image may have a set of two."""
    probs_BK = np.full((3, 3), 0.05) + 0.85 * np.eye(3)
    ood_scores, limits = np.full(3, math.nan), Limits(set_thresholds=(0.5,) * 3)
    found = measure_judgement(np.arange(3), probs_BK, ood_scores, np.arange(3), limits)
    none_of_three = share_interval(np.zeros(3, bool), np.arange(3))
    assert found["mean_set_size_ci95"] == pytest.approx([1, 1 + none_of_three.high])
    one_group = measure_judgement(np.arange(3), probs_BK, ood_scores, np.zeros(3), limits)
    assert one_group["mean_set_size_ci95"] == [1, 3]
