"""The table of a sweep's trials, `trials.csv`: the settings and results of each, the best one first."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from tlray import spreadsheet, storage
from tlray.errors import DataError

FILE = "trials.csv"

SETTINGS = (
    "depths", "inverse_penalty", "hidden_layers", "trainable_layers", "learning_rate", "dropout", "views", "seed",
)  # fmt: skip
RESULTS = ("probe_loss", "probe_accuracy", "best_loss", "standard_error", "best_accuracy", "best_epoch", "num_epochs")
ERROR = "error"
COLUMNS: tuple[str, ...] = (*SETTINGS, *RESULTS, ERROR)

MAX_ERROR_LETTERS = 200

_COUNTS = frozenset({"depths", "hidden_layers", "trainable_layers", "views", "seed", "best_epoch", "num_epochs"})


def write_trials(out: str, trials: Sequence[Mapping[str, Any]]) -> None:
    """Writes the table anew, whole: the trial of the lowest loss first, those that failed last.

    Args:
        out: The sweep's directory.
        trials: `SETTINGS`, and `RESULTS` or `ERROR`.
    """
    file = io.StringIO()
    table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    table.writeheader()
    for trial in sorted(trials, key=lambda trial: trial.get("best_loss", math.inf)):
        table.writerow({name: _cell(value) for name, value in trial.items()})
    storage.write_text(storage.join(out, FILE), file.getvalue())


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return spreadsheet.as_text(value)
    return f"{value:.6g}" if isinstance(value, float) else value


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
    trials: list[dict[str, Any]] = []
    errors: list[str] = []
    for row in table:
        if row[ERROR]:
            errors.append(row[ERROR])
            continue
        with suppress(TypeError, ValueError):  # a row that is cut off is a trial without a result
            trials.append({name: (int if name in _COUNTS else float)(row[name]) for name in (*SETTINGS, *RESULTS)})
    return trials, errors


def identity(trial: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns what tells a trial from others: its settings."""
    return tuple(trial[name] for name in SETTINGS)


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
