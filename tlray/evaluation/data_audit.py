"""Audits labelled images without training: copies, leaks between splits, telltale files, and labels likely wrong."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import ray

from tlray.cluster import capacity, connection, locations
from tlray.config.commands import AuditConfig
from tlray.data import audit, dataset, inspected, manifest, splits
from tlray.errors import DataError, some
from tlray.evaluation import evaluate, suspect_labels
from tlray.evaluation.report import Report
from tlray.features import preparation, update
from tlray.features.preparation import Network
from tlray.files import spreadsheet, storage
from tlray.trust import finding_warnings, findings, pictures
from tlray.trust.copies import Copies
from tlray.trust.gallery import make_gallery

KIND = "audit"
FIXED = "fixed.csv"
"""Name of the file with the corrected manifest."""
NAMES = frozenset({dataset.AUDIT, dataset.MANIFEST, evaluate.REPORT_HTML, evaluate.FIGURES, FIXED, suspect_labels.FILE})


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditResult:
    """The result of an audit.

    Attributes:
        out: The output directory.
        findings: Those of `tlray.data.audit.audit` and `tlray.trust.findings.find`, and `suspect_labels`: what
            `Checked.describe` returns, null without weights.
        warnings: Warnings about the images, the gravest first, then notes about the network.
        num_fixed: Number of images in the corrected manifest; None: it was not asked for.
    """

    out: str
    findings: Mapping[str, Any]
    warnings: tuple[str, ...]
    num_fixed: int | None = None

    def rows(self) -> list[tuple[str, str]]:
        """Returns lines for people, a name and a text each."""
        rows = findings.rows(self.findings)
        if checked := self.findings.get("suspect_labels"):
            rows.append(("labels to check", self._labels_to_check(checked)))
        rows.append(("report", f"{self.out}/{evaluate.REPORT_HTML}"))
        if self.num_fixed is not None:
            left_out = self.findings["num_images"] - self.num_fixed
            rows.append(("corrected manifest", f"{self.out}/{FIXED}, {self.num_fixed} images ({left_out} left out)"))
        return rows

    def _labels_to_check(self, checked: Mapping[str, Any]) -> str:
        """Returns how many labels are likely wrong, and where they are listed, given `Checked.describe`."""
        if checked["num_suspects"] is None:
            return f"not looked for: {checked['note']}"
        note = f"; {checked['note']}" if checked["note"] else ""
        if not checked["num_suspects"]:
            return f"none of {checked['num_images']}{note}"
        return f"{checked['num_suspects']} of {checked['num_images']}: {self.out}/{suspect_labels.FILE}{note}"


def audit_images(config: AuditConfig) -> AuditResult:
    """Reads all images, looks for what would spoil a result, and writes `audit.json`, last, and a report.

    Raises:
        ConfigError: A setting cannot work.
        DataError: There are no images, or none can be read.
    """
    out, data = locations.output_location(config.out), locations.input_location(config.data)
    storage.check_output(out, kind=KIND, known_names=NAMES, overwrite=config.overwrite)
    listed = dataset.list_classes(data, columns=config.columns, class_map=config.class_map, quiet=config.quiet)
    features = config.features()
    kind = None if features is None else update.check(features, locations.absolute(features.training()))
    connection.connect()
    available = capacity.measure()
    locations.check_shared(out, available)
    locations.check_shared_images(data, config.columns, available)
    network = None if features is None or kind is None else preparation.start(features, kind)
    table = dataset.read_images(
        listed.table,
        out=out,
        kind=KIND,
        task_cpus=available.task_cpus,
        meanwhile=partial(_check, network),
        quiet=config.quiet,
    )
    if not table["error_code"].null_count:
        raise DataError(
            f"None of the {table.num_rows} images of '{config.data}' can be read, {audit.explain_failures(table)}"
        )
    pooled, notes = None, ()
    if features is not None and network is not None:
        storage.mark_output(out, kind=KIND)  # else what follows would not know whose features these are
        directory = storage.join(out, storage.UNFINISHED, "features")
        pooled, notes = update.pooled_features(features, network, dataset.without_looks(table), directory, available)
    seen = pictures.look(table, pooled, task_cpus=available.task_cpus, quiet=config.quiet)
    table, readable = seen.table, seen.table.filter(seen.table["error_code"].is_null())
    in_tasks = partial(connection.call_in_tasks, task_cpus=available.task_cpus)
    report = audit.audit(table) | findings.find(table, seen, pooled, seed=config.seed, call=in_tasks)
    report |= {"num_skipped": listed.num_skipped, "suspect_labels": None}
    doubtful = None
    if pooled is not None:
        checked = suspect_labels.check(readable, pooled, memory_bytes=available.memory_bytes, seed=config.seed)
        report["suspect_labels"], doubtful = checked.describe(), checked.suspects
    shortcuts, known = tuple(finding_warnings.shortcut_warnings(report)), audit.leak_warnings(report)
    leaks = (*known, *finding_warnings.leak_warnings(report))
    fixed = fix(readable, seen.copies) if config.fix else None
    warnings = (
        *shortcuts,
        *leaks,
        *finding_warnings.series_warnings(report),
        *finding_warnings.split_warnings(report),
        *audit.warnings(report)[len(known) :],
        *(fix_warnings(readable, fixed) if fixed is not None else ()),
        *notes,
    )
    storage.prepare_output(out, kind=KIND, known_names=NAMES, overwrite=config.overwrite)
    evaluate.write_report(
        out,
        Report(
            title="Audit",
            subtitle=config.data,
            leaks=leaks,
            shortcuts=shortcuts,
            audit=report,
            gallery=make_gallery(seen.copies, readable, seen.thumbnails_BHW) if config.thumbnails else (),
            suspects=suspect_labels.with_pictures(doubtful or ()) if config.thumbnails else (),
            warnings=warnings,
        ),
    )
    manifest.write_manifest(table, storage.join(out, dataset.MANIFEST))
    if doubtful is not None:
        suspect_labels.write(out, doubtful)
    if fixed is not None:
        sink = pa.BufferOutputStream()
        pyarrow.csv.write_csv(_as_texts(fixed), sink)
        storage.write_bytes(storage.join(out, FIXED), sink.getvalue().to_pybytes())
    storage.write_text(storage.join(out, dataset.AUDIT), json.dumps(report, indent=2) + "\n")
    inspected.forget(out)
    return AuditResult(out=out, findings=report, warnings=warnings, num_fixed=None if fixed is None else fixed.num_rows)


def _check(network: "ray.ObjectRef[Network] | None") -> None:
    """Raises the error of the building of a network as soon as it has failed."""
    if network is not None:
        connection.check(network)


def fix(readable: pa.Table, found: Copies) -> pa.Table:
    """Returns a manifest without what makes a result too good.

    A group of copies with several labels is left out as a whole, because nobody knows which label is right. The copies
    of a picture, their neighbouring slices (see `splits.dividing_groups`), and their patients become one group. A group
    with labelled images in several splits goes to train, so that the other splits have only images that the training
    does not know. As in a training, a labelled image without a split counts as one of train if any image has a split.

    Args:
        readable: A manifest of images that can be read, with `splits.PICTURE`.
        found: Their copies.

    Returns:
        The columns `image_id`, `uri`, `label`, `split` and `group_id` of the images that are left, and what else a
        table said of them (`manifest.FURTHER`).
    """
    is_clear = ~_has_conflict(readable["label"].to_pylist(), found)
    kept = readable.filter(pa.array(is_clear))
    groups = _told_from_patients(splits.dividing_groups(kept), *manifest.column_lists(kept, "image_id", "group_id"))
    labels, given = manifest.column_lists(kept, "label", "split")
    is_split = any(given)
    splits_of: dict[str, set[str]] = defaultdict(set)
    for group, label, split in zip(groups, labels, given, strict=True):
        if label and (split or is_split):
            splits_of[group].add(split or "train")
    fixed = ["train" if len(splits_of[group]) > 1 else split for group, split in zip(groups, given, strict=True)]
    kept = manifest.with_column(manifest.with_column(kept, "group_id", groups), "split", fixed)
    further = [name for name in kept.column_names if name.startswith(manifest.FURTHER)]
    return kept.select(["image_id", "uri", "label", "split", "group_id", *further])


def _told_from_patients(groups: Sequence[str], image_ids: Sequence[str], given: Sequence[str]) -> list[str]:
    """Returns names of groups, with `splits.ALIKE` before those of several images whose patients are not named."""
    sizes = Counter(groups)
    named = {
        group
        for group, image_id, patient in zip(groups, image_ids, given, strict=True)
        if patient != image_id and not patient.startswith(splits.ALIKE)
    }
    return [
        group if sizes[group] == 1 or group in named or group.startswith(splits.ALIKE) else f"{splits.ALIKE}{group}"
        for group in groups
    ]


def fix_warnings(readable: pa.Table, fixed: pa.Table) -> tuple[str, ...]:
    """Returns warnings about splits that a corrected manifest has no more, or without one of their classes.

    Args:
        readable: See `fix`.
        fixed: What `fix` made of it.
    """
    before, after = manifest.labels_by_split(readable), manifest.labels_by_split(fixed)
    found = []
    for split in manifest.SPLITS:
        lost = set(before.get(split, ())) - set(after.get(split, ()))
        if not lost:
            continue
        what = f"image of {some(lost)} in the split {split}" if after.get(split) else f"labelled image in {split}"
        found.append(
            f"{FIXED} has no {what} any more: all have copies with another label, or are copies, or slices of the same "
            "patient or series, of images in another split, and went to train. Give images of other patients."
        )
    return tuple(found)


def _as_texts(fixed: pa.Table) -> pa.Table:
    """Returns a table for a CSV file with no text that a spreadsheet takes for a formula; uris are none."""
    for place, name in enumerate(fixed.column_names):
        if name != "uri":
            texts = [None if text is None else spreadsheet.as_text(str(text)) for text in fixed[name].to_pylist()]
            fixed = fixed.set_column(place, name, pa.array(texts, pa.string()))
    return fixed


def _has_conflict(labels: Sequence[str | None], found: Copies) -> np.ndarray:
    """Tells which images are in a group of copies with several labels; bool [images].

    These are the groups that `copies.describe` reports as `conflicting_labels`.
    """
    labels_of: dict[int, set[str]] = defaultdict(set)
    for group, label in zip(found.group_of.tolist(), labels, strict=True):
        labels_of[group] |= {label} if label else set()
    return np.isin(found.group_of, [group for group, names in labels_of.items() if len(names) > 1])
