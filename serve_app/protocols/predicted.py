"""The predictions for a request's images as named tensors, for the protocols that answer with tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PROBABILITIES = "probabilities"
LABEL = "label"
REFER = "refer"
REFER_REASON = "refer_reason"
OOD_SCORE = "ood_score"
PREDICTION_SET = "prediction_set"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Predicted:
    """The predictions for the images of a request, with their judgement.

    Attributes:
        probs_BK: float32 [images, classes], finite.
        labels: The predicted class of each image.
        reasons: Why each image is referred to a person; empty where it is not.
        ood_scores: How foreign each image is, float32 [images]; NaN where it is not known.
        sets_BK: Which classes are in the prediction set of each image, at least one, bool [images, classes]; None: the
            model has no sets.
    """

    probs_BK: np.ndarray
    labels: Sequence[str]
    reasons: Sequence[str]
    ood_scores: np.ndarray
    sets_BK: np.ndarray | None

    def tensor(self, name: str) -> np.ndarray | Sequence[str]:
        """Returns the values of a tensor, one or one list for each image. None of them is null or NaN.

        A score that is not known is -1, and a set that is not known has no class; each set that is known has one.

        Args:
            name: `PROBABILITIES`, `LABEL`, `REFER`, `REFER_REASON`, `OOD_SCORE` or `PREDICTION_SET`.
        """
        known = np.isfinite(self.ood_scores)
        sets_BK = np.zeros(self.probs_BK.shape, bool) if self.sets_BK is None else self.sets_BK
        return {
            PROBABILITIES: self.probs_BK.astype("<f4"),
            LABEL: self.labels,
            REFER: np.array([bool(reason) for reason in self.reasons], dtype=bool),
            REFER_REASON: self.reasons,
            OOD_SCORE: np.where(known, self.ood_scores, -1).astype("<f4"),
            PREDICTION_SET: sets_BK,
        }[name]
