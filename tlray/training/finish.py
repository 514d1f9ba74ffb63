"""The last stage of a training run: exports the model, measures it, and publishes bundle and report."""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from tlray.bundle import card, store, verdicts
from tlray.bundle import spec as bundle
from tlray.bundle.spec import BundleSpec
from tlray.cluster import connection, plans
from tlray.config.training import TrainConfig
from tlray.data import audit, fingerprints, manifest, stream
from tlray.data.dataset import Dataset
from tlray.data.drift import ValidationPredictions
from tlray.data.prior import logit_shift, shifted
from tlray.engines.kinds import EngineKind
from tlray.evaluation import evaluate, evidence, measurement, out_of_fold, suspect_labels
from tlray.evaluation.measurement import SplitEvaluation, with_leak_free, with_subgroups
from tlray.evaluation.out_of_fold import Predicted
from tlray.evaluation.report import Report, render_report
from tlray.files import storage
from tlray.inference import score
from tlray.progress import Progress
from tlray.timing import Timing
from tlray.training import export, probing, wording
from tlray.training.export import Exported
from tlray.training.history import exported_epoch
from tlray.training.judgement_fit import Unseen, Wanted
from tlray.training.paths import SHOWN, RunPaths
from tlray.training.stages import Learned, Run, TrainResult
from tlray.trust import finding_warnings


def make_spec(config: TrainConfig, images: Dataset, preprocessing: str) -> BundleSpec:
    """Returns the content of `bundle.json` that is known before the model is measured."""
    cut = verdicts.about_data(images.findings).get("cut_splits")  # a run of an earlier version may not know it
    return BundleSpec(
        classes=images.classes,
        image_size_px=config.image_size_px,
        preprocessing=preprocessing,
        intensity_range=images.intensity_range,
        backbone=os.path.basename(config.backbone),
        weights=os.path.basename(wording.starting_weights(config)),
        data_fingerprint=manifest.fingerprint(images.table),
        split_fingerprint=manifest.split_fingerprint(images.table),
        id_fingerprint=manifest.id_fingerprint(images.table),
        given_split_fingerprint=None if cut is None else fingerprints.of_given_splits(images.table, cut),
        file_fingerprints=fingerprints.of_files(images.table),
        leaks=(*audit.leak_warnings(images.findings), *finding_warnings.leak_warnings(images.findings)),
        shortcuts=tuple(finding_warnings.shortcut_warnings(images.findings)),
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
    best_epoch = exported_epoch(history)
    num_epochs = int(history[-1]["epoch"]) if history else 0
    paths = run.paths
    storage.delete(paths.partial_bundle)
    spec = make_spec(config, images, run.model.preprocessing)
    with timing.phase("exporting, comparing engines"):
        exported = _export(run, learned)
    spec = _with_judging(spec, exported, images)
    with timing.phase("measuring the model"):
        leaked = images.leaked
        evaluations = {
            split: with_subgroups(with_leak_free(each, leaked), images.table)
            for split, each in _measure(run, exported, spec).items()
        }
    metrics = {split: result.metrics for split, result in evaluations.items()}
    valid = evaluations.get("valid")
    crossed = _cross_validated(learned.unseen, images, spec) if learned.unseen else None
    spec = dataclasses.replace(
        spec,
        metrics=metrics,
        trust={**spec.trust, **_in_short(crossed)},
        training_images=connection.get(run.measuring),
        validation_predictions=_validation_predictions(valid) if valid else None,
    )
    picturing = _picture_examples(run, exported, spec, evaluations)  # while this process measures and draws
    doubtful = _suspects(images, learned.unseen) if learned.unseen else []
    curve = [dataclasses.asdict(point) for point in learned.learning_curve]
    # The gravest first: reasons why the metrics are wrong, then reasons why the model is poor.
    warnings = (
        *spec.shortcuts,
        *spec.leaks,
        *_verdicts(spec),
        *exported.warnings,
        *wording.training_warnings(history),
        *wording.network_warnings(config, probe),
        *finding_warnings.intensity_warnings(images.findings),
        *finding_warnings.series_warnings(images.findings),
        *finding_warnings.split_warnings(images.findings),
        *audit.warnings(images.findings)[len(audit.leak_warnings(images.findings)) :],
    )
    content = Report(
        title=os.path.basename(config.out.rstrip("/")),
        subtitle=f"{spec.backbone} {wording.verb(config)} on {config.data}",
        notices=wording.weights_notice(config),
        config=wording.settings(config, spec.preprocessing, probe),
        provenance=evaluate.provenance(spec),
        audit=images.findings,
        leaks=spec.leaks,
        shortcuts=spec.shortcuts,
        gallery=images.gallery,
        suspects=suspect_labels.with_pictures(doubtful) if config.thumbnails else (),
        cross_validation=crossed,
        trust=spec.trust,
        warnings=warnings,
        history=history,
        learning_curve=curve,
        evaluations=evaluations,
    )
    with timing.phase("writing report and bundle"):
        figures = evaluate.write_report(config.out, content, picturing)
        # The report in the bundle has no pictures: it would give them away with the names of their files.
        _publish(paths, spec, render_report(dataclasses.replace(content, gallery=(), suspects=()), figures))
        if learned.unseen:
            suspect_labels.write(config.out, doubtful)
    summary = {
        **measurement.headline(metrics),
        "engine": spec.measured_with,
        "warnings": warnings,
        "epochs": config.epochs,
        "num_epochs": num_epochs,
        "best_epoch": best_epoch,
        "prior": dict(zip(spec.classes, spec.prior or (), strict=True)),
        "splits": metrics,
        "probe": wording.describe_probe(probe),
        "learning_curve": curve or None,
        "cross_validation": crossed.metrics if crossed else None,
        "num_suspect_labels": len(doubtful) if learned.unseen else None,
        "timing_s": timing.seconds,
    }
    metrics_json = json.dumps(summary, indent=2) + "\n"
    unseen = _predicted_unseen(exported, crossed)
    evidence.write(config.out, evaluations, metrics_json=metrics_json, shown=SHOWN, unseen=unseen)
    storage.write_text(paths.metrics, metrics_json)
    return TrainResult(
        out=config.out,
        bundle=paths.bundle,
        num_epochs=num_epochs,
        best_epoch=best_epoch,
        metrics=metrics,
        cross_validation=crossed.metrics if crossed else None,
        warnings=warnings,
        timing_s=timing.seconds,
    )


def _picture_examples(
    run: Run, exported: Exported, spec: BundleSpec, evaluations: Mapping[str, SplitEvaluation]
) -> "ray.ObjectRef[list[dict[str, Any]]] | None":
    """Starts making the pictures of examples, see `evaluate.picture_examples`; None: none are to be shown."""
    if not run.config.thumbnails:
        return None
    bundle = run.paths.partial_bundle
    store.seal(bundle, spec, known=_checksums(bundle))  # the model in it looks for the look-alikes
    sealed, sha256 = store.read_spec(bundle)
    return evaluate.picture_examples(evaluations, run.images.readable, bundle, sealed, sha256, kind=exported.kind)


def _validation_predictions(valid: SplitEvaluation) -> ValidationPredictions | None:
    """Returns what the model predicts for validation images that are new to it; None if it knows all of them."""
    if not valid.is_new.any():
        return None
    return ValidationPredictions.of(valid.new.probs_BK, valid.new.ood_scores, valid.new.groups)


def _with_judging(spec: BundleSpec, exported: Exported, images: Dataset) -> BundleSpec:
    """Adds what is known of the engines, of how predictions are calibrated and judged, and of the data."""
    judged, thresholds = exported.judging, {"refer_below": exported.judging.refer_below}
    if exported.max_ood_score is not None:
        thresholds["max_ood_score"] = exported.max_ood_score
    return dataclasses.replace(
        spec,
        engines=exported.engines,
        measured_with=str(exported.kind),
        temperature=judged.temperature,
        thresholds=thresholds,
        set_thresholds=judged.set_thresholds,
        trust={
            **({} if spec.prior is None else {"prior": list(spec.prior)}),
            **judged.about,
            "data": verdicts.about_data(images.findings),
        },
    )


def _verdicts(spec: BundleSpec) -> tuple[str, ...]:
    """Returns warnings about what the figures of the split that is quoted are worth."""
    split = measurement.headline(spec.metrics)["split"]
    about = verdicts.Measured(split=split, metrics=spec.metrics[split], trust=spec.trust, data=spec.trust["data"])
    return verdicts.warnings(about)


def _cross_validated(unseen: Unseen, images: Dataset, spec: BundleSpec) -> SplitEvaluation:
    """Measures probes on images that they were not fitted on, with the class shares that the bundle assumes."""
    probs_BK = shifted(unseen.probs_BK, logit_shift(unseen.assumed_shares, np.array(spec.prior)))
    predicted = Predicted(image_ids=unseen.image_ids, labels=unseen.labels, probs_BK=probs_BK)
    return out_of_fold.cross_validated(predicted, unseen.groups, images.classes)


def _in_short(crossed: SplitEvaluation | None) -> dict[str, Any]:
    """Returns what a bundle keeps of a cross-validation; empty if there was none."""
    names = ("num_images", "num_groups", "accuracy", "accuracy_ci95", "balanced_accuracy", "balanced_accuracy_ci95")
    return {out_of_fold.CROSS_VALIDATION: {name: crossed.metrics[name] for name in names}} if crossed else {}


def _predicted_unseen(exported: Exported, crossed: SplitEvaluation | None) -> dict[str, Predicted]:
    """Returns the predictions that `out_of_fold.FILE` keeps; empty if nothing was cross-validated or calibrated."""
    found = dict(exported.judging.predicted)
    if crossed is not None:
        ids = crossed.image_ids.tolist()
        found[out_of_fold.CROSS_VALIDATION] = Predicted(image_ids=ids, labels=crossed.labels, probs_BK=crossed.probs_BK)
    return found


def _suspects(images: Dataset, unseen: Unseen) -> list[dict[str, Any]]:
    """Returns the training and validation images whose labels are likely wrong, see `suspect_labels.find`."""
    readable = images.readable
    place_of = {image_id: place for place, image_id in enumerate(readable["image_id"].to_pylist())}
    rows = readable.take(pa.array([place_of[image_id] for image_id in unseen.image_ids]))
    return suspect_labels.find(rows, unseen.labels, images.classes, unseen.probs_BK)


def _tables(images: Dataset) -> dict[str, pa.Table]:
    """Returns the images that the model is measured on: split to table, empty splits left out."""
    tables = {split: images.split(split) for split in ("valid", "test")}
    return {split: table for split, table in tables.items() if table.num_rows}


def _with_groups(images: Dataset, tables: Mapping[str, pa.Table]) -> dict[str, pa.Table]:
    """Adds the columns `export.GROUP` and `export.IS_NEW`."""
    group_of, leaked = images.group_of, images.leaked
    found = {}
    for split, table in tables.items():
        ids = table["image_id"].to_pylist()
        groups = pa.array([group_of[image_id] for image_id in ids], pa.string())
        is_new = pa.array([image_id not in leaked for image_id in ids], pa.bool_())
        found[split] = table.append_column(export.GROUP, groups).append_column(export.IS_NEW, is_new)
    return found


def wanted(config: TrainConfig, images: Dataset) -> Wanted:
    """Returns what a run's config wants of the predictions."""
    return Wanted(
        assumed_shares=images.assumed_shares(balanced=config.class_weights),
        shares=images.wanted_shares(config.prior),
        refer_below=config.refer_below,
        max_error=config.max_error,
    )


def _export(run: Run, learned: Learned) -> Exported:
    """Writes the model files."""
    config, images = run.config, run.images
    exporting = connection.start_here(
        export.export,
        run.model,
        learned.trained,
        run.paths.partial_bundle,
        cache=learned.cache,
        tables=_with_groups(images, {"train": images.split("train"), **_tables(images)}),
        pixels=probing.pixels(config, images),
        wanted=wanted(config, images),
        precision=config.inference_precision,
        calibration=images.split("train") if config.int8 else None,
        use_gpu=config.use_gpu,
        thumbnails=images.thumbnails if config.thumbnails else None,
        seed=config.seed,
    )
    return connection.get(exporting)


def _measure(run: Run, exported: Exported, spec: BundleSpec) -> dict[str, SplitEvaluation]:
    """Measures the exported model on each split, from stored features where possible, otherwise by scoring images."""
    images, group_of = run.images, run.images.group_of
    if not exported.probs:
        sha256 = store.seal(run.paths.partial_bundle, spec)
        return _evaluate(run, exported.kind, spec, sha256)
    return {
        split: measurement.measure_probabilities(
            table["class_index"].to_numpy(),
            exported.probs[split],
            images.classes,
            groups=np.array([group_of[each] for each in table["image_id"].to_pylist()]),
            image_ids=np.array(table["image_id"].to_pylist()),
            ood_scores=exported.ood_scores[split],
            limits=spec.limits,
        )
        for split, table in _tables(images).items()
    }


def _evaluate(run: Run, kind: EngineKind, spec: BundleSpec, sha256: str) -> dict[str, SplitEvaluation]:
    """Scores the validation and test images in one pass, and measures each split.

    Raises:
        DataError: An image has changed since it was first read, or none of a split can be read.
    """
    config, images, group_of = run.config, run.images, run.images.group_of
    table = pa.concat_tables([images.split("valid"), images.split("test")])
    plan = plans.plan_scoring(run.available, use_gpu=config.use_gpu)
    parts: list[pa.Table] = []
    with Progress("Evaluating", table.num_rows, quiet=config.quiet) as progress:
        predicted = score.predict(
            run.paths.partial_bundle, spec, sha256, table, plan=plan, kind=kind, batch_size=config.batch_size
        )
        for part in predicted:
            parts.append(part)
            progress.update(sum(each.num_rows for each in parts))
    predictions = pa.concat_tables(parts)
    stream.refuse_changed(predictions["error_code"].to_pylist(), predictions["image_id"].to_pylist())
    by_split = {split: predictions.filter(pc.field("split") == split) for split in ("valid", "test")}
    return {split: measurement.measure(rows, spec, group_of) for split, rows in by_split.items() if rows.num_rows}


def _publish(paths: RunPaths, spec: BundleSpec, report: str) -> None:
    """Publishes the model and its report as a bundle under its final name; `bundle.json` is written there last."""
    partial = paths.partial_bundle
    known = _checksums(partial)
    storage.delete(storage.join(partial, bundle.BUNDLE_JSON))
    storage.write_text(storage.join(partial, bundle.MODEL_CARD), card.model_card(spec))
    storage.write_text(storage.join(partial, bundle.REPORT), report)
    storage.delete(paths.bundle)
    storage.move_tree(partial, paths.bundle)
    store.seal(paths.bundle, spec, known=known)


def _checksums(partial: str) -> Mapping[str, str]:
    """Returns the checksums of the model files that a partial bundle was sealed with; none if it was not."""
    is_sealed = storage.exists(storage.join(partial, bundle.BUNDLE_JSON))
    return store.read_spec(partial)[0].files if is_sealed else {}
