"""The table of a sweep's trials, `trials.csv`: the settings and results of each, the best one first.

Beside it, `trial_losses.parquet` holds the losses of each trial by group (patient), by which trials are compared.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tlray.errors import DataError
from tlray.files import spreadsheet, storage
from tlray.tuning import comparison

FILE = "trials.csv"
LOSSES_FILE = "trial_losses.parquet"

SETTINGS = (
    "depths", "inverse_penalty", "hidden_layers", "trainable_layers", "learning_rate", "dropout", "views", "seed",
)  # fmt: skip
RESULTS = ("probe_loss", "probe_accuracy", "best_loss", "standard_error", "best_accuracy", "best_epoch", "num_epochs")
"""Columns that a trial reports. `standard_error` is that of `best_loss`, with groups (patients) as the units."""

DIFFERENCE_ERROR = "difference_error"
"""Standard error of the difference between `best_loss` and that of the first trial of the table, over the same images,
with groups (patients) as the units."""

ERROR = "error"
COLUMNS: tuple[str, ...] = (*SETTINGS, *RESULTS, DIFFERENCE_ERROR, ERROR)

MAX_ERROR_LETTERS = 200

_COUNTS = frozenset({"depths", "hidden_layers", "trainable_layers", "views", "seed", "best_epoch", "num_epochs"})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroupLosses:
    """The cross-validated losses of a trial, summed over the held-out images of each group.

    Attributes:
        probe: Sums of the probe's log loss, nats, float32 [groups].
        best: The same of the trial's best epoch, which may be the probe.
    """

    probe: np.ndarray
    best: np.ndarray


Losses = Mapping[tuple[Any, ...], GroupLosses]
"""The identity of a trial to its losses."""


def write_trials(out: str, trials: Sequence[Mapping[str, Any]], losses: Losses, num_images_G: np.ndarray) -> None:
    """Writes the table anew, whole: the trial of the lowest loss first, those that failed last.

    Args:
        out: The sweep's directory.
        trials: `SETTINGS`, and `RESULTS` or `ERROR`.
        losses: Of each trial that did not fail.
        num_images_G: The images of each group.
    """
    # First the losses: a row without them is a trial without a result.
    _write_losses(out, losses)
    file = io.StringIO()
    table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    table.writeheader()
    ordered = sorted(trials, key=lambda trial: trial.get("best_loss", math.inf))
    for trial in ordered:
        row = dict(trial)
        if ERROR not in trial:
            differences_G = losses[identity(trial)].best - losses[identity(ordered[0])].best
            _, row[DIFFERENCE_ERROR] = comparison.mean_by_group(differences_G, num_images_G)
        table.writerow({name: _cell(value) for name, value in row.items()})
    storage.write_text(storage.join(out, FILE), file.getvalue())


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return spreadsheet.as_text(value)
    return f"{value:.6g}" if isinstance(value, float) else value


def _write_losses(out: str, losses: Losses) -> None:
    columns: dict[str, Any] = {name: [key[place] for key in losses] for place, name in enumerate(SETTINGS)}
    for name in ("probe", "best"):
        columns[name] = pa.array([getattr(each, name) for each in losses.values()], pa.list_(pa.float32()))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    storage.write_bytes(storage.join(out, LOSSES_FILE), sink.getvalue().to_pybytes())


def read_losses(out: str) -> dict[tuple[Any, ...], GroupLosses]:
    """Returns the losses of the trials by their identity; nothing where there are none."""
    location = storage.join(out, LOSSES_FILE)
    if not storage.exists(location):
        return {}
    table = pq.read_table(pa.BufferReader(storage.read_bytes(location)))
    keys = zip(*(table[name].to_pylist() for name in SETTINGS), strict=True)
    sums = ((each.values.to_numpy() for each in table[name]) for name in ("probe", "best"))
    return {key: GroupLosses(probe=probe, best=best) for key, probe, best in zip(keys, *sums, strict=True)}


def read_trials(out: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns the trials that have a result, and the errors of those that failed; nothing where there is no table.

    Raises:
        DataError: The table is another version's.
    """
    location = storage.join(out, FILE)
    if not storage.exists(location):
        return [], []
    table = csv.DictReader(io.StringIO(storage.read_bytes(location).decode()))
    if table.fieldnames and tuple(table.fieldnames) != COLUMNS:
        raise DataError(f"'{location}' is not as this version of tlray writes it. Begin anew with --overwrite.")
    measured = read_losses(out)
    trials: list[dict[str, Any]] = []
    errors: list[str] = []
    for row in table:
        if row[ERROR]:
            errors.append(row[ERROR])
            continue
        if row[ERROR] is None:  # a row that is cut off is a trial without a result
            continue
        with suppress(TypeError, ValueError):
            numbers = (*SETTINGS, *RESULTS, DIFFERENCE_ERROR)
            trial = {name: (int if name in _COUNTS else float)(row[name]) for name in numbers}
            if identity(trial) in measured:
                trials.append(trial)
    return trials, errors


def identity(trial: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns what tells a trial from others: its settings."""
    return tuple(trial[name] for name in SETTINGS)


def choose(trials: Sequence[dict[str, Any]], losses: Losses, num_images_G: np.ndarray) -> dict[str, Any]:
    """Returns the trial to train: the best probe, unless another trial beats it by more than one standard error.

    The one-standard-error rule, which among results that cannot be told apart takes the simplest model (Breiman,
    Friedman, Olshen and Stone, Classification and Regression Trees, 1984, section 3.4.3). Both models were measured on
    the same images, several of them of one patient: the error is that of their difference, by patient.

    Args:
        trials: At least one, the one of the lowest loss first.
        losses: Of these trials.
        num_images_G: The images of each group.
    """
    best = trials[0]
    probe = min(trials, key=lambda trial: trial["probe_loss"])
    differences_G = losses[identity(probe)].probe - losses[identity(best)].best
    difference, standard_error = comparison.mean_by_group(differences_G, num_images_G)
    if difference > standard_error:
        return best
    alone = {"best_loss": probe["probe_loss"], "best_accuracy": probe["probe_accuracy"], "best_epoch": 0}
    return {**probe, **alone}


def failure_warnings(trials: Sequence[Any], errors: Sequence[str]) -> list[str]:
    """Returns what is to be said of trials that failed.

    Args:
        trials: See `read_trials`.
        errors: See there.
    """
    if not errors:
        return []
    counted = f"{len(errors)} of {len(trials) + len(errors)} trials"
    return [f"{counted} failed and were left out. The first error: {errors[0]}"]
