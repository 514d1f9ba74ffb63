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
"""Column with the standard error of the difference between a trial's `best_loss` and that of the table's first trial,
over the same images, with groups (patients) as the units."""

ERROR = "error"
COLUMNS: tuple[str, ...] = (*SETTINGS, *RESULTS, DIFFERENCE_ERROR, ERROR)

MAX_ERROR_LETTERS = 200

_COUNTS = frozenset({"depths", "hidden_layers", "trainable_layers", "views", "seed", "best_epoch", "num_epochs"})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroupLosses:
    """The cross-validated losses of a trial, summed over the held-out images of each group.

    Attributes:
        probe: Sums of the probe's log loss, nats, float32 [groups].
        best: The same for the trial's best epoch, which may be the probe.
    """

    probe: np.ndarray
    best: np.ndarray


Losses = Mapping[tuple[Any, ...], GroupLosses]
"""Maps the identity of a trial to its losses."""


def write_trials(out: str, trials: Sequence[Mapping[str, Any]], losses: Losses, num_images_G: np.ndarray) -> None:
    """Writes the whole table anew: the trial with the lowest loss first, failed trials last.

    Args:
        out: The sweep's directory.
        trials: `SETTINGS` of each trial, with its `RESULTS` or `ERROR`.
        losses: Losses of each trial that did not fail.
        num_images_G: Number of images of each group.
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
    """Returns the stored losses of the trials by their identity; empty without stored losses."""
    location = storage.join(out, LOSSES_FILE)
    if not storage.exists(location):
        return {}
    table = pq.read_table(pa.BufferReader(storage.read_bytes(location)))
    keys = zip(*(table[name].to_pylist() for name in SETTINGS), strict=True)
    sums = ((each.values.to_numpy() for each in table[name]) for name in ("probe", "best"))
    return {key: GroupLosses(probe=probe, best=best) for key, probe, best in zip(keys, *sums, strict=True)}


def read_trials(out: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns the trials that have a result, and the errors of those that failed; both empty without a table.

    Raises:
        DataError: The table was written by another version of tlray.
    """
    location = storage.join(out, FILE)
    if not storage.exists(location):
        return [], []
    table = csv.DictReader(io.StringIO(storage.read_bytes(location).decode()))
    if table.fieldnames and tuple(table.fieldnames) != COLUMNS:
        raise DataError(
            f"'{location}' does not have the columns that this version of tlray writes. Begin anew with --overwrite."
        )
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
    """Returns the identity of a trial: its settings, in the order of `SETTINGS`."""
    return tuple(trial[name] for name in SETTINGS)


def choose(trials: Sequence[dict[str, Any]], losses: Losses, num_images_G: np.ndarray) -> dict[str, Any]:
    """Returns the trial to train: the best probe, unless another trial beats it by more than one standard error.

    This is the one-standard-error rule: among results that cannot be told apart it takes the simplest model (Breiman,
    Friedman, Olshen and Stone, Classification and Regression Trees, 1984, section 3.4.3). Both models were measured on
    the same images, several of which may be of one patient, so the error is that of their difference, by patient.

    Args:
        trials: At least one trial, the one with the lowest loss first.
        losses: Losses of these trials.
        num_images_G: Number of images of each group.

    Returns:
        The trial's settings and results. If a probe is chosen, `best_epoch` is 0, and loss, accuracy and standard
        errors are those of the probe, not of the trial's best epoch.
    """
    best = trials[0]
    probe = min(trials, key=lambda trial: trial["probe_loss"])
    differences_G = losses[identity(probe)].probe - losses[identity(best)].best
    difference, standard_error = comparison.mean_by_group(differences_G, num_images_G)
    if difference > standard_error:
        return best
    alone = {"best_loss": probe["probe_loss"], "best_accuracy": probe["probe_accuracy"], "best_epoch": 0}
    _, alone["standard_error"] = comparison.mean_by_group(losses[identity(probe)].probe, num_images_G)
    alone[DIFFERENCE_ERROR] = standard_error
    return {**probe, **alone}


def failure_warnings(trials: Sequence[Any], errors: Sequence[str]) -> list[str]:
    """Returns the warning about trials that failed, if any did.

    Args:
        trials: The trials that have a result, see `read_trials`.
        errors: The errors of the others, see `read_trials`.
    """
    if not errors:
        return []
    counted = f"{len(errors)} of {len(trials) + len(errors)} trials"
    return [f"{counted} failed and were left out. The first error: {errors[0]}"]
