"""The last stage of a training run: exports the model, measures it, and publishes bundle and report."""

import dataclasses
import json
import os

import pyarrow as pa
import pyarrow.compute as pc

from tlray.bundle import card, store
from tlray.bundle import spec as bundle
from tlray.bundle.spec import BundleSpec
from tlray.cluster import connection, plans
from tlray.config.training import TrainConfig
from tlray.data import audit, manifest
from tlray.data.dataset import Dataset
from tlray.data.drift import ValidationPredictions
from tlray.engines.kinds import EngineKind
from tlray.evaluation import evaluate
from tlray.evaluation.report import Report, SplitEvaluation
from tlray.files import storage
from tlray.inference import score
from tlray.progress import Progress
from tlray.timing import Timing
from tlray.training import export, plateau, probing, wording
from tlray.training.export import Exported
from tlray.training.paths import RunPaths
from tlray.training.stages import Learned, Run, TrainResult


def make_spec(config: TrainConfig, images: Dataset, preprocessing: str) -> BundleSpec:
    """Returns the content of `bundle.json` that is known before the model is measured."""
    return BundleSpec(
        classes=images.classes,
        image_size_px=config.image_size_px,
        preprocessing=preprocessing,
        intensity_range=images.intensity_range,
        thresholds={"refer_below": config.refer_below},
        backbone=os.path.basename(config.backbone),
        weights=os.path.basename(config.weights),
        data_fingerprint=manifest.fingerprint(images.table),
        split_fingerprint=manifest.split_fingerprint(images.table),
        id_fingerprint=manifest.id_fingerprint(images.table),
        leaks=tuple(audit.leak_warnings(images.findings)),
        prior=tuple(images.wanted_shares(config.prior).tolist()),
    )


def finish(run: Run, learned: Learned, timing: Timing) -> TrainResult:
    """Exports and evaluates the model, then publishes bundle, report and metrics.

    Args:
        run: The run.
        learned: The result of its learning.
        timing: Gets the time of each phase; goes into the metrics.
    """
    config, images = run.config, run.images
    history, probe = learned.history, learned.trained.probe
    best_epoch = int(history[plateau.best_epoch([row["valid_loss"] for row in history])]["epoch"]) if history else 0
    num_epochs = int(history[-1]["epoch"]) if history else 0
    paths = run.paths
    storage.delete(paths.partial_bundle)
    spec = make_spec(config, images, run.model.preprocessing)
    with timing.phase("exporting, comparing engines"):
        exported = _export(run, learned)
    spec = dataclasses.replace(spec, engines=exported.engines, measured_with=str(exported.kind))
    with timing.phase("measuring the model"):
        evaluations = _measure(run, exported, spec)
    metrics = {split: result.metrics for split, result in evaluations.items()}
    valid = evaluations.get("valid")
    spec = dataclasses.replace(
        spec,
        metrics=metrics,
        training_images=connection.get(run.measuring),
        validation_predictions=ValidationPredictions.of(valid.probs_BK) if valid else None,
    )
    curve = [dataclasses.asdict(point) for point in learned.learning_curve]
    # The gravest first: reasons why the metrics are wrong, then reasons why the model is poor.
    warnings = (
        *spec.leaks,
        *exported.warnings,
        *wording.training_warnings(history),
        *wording.network_warnings(config, probe),
        *audit.warnings(images.findings)[len(spec.leaks) :],
    )
    content = Report(
        title=os.path.basename(config.out.rstrip("/")),
        subtitle=f"{spec.backbone} {wording.verb(config)} on {config.data}",
        notices=wording.weights_notice(config),
        config={"trained_on": wording.trained_on(config)}
        | dataclasses.asdict(config)
        | {"preprocessing": spec.preprocessing, "probe": wording.describe_probe(probe)},
        provenance=evaluate.provenance(spec),
        audit=images.findings,
        leaks=spec.leaks,
        warnings=warnings,
        history=history,
        learning_curve=curve,
        evaluations=evaluations,
    )
    with timing.phase("writing report and bundle"):
        evaluate.write_report(config.out, content)
        _publish(paths, spec)
    headline = "test" if "test" in metrics else "valid"
    summary = {
        **metrics[headline],
        "split": headline,
        "engine": spec.measured_with,
        "warnings": warnings,
        "epochs": config.epochs,
        "num_epochs": num_epochs,
        "best_epoch": best_epoch,
        "prior": dict(zip(spec.classes, spec.prior or (), strict=True)),
        "splits": metrics,
        "probe": wording.describe_probe(probe),
        "learning_curve": curve or None,
        "timing_s": timing.seconds,
    }
    storage.write_text(paths.metrics, json.dumps(summary, indent=2) + "\n")
    return TrainResult(
        out=config.out,
        bundle=paths.bundle,
        num_epochs=num_epochs,
        best_epoch=best_epoch,
        metrics=metrics,
        warnings=warnings,
        timing_s=timing.seconds,
    )


def _tables(images: Dataset) -> dict[str, pa.Table]:
    """Returns the images that the model is measured on: split to table, empty splits left out."""
    tables = {split: images.split(split) for split in ("valid", "test")}
    return {split: table for split, table in tables.items() if table.num_rows}


def _export(run: Run, learned: Learned) -> Exported:
    """Writes the model files."""
    config, images = run.config, run.images
    exporting = connection.start_here(
        export.export,
        run.model,
        learned.trained,
        run.paths.partial_bundle,
        logit_shift=images.logit_shift(config.prior, balanced=config.class_weights),
        cache=learned.cache,
        tables=_tables(images),
        pixels=probing.pixels(config, images),
        refer_below=config.refer_below,
        precision=config.inference_precision,
        calibration=images.split("train") if config.int8 else None,
        use_gpu=config.use_gpu,
    )
    return connection.get(exporting)


def _measure(run: Run, exported: Exported, spec: BundleSpec) -> dict[str, SplitEvaluation]:
    """Measures the exported model on each split, from stored features where possible, otherwise by scoring images."""
    images = run.images
    if not exported.probs:
        store.seal(run.paths.partial_bundle, spec)
        return _evaluate(run, exported.kind)
    return {
        split: evaluate.measure_probabilities(table["class_index"].to_numpy(), exported.probs[split], images.classes)
        for split, table in _tables(images).items()
    }


def _evaluate(run: Run, kind: EngineKind) -> dict[str, SplitEvaluation]:
    """Scores the validation and test images in one pass, and measures each split."""
    config, images = run.config, run.images
    table = pa.concat_tables([images.split("valid"), images.split("test")])
    plan = plans.plan_scoring(run.available, use_gpu=config.use_gpu)
    parts: list[pa.Table] = []
    with Progress("Evaluating", table.num_rows, quiet=config.quiet) as progress:
        predicted = score.predict(run.paths.partial_bundle, table, plan=plan, kind=kind, batch_size=config.batch_size)
        for part in predicted:
            parts.append(part)
            progress.update(sum(each.num_rows for each in parts))
    predictions = pa.concat_tables(parts)
    by_split = {split: predictions.filter(pc.field("split") == split) for split in ("valid", "test")}
    return {split: evaluate.measure(rows, images.classes) for split, rows in by_split.items() if rows.num_rows}


def _publish(paths: RunPaths, spec: BundleSpec) -> None:
    """Publishes the evaluated model as a bundle under its final name; `bundle.json` is written there last."""
    partial = paths.partial_bundle
    storage.delete(storage.join(partial, bundle.BUNDLE_JSON))
    storage.write_text(storage.join(partial, bundle.MODEL_CARD), card.model_card(spec))
    storage.write_bytes(storage.join(partial, bundle.REPORT), storage.read_bytes(paths.report))
    storage.delete(paths.bundle)
    storage.move_tree(partial, paths.bundle)
    store.seal(paths.bundle, spec)
