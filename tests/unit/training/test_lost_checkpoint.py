"""Ray Train overwrites its list of a run's checkpoints in place; a process that is killed then leaves a part of it."""

from pathlib import Path

import numpy as np
import pytest

from tlray.files import storage
from tlray.training import checkpoint
from tlray.training.checkpoint import RunState
from tlray.training.fit import SNAPSHOT, lost_checkpoint
from tlray.training.paths import RunPaths

NAMES = [f"checkpoint_2026-11-29_10-00-0{index}" for index in range(4)]


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    """Two ranks have saved three checkpoints; a fourth lacks rank 1."""
    paths = RunPaths(str(tmp_path))
    one = [np.zeros(1)]
    for name in NAMES:
        directory = Path(paths.checkpoints, name)
        directory.mkdir(parents=True)
        checkpoint.save(directory, RunState(weights=one, optimizer=one, best_weights=one, history=[{"epoch": 1.0}]))
        for rank in range(1 if name == NAMES[-1] else 2):
            checkpoint.save_seeds(directory, rank, one)
    return paths


def cut(paths: RunPaths, name: str, file: str) -> None:
    path = Path(paths.checkpoints, name, file)
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize("content", ["", '{"ray_version": "2.60'])
def test_the_last_checkpoint_that_all_ranks_have_saved_is_taken(paths, content):
    snapshot = storage.join(paths.checkpoints, SNAPSHOT)
    storage.write_text(snapshot, content)
    cut(paths, NAMES[2], "state.npz")
    assert lost_checkpoint(paths) == storage.join(paths.checkpoints, NAMES[1])
    assert not storage.exists(snapshot)


@pytest.mark.parametrize("file", ["best.npz", "history.json", "seeds_00001.npz"])
def test_a_checkpoint_with_a_part_of_a_file_is_not_taken(paths, file):
    storage.write_text(storage.join(paths.checkpoints, SNAPSHOT), "")
    cut(paths, NAMES[2], file)
    assert lost_checkpoint(paths) == storage.join(paths.checkpoints, NAMES[1])


def test_without_a_whole_checkpoint_training_begins_anew(paths):
    storage.write_text(storage.join(paths.checkpoints, SNAPSHOT), "")
    for name in NAMES:
        cut(paths, name, "state.npz")
    assert lost_checkpoint(paths) is None


@pytest.mark.parametrize("content", [None, '{"ray_version": "2.60.0"}'])
def test_a_list_that_ray_train_can_read_is_left_to_it(paths, content):
    snapshot = storage.join(paths.checkpoints, SNAPSHOT)
    if content is not None:
        storage.write_text(snapshot, content)
    assert lost_checkpoint(paths) is None
    assert storage.exists(snapshot) == (content is not None)
