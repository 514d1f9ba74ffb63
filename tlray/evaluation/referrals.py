"""Measures what the judgement of predictions is worth: how many are accepted, how many of these are wrong."""

import math
from collections import Counter
from typing import Any

import numpy as np

from tlray.bundle.judgement import REASONS, Limits, judge
from tlray.trust import calibration
from tlray.trust.intervals import Interval, share_interval


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
        Only str, int, float, None, list and dict: `num_referred`, `num_by_reason` (each of `judgement.REASONS`),
        `accepted_error_rate` (share of wrong ones among the images that are not referred, null if there are none) and
        `set_coverage` (share of images whose prediction set has the true class), each with its 95 % interval NAME_ci95;
        `mean_set_size`; these three are null where the model has no sets. `ece` and `brier`: see
        `calibration.expected_calibration_error` and `calibration.brier_score`.
    """
    judged = judge(probs_BK, ood_scores, limits)
    is_accepted = ~judged.refer
    is_wrong = probs_BK.argmax(axis=1) != labels
    counts = Counter(judged.reasons)
    found: dict[str, Any] = {
        "num_referred": int(judged.refer.sum()),
        "num_by_reason": {reason: counts[reason] for reason in REASONS},
        **_named("accepted_error_rate", share_interval(is_wrong[is_accepted], groups[is_accepted])),
        "ece": calibration.expected_calibration_error(probs_BK, labels),
        "brier": calibration.brier_score(probs_BK, labels),
    }
    if judged.sets_BK is None:
        return found | {"set_coverage": None, "set_coverage_ci95": None, "mean_set_size": None}
    is_covered = judged.sets_BK[np.arange(len(labels)), labels]
    found |= _named("set_coverage", share_interval(is_covered, groups))
    return found | {"mean_set_size": float(judged.sets_BK.sum(axis=1).mean())}


def _named(name: str, interval: Interval) -> dict[str, Any]:
    if math.isnan(interval.value):
        return {name: None, f"{name}_ci95": None}
    return {name: interval.value, f"{name}_ci95": [interval.low, interval.high]}
