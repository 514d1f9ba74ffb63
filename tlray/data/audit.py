"""Audits a data set before training: finds duplicates, leaks and imbalance, as a report and as warnings."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray.data import label_conflicts, splits
from tlray.errors import ImageErrorCode, some, times

MAX_EXAMPLES = 20
"""Maximum number of examples of each finding in a report, and of images in each example."""

MAX_LISTED_CLASSES = 10
"""Maximum number of classes that a warning names."""

MIN_CLASS_IMAGES = 20
"""Number of training images of a class below which the audit warns."""

MAX_UNREADABLE_FRACTION = 0.05
"""Share of unreadable images above which the audit warns."""

MAX_UNNAMED_FRACTION = 0.05
"""Share of images without a named patient up to which the patients of a data set count as named."""

MAX_IMBALANCE_RATIO = 10.0
"""Ratio of the largest to the smallest training class above which the audit warns."""

UNASSIGNED = "unassigned"
"""Name in a report for the split of images whose split is null."""

MAX_NAMED_FAILURES = 3
"""Maximum number of unreadable images that a message names."""

FIX = "tlray audit --data DATA --weights WEIGHTS --out OUT --fix"
"""Command that writes a manifest with the copies of an image, and the images of a patient, in one split. The features
of a network find more copies than thumbnails, which it looks at alone without --weights."""

_REMEDIES: dict[str, str] = {
    ImageErrorCode.NOT_FOUND: "Write paths relative to the manifest, or absolute ones that every node has.",
    ImageErrorCode.UNREADABLE: "Check permissions and the storage, and unpack archives that have a password.",
    ImageErrorCode.UNSUPPORTED_FORMAT: "Convert the files to PNG or TIFF with 8- or 16-bit integers.",
    ImageErrorCode.TOO_LARGE: "Make the images smaller.",
}


def audit(table: pa.Table) -> dict[str, Any]:
    """Returns an audit report on a manifest whose files have been read.

    Counts, duplicates and groups include readable images only. Images are duplicates if their bytes are the same.

    Args:
        table: A table with `manifest.SCHEMA` and `error_code` (string, null if the image is fine), `width_px` and
            `height_px` (int, null on error, or for all if not measured). The order of rows makes no difference.

    Returns:
        A report that can be written as JSON:

        - `num_images`, `num_readable`, `num_unlabelled` (of the readable images);
        - `counts`: number of images by split and class; null splits are `unassigned`, unlabelled images are left out;
        - `imbalance_ratio`: size of the largest class divided by that of the smallest, in train (in `unassigned` if
          train is empty); null if neither has images;
        - `errors`: by error code, `num_images` and `examples` (image ids);
        - `duplicates`: `num_groups` and `num_images` of all groups of duplicates; and the same with `examples` for the
          groups with two images in one split (`within_split`), with images in several splits (`across_splits`), and
          with several labels (`conflicting_labels`). An example has `sha256` and `images`, each with `image_id`,
          `split` and `label`;
        - `groups`: `num_groups`, `num_unnamed` (images without a named patient, see `splits.has_named_patient`),
          `by_class` (the number of patients of each class whose images all have a named patient), `num_patients` (of
          the labelled images; null if one has no named patient), and `across_splits` as above, with `group_id` in place
          of `sha256`;
        - `size_px`: `width` and `height`, each with `min`, `median` and `max`; null if not known.
    """
    readable = table.filter(pc.field("error_code").is_null())
    counts = _counts(readable)
    training = (counts.get("train") or counts.get(UNASSIGNED) or {}).values()
    return {
        "num_images": table.num_rows,
        "num_readable": readable.num_rows,
        "num_unlabelled": readable["label"].null_count,
        "counts": counts,
        "imbalance_ratio": max(training) / min(training) if training else None,
        "errors": _errors(table),
        "duplicates": _duplicates(readable),
        "groups": _groups(readable),
        "size_px": _sizes(readable),
    }


def patients_by_class(report: Mapping[str, Any]) -> dict[str, int]:
    """Returns the number of patients of each class, of classes whose images all have a named patient.

    Args:
        report: What `audit` returns; parts may be missing, as in reports of earlier versions. Empty for these, which
            count an image without a named patient as one.
    """
    groups = report.get("groups", {})
    return dict(groups["by_class"]) if "num_unnamed" in groups else {}


def has_patients(report: Mapping[str, Any]) -> bool | None:
    """Tells whether patients are named, for all images but a share of `MAX_UNNAMED_FRACTION`; None: it is not known.

    Args:
        report: What `audit` returns; parts may be missing. Reports of earlier versions tell only whether a patient, or
            a group that does not just look alike, has several images.
    """
    groups, num_readable = report.get("groups", {}), report.get("num_readable")
    if num_readable is None or "num_groups" not in groups:
        return None
    if "num_unnamed" not in groups:
        return groups["num_groups"] + groups.get("num_alike", 0) < num_readable
    return groups["num_unnamed"] <= MAX_UNNAMED_FRACTION * num_readable


def _counts(readable: pa.Table) -> dict[str, dict[str, int]]:
    labelled = readable.filter(pc.field("label").is_valid())
    counted = labelled.group_by(["split", "label"]).aggregate([([], "count_all")])
    counts: dict[str, dict[str, int]] = defaultdict(dict)
    for row in counted.sort_by([("split", "ascending"), ("label", "ascending")]).to_pylist():
        counts[row["split"] or UNASSIGNED][row["label"]] = row["count_all"]
    return dict(counts)


def _errors(table: pa.Table) -> dict[str, dict[str, Any]]:
    errors = {}
    for code in sorted(table["error_code"].unique().drop_null().to_pylist()):
        image_ids = sorted(table.filter(pc.field("error_code") == code)["image_id"].to_pylist())
        errors[code] = {"num_images": len(image_ids), "examples": image_ids[:MAX_EXAMPLES]}
    return errors


def _duplicates(readable: pa.Table) -> dict[str, Any]:
    hashed = readable.filter(pc.field("sha256").is_valid())
    by_hash = hashed.group_by("sha256").aggregate(
        [([], "count_all"), ("split", "count_distinct"), ("label", "count_distinct")]
    )
    repeated = by_hash.filter(pc.field("count_all") > 1)
    by_split = hashed.group_by(["sha256", "split"]).aggregate([([], "count_all")])
    in_one_split = by_split.filter(pc.field("count_all") > 1)["sha256"].unique()
    return {
        "num_groups": repeated.num_rows,
        "num_images": sum(repeated["count_all"].to_pylist()),
        "within_split": _finding(hashed, "sha256", repeated.filter(pc.field("sha256").isin(in_one_split))),
        "across_splits": _finding(hashed, "sha256", repeated.filter(pc.field("split_count_distinct") > 1)),
        "conflicting_labels": _finding(hashed, "sha256", repeated.filter(pc.field("label_count_distinct") > 1)),
    }


def _groups(readable: pa.Table) -> dict[str, Any]:
    by_group = readable.group_by("group_id").aggregate([([], "count_all"), ("split", "count_distinct")])
    across = by_group.filter(pc.field("split_count_distinct") > 1)
    unnamed = readable.filter(pa.array(~splits.has_named_patient(readable)))
    labelled = readable.filter(pc.field("label").is_valid())
    is_counted = ~pc.field("label").isin(unnamed["label"].unique().drop_null())
    by_class = labelled.filter(is_counted).group_by("label").aggregate([("group_id", "count_distinct")])
    return {
        "num_groups": by_group.num_rows,
        "num_unnamed": unnamed.num_rows,
        "by_class": {row["label"]: row["group_id_count_distinct"] for row in by_class.sort_by("label").to_pylist()},
        "num_patients": None if unnamed["label"].null_count < len(unnamed) else len(labelled["group_id"].unique()),
        "across_splits": _finding(readable, "group_id", across),
    }


def _finding(images: pa.Table, key: str, found: pa.Table) -> dict[str, Any]:
    """Describes groups of images with the same `key`; `found` has one row for each group, with `count_all`."""
    chosen = found.sort_by(key)[key].combine_chunks()[:MAX_EXAMPLES]
    rows_of: dict[str, list[dict[str, Any]]] = {value: [] for value in chosen.to_pylist()}
    for row in images.filter(pc.field(key).isin(chosen)).sort_by("image_id").to_pylist():
        rows_of[row[key]].append(row)
    return {
        "num_groups": found.num_rows,
        "num_images": sum(found["count_all"].to_pylist()),
        "examples": [
            {
                key: value,
                "images": [{name: row[name] for name in ("image_id", "split", "label")} for row in rows[:MAX_EXAMPLES]],
            }
            for value, rows in rows_of.items()
        ],
    }


def _sizes(readable: pa.Table) -> dict[str, dict[str, float]] | None:
    if not readable.num_rows or readable["width_px"].null_count:
        return None
    sizes = {}
    for side in ("width", "height"):
        values = readable[f"{side}_px"].to_numpy()
        sizes[side] = {"min": int(values.min()), "median": float(np.median(values)), "max": int(values.max())}
    return sizes


def warnings(report: dict[str, Any]) -> list[str]:
    """Returns warnings about a data set, each with a remedy.

    Args:
        report: A report from `audit`.

    Returns:
        Texts for people, the most serious first; empty if nothing is wrong.
    """
    found = [*leak_warnings(report), *_label_warnings(report)]
    num_unreadable = report["num_images"] - report["num_readable"]
    if num_unreadable > MAX_UNREADABLE_FRACTION * report["num_images"]:
        codes = ", ".join(f"{code}: {error['num_images']}" for code, error in report["errors"].items())
        found.append(
            f"{num_unreadable} of {report['num_images']} images cannot be read ({codes}). "
            "Repair or convert them; they are left out."
        )
    return found


def leak_warnings(report: dict[str, Any]) -> list[str]:
    """Returns warnings about images or patients that splits share, which may make metrics too good.

    Args:
        report: A report from `audit`; with the findings of `tlray.trust.findings.find`, if the pictures were looked at.

    Returns:
        Texts for people, which `warnings` lists first; empty if no two splits share images or patients. The first text
        about what `FIX` mends ends with that command.
    """
    found = []
    # An audit that has not looked at the pictures knows only files with the same bytes.
    is_looked = "copies" in report
    copies = (report["copies"]["copies"] if is_looked else report["duplicates"])["across_splits"]
    if copies["num_groups"]:
        what = (
            "copies of one another, identical or changed a little,"
            if is_looked
            else "byte for byte copies of one another"
        )
        found.append(
            f"{copies['num_images']} images are {what} in different splits (groups: {copies['num_groups']}, for "
            f"example {_example(copies, 'split')}), so the metrics of {_measured_twice(report)} count "
            "images that the model knows. Keep the copies of an image in one split; "
            f"this command writes a table of the images with such splits: `{FIX}`"
        )
    patients = report["groups"]["across_splits"]
    if patients["num_groups"]:
        group_id = patients["examples"][0]["group_id"]
        end = "." if found else f"; this command writes a table of the images with such splits: `{FIX}`"
        found.append(
            f"Patients or groups with images in several splits: {patients['num_groups']} (for example '{group_id}'), "
            f"so the metrics of {_measured_twice(report)} count patients that the model knows. Split by patient{end}"
        )
    if is_looked and (parted := _parted_series(report)):
        found.append(
            f"{parted} are too good. Name the patients: one folder for each, or the column group_id of a table."
        )
    return found


def _parted_series(report: Mapping[str, Any]) -> str:
    """Returns a text about neighbouring slices in different splits, up to the metrics that it concerns; or empty."""
    if_related = "If these are slices of one patient, the metrics"
    series, copies = (report["copies"][name]["across_splits"] for name in ("series", "copies"))
    if "neighbours" not in report:
        # Of a report of an earlier version, which does not count neighbours: more groups than those that have copies.
        if series["num_groups"] <= copies["num_groups"]:
            return ""
        return (
            f"{series['num_images']} images are copies or neighbouring slices of one another in different splits "
            f"(groups: {series['num_groups']}, for example {_example(series, 'split')}). {if_related}"
        )
    near_in = {split: number for split, number in report["neighbours"].items() if number}
    near = ", ".join(f"{number} in {split}" for split, number in near_in.items())
    pair = report.get("neighbour_example")
    example = f" (for example '{pair[0]}' and '{pair[1]}')" if pair else ""
    what = "Images without a named patient that look like neighbouring slices of images that the model learns from"
    return f"{what}: {near}{example}. {if_related} of {' and '.join(near_in)}" if near else ""


def _measured_twice(report: dict[str, Any]) -> str:
    """Names the images whose metrics may be too good: those of splits that share images with what is learned from."""
    leaked = [split for split, num_images in report.get("leaked", {}).items() if num_images]
    return f"all images of {' and '.join(leaked)}" if leaked else "all images"


def _label_warnings(report: dict[str, Any]) -> list[str]:
    found = []
    conflicts = label_conflicts.conflicts(report)
    if conflicts["num_groups"]:
        where = f"{times(conflicts['num_groups'])}{label_conflicts.place(conflicts)}"
        example = _example(conflicts, "label")
        found.append(f"The same image has different labels ({where}, for example {example}). Correct the labels.")
    counts = report["counts"]
    train = counts.get("train", {})
    small = {label: count for label, count in train.items() if count < MIN_CLASS_IMAGES}
    if small:
        smallest = sorted(small.items(), key=lambda item: item[1])
        listed = ", ".join(f"'{label}': {count}" for label, count in smallest[:MAX_LISTED_CLASSES])
        if len(small) > MAX_LISTED_CLASSES:
            listed += f" and {len(small) - MAX_LISTED_CLASSES} more"
        found.append(
            f"Classes with fewer than {MIN_CLASS_IMAGES} training images ({listed}) are learned badly. "
            "Add images, or merge classes with a class map."
        )
    for split in ("valid", "test"):
        absent = train.keys() - counts[split].keys() if split in counts else set()
        if absent:
            found.append(
                f"The {split} split has no image of {some(absent, limit=MAX_LISTED_CLASSES)}, so nothing can be "
                "measured for it. Add images or patients."
            )
    ratio = report["imbalance_ratio"]
    if ratio is not None and ratio > MAX_IMBALANCE_RATIO:
        found.append(
            f"The largest class has {ratio:.1f} times the images of the smallest. "
            "Weight the classes or add images, and read balanced accuracy, not accuracy."
        )
    return found


def _example(finding: Mapping[str, Any], column: str) -> str:
    """Names two images of a finding's first example; if possible two that differ in a column."""
    first, *others = finding["examples"][0]["images"]
    other = next((image for image in others if image[column] != first[column]), others[0])
    return f"'{first['image_id']}' and '{other['image_id']}'"


def explain_failures(failed: pa.Table) -> str:
    """Returns a text that names the first unreadable images, each with its error, and the most likely remedy.

    Args:
        failed: Rows with `uri`, `error_code` and `error`, at least one.

    Returns:
        The end of a sentence ("for example ..."), and a sentence with the remedy.
    """
    rows = failed.select(["uri", "error_code", "error"]).to_pylist()
    shown = [f"'{row['uri']}' ({row['error_code']}: {row['error']})" for row in rows[:MAX_NAMED_FAILURES]]
    ((code, _),) = Counter(row["error_code"] for row in rows).most_common(1)
    uri = next(row["uri"] for row in rows if row["error_code"] == code)
    return f"for example {', '.join(shown)}. {_remedy(code, uri)}"


def _remedy(code: str, uri: str) -> str:
    if code == ImageErrorCode.NOT_FOUND:
        if re.search(r"(^|/)[A-Za-z]:[/\\]|\\", uri):
            return "These are Windows paths: write them relative to the manifest, with forward slashes."
        if "." not in uri.rpartition("/")[2]:
            return "The manifest's uri must have the file's extension, and its folder relative to the manifest."
    return _REMEDIES.get(code, "Copy the files again, or remove them.")
