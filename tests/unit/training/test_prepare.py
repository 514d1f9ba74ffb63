"""What a run keeps of the pictures that it has looked at."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tlray.config.training import TrainConfig
from tlray.data import dataset
from tlray.data.dataset import Dataset
from tlray.training import prepare
from tlray.training.prepare import Read
from tlray.trust import findings, pictures

NAMES = ["1.png", "2.png", "3.png", "4.png"]
TABLE = pa.table(
    {
        "image_id": NAMES,
        "label": ["a", "b", "a", "b"],
        "split": ["train", "train", "train", "valid"],
        "error_code": pa.nulls(4, pa.string()),
        "is_16_bit": [False, False, True, False],
    }
)


@pytest.mark.parametrize(
    ("thumbnails", "for_bundle", "encoded"),
    [(True, True, ["1.png", "2.png"]), (True, False, []), (False, True, [])],
)
def test_thumbnails_are_encoded_only_if_a_bundle_is_made_of_the_images(monkeypatch, thumbnails, for_bundle, encoded):
    copies = SimpleNamespace(group_of=np.array([0, 0, 2, 3]))
    seen = SimpleNamespace(table=TABLE, copies=copies, thumbnails_BHW=np.zeros((4, 96, 96), np.uint8))
    images = Dataset(table=TABLE, findings={"num_skipped": 0})
    monkeypatch.setattr(pictures, "look", lambda *_, **__: seen)
    monkeypatch.setattr(dataset, "assemble", lambda *_, **__: images)
    monkeypatch.setattr(findings, "find", lambda *_, **__: {})
    model: Any = None
    config = TrainConfig(data="d", out="o", thumbnails=thumbnails)
    read = Read(images=images, model=model, table=TABLE)
    found = prepare.look(config, read, None, task_cpus=1, for_bundle=for_bundle)
    assert sorted(found.thumbnails) == encoded
    assert [len(group["images"]) for group in found.gallery] == ([2] if thumbnails else [])
