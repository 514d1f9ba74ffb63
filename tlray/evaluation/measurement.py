"""Measures predictions against labels: all images of a split, and those that the model cannot know from training."""

import dataclasses
import math
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray.bundle.card import metric_rows
from tlray.bundle.judgement import Limits
from tlray.bundle.spec import BundleSpec
from tlray.bundle.wording import estimate
from tlray.data import audit
from tlray.errors import DataError
from tlray.evaluation import metrics
from tlray.evaluation.referrals import measure_judgement
from tlray.trust import subgroups


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SplitEvaluation:
    """The evaluation of a model on one split.

    Attributes:
        metrics: See `metrics.evaluate_predictions` and `referrals.measure_judgement`; and `num_failed` (images that
            could not be scored) and `num_unlabelled`. See also `with_leak_free` and `with_subgroups`.
        labels: True classes as indices into `classes`, integer, shape [images].
        probs_BK: Probability of each class, floating point, shape [images, K], in [0, 1].
        classes: The K class names in the order of the columns.
        groups: The group of each image, str [images]; images of a group are not independent.
        image_ids: The id of each image, str [images].
        ood_scores: How foreign each image is, float32 [images]; NaN where it is not known.
        limits: The limits of the model that predicted.
        is_new: Which images the model does not know from its training, as far as that is known; bool [images].
    """

    metrics: Mapping[str, Any]
    labels: np.ndarray
    probs_BK: np.ndarray
    classes: tuple[str, ...]
    groups: np.ndarray
    image_ids: np.ndarray
    ood_scores: np.ndarray
    limits: Limits
    is_new: np.ndarray

    @property
    def new(self) -> "SplitEvaluation":
        """The evaluation of the images that are new to the model, without metrics; of all images if none is new."""
        if self.is_new.all() or not self.is_new.any():
            return self
        arrays = ("labels", "probs_BK", "groups", "image_ids", "ood_scores", "is_new")
        return dataclasses.replace(self, metrics={}, **{name: getattr(self, name)[self.is_new] for name in arrays})


def usable(table: pa.Table) -> pa.Table:
    """Returns the rows of predictions that can be measured: those with a label and without an error.

    Raises:
        DataError: There are none.
    """
    found = table.filter(pc.field("label").is_valid() & pc.field("confidence").is_valid())
    if not found.num_rows:
        failed = table.filter(pc.field("error_code").is_valid() & pc.field("label").is_valid())
        why = f", {audit.explain_failures(failed)}" if failed.num_rows else ": there is nothing to measure."
        raise DataError(f"None of the images has both a label and a prediction{why}")
    return found


def measure(table: pa.Table, spec: BundleSpec, group_of: Mapping[str, str] | None = None) -> SplitEvaluation:
    """Compares predictions with their labels; rows without a label or with an error are counted, not measured.

    Args:
        table: Predictions, see `predictions.prediction_schema`.
        spec: Description of the bundle that predicted.
        group_of: The group of each image by its id; None: the column `group_id`.

    Raises:
        DataError: No row has both a label and a prediction.
    """
    found = usable(table)
    classes, image_ids = spec.classes, found["image_id"].to_pylist()
    groups = found["group_id"].to_pylist() if group_of is None else [group_of[each] for each in image_ids]
    return measure_probabilities(
        np.array([classes.index(label) for label in found["label"].to_pylist()]),
        np.column_stack([found[f"p_{name}"].to_numpy() for name in classes]),
        classes,
        groups=np.array(groups),
        image_ids=np.array(image_ids),
        ood_scores=found["ood_score"].cast(pa.float32()).fill_null(math.nan).to_numpy(),
        limits=spec.limits,
        num_failed=table.num_rows - table["error_code"].null_count,
        num_unlabelled=table["label"].null_count,
    )


def measure_probabilities(
    labels: np.ndarray,
    probs_BK: np.ndarray,
    classes: tuple[str, ...],
    *,
    groups: np.ndarray,
    image_ids: np.ndarray,
    ood_scores: np.ndarray,
    limits: Limits,
    num_failed: int = 0,
    num_unlabelled: int = 0,
) -> SplitEvaluation:
    """Compares probabilities with class indices; takes and returns the attributes of `SplitEvaluation`."""
    values = metrics.evaluate_predictions(labels, probs_BK, classes, groups)
    values |= measure_judgement(labels, probs_BK, ood_scores, groups, limits)
    values |= {"num_failed": num_failed, "num_unlabelled": num_unlabelled}
    return SplitEvaluation(
        metrics=values, labels=labels, probs_BK=probs_BK, classes=classes, groups=groups, image_ids=image_ids,
        ood_scores=ood_scores, limits=limits, is_new=np.ones(len(labels), bool),
    )  # fmt: skip


def with_leak_free(evaluation: SplitEvaluation, leaked: Set[str]) -> SplitEvaluation:
    """Adds the metrics of the images that the model does not know from its training.

    Args:
        evaluation: The evaluation of all images of a split.
        leaked: Ids of images that the model knows, see `splits.has_leaked`. Slices of a series whose patient is not
            known are not among them.

    Returns:
        The evaluation, whose metrics also have `num_leaked` and `leak_free`: the metrics of the other images; null if
        all images of the split are known, or none.
    """
    is_new = np.array([each not in leaked for each in evaluation.image_ids.tolist()], dtype=bool)
    found = dataclasses.replace(evaluation, is_new=is_new)
    values = None
    if found.new is not found:
        new = found.new
        values = metrics.evaluate_predictions(new.labels, new.probs_BK, new.classes, new.groups)
        values |= measure_judgement(new.labels, new.probs_BK, new.ood_scores, new.groups, new.limits)
    added = {"num_leaked": int((~is_new).sum()), "leak_free": values}
    return dataclasses.replace(found, metrics={**evaluation.metrics, **added})


def with_subgroups(evaluation: SplitEvaluation, table: pa.Table) -> SplitEvaluation:
    """Adds how often the model is right on subgroups of the images that are new to it.

    Args:
        evaluation: The evaluation of a split, after `with_leak_free` where it is known which images the model knows.
        table: A manifest with all its images, see `subgroups.columns_of`.

    Returns:
        The evaluation, whose metrics also have `subgroups`, see `subgroups.find`.
    """
    new = evaluation.new
    place_of = {image_id: place for place, image_id in enumerate(table["image_id"].to_pylist())}
    rows = table.take(pa.array([place_of[image_id] for image_id in new.image_ids.tolist()], pa.int64()))
    found = subgroups.find(subgroups.columns_of(rows), new.probs_BK.argmax(axis=1) == new.labels, new.groups)
    return dataclasses.replace(evaluation, metrics={**evaluation.metrics, "subgroups": found})


def headline(metrics_of: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the metrics to quote: those of the split test, or else of valid, or of the only one there is.

    Images that the model knows are left out, if others are left.

    Args:
        metrics_of: Split to its metrics.

    Returns:
        The metrics, with `split` and `is_leak_free`: all the images that were measured are new to the model, as far as
        is known; null where nothing is known of that. If some were left out, `all_images` has the metrics of all,
        without `subgroups`, which are of the new images.
    """
    split = next((name for name in ("test", "valid") if name in metrics_of), next(iter(metrics_of)))
    found = metrics_of[split]
    whole = {name: value for name, value in found.items() if name != "leak_free"}
    num_leaked = found.get("num_leaked")
    is_leak_free = None if num_leaked is None else not num_leaked or found["leak_free"] is not None
    quoted = {"split": split, "is_leak_free": is_leak_free}
    new = found.get("leak_free")
    if new is None:
        return {**whole, **quoted}
    all_images = {name: value for name, value in whole.items() if name != "subgroups"}
    return {**whole, **new, **quoted, "all_images": all_images}


def accuracy_rows(
    metrics_of: Mapping[str, Mapping[str, Any]], cross_validation: Mapping[str, Any] | None = None
) -> list[tuple[str, str]]:
    """Returns lines for people, a name and a text each: accuracy and balanced accuracy of each split.

    Args:
        metrics_of: Split to its metrics.
        cross_validation: Those of the cross-validation, see `tlray.evaluation.out_of_fold.cross_validated`.
    """
    rows = []
    for name, values in metric_rows(metrics_of, cross_validation):
        images = f"{values['num_images']} images"
        rows.append((f"{name}: accuracy", estimate(values["accuracy"], values["accuracy_ci95"], beside=images)))
        balanced = estimate(values["balanced_accuracy"], values["balanced_accuracy_ci95"])
        rows.append((f"{name}: balanced accuracy", balanced))
    return rows
