"""A training run's state on disk: arrays in .npz files and a history in JSON, nothing pickled.

The state of seed generators before the first step, of which no file is written, is here too: see `first_seed`.
"""

import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tlray.errors import DataError

STATE_FILE = "state.npz"
BEST_FILE = "best.npz"
HISTORY_FILE = "history.json"
SEEDS_PREFIX = "seeds_"


@dataclass(slots=True, kw_only=True)
class RunState:
    """The state of a training run, saved by rank 0 after each epoch.

    Attributes:
        weights: The model's weights after the last epoch.
        optimizer: The optimizer's variables.
        best_weights: The weights of the best epoch so far.
        history: One row for each finished epoch.
    """

    weights: list[np.ndarray]
    optimizer: list[np.ndarray]
    best_weights: list[np.ndarray]
    history: list[dict[str, float]]


def save(directory: Path, state: RunState) -> None:
    """Writes a run's state into a directory."""
    _save_arrays(directory / STATE_FILE, weights=state.weights, optimizer=state.optimizer)
    _save_arrays(directory / BEST_FILE, weights=state.best_weights)
    (directory / HISTORY_FILE).write_text(json.dumps(state.history))


def load(directory: Path) -> RunState:
    """Reads a run's state from a directory."""
    arrays = _load_arrays(directory / STATE_FILE)
    return RunState(
        weights=arrays["weights"],
        optimizer=arrays["optimizer"],
        best_weights=load_best_weights(directory),
        history=load_history(directory),
    )


def count_ranks(directory: Path) -> int:
    """Counts the ranks whose parts are whole; a worker that was killed may have left a part of a file.

    Returns:
        The number of ranks; 0 if the part of rank 0, which holds the weights, is not whole.
    """
    try:
        load(directory)
        ranks = range(len(list(directory.glob(f"{SEEDS_PREFIX}*"))))
        return sum(load_seeds(directory, rank) is not None for rank in ranks)
    except (OSError, ValueError, KeyError, DataError):
        return 0


def load_best_weights(directory: Path) -> list[np.ndarray]:
    """Reads only the weights of the best epoch from a directory."""
    return _load_arrays(directory / BEST_FILE)["weights"]


def load_history(directory: Path) -> list[dict[str, float]]:
    """Reads only the history from a directory."""
    return json.loads((directory / HISTORY_FILE).read_text())


def first_seed(seed: int, *, index: int, rank: int) -> np.ndarray:
    """Returns the state of one of a rank's seed generators (dropout) before the first step.

    Args:
        seed: The run's seed, in [0, 2**32 - 1].
        index: The generator's place among those of the model, from 0. Each gets a seed of its own.
        rank: The rank.

    Returns:
        uint32 [2], as Keras' seed generators keep it.
    """
    return np.array([(seed + 7919 * index) % 2**32, rank], dtype=np.uint32)


def save_seeds(directory: Path, rank: int, states: Sequence[np.ndarray]) -> None:
    """Writes the states of one rank's seed generators (dropout), which are not among a Keras model's weights."""
    _save_arrays(directory / _seeds_file(rank), seeds=states)


def load_seeds(directory: Path, rank: int) -> list[np.ndarray] | None:
    """Reads the states of one rank's seed generators; None if the saved run had no such rank."""
    path = directory / _seeds_file(rank)
    return _load_arrays(path).get("seeds", []) if path.exists() else None


def _seeds_file(rank: int) -> str:
    return f"{SEEDS_PREFIX}{rank:05d}.npz"


def _save_arrays(path: Path, **groups: Sequence[np.ndarray]) -> None:
    arrays = {f"{name}/{index:05d}": array for name, group in groups.items() for index, array in enumerate(group)}
    np.savez(path, allow_pickle=False, **arrays)


def _load_arrays(path: Path) -> dict[str, list[np.ndarray]]:
    groups: dict[str, list[np.ndarray]] = {}
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            for key in sorted(file.files):
                groups.setdefault(key.partition("/")[0], []).append(file[key])
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"The checkpoint '{path}' is damaged ({error}), so training cannot continue. Begin anew with --overwrite."
        ) from error
    return groups
