"""The driver of a training run: prepare the data and the model, train, evaluate, export."""

import dataclasses
import json
from functools import partial

from tlray.cluster import capacity, connection, locations, plans
from tlray.cluster.capacity import Capacity
from tlray.config.training import TrainConfig, to_json
from tlray.data import dataset, manifest, prior
from tlray.data.dataset import Dataset
from tlray.errors import ConfigError
from tlray.evaluation import evaluate
from tlray.files import storage
from tlray.models.weights import check_weights
from tlray.training import assembly, fit, probing, resume, wording
from tlray.training.assembly import Prepared, Trained
from tlray.training.finish import finish
from tlray.training.resume import CONFIG
from tlray.training.stages import BUNDLE, KIND, NAMES, Learned, Run, TrainResult

# Settings that may differ between a run and its continuation.
_FREE_ON_RESUME = frozenset({"epochs", "num_workers", "max_failures", "learning_curve"})


def train(config: TrainConfig, available: Capacity | None = None) -> TrainResult:
    """Runs a training from images to an evaluated and exported model.

    `metrics.json` is written last: a run without it is not finished and can be continued with `resume`.

    Args:
        config: The settings of the run.
        available: Resources of the connected cluster; None: connect, and find them out.

    Raises:
        ConfigError: A setting cannot work.
        DataError: The data cannot be used.
        TlrayError: Training failed; the message says what to do.
    """
    config = locations.absolute(config.resolved())
    # First the checks that need no Ray.
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
        available = capacity.measure()
    locations.check_shared(config.out, available)
    stored_uris = stored.table["uri"].to_pylist() if stored else None
    locations.check_shared_images(config.data, config.columns, available, stored_uris=stored_uris)
    plan = plans.plan_training(available, num_workers=config.num_workers, use_gpu=config.use_gpu)
    capacity.tell_shortage(available, num_gpus=config.num_workers * config.use_gpu, quiet=config.quiet)
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
    # An earlier run is replaced only now that all of the user's input has been checked.
    if not is_continued:
        storage.prepare_output(config.out, kind=KIND, known_names=NAMES, overwrite=config.overwrite)
        storage.write_text(storage.join(config.out, CONFIG), to_json(config))
    resume.keep_new_settings(config)
    dataset.write_dataset(images, config.out)
    storage.delete(storage.join(config.out, evaluate.METRICS_JSON))
    if not config.quiet:
        print(dataset.describe(images))
    measuring = dataset.measure(config, images)
    run = Run(config=config, available=available, plan=plan, images=images, prepared=prepared, measuring=measuring)
    return finish(run, _learn(run))


def begin(config: TrainConfig, images: Dataset) -> None:
    """Creates the directory of a run whose images have already been read; `train` with `resume` continues it."""
    config = locations.absolute(config.resolved())
    storage.prepare_output(config.out, kind=KIND, known_names=NAMES, overwrite=config.overwrite)
    dataset.write_dataset(images, config.out)
    storage.write_text(storage.join(config.out, CONFIG), to_json(config))


def _learn(run: Run) -> Learned:
    config, images, prepared = run.config, run.images, run.prepared
    if prepared.network is None:
        history, weights = fit.fit(config, run.plan, images, prepared)
        return Learned(trained=Trained(weights=weights), history=history)
    directory = probing.compute(config, run.available, images, prepared.network)
    pooled = probing.read_pooled(directory)
    probe = probing.fit(config, images, pooled)
    curve = probing.learning_curve(config, images, pooled) if config.learning_curve else ()
    del pooled  # training takes long and needs the memory
    cache = None
    if prepared.tail and probing.fits_cache(config, run.available, images, prepared.network):
        splits = {split: images.split(split) for split in manifest.SPLITS}
        cache = probing.load(directory, prepared.tail_inputs, splits, views=assembly.num_views(config))
    if config.method == "probe":
        return Learned(trained=Trained(probe=probe), cache=cache, learning_curve=curve)
    history, weights = fit.fit(config, run.plan, images, prepared, start=probe, cache=cache)
    trained = Trained(probe=probe, weights=weights)
    return Learned(trained=trained, history=history, cache=cache, learning_curve=curve)


# -- before training


def _check_memory(available: Capacity, images: Dataset, prepared: Prepared) -> None:
    if prepared.network:
        probing.check_memory(available, images, prepared.network)


def _is_continued(config: TrainConfig) -> bool:
    """Tells whether there is a run to continue; refuses an output that must not be touched."""
    # A run whose features did not fit into memory was stored with the cache off.
    free = _FREE_ON_RESUME | ({"cache"} if config.cache == "auto" else set())
    return resume.check_output(config, kind=KIND, known_names=NAMES, free=free)


def _was_cached(config: TrainConfig) -> bool:
    content = json.loads(storage.read_bytes(storage.join(config.out, CONFIG)))
    return content.get("cache", "auto") == "auto"


def _is_finished(config: TrainConfig) -> bool:
    """Tells whether a run is finished. A fine-tuning is not if it is now given more --epochs than it had."""
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
