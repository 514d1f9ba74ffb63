"""Computes the metrics of a classifier with their 95 % intervals over groups of images, such as patients."""

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from tlray.trust.groups import (
    Evidence,
    evidence_of,
    group_index,
    jackknife_variance,
    linear_variance,
    weakest_class,
)
from tlray.trust.intervals import Interval, check_predictions, log_interval, score_interval


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricIntervals:
    """Metrics of a model's predictions, each with its 95 % interval.

    The interval of an average over classes counts as many groups as the class with the fewest groups has.

    Attributes:
        accuracy: Share of images whose most probable class is the true one.
        balanced_accuracy: Mean sensitivity of the classes that have images.
        f1_macro: Mean F1 of the classes that have images.
        auroc_macro: Mean one-versus-rest AUROC, NaN unless every class has images.
        log_loss: Mean negative natural logarithm of the true class's probability. Losses are skewed, so this interval
            is symmetric in the logarithm of the mean (delta method), with Student's t. It is too narrow where a model
            is sure and few of its mistakes were seen: nothing limits what the next one costs.
        sensitivities: Of each class, NaN for a class without images.
        specificities: Of each class, NaN for a class that all images have.
        precisions: Of each class, NaN for a class that is never predicted. The intervals rest on the images that are
            predicted as the class.
        f1s: F1 of each class, NaN for a class without images. F1 is 2 J / (1 + J), where J is a share: of the images
            that have the class or are predicted as it, those that have it and are predicted as it (Jaccard 1912). So
            the ends of Wilson's interval of J give those of F1.
        aurocs: One-versus-rest AUROC of each class, NaN unless the class and the rest have images. The intervals count
            as many groups as the one of the two with fewer groups has.
    """

    accuracy: Interval
    balanced_accuracy: Interval
    f1_macro: Interval
    auroc_macro: Interval
    log_loss: Interval
    sensitivities: tuple[Interval, ...]
    specificities: tuple[Interval, ...]
    precisions: tuple[Interval, ...]
    f1s: tuple[Interval, ...]
    aurocs: tuple[Interval, ...]


def metric_intervals(
    labels: np.ndarray,
    probs_BK: np.ndarray,
    groups: np.ndarray,
) -> MetricIntervals:
    """Computes the usual metrics of predicted probabilities with their 95 % intervals.

    Args:
        labels: True classes, int [images], in [0, K).
        probs_BK: Probabilities, floating point [images, K]. The most probable class is the predicted one.
        groups: Group of each image, [images], any values that can be sorted.

    Returns:
        Where fewer than two groups have the images that a metric needs, its interval is the whole range, since one
        group does not show how much groups differ.

    Raises:
        DataError: See `check_predictions`, or not every image has a group.
    """
    check_predictions(labels, probs_BK)
    index = group_index(groups, len(labels))
    num_classes, num_groups = probs_BK.shape[1], int(index.max()) + 1
    cells = (index * num_classes + labels) * num_classes + probs_BK.argmax(axis=1)
    confusion_GS = np.bincount(cells, minlength=num_groups * num_classes**2).reshape(num_groups, -1)
    sums_GS = np.concatenate([confusion_GS, np.bincount(index, _losses(labels, probs_BK))[:, None]], axis=1)

    every, weakest = evidence_of(index), weakest_class(labels, index)
    totals = sums_GS.sum(axis=0, keepdims=True)
    values, without_GM = _metrics(totals)[0], _metrics(totals - sums_GS)
    evidences = [every, weakest, weakest, *_class_evidences(labels, probs_BK.argmax(axis=1), index, num_classes)]
    found = [
        score_interval(float(value), jackknife_variance(without_G, each), each)
        for value, without_G, each in zip(values[1:], without_GM.T[1:], evidences, strict=True)
    ]
    sensitivities, specificities, precisions, jaccards = (
        tuple(found[start : start + num_classes]) for start in range(3, len(found), num_classes)
    )
    auroc_macro, aurocs = _auroc_intervals(labels, probs_BK, index, weakest)
    return MetricIntervals(
        accuracy=found[0],
        balanced_accuracy=found[1],
        f1_macro=found[2],
        auroc_macro=auroc_macro,
        log_loss=log_interval(float(values[0]), jackknife_variance(without_GM[:, 0], every), every),
        sensitivities=sensitivities,
        specificities=specificities,
        precisions=precisions,
        f1s=tuple(Interval(value=_f1(each.value), low=_f1(each.low), high=_f1(each.high)) for each in jaccards),
        aurocs=aurocs,
    )


def balanced_accuracy_interval(labels: np.ndarray, predicted: np.ndarray, groups: np.ndarray) -> Interval:
    """Returns the mean sensitivity of the classes that have images, with its 95 % interval.

    It takes predicted classes in place of probabilities, and little memory with many classes and groups.

    Args:
        labels: True classes, int [images].
        predicted: Predicted classes, int [images].
        groups: Group of each image, [images], any values that can be sorted.

    Raises:
        DataError: No images, or not every image has a group.
    """
    index = group_index(groups, len(labels))
    _, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
    is_right = predicted == labels
    sensitivities = np.bincount(place, is_right) / counts
    influence = (is_right - sensitivities[place]) / counts[place] / len(counts)
    return score_interval(float(sensitivities.mean()), linear_variance(influence, index), weakest_class(labels, index))


def _class_evidences(labels: np.ndarray, predicted: np.ndarray, index: np.ndarray, num_classes: int) -> list[Evidence]:
    """Returns what the sensitivities, specificities, precisions and Jaccard indices of the classes rest on."""
    in_class_KB, as_class_KB = (np.arange(num_classes)[:, None] == classes for classes in (labels, predicted))
    found = [[evidence_of(index[rows]) for rows in rows_KB] for rows_KB in (in_class_KB, ~in_class_KB, as_class_KB)]
    either = [evidence_of(index[rows]) for rows in in_class_KB | as_class_KB]
    # Images that are wrongly predicted as a class do not tell how much the groups of the class itself differ.
    jaccards = [replace(each, num_groups=own.num_groups) for each, own in zip(either, found[0], strict=True)]
    return [each for evidences in (*found, jaccards) for each in evidences]


def _f1(jaccard: float) -> float:
    return 2 * jaccard / (1 + jaccard)


def _metrics(sums_RS: np.ndarray) -> np.ndarray:
    """Returns metrics [rows, metrics] of sums: the confusion matrix, in which rows are the truth, then the log loss.

    The metrics are log loss, accuracy, balanced accuracy, macro F1, and for each class sensitivity, specificity,
    precision and Jaccard index. That index is NaN for a class without images.
    """
    num_classes = math.isqrt(sums_RS.shape[1] - 1)
    matrices_RKK = sums_RS[:, :-1].reshape(-1, num_classes, num_classes)
    truth_RK, found_RK = matrices_RKK.sum(axis=2), matrices_RKK.sum(axis=1)
    right_RK = np.diagonal(matrices_RKK, axis1=1, axis2=2)
    total_R1 = truth_RK.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):  # 0 / 0 without images or of a class without images: NaN
        sensitivity_RK = right_RK / truth_RK
        specificity_RK = (total_R1 - truth_RK - found_RK + right_RK) / (total_R1 - truth_RK)
        precision_RK = right_RK / found_RK
        f1_RK = 2 * right_RK / (truth_RK + found_RK)
        jaccard_RK = np.where(truth_RK > 0, right_RK / (truth_RK + found_RK - right_RK), np.nan)
        num_present_R1 = (truth_RK > 0).sum(axis=1, keepdims=True)
        averages = [sums_RS[:, -1:] / total_R1, right_RK.sum(axis=1, keepdims=True) / total_R1]
        averages += [
            each_RK.sum(axis=1, keepdims=True, where=truth_RK > 0) / num_present_R1
            for each_RK in (sensitivity_RK, f1_RK)
        ]
    return np.concatenate([*averages, sensitivity_RK, specificity_RK, precision_RK, jaccard_RK], axis=1)


def _losses(labels: np.ndarray, probs_BK: np.ndarray) -> np.ndarray:
    """Returns the log loss of each image; probabilities keep 2.2e-16 away from 0 and 1, as in scikit-learn."""
    chosen = probs_BK[np.arange(len(labels)), labels].astype(np.float64) / probs_BK.sum(axis=1, dtype=np.float64)
    least = np.finfo(np.float64).eps
    return -np.log(np.clip(chosen, least, 1 - least))


def _auroc_intervals(
    labels: np.ndarray, probs_BK: np.ndarray, index: np.ndarray, weakest: Evidence
) -> tuple[Interval, tuple[Interval, ...]]:
    """Returns the mean AUROC and that of each class, with the variance of Obuchowski 1997 (Biometrics 53:567-578).

    An image moves the AUROC of a class by its placement: the share of the other side's images that it is ranked
    rightly against, equal scores counting half (DeLong et al. 1988). The moves are summed over classes and groups.
    """
    aurocs, values, influence = [], [], np.zeros(len(labels))
    for each, scores in enumerate(probs_BK.T):
        is_positive = labels == each
        value, moves = _auroc(is_positive, scores)
        aurocs.append(score_interval(value, linear_variance(moves, index), weakest_class(is_positive, index)))
        values.append(value)
        influence += moves / len(probs_BK.T)
    # NaN unless every class has images. A single class would have no rest.
    return score_interval(float(np.mean(values)), linear_variance(influence, index), weakest), tuple(aurocs)


def _auroc(is_positive: np.ndarray, scores: np.ndarray) -> tuple[float, np.ndarray]:
    """Returns the AUROC and how much each image moves it, float64 [images]; NaN unless both sides have images."""
    num_positive = int(is_positive.sum())
    num_negative = len(is_positive) - num_positive
    if not num_positive or not num_negative:
        return math.nan, np.full(len(scores), math.nan)
    own_ranks = np.empty(len(scores))
    own_ranks[is_positive] = stats.rankdata(scores[is_positive])
    own_ranks[~is_positive] = stats.rankdata(scores[~is_positive])
    below = stats.rankdata(scores) - own_ranks  # images of the other side with a lower score
    placement = np.where(is_positive, below / num_negative, 1 - below / num_positive)
    value = float(placement[is_positive].mean())
    return value, (placement - value) / np.where(is_positive, num_positive, num_negative)
