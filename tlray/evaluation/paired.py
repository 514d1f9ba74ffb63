"""Joins the predictions of two bundles for the same images, and computes which bundle is more often right.

`tlray.evaluation.compare` uses it; nothing here needs Ray or a model.
"""

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray.data import audit, splits
from tlray.errors import DataError, ImageErrorCode
from tlray.evaluation import metrics
from tlray.files import spreadsheet
from tlray.trust import intervals, paired_models

SIDES = ("bundle", "reference")
"""The two bundles of a comparison: names of their options, and ends of their columns in the CSV file."""

NONE_IS_NEW = (
    "Nothing can be concluded, because none of the images is new to both bundles. Compare them on images of other "
    "patients."
)
"""Conclusion of a comparison without an image that is new to both bundles."""

IF_NEW = "If these images are new to both bundles, which cannot be told here:"
"""Start of a conclusion where it is not known which images a bundle knows from its training."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Paired:
    """The predictions of two bundles for the labelled images that both could score.

    Attributes:
        tables: For each of `SIDES` its predictions, see `predictions.prediction_schema`. Both tables have the same
            images in the same order.
        groups: The group of each image, str [images]. Images that either bundle's predictions have in one group of
            `group_id` have the same group, because they are not independent.
        num_by_error: Number of labelled images that were left out, by error code. `changed` means that the file was
            replaced between the two scorings.
        num_known: For each of `SIDES` the number of images that it knows from its training, those that were left out
            because of that among them; None: it cannot be told.
        num_left_out: Number of images that were left out because a bundle knows them. If that would be all images, none
            is left out.
    """

    tables: Mapping[str, pa.Table]
    groups: np.ndarray
    num_by_error: Mapping[str, int]
    num_known: Mapping[str, int | None]
    num_left_out: int

    @property
    def num_scored(self) -> int:
        """The number of labelled images that both bundles could score."""
        return len(self.groups) + self.num_left_out

    @property
    def knows_all(self) -> bool:
        """None of the images is new to both bundles, so that all of them were kept."""
        return not self.num_left_out and any(self.num_known.values())

    def describe_known(self) -> str:
        """Returns how many images each bundle knows, such as `bundle: 2, reference: not known`."""
        counts = ((side, self.num_known[side]) for side in SIDES)
        return ", ".join(f"{side}: {'not known' if count is None else count}" for side, count in counts)


def pair(bundle: pa.Table, reference: pa.Table, known: Mapping[str, Set[str] | None]) -> Paired:
    """Joins the predictions of two bundles for labelled images that both could score and that are new to both.

    Args:
        bundle: Predictions of the bundle, see `predictions.prediction_schema`, with the groups of
            `relations.Relations.regrouped`.
        reference: Predictions of the reference for the same images, in any order.
        known: For each of `SIDES` the ids of the images that it knows from its training; None: it cannot be told. If
            none of the images is new to both, all are kept.

    Raises:
        DataError: No image is left.
    """
    place_of = {image_id: place for place, image_id in enumerate(reference["image_id"].to_pylist())}
    order = [place_of[image_id] for image_id in bundle["image_id"].to_pylist()]
    reference = reference.take(pa.array(order, pa.int64()))
    codes = _error_codes(bundle, reference)
    is_labelled = [label is not None for label in bundle["label"].to_pylist()]
    is_kept = np.array([has and not code for has, code in zip(is_labelled, codes, strict=True)], dtype=bool)
    if not is_kept.any():
        failed = pa.concat_tables([each.select(["uri", "error_code", "error"]) for each in (bundle, reference)])
        failed = failed.filter(pc.field("error_code").is_valid())
        why = f", {audit.explain_failures(failed)}" if failed.num_rows else ": there is nothing to compare."
        raise DataError(f"None of the images has a label and a prediction of both bundles{why}")
    scored = set(bundle["image_id"].filter(pa.array(is_kept)).to_pylist())
    known_to_one = frozenset[str]().union(*(ids for ids in known.values() if ids is not None))
    is_new = is_kept & np.array([image_id not in known_to_one for image_id in bundle["image_id"].to_pylist()])
    is_compared = is_new if is_new.any() else is_kept
    chosen = pa.array(is_compared)
    # Each bundle has found copies of its own: what is one group for either of them is one.
    groups = splits.image_groups(bundle.append_column(splits.PICTURE, reference["group_id"]))
    return Paired(
        tables={"bundle": bundle.filter(chosen), "reference": reference.filter(chosen)},
        groups=np.array(groups)[is_compared],
        num_by_error=dict(Counter(code for has, code in zip(is_labelled, codes, strict=True) if has and code)),
        num_known={side: None if ids is None else len(ids & scored) for side, ids in known.items()},
        num_left_out=int(is_kept.sum() - is_compared.sum()),
    )


def _error_codes(bundle: pa.Table, reference: pa.Table) -> list[str | None]:
    """Returns why each image cannot be compared; None where it can. Both tables have the same order of rows."""
    columns = (table[name].to_pylist() for name in ("error_code", "sha256") for table in (bundle, reference))
    return [
        code or other_code or (None if sha256 == other_sha256 else ImageErrorCode.CHANGED.value)
        for code, other_code, sha256, other_sha256 in zip(*columns, strict=True)
    ]


def measure(paired: Paired, classes: Mapping[str, Sequence[str]], *, are_new: bool | None = True) -> dict[str, Any]:
    """Computes the figures of a comparison.

    Args:
        paired: The predictions of both bundles.
        classes: For each of `SIDES` its class names in the order of its outputs. Both have the same names.
        are_new: Whether the images are new to both bundles; None: it cannot be told.

    Returns:
        Only str, int, float, None, list and dict:

        - `conclusion`: one sentence for people, see `conclude`; `NONE_IS_NEW` if no image is new to both bundles;
          after `IF_NEW` if `are_new` is None;
        - `num_images`, `num_groups`: the compared images and their groups;
        - `num_by_error`, `num_left_out`, and `bundle_num_known`, `reference_num_known`: see `Paired`;
        - `accuracy_difference`: accuracy of the bundle minus that of the reference, in [-1, 1], and
          `accuracy_difference_ci95`, its 95 % interval [low, high] over groups;
        - `p_value`: McNemar's exact test that both are right equally often, in (0, 1]; it counts images, not groups;
        - `num_only_bundle_right`, `num_only_reference_right`: images that only one of the two predicts right;
        - `same_label_share`: share of images for which both predict the same class, and `same_label_share_ci95`;
        - `num_refer_differs`: images that only one of the two marks `refer`;
        - `bundle_metrics`, `reference_metrics`: see `metrics.evaluate_predictions`. The sensitivity of a class is its
          `recall` in `per_class`.
    """
    bundle, reference = (paired.tables[side] for side in SIDES)
    truth, predicted, other = (
        _to_indices(column, classes["bundle"])
        for column in (bundle["label"], bundle["predicted_label"], reference["predicted_label"])
    )
    found = paired_models.compare_paired(truth, predicted, other, paired.groups)
    same = intervals.share_interval(predicted == other, paired.groups)
    referred, other_referred = (np.array(table["refer"].to_pylist(), dtype=bool) for table in (bundle, reference))
    low, high = found.difference.low, found.difference.high
    conclusion = NONE_IS_NEW if paired.knows_all else conclude(low, high)
    if are_new is None:
        conclusion = f"{IF_NEW} {conclusion[0].lower()}{conclusion[1:]}"
    return {
        "conclusion": conclusion,
        "num_images": len(truth),
        "num_groups": len(np.unique(paired.groups)),
        "num_by_error": dict(paired.num_by_error),
        "num_left_out": paired.num_left_out,
        **{f"{side}_num_known": paired.num_known[side] for side in SIDES},
        "accuracy_difference": found.difference.value,
        "accuracy_difference_ci95": [low, high],
        "p_value": found.p_value,
        "num_only_bundle_right": found.num_gained,
        "num_only_reference_right": found.num_lost,
        "same_label_share": same.value,
        "same_label_share_ci95": [same.low, same.high],
        "num_refer_differs": int(np.sum(referred != other_referred)),
        **{f"{side}_metrics": _measure_one(paired.tables[side], classes[side], paired.groups) for side in SIDES},
    }


def _measure_one(predicted: pa.Table, classes: Sequence[str], groups: np.ndarray) -> dict[str, Any]:
    probs_BK = np.column_stack([predicted[f"p_{name}"].to_numpy() for name in classes])
    return metrics.evaluate_predictions(_to_indices(predicted["label"], classes), probs_BK, classes, groups)


def _to_indices(names: pa.ChunkedArray, classes: Sequence[str]) -> np.ndarray:
    """Returns the index of each name in the classes, int64 [images]."""
    return np.array([classes.index(name) for name in names.to_pylist()], dtype=np.int64)


def conclude(low: float, high: float) -> str:
    """Returns one sentence that says which bundle is better, as far as the images show it.

    The interval decides, not the p value, because only the interval counts the images of a patient, and the copies of a
    picture, as one group.

    Args:
        low: Lower end of the 95 % interval of the bundle's accuracy minus that of the reference, in [-1, 1].
        high: Upper end.
    """
    if low > 0 or high < 0:
        better = "bundle" if low > 0 else "reference"
        least, most = sorted(100 * abs(end) for end in (low, high))
        return (
            f"The {better} is better: on images like these its accuracy is {least:.1f} to {most:.1f} percentage points "
            "higher (95 % interval)."
        )
    return (
        f"The images do not show which is better: the bundle's accuracy may be up to {100 * abs(low):.1f} percentage "
        f"points lower or up to {100 * abs(high):.1f} higher (95 % interval)."
    )


def csv_table(paired: Paired) -> pa.Table:
    """Returns a row for each image, for people. No text is one that a spreadsheet takes for a formula.

    Columns: `image_id`, `label`, and for each of `SIDES`, with `_bundle` or `_reference` at the end, `predicted_label`,
    `confidence` (float32), `refer` (bool) and `is_right` (bool).
    """
    first = paired.tables["bundle"]
    columns: dict[str, Any] = {name: _to_safe_texts(first[name]) for name in ("image_id", "label")}
    for side in SIDES:
        table = paired.tables[side]
        columns[f"predicted_label_{side}"] = _to_safe_texts(table["predicted_label"])
        columns[f"confidence_{side}"] = table["confidence"]
        columns[f"refer_{side}"] = table["refer"]
        truth, predicted = table["label"].to_pylist(), table["predicted_label"].to_pylist()
        columns[f"is_right_{side}"] = [label == other for label, other in zip(truth, predicted, strict=True)]
    return pa.table(columns)


def _to_safe_texts(column: pa.ChunkedArray) -> pa.Array:
    return pa.array([spreadsheet.as_text(text) for text in column.to_pylist()], pa.string())
