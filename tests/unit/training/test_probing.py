"""A run's features as they are looked up: Ray is not started."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tlray.features import store
from tlray.training import probing


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    """Object references are the objects themselves."""
    monkeypatch.setattr(probing.ray, "put", lambda value: value)


def images(*image_ids: str) -> pa.Table:
    return pa.table({"image_id": pa.array(image_ids, pa.string())})


@pytest.fixture
def directory(tmp_path: Path) -> str:
    """Features of images a, b and c, and of a second view of a and b: row n has the values 2n and 2n + 1."""
    ids = ["a", "b", "c", "a", "b"]
    table = pa.table({"image_id": ids, "view": pa.array([0, 0, 0, 1, 1], pa.int32())})
    values = np.arange(10, dtype=np.float16).reshape(5, 2)
    table = table.append_column("pooled", pa.FixedShapeTensorArray.from_numpy_ndarray(values))
    store.write_part(f"{tmp_path}/part-1.parquet", table)
    (tmp_path / store.SUCCESS).touch()
    return str(tmp_path)


def test_a_split_without_images_has_no_rows(directory):
    splits = {"train": images("b", "a"), "valid": images("c"), "test": images()}
    rows = probing.load(directory, ["pooled"], splits, views=2).rows
    assert {split: each.tolist() for split, each in rows.items()} == {
        "train": [[1, 4], [0, 3]],
        "valid": [[2]],
        "test": [],
    }
    assert {split: each.shape for split, each in rows.items()} == {"train": (2, 2), "valid": (1, 1), "test": (0, 1)}
    pooled = probing.read_pooled(directory)
    assert store.look_up(pooled, images("c", "a")).tolist() == [[4, 5], [0, 1]]
    assert store.look_up(pooled, images()).shape == (0, 2)
