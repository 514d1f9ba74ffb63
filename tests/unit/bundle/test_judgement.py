"""Judgements by hand: prediction sets, and the reasons of referrals in their order."""

import math

import numpy as np
import pytest

from tlray.bundle.judgement import Limits, judge, prediction_sets

UNKNOWN = np.full(2, math.nan)


def two(*confidences: float) -> np.ndarray:
    """Probabilities of two classes, the first of them the more probable one."""
    return np.array([[each, 1 - each] for each in confidences])


def test_sets_by_hand_and_never_empty():
    thresholds = (0.4, 0.7, 0.1)
    probs_BK = np.array([[0.6, 0.3, 0.1], [0.5, 0.29, 0.21], [0.05, 0.05, 0.9], [0.4, 0.25, 0.35]])
    assert prediction_sets(probs_BK, thresholds).tolist() == [
        [True, True, False],
        [True, False, False],  # would be empty
        [False, False, True],
        [True, False, False],  # would be empty
    ]
    assert prediction_sets(probs_BK.astype(np.float32), thresholds)[0].tolist() == [True, True, False]
    assert prediction_sets(probs_BK[:0], thresholds).shape == (0, 3)


def test_the_gravest_reason_comes_first():
    probs_BK = two(0.9, 0.9, 0.5, 0.6, 0.75, 0.7)
    ood_scores = np.array([0.1, 0.9, 0.9, 0.1, 0.1, 0.3])
    # The second class is in a set from a probability of 0.25 on.
    found = judge(probs_BK, ood_scores, Limits(refer_below=0.7, max_ood_score=0.3, set_thresholds=(1.0, 0.75)))
    assert found.reasons == [
        "",
        "out_of_distribution",
        "out_of_distribution",
        "low_confidence",
        "ambiguous",
        "ambiguous",
    ]
    assert found.refer.tolist() == [False, True, True, True, True, True]
    assert found.decisions.tolist() == ["accepted", "foreign", "foreign", "referred", "referred", "referred"]
    assert found.sets_BK is not None
    assert found.sets_BK.sum(axis=1).tolist() == [1, 1, 2, 2, 2, 2]
    # At both thresholds an image is accepted.
    at_both = judge(two(0.7), np.array([0.3]), Limits(refer_below=0.7, max_ood_score=0.3, set_thresholds=(1.0, 0.6)))
    assert at_both.reasons == [""]


def test_what_is_not_known_refers_nothing():
    found = judge(two(0.9, 0.6), UNKNOWN, Limits(refer_below=0.7, max_ood_score=0.1))
    assert (found.reasons, found.sets_BK) == (["", "low_confidence"], None)
    assert judge(two(0.9, 0.6), np.array([math.inf, 0.0]), Limits()).reasons == ["", ""]


def test_features_that_are_not_finite_are_foreign():
    assert judge(two(0.9), np.array([math.inf]), Limits(max_ood_score=4.0)).reasons == ["out_of_distribution"]


@pytest.mark.parametrize("limits", [Limits(), Limits(max_ood_score=0.1, set_thresholds=(0.5, 0.5))])
def test_no_images(limits):
    found = judge(np.zeros((0, 2)), np.zeros(0), limits)
    assert (found.reasons, found.refer.shape, found.decisions.shape) == ([], (0,), (0,))
