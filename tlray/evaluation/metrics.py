"""Computes scikit-learn's classification metrics of predictions, as one dictionary that can be written as JSON."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn import metrics as sk_metrics

from tlray.errors import DataError
from tlray.trust import classification
from tlray.trust.intervals import Interval


def evaluate_predictions(
    labels: np.ndarray, probs_BK: np.ndarray, classes: Sequence[str], groups: np.ndarray | None = None
) -> dict[str, Any]:
    """Computes the metrics of predicted probabilities against the true classes.

    The predicted class is the most probable one, the first of equals. A value that the data does not define is None,
    and `notes` says why; averages over classes are then over the classes that have images.

    Args:
        labels: True classes as indices into `classes`, any integer dtype, shape [images], in [0, K).
        probs_BK: Probability of each class, floating point, shape [images, K], finite, in [0, 1]. Rows may miss a sum
            of 1 by rounding, as float32 does; log loss divides by the sum, in float64.
        classes: The K names, all different, at least two, in the order of the columns.
        groups: The group of each image, [images], any values that can be sorted: the patient, or the picture of which
            it is a copy. Images of a group are not independent, so intervals count groups. None: each image is one.

    Returns:
        Only str, int, float, None, list and dict:
        `num_images`, `num_groups`, `classes`, `accuracy`, `balanced_accuracy`, `f1_macro`, `roc_auc_ovr_macro`
        (one-vs-rest, None unless every class has images), `log_loss` (natural logarithm), each of these five with its
        95 % interval NAME_ci95 ([low, high], each None where undefined; see `classification.metric_intervals`),
        `per_class` (class to `precision`, `recall`, `specificity`, `f1`, `roc_auc`, each None where undefined, and each
        with its interval NAME_ci95; and `support`), `confusion_matrix` (rows are the truth, columns the prediction),
        `notes` (metric to the reason why it is None or restricted).

    Raises:
        DataError: No images, or arrays that do not fit together.
    """
    labels, probs_BK = np.asarray(labels), np.asarray(probs_BK)
    _check(labels, probs_BK, classes)
    predicted = probs_BK.argmax(axis=1)
    present = np.unique(labels)
    matrix_KK = sk_metrics.confusion_matrix(labels, predicted, labels=np.arange(len(classes)))
    per_class = _per_class(labels, probs_BK, predicted, classes)
    groups = np.arange(len(labels)) if groups is None else np.asarray(groups)
    found = classification.metric_intervals(labels, probs_BK, groups)
    intervals_of = {
        "precision": found.precisions,
        "recall": found.sensitivities,
        "specificity": found.specificities,
        "f1": found.f1s,
        "roc_auc": found.aurocs,
    }
    for index, values in enumerate(per_class.values()):
        for name, intervals in intervals_of.items():
            values[f"{name}_ci95"] = [None, None] if values[name] is None else _ends(intervals[index])
    aucs = [values["roc_auc"] for values in per_class.values()]
    return {
        "num_images": len(labels),
        "num_groups": len(np.unique(groups)),
        "classes": list(classes),
        "accuracy": float(sk_metrics.accuracy_score(labels, predicted)),
        "accuracy_ci95": _ends(found.accuracy),
        # What balanced_accuracy_score computes, without its warning about a class that is only predicted.
        "balanced_accuracy": float(sk_metrics.recall_score(labels, predicted, labels=present, average="macro")),
        "balanced_accuracy_ci95": _ends(found.balanced_accuracy),
        "f1_macro": float(sk_metrics.f1_score(labels, predicted, labels=present, average="macro")),
        "f1_macro_ci95": _ends(found.f1_macro),
        "roc_auc_ovr_macro": None if None in aucs else float(np.mean(aucs)),
        "roc_auc_ovr_macro_ci95": _ends(found.auroc_macro),
        "log_loss": _log_loss(labels, probs_BK),
        "log_loss_ci95": _ends(found.log_loss),
        "per_class": per_class,
        "confusion_matrix": matrix_KK.tolist(),
        "notes": _notes(per_class),
    }


def _ends(interval: Interval) -> list[float | None]:
    return [end if math.isfinite(end) else None for end in (interval.low, interval.high)]


def _check(labels: np.ndarray, probs_BK: np.ndarray, classes: Sequence[str]) -> None:
    num_classes = len(classes)
    if num_classes < 2 or len(set(classes)) != num_classes:
        raise DataError(f"Metrics need at least two classes with different names; got {list(classes)}.")
    if labels.size == 0:
        raise DataError("There are no labelled images to evaluate. Give a split that has readable, labelled images.")
    if labels.ndim != 1 or probs_BK.shape != (len(labels), num_classes):
        raise DataError(
            f"Labels [images] and probabilities [images, {num_classes}] must match; "
            f"got shapes {labels.shape} and {probs_BK.shape}."
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"Labels must be integer indices into the classes; got dtype {labels.dtype}.")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise DataError(f"Labels must be in [0, {num_classes}); got {labels.min()} to {labels.max()}.")
    # A float32 softmax may exceed 1 by a rounding. Comparisons with NaN are false, so this refuses it too.
    bad = ~((probs_BK >= 0) & (probs_BK <= 1.001)).all(axis=1) | ~(probs_BK.sum(axis=1) > 0)
    if bad.any():
        row = int(bad.argmax())
        raise DataError(
            f"Probabilities must be finite, in [0, 1] and not all zero; row {row} is {probs_BK[row].tolist()}. "
            "Leave out images that could not be scored."
        )


def _log_loss(labels: np.ndarray, probs_BK: np.ndarray) -> float:
    probs64_BK = probs_BK.astype(np.float64)
    probs64_BK /= probs64_BK.sum(axis=1, keepdims=True)
    return float(sk_metrics.log_loss(labels, probs64_BK, labels=np.arange(probs_BK.shape[1])))


def _per_class(
    labels: np.ndarray, probs_BK: np.ndarray, predicted: np.ndarray, classes: Sequence[str]
) -> dict[str, dict[str, Any]]:
    indices = np.arange(len(classes))
    precision, recall, f1, support = sk_metrics.precision_recall_fscore_support(
        labels,
        predicted,
        labels=indices,
        zero_division=np.nan,  # pyright: ignore[reportArgumentType]
    )
    matrices_K22 = sk_metrics.multilabel_confusion_matrix(labels, predicted, labels=indices)
    result = {}
    for index, name in enumerate(classes):
        num_positive = int(np.asarray(support)[index])
        num_negative = len(labels) - num_positive
        values: dict[str, Any] = dict.fromkeys(("precision", "recall", "specificity", "f1", "roc_auc"))
        # Without images of a class, scikit-learn's 0 would read as a failure of the model.
        if num_positive:
            values["precision"] = _defined(np.asarray(precision)[index])
            values["recall"] = float(np.asarray(recall)[index])
            values["f1"] = float(np.asarray(f1)[index])
        if num_positive and num_negative:
            values["specificity"] = float(matrices_K22[index, 0, 0] / num_negative)
            values["roc_auc"] = float(sk_metrics.roc_auc_score(labels == index, probs_BK[:, index]))
        result[name] = {**values, "support": num_positive}
    return result


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _notes(per_class: dict[str, dict[str, Any]]) -> dict[str, str]:
    present = [name for name, values in per_class.items() if values["support"]]
    absent = [name for name in per_class if name not in present]
    never_predicted = [name for name in present if per_class[name]["precision"] is None]
    notes = {}
    if absent:
        without = f"no image of {_quoted(absent)}"
        averaged = f"Averaged over the classes that have images; there is {without}."
        notes["balanced_accuracy"] = notes["f1_macro"] = averaged
        notes["roc_auc_ovr_macro"] = f"Not defined: one-vs-rest needs images of every class; there is {without}."
        notes["per_class"] = f"Not defined for classes without images: {_quoted(absent)}."
    if len(present) == 1:
        notes["specificity"] = notes["roc_auc"] = f"Not defined: every image is {_quoted(present)}."
    if never_predicted:
        notes["precision"] = f"Not defined for classes that are never predicted: {_quoted(never_predicted)}."
    return notes


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
