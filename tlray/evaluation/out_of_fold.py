"""Keeps what cross-validation and calibration say about images that they were not fitted on, and measures it again.

A training run writes these predictions to `FILE`; `tlray verify` computes the figures from them again.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tlray.bundle.judgement import Limits
from tlray.data.dataset import Dataset
from tlray.data.manifest import column_lists
from tlray.evaluation import checks
from tlray.evaluation.checks import Check
from tlray.evaluation.measurement import SplitEvaluation, measure_probabilities
from tlray.trust import calibration

FILE = "out_of_fold.parquet"
"""Name of the file with these predictions in a run's directory."""

CROSS_VALIDATION = "cross_validation"
"""Name of the figures of linear probes on training and validation images that each was fitted without. In `FILE` it is
also the name of the predictions that they are computed from."""

BEFORE, AFTER = "before_calibration", "after_calibration"
"""Names of the predictions in `FILE` that calibration was fitted on. Those after it come from calibrations that were
fitted without the image's group."""

CALIBRATION = "calibration"
"""Name of the figures that are computed from the predictions `BEFORE` and `AFTER`."""

FIGURES = (CROSS_VALIDATION, CALIBRATION)
"""Names of the figures that are computed from `FILE`."""

_KIND = "kind"  # the column of FILE with CROSS_VALIDATION, BEFORE or AFTER
_ERRORS = tuple(f"{name}{end}" for name in ("ece", "brier") for end in ("", "_before"))
_COUNTS = ("num_images", "num_groups")
_WHERE = "for these figures"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Predicted:
    """Predictions for labelled images.

    Attributes:
        image_ids: The id of each image.
        labels: True classes, int [images].
        probs_BK: Probabilities, floating point [images, K].
    """

    image_ids: Sequence[str]
    labels: np.ndarray
    probs_BK: np.ndarray


def to_table(predicted: Mapping[str, Predicted], classes: Sequence[str]) -> pa.Table:
    """Returns the content of `FILE`: `kind`, `image_id`, `label` (class index), and `p_CLASS` (float64) for each class.

    Args:
        predicted: `CROSS_VALIDATION`, `BEFORE` or `AFTER` to its predictions; at least one of them.
        classes: The K class names in the order of the probabilities.
    """
    tables = []
    for kind, each in predicted.items():
        columns: dict[str, Any] = {
            _KIND: [kind] * len(each.labels),
            "image_id": list(each.image_ids),
            "label": each.labels.astype(np.int32),
            **{f"p_{name}": each.probs_BK[:, k].astype(np.float64) for k, name in enumerate(classes)},
        }
        tables.append(pa.table(columns))
    return pa.concat_tables(tables)


def cross_validated(predicted: Predicted, groups: np.ndarray, classes: tuple[str, ...]) -> SplitEvaluation:
    """Measures probes on images that they were not fitted on; nothing judges them, as they are not the model.

    Args:
        predicted: What the probes say.
        groups: Group of each image, str [images].
        classes: The K class names in the order of the probabilities.
    """
    return measure_probabilities(
        predicted.labels,
        predicted.probs_BK,
        classes,
        groups=groups,
        image_ids=np.array(predicted.image_ids),
        ood_scores=np.full(len(predicted.labels), math.nan, np.float32),
        limits=Limits(),
    )


def calibration_errors(
    probs_BK: np.ndarray, labels: np.ndarray, groups: np.ndarray, *, end: str = ""
) -> dict[str, Any]:
    """Returns `ece` and `brier` with their 95 % intervals NAME_ci95, [low, high]; `end` is added to both names.

    Arguments and errors: see `calibration.calibration_error_interval`.
    """
    found = {
        f"ece{end}": calibration.calibration_error_interval(probs_BK, labels, groups),
        f"brier{end}": calibration.brier_interval(probs_BK, labels, groups),
    }
    return {name: each.value for name, each in found.items()} | {
        f"{name}_ci95": [each.low, each.high] for name, each in found.items()
    }


def told(metrics: Mapping[str, Any], trust: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the figures of `FIGURES` that a run tells.

    Args:
        metrics: The content of `metrics.json`, which has those of the cross-validation; may be empty.
        trust: `trust` of the run's bundle, which has those of the calibration; may be empty.
    """
    found: dict[str, Any] = {}
    if metrics.get(CROSS_VALIDATION):
        found[CROSS_VALIDATION] = metrics[CROSS_VALIDATION]
    errors = trust.get("calibration")
    if errors:
        names = [*_ERRORS, *(f"{name}_ci95" for name in _ERRORS)]
        counts = {name: trust[name] for name in _COUNTS if name in trust}
        found[CALIBRATION] = counts | {name: errors[name] for name in names if name in errors}
    return found


def measure(predicted: pa.Table, images: Dataset, classes: tuple[str, ...]) -> dict[str, Any]:
    """Returns the figures of `FIGURES`, computed from stored predictions and the groups of the manifest.

    Predictions of images that the manifest does not have, and with labels that the bundle does not have, are left out;
    `check_images` finds them.

    Args:
        predicted: The content of `FILE`.
        images: The images of the run.
        classes: The class names of the run's bundle.

    Returns:
        See `told`. Figures without predictions are left out.

    Raises:
        KeyError: A column is missing.
        DataError: Probabilities are not finite, or not in [0, 1].
        TypeError: They are no numbers.
    """
    group_of = images.group_of
    parts: dict[str, tuple[Predicted, np.ndarray]] = {}
    for kind in (CROSS_VALIDATION, BEFORE, AFTER):
        is_known = [
            each == kind and image_id in group_of and label in range(len(classes))
            for each, image_id, label in zip(*column_lists(predicted, _KIND, "image_id", "label"), strict=True)
        ]
        rows = predicted.filter(pa.array(is_known, pa.bool_()))
        if not rows.num_rows:
            continue
        image_ids = rows["image_id"].to_pylist()
        probs_BK = np.column_stack([rows[f"p_{name}"].to_numpy() for name in classes])
        part = Predicted(image_ids=image_ids, labels=rows["label"].to_numpy(), probs_BK=probs_BK)
        parts[kind] = part, np.array([group_of[image_id] for image_id in image_ids], dtype=str)
    found: dict[str, Any] = {}
    if CROSS_VALIDATION in parts:
        found[CROSS_VALIDATION] = cross_validated(*parts[CROSS_VALIDATION], classes).metrics
    if BEFORE in parts and AFTER in parts:
        (before, before_groups), (after, groups) = parts[BEFORE], parts[AFTER]
        counts = dict(zip(_COUNTS, (len(after.labels), len(np.unique(groups))), strict=True))
        found[CALIBRATION] = (
            counts
            | calibration_errors(after.probs_BK, after.labels, groups)
            | calibration_errors(before.probs_BK, before.labels, before_groups, end="_before")
        )
    return found


def check_images(predicted: pa.Table, images: Dataset, classes: Sequence[str]) -> Iterator[Check]:
    """Compares the images of stored predictions, and their labels, with the manifest: two checks for each kind.

    A cross-validation has all training and validation images. A calibration has these too, or only validation images
    that are new to the model, and the same images before and after it.

    Args:
        predicted: The content of `FILE`.
        images: The images of the run.
        classes: The class names of the run's bundle.
    """
    leaked, train, valid = images.leaked, dict[str, str](), dict[str, str]()
    for split, image_id, label in zip(*column_lists(images.readable, "split", "image_id", "label"), strict=True):
        if split in ("train", "valid"):
            (train if split == "train" else valid)[image_id] = label
    found = checks.images_of(predicted, _KIND, classes)
    calibrated = {image_id for kind in (BEFORE, AFTER) for image_id, _ in found.get(kind, ())}
    new = {each: label for each, label in valid.items() if each in calibrated and each not in leaked}
    of_calibration = train | valid if calibrated & train.keys() else new
    wanted = {CROSS_VALIDATION: train | valid, BEFORE: of_calibration, AFTER: of_calibration}
    for kind, each in found.items():
        yield from checks.compare_images(str(kind), each, wanted.get(kind or "", {}), where=_WHERE, all_needed=True)
