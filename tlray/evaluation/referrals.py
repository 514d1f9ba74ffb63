"""Measures what the judgement of predictions is worth: how many are accepted, how many of these are wrong."""

import math
from collections import Counter
from typing import Any

import numpy as np

from tlray.bundle.judgement import REASONS, Limits, judge
from tlray.trust import calibration
from tlray.trust.groups import group_index
from tlray.trust.intervals import UNDEFINED, Interval, mean_interval, share_interval


def measure_judgement(
    labels: np.ndarray, probs_BK: np.ndarray, ood_scores: np.ndarray, groups: np.ndarray, limits: Limits
) -> dict[str, Any]:
    """Measures how predictions are judged.

    Args:
        labels: True classes, int [images], in [0, K); at least one image.
        probs_BK: Probabilities, floating point [images, K], finite, in [0, 1].
        ood_scores: How foreign the images are, floating point [images]; NaN where it is not known.
        groups: Group of each image, [images], any values that can be sorted.
        limits: The limits of the model that predicted.

    Returns:
        Only str, int, float, None, list and dict: `num_referred`, `num_by_reason` (each of `judgement.REASONS`), and
        these, each with its 95 % interval NAME_ci95 ([low, high]):

        - `referred_share`: share of images that are referred;
        - `accepted_error_rate`: share of wrong ones among the others; it and its interval are null if there are none;
        - `ece` and `brier`: see `calibration.calibration_error_interval` and `calibration.brier_interval`;
        - `set_coverage`: share of images whose prediction set has the true class, and `mean_set_size`: mean number of
          classes in a set. They and their intervals are null where the model has no sets.
    """
    judged = judge(probs_BK, ood_scores, limits)
    groups = group_index(groups, len(labels))  # numbers sort faster than names
    is_accepted = ~judged.refer
    is_wrong = probs_BK.argmax(axis=1) != labels
    counts = Counter(judged.reasons)
    found: dict[str, Any] = {
        "num_referred": int(judged.refer.sum()),
        "num_by_reason": {reason: counts[reason] for reason in REASONS},
        **_named("referred_share", share_interval(judged.refer, groups)),
        **_named("accepted_error_rate", share_interval(is_wrong[is_accepted], groups[is_accepted])),
        **_named("ece", calibration.calibration_error_interval(probs_BK, labels, groups)),
        **_named("brier", calibration.brier_interval(probs_BK, labels, groups)),
    }
    covered = size = UNDEFINED
    if judged.sets_BK is not None:
        covered = share_interval(judged.sets_BK[np.arange(len(labels)), labels], groups)
        size = _size_interval(judged.sets_BK, groups)
    return found | _named("set_coverage", covered) | _named("mean_set_size", size)


def _size_interval(sets_BK: np.ndarray, groups: np.ndarray) -> Interval:
    """Returns the mean size of prediction sets, which have at least one class, with its 95 % interval over groups.

    The interval assumes that no set is larger than the largest one that was seen, but that a set may have two classes.
    Otherwise a single image might need all of many classes, which would make every interval wide. With one group the
    interval goes up to all classes.

    Args:
        sets_BK: Which classes are in the set of each image, bool [images, K].
        groups: Number of each image's group, int [images], from 0 without gaps.
    """
    sizes = sets_BK.sum(axis=1)
    largest = max(2, int(sizes.max())) if groups.any() else sets_BK.shape[1]
    return mean_interval(sizes, groups, low=1.0, high=float(largest))


def _named(name: str, interval: Interval) -> dict[str, Any]:
    if math.isnan(interval.value):
        return {name: None, f"{name}_ci95": None}
    return {name: interval.value, f"{name}_ci95": [interval.low, interval.high]}
