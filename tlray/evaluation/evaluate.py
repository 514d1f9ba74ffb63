"""Evaluates a bundle on labelled images: scores them, computes metrics, and writes the report.

Copies are looked for first, so that they count as one image, and images that the model knows are left out of the
figures to quote; see `tlray.evaluation.relations`. In files that the model's training did not read it looks for
shortcuts and measures controls, too; see `tlray.evaluation.image_controls`.
"""

import datetime
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from tlray.bundle import spec as bundle
from tlray.bundle import store
from tlray.bundle.leaks import LeakSearch
from tlray.bundle.spec import BundleSpec
from tlray.bundle.store import Bundle
from tlray.cluster import capacity, connection, locations, plans
from tlray.cluster.plans import ScorePlan
from tlray.config.prediction import EvaluateConfig
from tlray.config.values import parse_columns
from tlray.data import audit, inspected, labels, manifest
from tlray.data.listing import list_images
from tlray.engines import choice
from tlray.engines.kinds import EngineKind
from tlray.errors import DataError, ImageErrorCode
from tlray.evaluation import doubts, examples, image_controls, overlay_check, relations, report, scope
from tlray.evaluation.measurement import (
    SplitEvaluation,
    headline,
    measure,
    usable,
    with_leak_free,
    with_subgroups,
)
from tlray.evaluation.report import Report
from tlray.files import storage
from tlray.inference import predictions, score
from tlray.progress import Progress
from tlray.trust.overlays import OverlayCheck

METRICS_JSON = "metrics.json"
REPORT_HTML = "report.html"
FIGURES = "figures"
KIND = "evaluation"
NAMES = predictions.NAMES | {METRICS_JSON, REPORT_HTML, FIGURES}


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateResult:
    """The result of an evaluation.

    Attributes:
        out: The output directory.
        split: The split that was measured.
        engine: The engine and precision that predicted, such as "openvino bfloat16".
        metrics: The metrics to quote, see `measurement.headline`.
        warnings: Warnings about the metrics, the gravest first.
        overlays: Whether Grad-CAM overlays point at what decides; None: not wanted, or not possible (see `warnings`).
    """

    out: str
    split: str
    engine: str
    metrics: Mapping[str, Any]
    warnings: tuple[str, ...]
    overlays: OverlayCheck | None = None


def evaluate(config: EvaluateConfig) -> EvaluateResult:
    """Scores the images of one split with a bundle and writes predictions, metrics, figures and a report.

    It reads the images once before it scores them, to find copies. If the data set is the one that the model was
    trained on, it also reads those that the model learned from. `metrics.json` is written last.

    Raises:
        ConfigError: A setting cannot work.
        DataError: The data has no such split, or labels that the bundle does not know.
        BundleError: The bundle cannot be used.
        TlrayError: Most images were not found.
    """
    out = locations.output_location(config.out)
    # First the checks that need no Ray.
    storage.check_output(out, kind=KIND, known_names=NAMES, overwrite=config.overwrite)
    location = locations.input_location(config.bundle)
    loaded = store.load(location)
    spec = loaded.spec
    kind = choice.for_bundle(loaded, config.engine, config.precision, use_gpu=config.use_gpu)
    source = locations.input_location(config.data)
    listing = list_images(source, columns=parse_columns(config.columns))
    table, class_of = _chosen(config, listing.table, spec)
    looked_at = scope.choose(spec, listing.table, table, config.split)
    connection.connect()
    available = capacity.measure()
    locations.check_shared(out, available)
    locations.check_shared(location, available, option="--bundle")
    locations.check_shared_images(source, config.columns, available)
    plan = plans.plan_scoring(available, use_gpu=config.use_gpu)
    capacity.tell_shortage(available, num_gpus=plan.gpus_per_actor, quiet=config.quiet)
    kept = loaded.lookalikes()
    seen = relations.look(looked_at, out=out, kind=KIND, task_cpus=available.task_cpus, quiet=config.quiet)
    looked_at = scope.with_files(looked_at, spec, seen, config.split)
    storage.prepare_output(out, kind=KIND, known_names=NAMES, overwrite=config.overwrite)
    predicted = _score(config, loaded, table, plan=plan, kind=kind)
    usable(predicted)
    related = relations.find(
        looked_at,
        seen,
        predicted,
        kept,
        spec.classes,
        split=config.split,
        with_pictures=config.thumbnails,
        task_cpus=available.task_cpus,
        quiet=config.quiet,
    )
    controls = image_controls.find(
        looked_at,
        seen,
        predicted,
        related,
        kept=kept,
        classes=spec.classes,
        split=config.split,
        call=partial(connection.call_in_tasks, task_cpus=available.task_cpus),
    )
    table = relations.with_traits(table, seen)
    del seen  # thumbnails take 0.9 GB for 100,000 images
    grouped = related.regrouped(predicted)
    evaluation = measure(grouped, spec)
    if related.leaked is not None:
        evaluation = with_leak_free(evaluation, related.leaked)
    evaluation = with_subgroups(evaluation, table)
    findings = audit.audit(_as_inspected(predicted)) | dict(related.findings)
    findings |= controls | doubts.findings_of_training(spec, looked_at)
    overlays, notes = None, ()
    if config.check_overlays:
        overlays, notes = overlay_check.check_overlays(
            location, loaded.sha256, grouped, kind, num_images=config.check_overlays
        )
    told = doubts.find(spec, config.split, evaluation, findings, images=looked_at)
    warnings = (*told.warnings, *notes)
    content = Report(
        title="Evaluation",
        subtitle=f"{config.bundle} on the split '{config.split}' of {config.data}",
        config={"engine": str(kind), "bundle": describe(spec), "class of each renamed label": labels.renamed(class_of)},
        provenance=provenance(spec, loaded.sha256),
        audit=findings,
        gallery=related.gallery,
        leaks=told.leaks,
        shortcuts=told.shortcuts,
        trust=spec.trust,
        overlays=overlays,
        warnings=warnings,
        evaluations={config.split: evaluation},
    )
    picturing = (
        picture_examples(content.evaluations, predicted, location, spec, loaded.sha256, kind=kind)
        if config.thumbnails
        else None
    )
    write_report(out, content, picturing)
    metrics = quoted(config.split, evaluation.metrics, LeakSearch(**findings["leak_search"]))
    summary = {**metrics, "leak_search": findings["leak_search"], "warnings": warnings, "bundle_sha256": loaded.sha256}
    summary |= controls | {"engine": str(kind), "overlays": asdict(overlays) if overlays else None}
    summary["renamed_labels"] = labels.renamed(class_of)
    storage.write_text(storage.join(out, METRICS_JSON), json.dumps(summary, indent=2) + "\n")
    inspected.forget(out)
    return EvaluateResult(
        out=out, split=config.split, engine=str(kind), metrics=metrics, warnings=warnings, overlays=overlays
    )


def quoted(split: str, metrics: Mapping[str, Any], search: LeakSearch) -> dict[str, Any]:
    """Returns the metrics to quote, see `measurement.headline`.

    Args:
        split: Name of the split.
        metrics: Its metrics, see `measurement.with_leak_free`.
        search: How known images were searched for. If it is blind, `is_leak_free` is null unless all images are known.
    """
    found = headline({split: metrics})
    return found | {"is_leak_free": None} if found["is_leak_free"] and search.is_blind else found


def _chosen(config: EvaluateConfig, listed: pa.Table, spec: BundleSpec) -> tuple[pa.Table, dict[str, str]]:
    """Returns the images of the split, labelled with the bundle's classes, and the class of each label."""
    class_map = labels.read_class_map(config.class_map) if config.class_map else None
    table, class_of = labels.match_classes(select_split(listed, config.split), spec.classes, class_map)
    labels.tell(class_of, quiet=config.quiet)
    return table, class_of


def _score(config: EvaluateConfig, loaded: Bundle, table: pa.Table, *, plan: ScorePlan, kind: EngineKind) -> pa.Table:
    """Writes predictions as they come, and returns them with the places of the images, see `score.predict`."""
    out, schema = locations.output_location(config.out), predictions.prediction_schema(loaded.spec.classes)
    tables = score.predict(
        locations.input_location(config.bundle),
        loaded.spec,
        loaded.sha256,
        table,
        plan=plan,
        kind=kind,
        batch_size=config.batch_size,
        with_places=True,
    )
    parts: list[pa.Table] = []

    def remember() -> Iterator[pa.Table]:
        for each in tables:
            parts.append(each)
            yield each.select(schema.names)

    with Progress("Scoring", table.num_rows, quiet=config.quiet) as progress:
        predictions.write_predictions(remember(), out, schema=schema, progress=progress)
    predicted = pa.concat_tables(parts)
    num_missing = predicted.filter(pc.field("error_code") == ImageErrorCode.NOT_FOUND.value).num_rows
    score.check_found(
        num_missing, predicted.num_rows, source=config.data, out=config.out, remedy="run it again with --overwrite"
    )
    return predicted


def select_split(table: pa.Table, split: str) -> pa.Table:
    """Returns the rows of a split; `all` gives every row.

    Raises:
        DataError: The data has no such split.
    """
    if split == "all":
        return table
    chosen = table.filter(pc.field("split") == split)
    if not chosen.num_rows:
        there = sorted({name for name in table["split"].unique().to_pylist() if name})
        remedy = f"It has: {', '.join(there)}." if there else "It has no splits: use --split all."
        raise DataError(f"The data has no split '{split}'. {remedy}")
    return chosen


def _as_inspected(predicted: pa.Table) -> pa.Table:
    """Returns predictions as a table for the audit, with unknown image sizes, which scoring does not keep."""
    unknown = pa.nulls(predicted.num_rows, pa.int32())
    return (
        predicted.select([*manifest.SCHEMA.names, "error_code"])
        .append_column("width_px", unknown)
        .append_column("height_px", unknown)
    )


def describe(spec: BundleSpec) -> dict[str, object]:
    """Returns the fields of a bundle's description that a report shows."""
    hidden = {"files", "metrics", "leaks", "shortcuts", "library_versions", "validation_predictions", "trust"}
    hidden |= {"file_fingerprints"}
    return {name: value for name, value in asdict(spec).items() if name not in hidden}


def provenance(spec: BundleSpec, bundle_sha256: str | None = None) -> dict[str, object]:
    """Returns library versions, fingerprints and the date for a report."""
    # A report inside a bundle cannot know the bundle's sha256.
    about: dict[str, object] = {"bundle_sha256": bundle_sha256} if bundle_sha256 else {}
    return about | {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "data_fingerprint": spec.data_fingerprint,
        "split_fingerprint": spec.split_fingerprint,
        "libraries": spec.library_versions or bundle.library_versions(),
    }


def picture_examples(
    evaluations: Mapping[str, SplitEvaluation],
    images: pa.Table,
    location: str,
    spec: BundleSpec,
    sha256: str,
    *,
    kind: EngineKind,
) -> "ray.ObjectRef[list[dict[str, Any]]]":
    """Starts making pictures of examples of the split that a report quotes, and returns their reference at once.

    Args:
        evaluations: Split to its evaluation, at least one.
        images: Their images, see `examples.choose`.
        location: Location of the bundle that predicted.
        spec: Its description.
        sha256: Its sha256.
        kind: The engine and precision that it predicted with.
    """
    chosen = examples.choose(evaluations[report.headline_split(evaluations)], images)
    return connection.start_here(examples.with_pictures, chosen, location, spec, sha256, kind)


def write_report(
    out: str, content: Report, picturing: "ray.ObjectRef[list[dict[str, Any]]] | None" = None
) -> dict[str, bytes]:
    """Writes `figures/*.png` and `report.html`; returns the figures, see `report.make_figures`.

    Args:
        out: The directory to write to.
        content: What to show.
        picturing: A reference of `picture_examples`; None: the report shows no examples.
    """
    figures = report.make_figures(content)
    if picturing is not None:
        content = replace(content, examples=connection.get(picturing))
    for name, png in figures.items():
        storage.write_bytes(storage.join(out, FIGURES, name), png)
    storage.write_text(storage.join(out, REPORT_HTML), report.render_report(content, figures))
    return figures
