"""Renders the report of a run: one self-contained HTML file, with its figures inside."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jinja2
import numpy as np

from tlray.bundle.card import metric_rows
from tlray.evaluation import glyphs
from tlray.evaluation.figures import (
    DPI,
    MAX_NAMED_CLASSES,
    NUM_LOWEST_CURVES,
    best_epoch,
    epoch_label,
    plot_confusion_matrix,
    plot_history,
    plot_learning_curve,
    plot_roc,
)
from tlray.evaluation.measurement import SplitEvaluation
from tlray.evaluation.trust_figure import plot_trust

_NOTHING = "\N{EN DASH}"

FEW_GROUPS = 30
"""Number of patients or pictures below which the report says that they are few."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Report:
    """Everything that a report shows, as plain data. No value is trusted: all are escaped."""

    title: str
    """The name of the run."""
    subtitle: str = ""
    """One sentence that describes the run, shown below the title."""
    leaks: tuple[str, ...] = ()
    """Why the metrics are too good, shown before everything else; see `tlray.data.audit.leak_warnings`."""
    shortcuts: tuple[str, ...] = ()
    """What tells the classes without the anatomy, shown with `leaks`; see `tlray.trust.findings.shortcut_warnings`."""
    notices: tuple[str, ...] = ()
    """Notices that a reader must know before the metrics, shown above them."""
    config: Mapping[str, object] = field(default_factory=dict)
    """Model and configuration; nested mappings become sections."""
    provenance: Mapping[str, object] = field(default_factory=dict)
    """Library versions, fingerprints, date; nested mappings become sections."""
    audit: Mapping[str, Any] | None = None
    """`counts` {split: {class: images}} and `errors` {code: {"num_images": images, "examples": [image ids]}}: see
    `tlray.data.audit.audit`."""
    gallery: Sequence[Mapping[str, Any]] = ()
    """Pictures of copies, see `tlray.trust.gallery`."""
    suspects: Sequence[Mapping[str, Any]] = ()
    """Images whose labels are likely wrong, with pictures; see `tlray.training.suspect_labels`."""
    cross_validation: SplitEvaluation | None = None
    """The evaluation of probes on images that they were not fitted on; None: there is none."""
    trust: Mapping[str, Any] = field(default_factory=dict)
    """How predictions were calibrated and their limits found, see `tlray.training.judging.Judging`; may be empty."""
    warnings: tuple[str, ...] = ()
    """Warnings of the audit and the run, `leaks` and `shortcuts` included, the gravest first."""
    history: Sequence[Mapping[str, float]] | None = None
    """One row per epoch, see `tlray.evaluation.figures.plot_history`; None or empty where nothing was trained."""
    learning_curve: Sequence[Mapping[str, Any]] = ()
    """Points for `figures.plot_learning_curve`, measured on the split test, or on valid where there is no test."""
    evaluations: Mapping[str, SplitEvaluation] = field(default_factory=dict)
    """Split to its evaluation; shown in the order valid, test, others."""


def make_figures(report: Report, *, families: Sequence[str] | None = None) -> dict[str, bytes]:
    """Draws all figures of a report.

    Args:
        report: What to show.
        families: Font families for the class names, see `tlray.evaluation.glyphs.label_classes`.

    Returns:
        File name to PNG: `history.png` where something was trained, `learning_curve.png` where there is one, and
        `confusion_matrix_SPLIT.png` and `roc_SPLIT.png` for each evaluated split, and
        `trust_SPLIT.png` for the one whose metrics are quoted.
    """
    figures = {"history.png": plot_history(report.history)} if report.history else {}
    if report.learning_curve:
        split = "test" if "test" in report.evaluations else "valid"
        figures["learning_curve.png"] = plot_learning_curve(report.learning_curve, split=split)
    for split, evaluation in report.evaluations.items():
        figures[f"confusion_matrix_{split}.png"] = plot_confusion_matrix(evaluation.metrics, families=families)
        roc = plot_roc(evaluation.labels, evaluation.probs_BK, evaluation.classes, families=families)
        figures[f"roc_{split}.png"] = roc
    if report.evaluations:
        split = headline_split(report.evaluations)
        new, refer_below = report.evaluations[split].new, report.evaluations[split].limits.refer_below
        figures[f"trust_{split}.png"] = plot_trust(new.labels, new.probs_BK, refer_below=refer_below)
    return figures


def render_report(report: Report, figures: Mapping[str, bytes], *, families: Sequence[str] | None = None) -> str:
    """Renders a report as one HTML document with figures and style inside: no script, nothing to load.

    Args:
        report: What to show.
        figures: What `make_figures` returned for it.
        families: The font families that `make_figures` got.

    Returns:
        An HTML document, to be encoded as UTF-8.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tlray.evaluation", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "decimals": _decimals, "duration": _duration, "value": _value}
    environment.filters |= {"epoch": epoch_label, "mean": np.mean, "records": _records}
    audit = report.audit or {}
    return environment.get_template("report.html.j2").render(
        report=report,
        best=best_epoch(report.history or ()),
        evaluations={split: report.evaluations[split] for split in _in_order(report.evaluations)},
        is_numbered={
            split: glyphs.label_classes(each.classes, families).is_numbered
            for split, each in report.evaluations.items()
        },
        max_named_classes=MAX_NAMED_CLASSES,
        num_lowest_curves=NUM_LOWEST_CURVES,
        confusions={split: _worst_confusion(each.metrics) for split, each in report.evaluations.items()},
        count_splits=_in_order(audit.get("counts", {})),
        count_rows=_count_rows(audit.get("counts", {})),
        errors=audit.get("errors"),
        control=audit.get("traits_control"),
        control_texts=_control_texts(audit),
        copies=audit.get("copies"),
        shortcuts=audit.get("shortcuts"),
        alarm=_alarm(report),
        has_new=_has_new(report),
        few_groups=FEW_GROUPS,
        rows=list(metric_rows({split: report.evaluations[split].metrics for split in _in_order(report.evaluations)})),
        tables={"Model and configuration": _sections(report.config), "Provenance": _sections(report.provenance)},
        images={name: _image(png) for name, png in figures.items()},
    )


def _has_new(report: Report) -> bool:
    """Tells whether a split has images that the model does not know, beside some that it knows."""
    return any(each.metrics.get("leak_free") for each in report.evaluations.values())


def _alarm(report: Report) -> str:
    if not report.evaluations:
        return "This data set would give a result that is too good"
    if report.shortcuts:
        return "Do not believe these numbers yet"
    return "Some numbers of this report are too good" if _has_new(report) else "The numbers of this report are too good"


_CONTROLS = {
    "traits_control": "A forest that sees only how the files were made",
    "neighbour_control": "The label of the most similar training image",
    "permuted_control": "A probe that learns labels without meaning (it should be at chance)",
}


def _control_texts(audit: Mapping[str, Any]) -> list[str]:
    """Returns a sentence for each control of an audit, see `tlray.trust.controls`."""
    found = [(text, audit[name]) for name, text in _CONTROLS.items() if audit.get(name)]
    return [
        f"{text} is right in {_percent(control['accuracy'])} of the {control['num_images']} {control['split']} images "
        f"that are new to the model (by chance {_percent(control['chance'])})."
        for text, control in found
    ]


def headline_split(evaluations: Mapping[str, Any]) -> str:
    """Returns the split whose metrics are quoted: test, or else the first one in the report's order."""
    return "test" if "test" in evaluations else _in_order(evaluations)[0]


def _in_order(splits: Mapping[str, Any]) -> list[str]:
    known = ("train", "valid", "test")
    return sorted(splits, key=lambda split: known.index(split) if split in known else len(known))


def _count_rows(counts: Mapping[str, Mapping[str, int]]) -> list[tuple[str, list[int]]]:
    """Returns a row for each class, with its images in each split and in all splits, and last a row of the sums."""
    splits = [counts[split] for split in _in_order(counts)]
    names = dict.fromkeys(name for split in splits for name in split)
    rows = [(str(name), [split.get(name, 0) for split in splits]) for name in names]
    rows.append(("All", [sum(split.values()) for split in splits]))
    return [(name, [*images, sum(images)]) for name, images in rows]


def _image(png: bytes) -> dict[str, object]:
    """Returns the data URI of a PNG, and the width in CSS pixels (1/96 inch) at which its text has its size."""
    width_px = int.from_bytes(png[16:20])  # the first field of the header chunk (PNG specification, 11.2.2)
    return {"uri": f"data:image/png;base64,{base64.b64encode(png).decode()}", "width_px": round(width_px * 96 / DPI)}


def _worst_confusion(metrics: Mapping[str, Any]) -> tuple[int, str, str] | None:
    """Returns count, true and predicted class of the most frequent mistake, None if there is none."""
    mistakes_KK = np.array(metrics["confusion_matrix"])
    np.fill_diagonal(mistakes_KK, 0)
    row, column = np.unravel_index(mistakes_KK.argmax(), mistakes_KK.shape)
    count = int(mistakes_KK[row, column])
    return (count, metrics["classes"][row], metrics["classes"][column]) if count else None


def _sections(values: Mapping[str, object]) -> list[tuple[str, list[tuple[str, object]]]]:
    """Flattens nested mappings to (section name, rows); plain values of the top level come first, without a name."""
    plain = [(str(key), value) for key, value in values.items() if not isinstance(value, Mapping)]
    nested = [(str(key), list(_rows(value))) for key, value in values.items() if isinstance(value, Mapping)]
    return [section for section in [("", plain), *nested] if section[1]]


def _rows(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _rows(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _percent(value: float | None) -> str:
    return _NOTHING if value is None else f"{100 * value:.1f} %"


def _decimals(value: float | None, digits: int = 3) -> str:
    return _NOTHING if value is None else f"{value:.{digits}f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def _value(value: object) -> str:
    """Returns a setting's value as text; mappings in it as `name: value`, never as Python writes them."""
    if value is None or value in ("", (), []):
        return _NOTHING
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_value(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value))
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _records(value: object) -> list[Mapping[str, object]] | None:
    """Returns the rows of a value that is a list of mappings with the same keys, to show as a table; otherwise None."""
    if not isinstance(value, list | tuple) or not value:
        return None
    rows = [row for row in value if isinstance(row, Mapping)]
    return rows if len(rows) == len(value) and all(row.keys() == rows[0].keys() for row in rows) else None
