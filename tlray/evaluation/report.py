"""Renders the report of a run: one self-contained HTML file, with its figures inside."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jinja2
import numpy as np

from tlray.bundle import anatomy, leaks, verdicts
from tlray.bundle.card import metric_rows
from tlray.bundle.wording import Ends, bracketed, decimals, percent, span
from tlray.data.audit import patients_by_class
from tlray.data.labels import short_names
from tlray.errors import counted
from tlray.evaluation import glyphs, markup, settings_table
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
from tlray.trust.overlays import OverlayCheck

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
    """Why the metrics may be too good, shown before everything else; see `tlray.data.audit.leak_warnings`."""
    shortcuts: tuple[str, ...] = ()
    """Warnings that the classes can be told without the anatomy, see
    `tlray.trust.finding_warnings.shortcut_warnings`. They are shown with `leaks`."""
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
    """Pictures of copies and neighbouring slices, see `tlray.trust.gallery`."""
    suspects: Sequence[Mapping[str, Any]] = ()
    """Images whose labels are likely wrong, with pictures; see `tlray.evaluation.suspect_labels`."""
    examples: Sequence[Mapping[str, Any]] = ()
    """Measured images with their predictions and pictures, see `tlray.evaluation.examples`."""
    cross_validation: SplitEvaluation | None = None
    """The evaluation of probes on images that they were not fitted on; None: there is none."""
    trust: Mapping[str, Any] = field(default_factory=dict)
    """How predictions were calibrated, and their limits found; may be empty. See
    `tlray.training.judgement_fit.Judging`."""
    overlays: OverlayCheck | None = None
    """Whether Grad-CAM overlays point at what decides, see `tlray.trust.overlays`; None: not measured."""
    warnings: tuple[str, ...] = ()
    """Warnings of the audit and the run, the gravest first. What the page says elsewhere, such as `leaks`, is not said
    again."""
    history: Sequence[Mapping[str, float]] | None = None
    """One row per epoch, see `tlray.evaluation.figures.plot_history`; None or empty where nothing was trained."""
    learning_curve: Sequence[Mapping[str, Any]] = ()
    """Points for `figures.plot_learning_curve`, measured on the split test, or on valid where there is no test."""
    evaluations: Mapping[str, SplitEvaluation] = field(default_factory=dict)
    """Split to its evaluation. The one whose metrics are quoted is shown first, see `headline_split`."""


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
    environment.filters |= {"percent": _percent, "decimals": _decimals, "duration": markup.duration}
    environment.filters |= {"span": _span, "bracketed": _bracketed, "prose": markup.with_code}
    environment.filters |= {"trait": markup.trait_name, "css_string": markup.css_string, "is_moved": _is_moved}
    environment.filters |= {"epoch": epoch_label, "mean": np.mean, "counted": counted}
    environment.filters |= {"value": settings_table.text, "records": settings_table.records}
    audit, evaluated = report.audit or {}, report.evaluations.items()
    headline = headline_split(report.evaluations) if report.evaluations else None
    measured = None if headline is None else _measured(report, headline)
    answers = {} if measured is None else verdicts.verdicts(measured)
    page = environment.get_template("report.html.j2").render(
        report=report,
        best=best_epoch(report.history or ()),
        evaluations={split: report.evaluations[split] for split in _in_order(report.evaluations, first=headline)},
        is_numbered={name: glyphs.label_classes(each.classes, families).is_numbered for name, each in evaluated},
        max_named_classes=MAX_NAMED_CLASSES,
        num_lowest_curves=NUM_LOWEST_CURVES,
        confusions={name: _worst_confusion(each.metrics) for name, each in evaluated},
        count_splits=_in_order(audit.get("counts", {})),
        count_rows=_count_rows(audit.get("counts", {})),
        patients=patients_by_class(audit),
        errors=audit.get("errors"),
        headline=headline,
        verdicts=answers,
        not_better_than_files="" if measured is None else verdicts.not_better_than_files(measured),
        near_in={split: number for split, number in audit.get("neighbours", {}).items() if number},
        is_compared_with_files=measured is not None and verdicts.traits_control(measured) is not None,
        lowest=None if measured is None else verdicts.lowest_sensitivity(measured.new),
        even_log_loss=None if measured is None else math.log(len(measured.metrics["classes"])),
        limits=[] if measured is None else verdicts.limits(measured),
        subgroups=[] if measured is None else measured.metrics.get("subgroups", {}).get("lowest", []),
        num_subgroups=0 if measured is None else measured.metrics.get("subgroups", {}).get("num_looked_at", 0),
        flattery={split: _flattery(report, split) for split in report.evaluations},
        flattery_of_all=_flattery_of_all(report),
        control_texts=[] if measured else anatomy.measured_texts(verdicts.about_data(audit)),
        copies=audit.get("copies"),
        # Groups of an earlier version, all of copies, do not say of which kind they are.
        copy_groups=[group for group in report.gallery if group.get("kind") != "neighbours"],
        series_groups=[group for group in report.gallery if group.get("kind") == "neighbours"],
        short_names=short_names(_class_names(report)),
        further_warnings=_further_warnings(report, answers),
        shortcuts=audit.get("shortcuts"),
        alarm=_alarm(report),
        few_groups=FEW_GROUPS,
        has_new=any(each.metrics.get("leak_free") for _, each in evaluated),
        rows=list(metric_rows({split: report.evaluations[split].metrics for split in _in_order(report.evaluations)})),
        tables={
            "Model and configuration": settings_table.sections(report.config),
            "Provenance": settings_table.sections(report.provenance),
        },
        images={name: _image(png) for name, png in figures.items()},
    )
    return markup.keep_percentages_whole(page)


def _alarm(report: Report) -> str:
    if not report.evaluations:
        return "This data set may give a result that is too good"
    if report.shortcuts:
        return "Do not believe these numbers yet"
    metrics_of = {split: each.metrics for split, each in report.evaluations.items()}
    has_new = any(metrics.get("leak_free") for metrics in metrics_of.values())
    flatteries = [_flattery(report, split) for split in metrics_of]
    if not any(flatteries):  # it is about another split of the data
        return "Figures of other images of this data set may be too good"
    which = "The" if all(flatteries) and not has_new else "Some"
    return f"{which} numbers of this report {leaks.verb(metrics_of)} too good"


def _measured(report: Report, split: str) -> verdicts.Measured:
    """Returns what is to be judged: the figures of a split, and what is known of the data."""
    metrics, data = report.evaluations[split].metrics, verdicts.about_data(report.audit or {})
    return verdicts.Measured(split=split, metrics=metrics, trust=report.trust, data=data)


def _flattery(report: Report, split: str) -> str:
    """Returns why the figures of all images of a split may be too good; empty if nothing is known to make them so.

    They are said to be too good only where the model was measured to be less often right on the new images.
    """
    if not report.leaks:
        return ""
    see, metrics, audit = "see the warning at the top.", report.evaluations[split].metrics, report.audit or {}
    if "num_leaked" not in metrics:
        return f"These numbers may be too good: {see}"
    if metrics["num_leaked"]:
        return f"The numbers of all images {leaks.verb({split: metrics})} too good: {see}"
    if audit.get("neighbours", {}).get(split):
        return f"These numbers are probably too good, because of neighbouring slices: {see}"
    control = audit.get("permuted_control")
    if control and control["split"] == split and control["is_above_chance"]:
        return f"These numbers may be too good: {see}"
    return ""


def _flattery_of_all(report: Report) -> str:
    """Returns what `_flattery` says of the splits; in short, with their names, unless it says the same of all."""
    texts = {split: _flattery(report, split) for split in _in_order(report.evaluations)}
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    known = [
        f"{split}{' (all images)' if 'all images' in text else ''}{' (probably)' if 'probably' in text else ''}"
        for split, text in texts.items()
        if text
    ]
    verb = "may be" if any("may be" in text for text in texts.values()) else "are"
    return f"The numbers of {' and '.join(known)} {verb} too good: see the warning at the top."


def _further_warnings(report: Report, answers: Mapping[str, verdicts.Verdict]) -> list[str]:
    """Returns the warnings that the page says nowhere else."""
    told = {*report.leaks, *report.shortcuts, *(text for each in answers.values() for text in (each.answer, each.text))}
    # The answer about referral says, too, that there is no threshold.
    note = (report.trust.get("referral") or {}).get("note") if "referral" in answers else None
    return [text for text in report.warnings if text not in told and not (note and text.startswith(note))]


def _class_names(report: Report) -> list[str]:
    """Returns all class names that the page has, in any order, perhaps repeated."""
    evaluated = [name for each in report.evaluations.values() for name in each.classes]
    listed = [str(name) for counts in (report.audit or {}).get("counts", {}).values() for name in counts]
    return [*evaluated, *listed]


def headline_split(evaluations: Mapping[str, Any]) -> str:
    """Returns the split whose metrics are quoted: test, or else the first one in the report's order."""
    return "test" if "test" in evaluations else _in_order(evaluations)[0]


def _in_order(splits: Mapping[str, Any], *, first: str | None = None) -> list[str]:
    known = (first, "train", "valid", "test")
    return sorted(splits, key=lambda split: known.index(split) if split in known else len(known))


def _count_rows(counts: Mapping[str, Mapping[str, int]]) -> list[tuple[str, list[int]]]:
    """Returns a row for each class, with its images in each split and in all splits, and last a row of the sums."""
    splits = [counts[split] for split in _in_order(counts)]
    names = dict.fromkeys(name for split in splits for name in split)
    rows = [(str(name), [split.get(name, 0) for split in splits]) for name in names]
    rows.append(("All", [sum(split.values()) for split in splits]))
    return [(name, [*images, sum(images)]) for name, images in rows]


def _image(png: bytes) -> dict[str, object]:
    """Returns a PNG's data URI, the width in CSS pixels at which its text has its size, and the aspect of its half."""
    width_px, height_px = int.from_bytes(png[16:20]), int.from_bytes(png[20:24])  # PNG specification, 11.2.2
    uri = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return {"uri": uri, "width_px": round(width_px * 96 / DPI), "half": f"{width_px} / {2 * height_px}"}


def _worst_confusion(metrics: Mapping[str, Any]) -> tuple[int, list[tuple[str, str]]] | None:
    """Returns the count of the most frequent mistake, and the true and predicted class of all that are as frequent."""
    mistakes_KK = np.array(metrics["confusion_matrix"])
    np.fill_diagonal(mistakes_KK, 0)
    count, names = int(mistakes_KK.max()), metrics["classes"]
    pairs = [(names[row], names[column]) for row, column in np.argwhere(mistakes_KK == count).tolist()]
    return (count, pairs) if count else None


def _is_moved(image: Mapping[str, Any]) -> bool:
    """Tells whether the folder in an image's name is that of another split than the one that it is in."""
    folder = image["image_id"].partition("/")[0]
    return folder in ("train", "valid", "test") and image["split"] not in (None, folder)


def _percent(value: float | None) -> str:
    return settings_table.NOTHING if value is None else f"{100 * value:.1f} %"


def _decimals(value: float | None, digits: int = 3) -> str:
    return settings_table.NOTHING if value is None else f"{value:.{digits}f}"


_FORMS = {
    "percent": percent,
    "bare percent": lambda value: f"{100 * value:.1f}",
    "decimals": decimals,
    "two decimals": lambda value: decimals(value, 2),
    "one decimal": lambda value: decimals(value, 1),
}
"""Functions that format an end of an interval, by the name that the template gives."""


def _span(ends: Ends, form: str = "percent") -> str:
    return span(ends, _FORMS[form])


def _bracketed(ends: Ends, form: str = "percent", beside: str = "") -> str:
    return bracketed(ends, _FORMS[form], beside=beside)
