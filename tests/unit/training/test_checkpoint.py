import json
import math

import numpy as np
import pytest

from tlray.config.values import MAX_SEED
from tlray.errors import DataError
from tlray.training import checkpoint
from tlray.training.checkpoint import RunState


def equal(these: list[np.ndarray], those: list[np.ndarray]) -> bool:
    return len(these) == len(those) and all(
        a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b) for a, b in zip(these, those, strict=True)
    )


def test_state_comes_back_as_it_was(tmp_path):
    rng = np.random.default_rng(0)
    # More than ten arrays, so that "10" before "2" would show; scalars and int64 as optimizers have them.
    weights = [rng.normal(size=(index + 1, 2)).astype(np.float32) for index in range(12)]
    optimizer = [np.array(7, dtype=np.int64), np.array(1e-3, dtype=np.float32), weights[3] * 2]
    history = [{"epoch": 1, "loss": 0.1 + 0.2, "valid_loss": 1.5}, {"epoch": 2, "loss": 1e-30, "valid_loss": math.inf}]
    best = [weight + 1 for weight in weights]
    checkpoint.save(tmp_path, RunState(weights=weights, optimizer=optimizer, best_weights=best, history=history))
    again = checkpoint.load(tmp_path)
    assert equal(again.weights, weights)
    assert equal(again.optimizer, optimizer)
    assert equal(again.best_weights, best)
    assert again.history == history
    assert checkpoint.load_history(tmp_path) == history


def test_a_loss_that_is_not_a_number_comes_back(tmp_path):
    one = [np.zeros(1)]
    checkpoint.save(
        tmp_path, RunState(weights=one, optimizer=one, best_weights=one, history=[{"epoch": 1, "loss": math.nan}])
    )
    (row,) = checkpoint.load_history(tmp_path)
    assert math.isnan(row["loss"])


def test_saving_again_replaces(tmp_path):
    for number in (1.0, 2.0):
        one = [np.array(number)]
        state = RunState(weights=one, optimizer=one, best_weights=one, history=[{"epoch": number}])
        checkpoint.save(tmp_path, state)
    again = checkpoint.load(tmp_path)
    assert [float(again.weights[0]), float(again.best_weights[0]), again.history] == [2.0, 2.0, [{"epoch": 2.0}]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.npz", "history.json", "state.npz"]
    assert json.loads((tmp_path / "history.json").read_text()) == [{"epoch": 2.0}]


def test_seeds_are_kept_by_rank(tmp_path):
    checkpoint.save_seeds(tmp_path, 0, [np.array([1, 2], dtype=np.uint32)])
    checkpoint.save_seeds(tmp_path, 1, [np.array([3, 4], dtype=np.uint32), np.array([5, 6], dtype=np.uint32)])
    checkpoint.save_seeds(tmp_path, 2, [])
    assert equal(checkpoint.load_seeds(tmp_path, 0) or [], [np.array([1, 2], dtype=np.uint32)])
    assert [seeds.tolist() for seeds in checkpoint.load_seeds(tmp_path, 1) or []] == [[3, 4], [5, 6]]
    assert checkpoint.load_seeds(tmp_path, 2) == []  # a rank without dropout
    assert checkpoint.load_seeds(tmp_path, 3) is None  # no such rank


def test_nothing_is_unpickled(tmp_path):
    objects = [np.array([{"a": 1}], dtype=object)]
    np.savez(str(tmp_path / "seeds_00000.npz"), allow_pickle=True, **{"seeds/00000": objects[0]})
    with pytest.raises(DataError, match="allow_pickle=False"):
        checkpoint.load_seeds(tmp_path, 0)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        checkpoint.save_seeds(tmp_path, 1, objects)


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda _: b"", lambda data: b"x" * len(data)])
def test_a_damaged_file_is_named(tmp_path, damage):
    checkpoint.save_seeds(tmp_path, 0, [np.arange(1000)])
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=f"{path}' is damaged .*--overwrite"):
        checkpoint.load_seeds(tmp_path, 0)


@pytest.mark.parametrize(
    ("seed", "index", "expected"),
    [(0, 0, 0), (5, 2, 15_843), (MAX_SEED, 0, 4_294_967_295), (MAX_SEED, 1, 7918), (4_294_959_377, 1, 0)],
)
def test_every_seed_that_is_accepted_starts_dropout(seed, index, expected):
    found = checkpoint.first_seed(seed, index=index, rank=3)
    assert found.dtype == np.uint32
    assert found.tolist() == [expected, 3]
