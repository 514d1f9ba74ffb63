"""A sweep: many settings tried on features that the network computes once, cross-validated, the best one trained."""

import csv
import dataclasses
import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from sklearn.model_selection import StratifiedGroupKFold

from tlray import assembly, cluster, dataset, features, figures, probing, storage, training
from tlray.assembly import Prepared
from tlray.cluster import Capacity
from tlray.config import TrainConfig, to_json
from tlray.dataset import Dataset
from tlray.errors import ConfigError, DataError, TlrayError
from tlray.extraction import Network
from tlray.featurecache import FeatureCache
from tlray.jobconfig import SweepConfig
from tlray.listing import Listing
from tlray.progress import Progress
from tlray.trialtask import TrialTask

CONFIG = "config.json"
TRIALS_CSV = "trials.csv"
TRIALS_PNG = "trials.png"
BEST = "best"
KIND = "sweep"
NAMES = frozenset({CONFIG, dataset.MANIFEST, dataset.AUDIT, probing.FEATURES, TRIALS_CSV, TRIALS_PNG, BEST})

Folds = tuple[tuple[np.ndarray, np.ndarray], ...]
"""Training and held-out images of each fold, by number."""

REDUCTION_FACTOR = 4
"""Successive halving (arXiv:1810.05934): of this many trials one goes on."""

GRACE_PERIOD = 2
"""The probe, then an epoch: what a trial fine-tunes with shows in no result before."""

SETTINGS = ("depths", "inverse_penalty", "trainable_layers", "learning_rate", "dropout", "views", "seed")
RESULTS = ("probe_loss", "probe_accuracy", "best_loss", "standard_error", "best_accuracy", "best_epoch", "num_epochs")
ERROR = "error"

_COUNTS = frozenset({"depths", "trainable_layers", "views", "seed", "best_epoch", "num_epochs"})

MAX_ERROR_LETTERS = 200

# What may differ between a sweep and its continuation.
_FREE_ON_RESUME = frozenset({"resume", "overwrite", "quiet"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepResult:
    """What a sweep came to.

    Attributes:
        out: Its directory.
        trials: The settings and results of each trial that did not fail, the one of the lowest loss first.
        chosen: The settings that were trained, and what they gave; see `choose`.
        best: That training.
        warnings: What a careful reader must know of the trials and of that training.
    """

    out: str
    trials: list[dict[str, Any]]
    chosen: dict[str, Any]
    best: training.TrainResult
    warnings: tuple[str, ...]


def draw_settings(config: SweepConfig) -> list[dict[str, Any]]:
    """Returns the settings that are tried: first about those of the recipe `standard`, then random ones.

    The same config gives the same ones, so that a sweep that is continued knows which are left.
    """
    most = config.trainable_layers
    layers = sorted({0, most // 3, most * 2 // 3, most})
    generator = np.random.default_rng(config.seed)
    first = {
        "depths": 5,
        "inverse_penalty": 1e-3,
        "trainable_layers": most,
        "learning_rate": 1e-4,
        "dropout": 0.3,
        "views": config.views,
        "seed": config.seed,
    }
    others = [
        {
            "depths": int(generator.integers(1, 6)),
            "inverse_penalty": _log_uniform(generator, 1e-5, 1.0),
            "trainable_layers": int(generator.choice(layers)),
            "learning_rate": _log_uniform(generator, 1e-5, 1e-3),
            "dropout": float(generator.choice([0.0, 0.3, 0.5])),
            "views": int(generator.integers(1, config.views + 1)),
            "seed": int(generator.integers(0, 1000)),
        }
        for _ in range(config.num_trials - 1)
    ]
    return [first, *others]


def _log_uniform(generator: np.random.Generator, low: float, high: float) -> float:
    """Draws a number of three digits: the table holds it as it is."""
    return float(f"{np.exp(generator.uniform(np.log(low), np.log(high))):.3g}")


def sweep(config: SweepConfig) -> SweepResult:
    """Computes features once, tries settings on them, and trains the best ones; see `choose`.

    Validation images are cross-validated together with the training images, so that a small validation split does not
    decide alone; test images are left for the end.

    `trials.csv` gets a row whenever a trial ends. With `resume`, features that are there are not computed again,
    trials with a result not run again (failed ones are), and once all have ended the training of the best settings
    goes on where it was. Whether a trial is stopped early depends on those that ended before it in this process: in a
    sweep that is continued, the first ones may go on for longer than they would have in an uninterrupted one.

    Ray Tune could restore a sweep as well: from pickles, which run any code that is in them, that are some trials
    behind, and that no other version of Ray reads.

    Raises:
        ConfigError: A setting cannot work.
        DataError: The data cannot be used.
        TlrayError: Every trial failed, or the training of the best settings.
    """
    base = cluster.absolute(config.training())
    locations = {name: getattr(base, name) for name in ("data", "out", "weights", "class_map", "backbone")}
    config = dataclasses.replace(config, **locations)
    cluster.connect()
    available = cluster.capacity()
    cluster.check_shared(base.out, available)
    is_continued = _check_output(config)
    if not is_continued or not _is_tried(config):
        _try_settings(config, available, is_continued=is_continued)
    trials, errors = _read_trials(base.out)
    chosen = choose(trials)
    best = _train_best(base, chosen)
    warnings = (*_failure_warnings(trials, errors), *best.warnings)
    return SweepResult(out=base.out, trials=trials, chosen=chosen, best=best, warnings=warnings)


def _is_tried(config: SweepConfig) -> bool:
    """Tells whether all trials have ended, well or not: then the training of the best settings may have begun."""
    if not storage.exists(storage.join(config.out, TRIALS_PNG)) or dataset.stored_dataset(config.out) is None:
        return False
    trials, errors = _read_trials(config.out)
    return bool(trials) and len(trials) + len(errors) >= config.num_trials


def choose(trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the trial to train: the best probe, unless fine-tuning beats it by more than its own standard error.

    The one-standard-error rule, which among results that cannot be told apart takes the simplest model (Breiman,
    Friedman, Olshen and Stone, Classification and Regression Trees, 1984, section 3.4.3).

    Args:
        trials: At least one, the one of the lowest loss first.
    """
    best = trials[0]
    probe = min(trials, key=lambda trial: trial["probe_loss"])
    if probe["probe_loss"] > best["best_loss"] + best["standard_error"]:
        return best
    alone = {"best_loss": probe["probe_loss"], "best_accuracy": probe["probe_accuracy"], "best_epoch": 0}
    return {**probe, **alone}


def _train_best(base: TrainConfig, trial: Mapping[str, Any]) -> training.TrainResult:
    config = best_config(base, trial)
    if not storage.exists(storage.join(config.out, training.CONFIG)):
        images = dataset.stored_dataset(base.out)
        assert images is not None  # noqa: S101 (the trials were on them)
        # What an interruption has left half made there is the sweep's own.
        training.begin(dataclasses.replace(config, resume=False, overwrite=True), images)
        _share_features(base, config, images)
    return training.train(dataclasses.replace(config, resume=True, overwrite=False))


def _share_features(base: TrainConfig, best: TrainConfig, images: Dataset) -> None:
    """Gives the training of the best settings what the sweep has computed, if that is all that it needs.

    That is so for a probe, and for fine-tuning with all of the sweep's depths and layers: other maps have other places
    in the network.
    """
    best = best.resolved()
    theirs, ours = (_network(config, images) for config in (base, best))
    if best.method != "probe" and theirs.fingerprint != ours.fingerprint:
        return
    features.derive(
        storage.join(base.out, probing.FEATURES),
        storage.join(best.out, probing.FEATURES),
        images.readable,
        networks=(theirs, ours),
        pixels=probing.pixels(best, images),
        views=assembly.num_views(best),
    )


def _network(config: TrainConfig, images: Dataset) -> Network:
    prepared: Prepared = cluster.get(cluster.start_here(assembly.prepare, config, len(images.classes)))
    assert prepared.network is not None  # noqa: S101
    return prepared.network


def _try_settings(config: SweepConfig, available: Capacity, *, is_continued: bool) -> None:
    """Writes the table of trials, and last its figure."""
    base = config.training()
    stored = dataset.stored_dataset(base.out) if is_continued else None
    source: Dataset | Listing = stored or dataset.list_classes(base)
    num_classes = max(2, len(source.table["label"].drop_null().unique()))
    preparing = cluster.start_here(assembly.prepare, base, num_classes)
    images = source if isinstance(source, Dataset) else dataset.read_dataset(base, source)
    prepared: Prepared = cluster.get(preparing)
    assert prepared.network is not None  # noqa: S101
    folds = _folds(images, config)
    _check_memory(config, available, images, prepared.network)
    probing.check_memory(available, images, prepared.network)
    # Only now, when nothing that the user gave is wrong, is an earlier sweep replaced.
    if not is_continued:
        storage.prepare_output(base.out, kind=KIND, known_names=NAMES, overwrite=config.overwrite)
        storage.write_text(storage.join(base.out, CONFIG), to_json(config))
    dataset.write_dataset(images, base.out)
    directory = probing.compute(base, available, images, prepared.network)
    splits = {split: images.split(split) for split in ("train", "valid")}
    cache = probing.load(directory, prepared.network.names, splits, views=base.views)
    _run_trials(config, _make_task(config, images, prepared, cache, folds))
    trials, _ = _read_trials(base.out)
    storage.write_bytes(storage.join(base.out, TRIALS_PNG), figures.plot_trials(trials, SETTINGS[:-1]))


def best_config(base: TrainConfig, trial: Mapping[str, Any]) -> TrainConfig:
    """Returns the training of a trial's settings, as far as the trial was good, in the sweep's directory.

    With the sweep's own seed, which decides the splits.
    """
    is_probe = trial["best_epoch"] == 0
    return dataclasses.replace(
        base,
        out=storage.join(base.out, BEST),
        method="probe" if is_probe else "lp-ft",
        epochs=max(1, int(trial["best_epoch"])),
        trainable_layers=trial["trainable_layers"] or base.trainable_layers,
        views=1 if is_probe else trial["views"],
        **{name: trial[name] for name in ("depths", "inverse_penalty", "learning_rate", "dropout")},
    )


# -- before the trials


def _check_output(config: SweepConfig) -> bool:
    """Tells whether there is a sweep to continue; refuses an output that must not be touched."""
    location = storage.join(config.out, CONFIG)
    if not config.resume or not storage.exists(location):
        storage.check_output(config.out, kind=KIND, known_names=NAMES, overwrite=config.overwrite)
        return False
    before, now = json.loads(storage.read_bytes(location)), json.loads(to_json(config))
    changed = [name for name in before if name not in _FREE_ON_RESUME and now.get(name) != before[name]]
    if changed:
        listed = "; ".join(f"{name} was {before[name]!r} and is {now.get(name)!r}" for name in changed)
        raise ConfigError(
            f"--resume continues the sweep in {config.out} with its own settings: {listed}. Give those, or another "
            "--out."
        )
    return True


def _check_memory(config: SweepConfig, available: Capacity, images: Dataset, network: Network) -> None:
    """Refuses features that do not fit into the object store, beside what else it holds."""
    num_rows = images.readable.num_rows + (config.views - 1) * images.split("train").num_rows
    needed, there = num_rows * network.bytes_per_row, available.smallest_object_store_bytes
    if needed > there * training.MAX_CACHE_PART:
        raise ConfigError(
            f"The features of a sweep stay in memory: {num_rows} images and views of {network.bytes_per_row / 1e3:.0f} "
            f"kB are {needed / 1e9:.1f} GB, more than half of Ray's object store ({there / 1e9:.1f} GB on its smallest "
            "node). Give fewer --views or --trainable-layers, or start a Ray with more memory: `ray start --head "
            f"--object-store-memory={2 * needed}`."
        )


def _folds(images: Dataset, config: SweepConfig) -> Folds:
    """Cuts training and validation images into folds; a patient's images, and copies of an image, stay together."""
    table = _learned_from(images)
    labels, groups = table["class_index"].to_numpy(), np.array(table["group_id"].to_pylist())
    num_groups = min(len(set(groups[labels == label])) for label in range(len(images.classes)))
    if num_groups < config.num_folds:
        raise DataError(
            f"A class has the images of {num_groups} patients (or single images) only: too few for --num-folds "
            f"{config.num_folds}."
        )
    splitter = StratifiedGroupKFold(config.num_folds, shuffle=True, random_state=config.seed)
    folds = tuple(splitter.split(labels, labels, groups))
    if any(len(set(labels[train])) < len(images.classes) for train, _ in folds):
        raise DataError(f"Not every class has training images in all folds: give fewer --num-folds than {len(folds)}.")
    return folds


def _learned_from(images: Dataset) -> pa.Table:
    return pa.concat_tables([images.split("train"), images.split("valid")])


def _make_task(
    config: SweepConfig, images: Dataset, prepared: Prepared, cache: FeatureCache, folds: Folds
) -> TrialTask:
    assert prepared.tail is not None and prepared.tail_weights is not None  # noqa: PT018, S101
    # A validation image has one view, which stands for all.
    rows = np.concatenate([np.broadcast_to(rows, (len(rows), config.views)) for rows in cache.rows.values()])
    return TrialTask(
        cache=cache,
        rows=rows,
        labels=_learned_from(images)["class_index"].to_numpy(),
        folds=folds,
        num_classes=len(images.classes),
        depth_sizes=prepared.depth_sizes,
        tail=prepared.tail,
        tail_weights=[prepared.tail_weights],
        tail_layers=prepared.tail_layers,
        batch_size=config.batch_size,
        epochs=config.epochs,
        use_gpu=config.use_gpu,
    )


# -- the trials


def _run_trials(config: SweepConfig, task: TrialTask) -> None:
    """Runs the trials that have no result in the table yet, and writes them there."""
    with _silent_stderr():
        from tlray.trials import Trial  # noqa: PLC0415 (brings TensorFlow)
    known, _ = _read_trials(config.out)
    done = {_identity(trial) for trial in known}
    left = [settings for settings in draw_settings(config) if _identity(settings) not in done]
    if not left:
        return
    resources = {"CPU": 1.0} | ({"GPU": 1.0} if config.use_gpu else {})
    progress = Progress("Trying", config.num_trials, unit="trials", quiet=config.quiet)
    progress.update(len(known))
    recorder = _Recorder(config.out, known, progress)
    with progress, tempfile.TemporaryDirectory(prefix="tlray-sweep-") as own_files:
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(Trial, task=task), resources),
            param_space={"settings": tune.grid_search(left)},
            tune_config=tune.TuneConfig(
                metric="valid_loss",
                mode="min",
                reuse_actors=True,
                scheduler=ASHAScheduler(
                    max_t=config.epochs + 1, grace_period=GRACE_PERIOD, reduction_factor=REDUCTION_FACTOR
                ),
            ),
            run_config=tune.RunConfig(
                storage_path=own_files,
                verbose=0,
                callbacks=[recorder],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        results = tuner.fit()
    if not _read_trials(config.out)[0]:
        raise TlrayError(
            f"Every trial failed. Mend the cause and continue with --resume. The first error:\n{results.errors[0]}"
        )


class _Recorder(tune.Callback):
    """Writes the table anew, whole, whenever trials have ended."""

    def __init__(self, out: str, known: Sequence[Mapping[str, Any]], progress: Progress) -> None:
        self._out = out
        self._known = known
        self._progress = progress
        self._num_ended = 0

    # Here and not where a trial ends: Tune would take a full disk for a failure of the trial.
    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:  # noqa: ARG002
        """Looks for trials that have ended."""
        ended = [trial for trial in trials if trial.is_finished()]
        if len(ended) > self._num_ended:
            self._num_ended = len(ended)
            _write_trials(self._out, [*self._known, *map(_describe, ended)])
            self._progress.update(len(self._known) + len(ended))


def _describe(trial: Any) -> dict[str, Any]:
    """Returns an ended trial as a row of the table."""
    if trial.status == trial.TERMINATED:
        return {**trial.config["settings"], **{name: trial.last_result[name] for name in RESULTS}}
    with open(trial.error_file, encoding="utf-8") as file:
        last_line = file.read().strip().splitlines()[-1]
    return {**trial.config["settings"], ERROR: last_line[:MAX_ERROR_LETTERS]}


def _identity(trial: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(trial[name] for name in SETTINGS)


# -- their table


def _write_trials(out: str, trials: Sequence[Mapping[str, Any]]) -> None:
    """Writes the best one first and those that failed last."""
    file = io.StringIO()
    table = csv.DictWriter(file, [*SETTINGS, *RESULTS, ERROR], lineterminator="\n")
    table.writeheader()
    for trial in sorted(trials, key=lambda trial: trial.get("best_loss", np.inf)):
        table.writerow({name: f"{value:.6g}" if isinstance(value, float) else value for name, value in trial.items()})
    storage.write_text(storage.join(out, TRIALS_CSV), file.getvalue())


def _read_trials(out: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns the trials that have a result, and the errors of those that failed."""
    location = storage.join(out, TRIALS_CSV)
    if not storage.exists(location):
        return [], []
    table = csv.DictReader(io.StringIO(storage.read_bytes(location).decode()))
    if table.fieldnames and list(table.fieldnames) != [*SETTINGS, *RESULTS, ERROR]:
        raise DataError(f"'{location}' is not as this version of tlray writes it. Begin anew with --overwrite.")
    trials: list[dict[str, Any]] = []
    errors: list[str] = []
    for row in table:
        if row[ERROR]:
            errors.append(row[ERROR])
            continue
        with suppress(TypeError, ValueError):  # a row that is cut off is a trial without a result
            trials.append({name: (int if name in _COUNTS else float)(row[name]) for name in (*SETTINGS, *RESULTS)})
    return trials, errors


def _failure_warnings(trials: Sequence[Any], errors: Sequence[str]) -> list[str]:
    if not errors:
        return []
    counted = f"{len(errors)} of {len(trials) + len(errors)} trials"
    return [f"{counted} failed and were left out. The first error: {errors[0]}"]


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Hides what TensorFlow's C++ writes while it is imported, before any setting of its logs is read."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
