"""The driver of a training run: prepare the data and the model, train, evaluate, export."""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from tlray.bundle import card, store
from tlray.bundle import spec as bundle
from tlray.bundle.spec import BundleSpec
from tlray.cluster import connection, locations, plans
from tlray.cluster.connection import Capacity
from tlray.cluster.plans import TrainPlan
from tlray.config.training import TrainConfig, to_json
from tlray.data import audit, dataset, manifest, prior
from tlray.data.dataset import Dataset
from tlray.data.drift import TrainingImages, ValidationPredictions
from tlray.errors import ConfigError
from tlray.evaluation import evaluate
from tlray.evaluation.report import Report, SplitEvaluation
from tlray.features.cache import FeatureCache
from tlray.files import storage
from tlray.inference import score
from tlray.models.weights import check_weights
from tlray.probe.learning_curves import Point
from tlray.progress import Progress
from tlray.training import assembly, fit, plateau, probing, resume, wording
from tlray.training.assembly import Exported, Prepared, Trained
from tlray.training.resume import CONFIG

KIND = "training"
BUNDLE = "bundle"
PARTIAL_BUNDLE = "bundle.partial"
NAMES = evaluate.NAMES | {
    CONFIG,
    dataset.MANIFEST,
    dataset.AUDIT,
    fit.HISTORY,
    fit.CHECKPOINTS,
    BUNDLE,
    PARTIAL_BUNDLE,
    probing.FEATURES,
}

# What may differ between a run and its continuation.
_FREE_ON_RESUME = frozenset({"epochs", "num_workers", "max_failures", "learning_curve"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What a training run came to.

    Attributes:
        out: The run's directory.
        bundle: The exported model.
        num_epochs: Epochs that were trained.
        best_epoch: The exported one, from 1; 0: the probe.
        metrics: By split, see `metrics.evaluate_predictions`.
        warnings: What a careful reader must know of the figures, the model and the data, the gravest first.
    """

    out: str
    bundle: str
    num_epochs: int
    best_epoch: int
    metrics: Mapping[str, Mapping[str, Any]]
    warnings: tuple[str, ...]


def train(config: TrainConfig, available: Capacity | None = None) -> TrainResult:
    """Runs a training from images to an evaluated and exported model.

    `metrics.json` is written last: a run without it is not finished and can be continued with `resume`.

    Args:
        config: What to train.
        available: What the connected cluster has; None: connect, and ask it.

    Raises:
        ConfigError: A setting cannot work.
        DataError: The data cannot be used.
        TlrayError: Training failed, with what to do.
    """
    config = locations.absolute(config.resolved())
    # First what needs no Ray.
    is_continued = _is_continued(config)
    if is_continued and _is_finished(config):
        return _finished(config)
    if is_continued:
        has_losses = config.class_weights and fit.has_checkpoint(config.out)
        resume.check_losses(config, kind=KIND, has_losses=has_losses)
    if is_continued and not _was_cached(config):
        config = dataclasses.replace(config, cache="off")
    check_weights(config.weights)
    stored = dataset.stored_dataset(config.out) if is_continued else None
    source = stored or dataset.list_trainable(config)
    prior.check_classes(config.prior, source.table["label"].drop_null().unique().to_pylist())
    if available is None:
        connection.connect()
        available = connection.capacity()
    locations.check_shared(config.out, available)
    stored_uris = stored.table["uri"].to_pylist() if stored else None
    locations.check_shared_images(config.data, config.columns, available, stored_uris=stored_uris)
    plan = plans.plan_training(available, num_workers=config.num_workers, use_gpu=config.use_gpu)
    connection.tell_shortage(available, num_gpus=config.num_workers * config.use_gpu, quiet=config.quiet)
    refuse = partial(_check_memory, available)
    images, prepared = assembly.read_and_prepare(config, source, available, kind=KIND, refuse=refuse)
    if (
        prepared.network
        and assembly.is_cached(config)
        and not probing.fits_cache(config, available, images, prepared.network)
    ):
        if is_continued:
            raise ConfigError(
                "The features that this run is trained on no longer fit into Ray's object store. Give Ray the memory "
                "that it had, or begin anew with --overwrite."
            )
        if not config.quiet:
            print(wording.describe_misfit(config, available, images, prepared.network))
        config = dataclasses.replace(config, cache="off")
        images, prepared = assembly.read_and_prepare(config, images, available, kind=KIND, refuse=refuse)
    # Only now, when nothing that the user gave is wrong, is an earlier run replaced.
    if not is_continued:
        storage.prepare_output(config.out, kind=KIND, known_names=NAMES, overwrite=config.overwrite)
        storage.write_text(storage.join(config.out, CONFIG), to_json(config))
    resume.keep_new_settings(config)
    dataset.write_dataset(images, config.out)
    storage.delete(storage.join(config.out, evaluate.METRICS_JSON))
    if not config.quiet:
        print(dataset.describe(images))
    measuring = dataset.measure(config, images)
    run = _Run(config=config, available=available, plan=plan, images=images, prepared=prepared, measuring=measuring)
    return _finish(run, _learn(run))


def begin(config: TrainConfig, images: Dataset) -> None:
    """Makes the directory of a run whose images have been read already; `train` goes on there, with `resume`."""
    config = locations.absolute(config.resolved())
    storage.prepare_output(config.out, kind=KIND, known_names=NAMES, overwrite=config.overwrite)
    dataset.write_dataset(images, config.out)
    storage.write_text(storage.join(config.out, CONFIG), to_json(config))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """What training works with."""

    config: TrainConfig
    available: Capacity
    plan: TrainPlan
    images: Dataset
    prepared: Prepared
    measuring: "ray.ObjectRef[TrainingImages | None]"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Learned:
    """What training came to.

    Attributes:
        trained: The classifier's weights.
        history: One row an epoch, empty for a probe.
        cache: The features that were learned from, if they are kept in memory.
        learning_curve: Of the probe, empty where none is wanted.
    """

    trained: Trained
    history: list[dict[str, float]] = field(default_factory=list)
    cache: FeatureCache | None = None
    learning_curve: tuple[Point, ...] = ()


def _learn(run: _Run) -> _Learned:
    config, images, prepared = run.config, run.images, run.prepared
    if prepared.network is None:
        history, weights = fit.fit(config, run.plan, images, prepared)
        return _Learned(trained=Trained(weights=weights), history=history)
    directory = probing.compute(config, run.available, images, prepared.network)
    pooled = probing.read_pooled(directory)
    probe = probing.fit(config, images, pooled)
    curve = probing.learning_curve(config, images, pooled) if config.learning_curve else ()
    del pooled  # training takes long, and memory
    cache = None
    if prepared.tail and probing.fits_cache(config, run.available, images, prepared.network):
        splits = {split: images.split(split) for split in manifest.SPLITS}
        cache = probing.load(directory, prepared.tail_inputs, splits, views=assembly.num_views(config))
    if config.method == "probe":
        return _Learned(trained=Trained(probe=probe), cache=cache, learning_curve=curve)
    history, weights = fit.fit(config, run.plan, images, prepared, start=probe, cache=cache)
    trained = Trained(probe=probe, weights=weights)
    return _Learned(trained=trained, history=history, cache=cache, learning_curve=curve)


# -- before training


def _check_memory(available: Capacity, images: Dataset, prepared: Prepared) -> None:
    if prepared.network:
        probing.check_memory(available, images, prepared.network)


def _is_continued(config: TrainConfig) -> bool:
    """Tells whether there is a run to continue; refuses an output that must not be touched."""
    # Without the cache where its features did not fit into memory.
    free = _FREE_ON_RESUME | ({"cache"} if config.cache == "auto" else set())
    return resume.check_output(config, kind=KIND, known_names=NAMES, free=free)


def _was_cached(config: TrainConfig) -> bool:
    content = json.loads(storage.read_bytes(storage.join(config.out, CONFIG)))
    return content.get("cache", "auto") == "auto"


def _is_finished(config: TrainConfig) -> bool:
    """Tells whether a run has come to its end; more --epochs than it had make it go on."""
    location = storage.join(config.out, evaluate.METRICS_JSON)
    if not storage.exists(location):
        return False
    content = json.loads(storage.read_bytes(location))
    return config.method == "probe" or content["epochs"] >= config.epochs


def _finished(config: TrainConfig) -> TrainResult:
    content = json.loads(storage.read_bytes(storage.join(config.out, evaluate.METRICS_JSON)))
    return TrainResult(
        out=config.out,
        bundle=storage.join(config.out, BUNDLE),
        num_epochs=content["num_epochs"],
        best_epoch=content["best_epoch"],
        metrics=content["splits"],
        warnings=(*content.get("warnings", ()), "The run had already finished: nothing was done."),
    )


def _make_spec(config: TrainConfig, images: Dataset, preprocessing: str) -> BundleSpec:
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


# -- after training


def _finish(run: _Run, learned: _Learned) -> TrainResult:
    """Exports and evaluates the model, then publishes bundle, report and metrics."""
    config, images = run.config, run.images
    history, probe = learned.history, learned.trained.probe
    best_epoch = int(history[plateau.best_epoch([row["valid_loss"] for row in history])]["epoch"]) if history else 0
    num_epochs = int(history[-1]["epoch"]) if history else 0
    partial = storage.join(config.out, PARTIAL_BUNDLE)
    storage.delete(partial)
    spec = _make_spec(config, images, run.prepared.preprocessing)
    evaluations, export_warnings = _export(run, learned, spec)
    metrics = {split: result.metrics for split, result in evaluations.items()}
    valid = evaluations.get("valid")
    spec = dataclasses.replace(
        spec,
        metrics=metrics,
        training_images=connection.get(run.measuring),
        validation_predictions=ValidationPredictions.of(valid.probs_BK) if valid else None,
    )
    curve = [dataclasses.asdict(point) for point in learned.learning_curve]
    # The gravest first: what makes the figures wrong, then what makes the model a bad one.
    warnings = (
        *spec.leaks,
        *export_warnings,
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
    evaluate.write_report(config.out, content)
    location = storage.join(config.out, BUNDLE)
    _publish(partial, location, spec, storage.read_bytes(storage.join(config.out, evaluate.REPORT_HTML)))
    headline = "test" if "test" in metrics else "valid"
    summary = {
        **metrics[headline],
        "split": headline,
        "warnings": warnings,
        "epochs": config.epochs,
        "num_epochs": num_epochs,
        "best_epoch": best_epoch,
        "prior": dict(zip(spec.classes, spec.prior or (), strict=True)),
        "splits": metrics,
        "probe": wording.describe_probe(probe),
        "learning_curve": curve or None,
    }
    storage.write_text(storage.join(config.out, evaluate.METRICS_JSON), json.dumps(summary, indent=2) + "\n")
    return TrainResult(
        out=config.out,
        bundle=location,
        num_epochs=num_epochs,
        best_epoch=best_epoch,
        metrics=metrics,
        warnings=warnings,
    )


def _export(run: _Run, learned: _Learned, spec: BundleSpec) -> tuple[dict[str, SplitEvaluation], tuple[str, ...]]:
    """Writes the model files and measures the model: on the features that it learned from, or through scoring.

    Returns:
        Split to its evaluation, and what there is to be warned of.
    """
    config, images = run.config, run.images
    tables = {split: images.split(split) for split in ("valid", "test")}
    tables = {split: table for split, table in tables.items() if table.num_rows}
    partial = storage.join(config.out, PARTIAL_BUNDLE)
    exporting = connection.start_here(
        assembly.export,
        run.prepared,
        learned.trained,
        partial,
        logit_shift=images.logit_shift(config.prior, balanced=config.class_weights),
        cache=learned.cache,
        tables=tables,
        pixels=probing.pixels(config, images),
    )
    exported: Exported = connection.get(exporting)
    if not exported.probs:
        store.seal(partial, spec)
        return _evaluate(config, run.available, images, partial), exported.warnings
    evaluations = {
        split: evaluate.measure_probabilities(table["class_index"].to_numpy(), exported.probs[split], images.classes)
        for split, table in tables.items()
    }
    return evaluations, exported.warnings


def _evaluate(config: TrainConfig, available: Capacity, images: Dataset, location: str) -> dict[str, SplitEvaluation]:
    """Scores validation and test images in one go, and measures each split."""
    table = pa.concat_tables([images.split("valid"), images.split("test")])
    plan = plans.plan_scoring(available, use_gpu=config.use_gpu)
    parts: list[pa.Table] = []
    with Progress("Evaluating", table.num_rows, quiet=config.quiet) as progress:
        for part in score.predict(location, table, plan=plan, batch_size=config.batch_size):
            parts.append(part)
            progress.update(sum(each.num_rows for each in parts))
    predictions = pa.concat_tables(parts)
    by_split = {split: predictions.filter(pc.field("split") == split) for split in ("valid", "test")}
    return {split: evaluate.measure(rows, images.classes) for split, rows in by_split.items() if rows.num_rows}


def _publish(partial: str, location: str, spec: BundleSpec, report_html: bytes) -> None:
    """Makes the evaluated model a bundle under its final name; `bundle.json` appears there last."""
    storage.delete(storage.join(partial, bundle.BUNDLE_JSON))
    storage.write_text(storage.join(partial, bundle.MODEL_CARD), card.model_card(spec))
    storage.write_bytes(storage.join(partial, bundle.REPORT), report_html)
    storage.delete(location)
    storage.move_tree(partial, location)
    store.seal(location, spec)
