"""Compares two models on the same images: the difference of their accuracies, with its interval and McNemar's test."""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from tlray.bundle.agreement import AccuracyChange
from tlray.errors import DataError
from tlray.trust.groups import effective_size, evidence_of, group_index, linear_variance, student
from tlray.trust.intervals import Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedComparison:
    """Two models on the same images.

    Attributes:
        difference: Accuracy of the model minus that of the reference, in [-1, 1], with its interval over groups.
        p_value: Of McNemar's exact test that both are right equally often, in (0, 1]. It counts images, not groups;
            with several images for each patient it is too small, and the interval decides.
        num_gained: Number of images that only the model predicts right.
        num_lost: Number of images that only the reference predicts right.
    """

    difference: Interval
    p_value: float
    num_gained: int
    num_lost: int


def compare_paired(
    labels: np.ndarray,
    predicted: np.ndarray,
    reference: np.ndarray,
    groups: np.ndarray,
) -> PairedComparison:
    """Compares the accuracies of a model and a reference on the same images.

    The interval is that of Agresti and Min (2005, Statistics in Medicine 24:729-740, section 2), which adds half an
    image to each of the four cells of the paired table, for the effective sample size and with Student's t. So it has
    a width also where both models agree on every image.

    Args:
        labels: True classes, int [images].
        predicted: Classes that the model predicts, int [images].
        reference: Classes that the reference predicts, int [images].
        groups: Group of each image, [images], any values that can be sorted.

    Returns:
        With fewer than two groups the interval is [-1, 1].

    Raises:
        DataError: No images, or arrays of different lengths.
    """
    index = group_index(groups, len(labels))
    if not labels.shape == predicted.shape == reference.shape:
        raise DataError(
            f"Both models must predict each image; got {labels.shape}, {predicted.shape}, {reference.shape}."
        )
    change = (predicted == labels).astype(np.float64) - (reference == labels)
    gained, lost = int(np.sum(change > 0)), int(np.sum(change < 0))
    p_value = float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    evidence = evidence_of(index)
    value, discordant = float(change.mean()), (gained + lost) / len(labels)
    variance = linear_variance((change - value) / len(labels), index)
    size = effective_size(discordant - value**2, variance, evidence)
    interval = Interval(value=value, low=-1.0, high=1.0)
    if evidence.num_groups >= 2:
        centre = size * value / (size + 2)
        spread = math.sqrt(size * discordant + 1 - (size * value) ** 2 / (size + 2)) / (size + 2)
        half = student(evidence) * spread
        interval = Interval(value=value, low=max(-1.0, centre - half), high=min(1.0, centre + half))
    return PairedComparison(difference=interval, p_value=p_value, num_gained=gained, num_lost=lost)


def compare_accuracy(
    predicted: np.ndarray, reference: np.ndarray, *, labels: np.ndarray, groups: np.ndarray
) -> AccuracyChange:
    """Returns the accuracy of predicted classes minus that of the reference's, with the interval of `compare_paired`.

    Args:
        predicted: Classes that the model predicts, int [images].
        reference: Classes that the reference predicts, int [images].
        labels: True classes, int [images].
        groups: Group of each image, [images], any values that can be sorted.

    Raises:
        DataError: No images, or arrays of different lengths.
    """
    found = compare_paired(labels, predicted, reference, groups).difference
    return AccuracyChange(value=found.value, low=found.low, high=found.high, num_groups=len(np.unique(groups)))
