"""The predictions for a request's images as named tensors, for the protocols that answer with tensors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

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


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputTensor:
    """A tensor that clients can ask for.

    Attributes:
        datatype: What it consists of, in the words of the Open Inference Protocol: 32-bit floating-point numbers, truth
            values, or texts.
        is_by_class: It has a value for each image and class, [images, classes]; otherwise one for each image, [images].
        values: Returns its values, given the predictions for a request. None of them is null or NaN.
    """

    datatype: Literal["FP32", "BOOL", "BYTES"]
    is_by_class: bool = False
    values: Callable[[Predicted], np.ndarray | Sequence[str]]

    def shape(self, num_classes: int) -> list[int]:
        """Returns its shape for any number of images, which is -1, and so many classes."""
        return [-1, num_classes] if self.is_by_class else [-1]


def _known_scores(predicted: Predicted) -> np.ndarray:
    """Returns how foreign each image is, float32 [images]; -1 where it is not known."""
    return np.where(np.isfinite(predicted.ood_scores), predicted.ood_scores, -1).astype("<f4")


def _sets(predicted: Predicted) -> np.ndarray:
    """Returns which classes are in each set, bool [images, classes]. No class: the model has no sets."""
    return np.zeros(predicted.probs_BK.shape, bool) if predicted.sets_BK is None else predicted.sets_BK


OUTPUTS = {
    PROBABILITIES: OutputTensor(datatype="FP32", is_by_class=True, values=lambda found: found.probs_BK.astype("<f4")),
    LABEL: OutputTensor(datatype="BYTES", values=lambda found: found.labels),
    REFER: OutputTensor(
        datatype="BOOL", values=lambda found: np.array([bool(reason) for reason in found.reasons], dtype=bool)
    ),
    REFER_REASON: OutputTensor(datatype="BYTES", values=lambda found: found.reasons),
    OOD_SCORE: OutputTensor(datatype="FP32", values=_known_scores),
    PREDICTION_SET: OutputTensor(datatype="BOOL", is_by_class=True, values=_sets),
}
"""All output tensors, by name."""
