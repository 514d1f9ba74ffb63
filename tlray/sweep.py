"""A sweep: many settings tried on features that the network computes once, cross-validated, the best one trained."""

import dataclasses
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator
from sklearn.model_selection import StratifiedGroupKFold

from tlray import assembly, cluster, dataset, figures, probing, storage, training
from tlray.assembly import Prepared
from tlray.config import TrainConfig, to_json
from tlray.dataset import Dataset
from tlray.errors import DataError, TlrayError
from tlray.featurecache import FeatureCache
from tlray.jobconfig import SweepConfig
from tlray.progress import Progress
from tlray.trialtask import TrialTask

CONFIG = "config.json"
TRIALS_CSV = "trials.csv"
TRIALS_PNG = "trials.png"
BEST = "best"
NAMES = frozenset({CONFIG, TRIALS_CSV, TRIALS_PNG, BEST, probing.FEATURES})

Folds = tuple[tuple[np.ndarray, np.ndarray], ...]
"""Training and held-out images of each fold, by number."""

REDUCTION_FACTOR = 4
"""Successive halving (arXiv:1810.05934): of this many probes one is fine-tuned."""

SETTINGS = ("depths", "inverse_penalty", "trainable_layers", "learning_rate", "dropout", "views", "seed")
RESULTS = ("best_loss", "best_accuracy", "best_epoch")


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepResult:
    """What a sweep came to.

    Attributes:
        out: Its directory.
        trials: Each trial's settings and results, the best one first.
        best: The training of the best settings.
    """

    out: str
    trials: list[dict[str, Any]]
    best: training.TrainResult


def search_space(config: SweepConfig) -> dict[str, Any]:
    """Returns what is tried: Ray Tune's distributions."""
    most = config.trainable_layers
    return {
        "depths": tune.randint(1, 6),
        "inverse_penalty": tune.loguniform(1e-5, 1.0),
        "trainable_layers": tune.choice(sorted({0, most // 3, most * 2 // 3, most})),
        "learning_rate": tune.loguniform(1e-5, 1e-3),
        "dropout": tune.choice([0.0, 0.3, 0.5]),
        "views": tune.randint(1, config.views + 1),
        "seed": tune.randint(0, 1000),
    }


def first_trial(config: SweepConfig) -> dict[str, Any]:
    """Returns the settings that are tried first: about those of the recipe `standard`."""
    return {
        "depths": 5,
        "inverse_penalty": 1e-3,
        "trainable_layers": config.trainable_layers,
        "learning_rate": 1e-4,
        "dropout": 0.3,
        "views": config.views,
        "seed": config.seed,
    }


def sweep(config: SweepConfig) -> SweepResult:
    """Computes features once, tries settings on them, and trains the best ones.

    Validation images are cross-validated together with the training images, so that a small validation split does not
    decide alone; test images are left for the end.

    Raises:
        ConfigError: A setting cannot work.
        DataError: The data cannot be used.
        TlrayError: Every trial failed, or the training of the best settings.
    """
    base = cluster.absolute(config.training())
    cluster.connect()
    available = cluster.capacity()
    cluster.check_shared(base.out, available)
    storage.check_output(base.out, kind="sweep", known_names=NAMES, overwrite=config.overwrite)
    listed = dataset.list_classes(base)
    num_classes = max(2, len(listed.table["label"].drop_null().unique()))
    preparing = cluster.start_here(assembly.prepare, base, num_classes)
    images = dataset.read_dataset(base, listed)
    prepared: Prepared = cluster.get(preparing)
    folds = _folds(images, config)
    storage.prepare_output(base.out, kind="sweep", known_names=NAMES, overwrite=config.overwrite)
    storage.write_text(storage.join(base.out, CONFIG), to_json(config))
    assert prepared.network is not None  # noqa: S101
    directory = probing.compute(base, available, images, prepared.network)
    splits = {split: images.split(split) for split in ("train", "valid")}
    cache = probing.load(directory, prepared.network.names, splits, views=base.views)
    trials = _run_trials(config, _make_task(config, images, prepared, cache, folds))
    storage.write_text(storage.join(base.out, TRIALS_CSV), _csv(trials))
    storage.write_bytes(storage.join(base.out, TRIALS_PNG), figures.plot_trials(trials, SETTINGS[:-1]))
    best = training.train(best_config(base, trials[0]))
    return SweepResult(out=base.out, trials=trials, best=best)


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


def _run_trials(config: SweepConfig, task: TrialTask) -> list[dict[str, Any]]:
    """Returns the trials' settings and results, the best one first."""
    with _silent_stderr():
        from tlray.trials import Trial  # noqa: PLC0415 (brings TensorFlow)
    resources = {"CPU": 1.0} | ({"GPU": 1.0} if config.use_gpu else {})
    progress = Progress("Trying", config.num_trials, unit="trials", quiet=config.quiet)
    with progress, tempfile.TemporaryDirectory(prefix="tlray-sweep-") as own_files:
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(Trial, task=task), resources),
            param_space=search_space(config),
            tune_config=tune.TuneConfig(
                metric="valid_loss",
                mode="min",
                num_samples=config.num_trials,
                reuse_actors=True,
                search_alg=BasicVariantGenerator(points_to_evaluate=[first_trial(config)], random_state=config.seed),
                scheduler=ASHAScheduler(max_t=config.epochs + 1, reduction_factor=REDUCTION_FACTOR),
            ),
            run_config=tune.RunConfig(
                storage_path=own_files,
                verbose=0,
                callbacks=[_Watcher(progress)],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        results = tuner.fit()
    rows = [{**result.config, **result.metrics} for result in results if result.metrics and result.config]
    trials = [{name: row[name] for name in (*SETTINGS, *RESULTS)} for row in rows if "best_loss" in row]
    if not trials:
        raise TlrayError(f"Every trial failed. The first error:\n{results.errors[0]}")
    return sorted(trials, key=lambda trial: trial["best_loss"])


class _Watcher(tune.Callback):
    """Counts the trials that have ended."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._num_ended = 0

    def on_trial_complete(self, *args: Any, **named: Any) -> None:  # noqa: ARG002
        """Shows one more."""
        self._num_ended += 1
        self._progress.update(self._num_ended)


def _csv(trials: list[dict[str, Any]]) -> str:
    names = list(trials[0])
    return "\n".join([",".join(names), *(",".join(f"{trial[name]:.6g}" for name in names) for trial in trials)]) + "\n"


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
