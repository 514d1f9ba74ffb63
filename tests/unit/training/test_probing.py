"""A run's features as they are looked up: Ray is not started."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.unit.evaluation.test_evidence import make_images
from tlray.config.training import TrainConfig
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


def test_probes_without_an_image_are_asked_however_many_validation_images_there_are(monkeypatch):
    """Those of validation alone calibrate the model then, but a wrong label is looked for among all."""
    data = make_images()
    assert not probing.has_enough_validation(data)
    monkeypatch.setattr(probing, "ENOUGH_VALIDATION_PATIENTS", 2)
    assert probing.has_enough_validation(data)
    ids = data.split("valid")["image_id"].to_pylist()
    with monkeypatch.context() as changed:  # both images are of one patient
        changed.setattr(type(data), "group_of", dict.fromkeys(ids, "p"))
        assert not probing.has_enough_validation(data)
        changed.setattr(probing, "ENOUGH_VALIDATION_PATIENTS", 1)
        assert probing.has_enough_validation(data)
    monkeypatch.setattr(type(data), "leaked", ids[:1])  # no image of a class is left
    assert not probing.has_enough_validation(data)
    monkeypatch.setattr(probing, "ENOUGH_VALIDATION_PATIENTS", 1)
    assert not probing.has_enough_validation(data)

    rows = pa.concat_tables([data.split("train"), data.split("valid")])
    labels = rows["class_index"].to_numpy()
    values = (np.eye(2)[labels] + 0.1 * np.random.default_rng(0).normal(size=(len(labels), 2))).astype(np.float16)
    table = pa.table({"image_id": rows["image_id"], "view": pa.array([0] * len(labels), pa.int32())})
    table = table.append_column("pooled", pa.FixedShapeTensorArray.from_numpy_ndarray(values))
    config = TrainConfig(data="d", out="o", method="probe", folds=3).resolved()
    monkeypatch.setattr(probing, "ENOUGH_VALIDATION_PATIENTS", 0)
    found = probing.out_of_fold(config, data, table, probing.fit(config, data, table))
    assert found is not None
    assert found.image_ids == rows["image_id"].to_pylist()
    assert found.logits_BK.argmax(axis=1).tolist() == labels.tolist()
