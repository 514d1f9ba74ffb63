"""Judges predictions: which classes an image may have, whether a person should look at it, and why.

The same limits judge a prediction wherever it is made: in bulk scoring, in an evaluation and in the endpoint.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

OUT_OF_DISTRIBUTION = "out_of_distribution"
"""The image does not look like those that the model was trained on, so its prediction means nothing."""
LOW_CONFIDENCE = "low_confidence"
"""The confidence is under the threshold."""
AMBIGUOUS = "ambiguous"
"""Several classes may be right: they are in the prediction set."""

REASONS = (OUT_OF_DISTRIBUTION, LOW_CONFIDENCE, AMBIGUOUS)
"""The reasons of a referral, the gravest first."""

_ROUNDING = 1e-9  # of a probability that equals a threshold


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of a model's predictions, which its bundle keeps.

    Attributes:
        refer_below: Confidence below which an image is referred, in [0, 1]; above 1 all images are.
        max_ood_score: Score above which an image is foreign, see `tlray.bundle.novelty`; None: nothing is known.
        set_thresholds: For each class, the largest value of 1 minus its probability with which it is in a prediction
            set, [0, 1]; None: there are no sets.
    """

    refer_below: float = 0.0
    max_ood_score: float | None = None
    set_thresholds: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """The judgement of some predictions.

    Attributes:
        sets_BK: Which classes are in the prediction set of each image, bool [images, K]; None: there are no sets.
        reasons: The gravest reason why each image is referred, one of `REASONS`; empty where it is not.
    """

    sets_BK: np.ndarray | None
    reasons: Sequence[str]

    @property
    def refer(self) -> np.ndarray:
        """Which images are referred to a person, bool [images]."""
        return np.array([bool(reason) for reason in self.reasons], dtype=bool)

    @property
    def decisions(self) -> np.ndarray:
        """The decision on each image, str [images]: `accepted`, `referred` to a person, or `foreign`.

        A foreign image is not like the training images, and its prediction means nothing. A referral for a low
        confidence and one for several classes are the same decision.
        """
        reasons = np.array(self.reasons, dtype=str)
        return np.select([reasons == OUT_OF_DISTRIBUTION, self.refer], ["foreign", "referred"], default="accepted")


def judge(probs_BK: np.ndarray, ood_scores: np.ndarray, limits: Limits) -> Judgement:
    """Judges predictions.

    Args:
        probs_BK: Probabilities, floating point [images, K], finite, in [0, 1].
        ood_scores: How foreign the images are, floating point [images]; NaN where it is not known.
        limits: The limits of the model that predicted.
    """
    sets_BK = None if limits.set_thresholds is None else prediction_sets(probs_BK, limits.set_thresholds)
    most = math.inf if limits.max_ood_score is None else limits.max_ood_score
    is_ambiguous = np.zeros(len(probs_BK), bool) if sets_BK is None else sets_BK.sum(axis=1) > 1
    conditions = [ood_scores > most, probs_BK.max(axis=1) < limits.refer_below, is_ambiguous]  # NaN > most is False
    reasons: list[str] = np.select(conditions, REASONS, default="").tolist()
    return Judgement(sets_BK=sets_BK, reasons=reasons)


def prediction_sets(probs_BK: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """Returns which classes are in the prediction set of each image, bool [images, K].

    A set that would be empty has the most probable class. This only adds classes, so the coverage holds.

    Args:
        probs_BK: Probabilities, floating point [images, K].
        thresholds: See `Limits.set_thresholds`.
    """
    sets_BK = 1 - probs_BK.astype(np.float64) <= np.asarray(thresholds) + _ROUNDING
    is_empty = ~sets_BK.any(axis=1)
    sets_BK[is_empty, probs_BK[is_empty].argmax(axis=1)] = True
    return sets_BK
