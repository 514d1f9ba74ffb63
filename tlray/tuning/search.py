"""Runs a sweep: cross-validates many settings on features that are computed once, and trains the best of them."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.compute as pc
import ray

from tlray.cluster import capacity, connection, locations, plans
from tlray.cluster.capacity import Capacity
from tlray.config.commands import SweepConfig
from tlray.config.training import TrainConfig, to_json
from tlray.data import dataset, prior
from tlray.data.dataset import Dataset
from tlray.data.listing import Listing
from tlray.data.splits import assign_splits
from tlray.engines import quantization
from tlray.errors import ConfigError
from tlray.evaluation import figures
from tlray.features import update
from tlray.features.cache import FeatureCache
from tlray.features.preparation import Network
from tlray.features.store import POOLED
from tlray.files import storage
from tlray.models.weights import check_weights
from tlray.probe import regression
from tlray.timing import Timing
from tlray.training import model, probing, resume, run, stages
from tlray.training.model import Untrained
from tlray.training.paths import FEATURES, RunPaths
from tlray.training.prepare import create, first_features, look, read_and_build
from tlray.training.resume import CONFIG
from tlray.tuning import trial_table, tuner
from tlray.tuning.folds import Folds, check_num_groups, groups_of, learned_from, make_folds
from tlray.tuning.settings import draw_settings
from tlray.tuning.task import TrialTask

TRIALS_PNG = "trials.png"
BEST = "best"
KIND = "sweep"
NAMES = frozenset({CONFIG, dataset.MANIFEST, dataset.AUDIT, dataset.GALLERY, FEATURES, BEST})
NAMES |= {trial_table.FILE, trial_table.LOSSES_FILE, TRIALS_PNG}
FREE_ON_RESUME = frozenset({"refer_below", "max_error", "int8", "timing"})
"""Settings that may differ between a sweep and its continuation: they do not change the trials."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepResult:
    """The result of a sweep.

    Attributes:
        out: The sweep's directory.
        trials: Settings and results of each trial that did not fail, the trial with the lowest loss first.
        chosen: The settings that were trained, with their results in the trial; see `trial_table.choose`.
        best: The result of training these settings.
        warnings: Warnings about the trials and the training.
        timing_s: Phase of the sweep to its seconds, without those of the training, which `best` has.
    """

    out: str
    trials: list[dict[str, Any]]
    chosen: dict[str, Any]
    best: stages.TrainResult
    warnings: tuple[str, ...]
    timing_s: Mapping[str, float] = field(default_factory=dict)


def sweep(config: SweepConfig) -> SweepResult:
    """Computes features once, tries settings on them, and trains the best ones; see `trial_table.choose`.

    Validation images are cross-validated together with the training images, so that a small validation split does not
    decide alone; test images are left for the end.

    `trials.csv` gets a row whenever a trial ends. With `resume`, existing features are not computed again, and trials
    with a result are not run again. Failed trials are run again unless all trials have ended; once they have, the
    training of the best settings is continued. Whether a trial is stopped early depends on the trials that ended before
    it in this process, so the first trials of a continued sweep may run longer than in an uninterrupted one.

    Ray Tune's own way of restoring a sweep is not used: its state consists of pickles, which run any code that is in
    them, are some trials behind, and cannot be read by another version of Ray.

    Raises:
        ConfigError: A setting cannot work.
        DataError: The data cannot be used.
        TlrayError: Every trial failed, or the training of the best settings.
    """
    base = locations.absolute(config.training())
    resolved = {name: getattr(base, name) for name in ("data", "out", "weights", "class_map", "backbone")}
    config = dataclasses.replace(config, **resolved)
    timing = Timing()
    with timing.phase("checking settings, listing images"):
        before, stored, source = _begin(config)
    with timing.phase("starting Ray"):
        connection.connect()
        available = capacity.measure()
    locations.check_shared(base.out, available)
    stored_uris = stored.table["uri"].to_pylist() if stored else None
    locations.check_shared_images(base.data, base.columns, available, stored_uris=stored_uris)
    capacity.tell_shortage(available, num_gpus=int(config.use_gpu), quiet=config.quiet)
    if source is not None:
        _try_settings(config, source, available, before, timing)
    trials, errors = trial_table.read_trials(base.out)
    images = dataset.stored_dataset(base.out)
    assert images is not None  # noqa: S101 (the trials were on them)
    chosen = trial_table.choose(trials, trial_table.read_losses(base.out), np.bincount(groups_of(images)))
    best = _train_best(config, chosen, available, timing)
    warnings = (*best.warnings, *trial_table.failure_warnings(trials, errors))
    return SweepResult(
        out=base.out, trials=trials, chosen=chosen, best=best, warnings=warnings, timing_s=timing.seconds
    )


def _begin(config: SweepConfig) -> tuple[Mapping[str, Any] | None, Dataset | None, Dataset | Listing | None]:
    """Checks, without Ray, the settings of a sweep, whose locations are absolute.

    Returns:
        The stored settings and the stored images of the sweep to continue, None where there are none; and the images
        for the trials, None if all trials have ended.
    """
    base = config.training()
    if config.int8:
        quantization.check_installed()
    before = resume.stored_settings(config, kind=KIND, known_names=NAMES, free=FREE_ON_RESUME)
    stored = dataset.stored_dataset(base.out) if before is not None else None
    if before is not None and _is_tried(config):
        return before, stored, None
    if before is not None:  # trials are trained with class weights
        has_losses = bool(trial_table.read_trials(base.out)[0])
        resume.check_losses(before, kind=KIND, out=base.out, has_losses=has_losses)
    check_weights(base.weights, base.preprocessing)
    source = stored or _list(config)
    prior.check_classes(base.prior, source.table["label"].drop_null().unique().to_pylist())
    return before, stored, source


def _list(config: SweepConfig) -> Listing:
    """Lists the images; refuses classes with too few patients before any image is read, which would add none."""
    base = config.training()
    listed = dataset.list_trainable(base)
    table = assign_splits(listed.table, seed=base.seed)
    table = table.filter(pc.field("label").is_valid() & (pc.field("split") != "test"))
    by_label = table.group_by("label").aggregate([("group_id", "count_distinct")])
    check_num_groups(min(by_label["group_id_count_distinct"].to_pylist()), num_folds=config.num_folds)
    return listed


def _is_tried(config: SweepConfig) -> bool:
    """Tells whether all trials have ended, with a result or not; the training of the best may have begun then."""
    if not storage.exists(storage.join(config.out, TRIALS_PNG)) or dataset.stored_dataset(config.out) is None:
        return False
    trials, errors = trial_table.read_trials(config.out)
    return bool(trials) and len(trials) + len(errors) >= config.num_trials


def _train_best(
    config: SweepConfig, trial: Mapping[str, Any], available: Capacity, timing: Timing
) -> stages.TrainResult:
    best = best_config(config, trial)
    if dataset.stored_dataset(best.out) is None:
        images = dataset.stored_dataset(config.out)
        assert images is not None  # noqa: S101 (the trials were on them)
        # What an interrupted attempt has left there belongs to the sweep and may be overwritten.
        begun = locations.absolute(dataclasses.replace(best, resume=False, overwrite=True).resolved())
        create(begun, RunPaths(begun.out))
        dataset.write_dataset(images, begun.out)
        with timing.phase("handing on features"):
            _share_features(config.training(), best, images)
    return run.train(dataclasses.replace(best, resume=True, overwrite=False), available)


def _share_features(base: TrainConfig, best: TrainConfig, images: Dataset) -> None:
    """Copies the sweep's features to the training of the best settings, if they are all that it needs.

    They are if it needs only pooled features, or fine-tunes with all of the sweep's depths and layers. Otherwise it
    needs feature maps from other places in the network.
    """
    best = best.resolved()
    theirs, ours = (_network(config, images) for config in (base, best))
    if ours.names != [POOLED] and theirs.fingerprint != ours.fingerprint:
        return
    update.derive(
        RunPaths(base.out).features,
        RunPaths(best.out).features,
        images.readable,
        networks=(theirs, ours),
        pixels=probing.pixels(best, images),
        views=model.num_views(best),
    )


def _network(config: TrainConfig, images: Dataset) -> Network:
    prepared: Untrained = connection.get(connection.start_here(model.build, config, len(images.classes)))
    assert prepared.network is not None  # noqa: S101
    return prepared.network


def _try_settings(
    config: SweepConfig,
    source: Dataset | Listing,
    available: Capacity,
    before: Mapping[str, Any] | None,
    timing: Timing,
) -> None:
    """Runs the trials; writes their table and, last, its figure."""
    base = config.training()

    def refuse(images: Dataset, prepared: Untrained) -> None:
        assert prepared.network is not None  # noqa: S101
        _check_memory(config, available, images, prepared.network)
        probing.check_memory(base, available, images, prepared.network)

    with timing.phase("reading images, building the model"):
        read = read_and_build(base, source, available, kind=KIND, refuse=refuse)
    prepared = read.model
    assert prepared.network is not None  # noqa: S101
    make_folds(read.images, num_folds=config.num_folds, seed=config.seed)  # raises an error if it cannot
    # An earlier sweep is replaced only now that all of the user's input has been checked.
    if before is None:
        storage.prepare_output(base.out, kind=KIND, known_names=NAMES, overwrite=config.overwrite)
        storage.write_text(storage.join(base.out, CONFIG), to_json(config))
    else:
        resume.keep_new_settings(config, before, storage.join(base.out, CONFIG))
    directory = RunPaths(base.out).features
    with timing.phase("computing features"):
        pooled = first_features(base, read, directory, available)
    with timing.phase("looking for copies and shortcuts"):
        images = look(base, read, pooled, task_cpus=available.task_cpus, for_bundle=False)  # trials make none
    del pooled  # the trials need the memory
    dataset.write_dataset(images, base.out)
    folds = make_folds(images, num_folds=config.num_folds, seed=config.seed)
    plan = plans.plan_scoring(available, use_gpu=base.use_gpu)
    with timing.phase("computing features"):
        probing.compute(base, directory, images, prepared.network, plan=plan, views=model.num_views(base))
    splits = {split: images.split(split) for split in ("train", "valid")}
    cache = probing.load(directory, prepared.network.names, splits, views=base.views)
    task = _make_task(config, images, prepared, cache, folds)
    with timing.phase("running the trials"):
        tuner.run_trials(
            base.out, draw_settings(config), task,
            cpus_per_trial=available.task_cpus,
            most_at_once=most_at_once(config, available, images, prepared.network),
            quiet=config.quiet,
        )  # fmt: skip
    trials, _ = trial_table.read_trials(base.out)
    storage.write_bytes(storage.join(base.out, TRIALS_PNG), figures.plot_trials(trials, trial_table.SETTINGS[:-1]))


def best_config(config: SweepConfig, trial: Mapping[str, Any]) -> TrainConfig:
    """Returns the config for training a trial's settings up to its best epoch, in the sweep's directory.

    It has the sweep's own seed, which decides the splits.
    """
    base = config.training()
    is_probe = trial["best_epoch"] == 0
    names = ("depths", "inverse_penalty", "learning_rate", *(() if is_probe else ("dropout",)))
    return dataclasses.replace(
        base,
        out=storage.join(base.out, BEST),
        method="probe" if is_probe else "lp-ft",
        epochs=max(1, int(trial["best_epoch"])),
        hidden_units=() if is_probe else (config.hidden_units,) * trial["hidden_layers"],
        trainable_layers=base.trainable_layers if is_probe else trial["trainable_layers"],
        views=1 if is_probe else trial["views"],
        **{name: trial[name] for name in names},
    )


# -- before the trials


def _check_memory(config: SweepConfig, available: Capacity, images: Dataset, network: Network) -> None:
    """Refuses features that do not fit into the object store beside its other content."""
    base = config.training()
    if not probing.fits_cache(base, available, images, network):
        needed, there = probing.cache_bytes(base, images, network), available.smallest_object_store_bytes
        raise ConfigError(
            f"The features of a sweep stay in memory: {probing.num_cache_rows(base, images)} images and views of "
            f"{network.bytes_per_row / 1e3:.0f} kB are {needed / 1e9:.1f} GB, more than half of Ray's object store "
            f"({there / 1e9:.1f} GB on its smallest node). Give fewer --views or --trainable-layers, or start a Ray "
            f"with more memory: `ray start --head --object-store-memory={2 * needed}`."
        )


def most_at_once(config: SweepConfig, available: Capacity, images: Dataset, network: Network) -> int:
    """Returns how many trials fit into this node's memory at once, if all of them run here.

    A trial fits one probe after another and keeps the training images of every fold as float64. It also keeps the
    weights of its hidden layers with Adam's two moments, float32, for every fold and for the one being trained.
    """
    num_images = learned_from(images).num_rows
    (num_features,) = network.shapes[network.names.index(POOLED)]
    kept_bytes = 8 * (config.num_folds - 1) * num_images * num_features
    head_bytes = 4 * 3 * (config.num_folds + 1) * config.hidden_units * (num_features + config.hidden_units)
    trial_bytes = kept_bytes + head_bytes + regression.memory_bytes(num_images, num_features, len(images.classes))
    return max(1, int(min(config.num_trials, available.memory_bytes / trial_bytes)))


def _make_task(
    config: SweepConfig, images: Dataset, prepared: Untrained, cache: FeatureCache, folds: Folds
) -> TrialTask:
    assert prepared.tail is not None and prepared.tail_weights is not None  # noqa: PT018, S101
    # A validation image has one view, which is repeated in place of the others.
    rows = np.concatenate([np.broadcast_to(rows, (len(rows), config.views)) for rows in cache.rows.values()])
    return TrialTask(
        cache=cache,
        rows=rows,
        labels=learned_from(images)["class_index"].to_numpy(),
        groups=groups_of(images),
        folds=folds,
        num_classes=len(images.classes),
        depth_sizes=prepared.depth_sizes,
        tail=prepared.tail,
        tail_weights=[ray.put(prepared.tail_weights)],
        hidden_units=config.hidden_units,
        tail_layers=prepared.tail_layers,
        batch_size=config.batch_size,
        epochs=config.epochs,
        use_gpu=config.use_gpu,
    )
