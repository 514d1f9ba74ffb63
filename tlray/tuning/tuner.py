"""Runs a sweep's trials on Ray Tune: side by side, stopped early, and recorded as they end."""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from tlray.errors import TlrayError
from tlray.progress import Progress
from tlray.tuning import trial_table
from tlray.tuning.task import TrialTask
from tlray.tuning.trial_table import ERROR, MAX_ERROR_LETTERS, RESULTS, GroupLosses

REDUCTION_FACTOR = 4
"""Reduction factor of successive halving (arXiv:1810.05934): one of this many trials continues."""

GRACE_PERIOD = 2
"""Iterations before a trial may be stopped: the probe and one epoch, which is the first to depend on the settings of
fine-tuning."""


def run_trials(
    out: str,
    settings: Sequence[Mapping[str, Any]],
    task: TrialTask,
    *,
    cpus_per_trial: float,
    most_at_once: int,
    quiet: bool,
) -> None:
    """Runs the trials that have no result in the table yet, and writes their results there.

    Args:
        out: The sweep's directory.
        settings: The settings of each trial.
        task: The data that all trials share.
        cpus_per_trial: CPUs that each trial asks for.
        most_at_once: Maximum number of trials that run side by side.
        quiet: Show no progress.

    Raises:
        TlrayError: Every trial failed.
    """
    with _silent_stderr():
        from tlray.tuning.trial import Trial  # noqa: PLC0415 (brings TensorFlow)
    known, _ = trial_table.read_trials(out)
    done = set(map(trial_table.identity, known))
    left = [each for each in settings if trial_table.identity(each) not in done]
    if not left:
        return
    resources = {"CPU": cpus_per_trial} | ({"GPU": 1.0} if task.use_gpu else {})
    progress = Progress("Trying", len(settings), unit="trials", quiet=quiet)
    progress.update(len(known))
    recorder = _Recorder(out, known, np.bincount(task.groups), progress)
    with progress, tempfile.TemporaryDirectory(prefix="tlray-sweep-") as own_files:
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(Trial, task=task), resources),
            param_space={"settings": tune.grid_search(left)},
            tune_config=tune.TuneConfig(
                metric="valid_loss",
                mode="min",
                max_concurrent_trials=most_at_once,
                reuse_actors=True,
                scheduler=ASHAScheduler(
                    max_t=task.epochs + 1, grace_period=GRACE_PERIOD, reduction_factor=REDUCTION_FACTOR
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
    if not trial_table.read_trials(out)[0]:
        raise TlrayError(
            f"Every trial failed. Fix the cause and continue with --resume. The first error:\n{results.errors[0]}"
        )


class _Recorder(tune.Callback):
    """Writes the whole table anew whenever trials have ended."""

    def __init__(
        self, out: str, known: Sequence[Mapping[str, Any]], num_images_G: np.ndarray, progress: Progress
    ) -> None:
        self._out = out
        self._known = known
        self._known_losses = trial_table.read_losses(out)
        self._num_images_G = num_images_G
        self._progress = progress
        self._num_ended = 0

    # Here and not where a trial ends: Tune would take a full disk for a failure of the trial.
    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:  # noqa: ARG002
        """Writes the table if more trials have ended since the last call."""
        ended = [trial for trial in trials if trial.is_finished()]
        if len(ended) > self._num_ended:
            self._num_ended = len(ended)
            rows = [*self._known, *map(_describe, ended)]
            losses = self._known_losses | dict(map(_losses, filter(_is_measured, ended)))
            trial_table.write_trials(self._out, rows, losses, self._num_images_G)
            self._progress.update(len(self._known) + len(ended))


def _is_measured(trial: Any) -> bool:
    """Tells whether an ended trial has a result."""
    return trial.status == trial.TERMINATED


def _losses(trial: Any) -> tuple[tuple[Any, ...], GroupLosses]:
    """Returns the identity of a trial that has a result, and its losses."""
    return trial_table.identity(trial.config["settings"]), trial.last_result["losses"]


def _describe(trial: Any) -> dict[str, Any]:
    """Returns an ended trial as a row of the table."""
    if _is_measured(trial):
        return {**trial.config["settings"], **{name: trial.last_result[name] for name in RESULTS}}
    with open(trial.error_file, encoding="utf-8") as file:
        last_line = file.read().strip().splitlines()[-1]
    return {**trial.config["settings"], ERROR: last_line[:MAX_ERROR_LETTERS]}


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Hides what TensorFlow's C++ code prints while it is imported, before it reads any setting of its logs."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
