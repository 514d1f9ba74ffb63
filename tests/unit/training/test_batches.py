"""What a worker learns from where images have changed, or can no longer be read; other tests have the rest."""

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tlray.data import stream
from tlray.data.schedule import PlainSchedule
from tlray.errors import DataError
from tlray.training.batches import Batches, replace_failed


@pytest.mark.parametrize(
    ("readable", "place", "num_replaced"),
    [
        ([True, True, True], [0, 1, 2], 0),
        ([True, False, True], [0, 0, 2], 1),
        ([False, False, True], [2, 2, 2], 2),
        ([True, False, True, False, False], [0, 0, 2, 2, 0], 3),
    ],
)
def test_readable_images_of_the_batch_take_the_places_of_others(readable, place, num_replaced):
    found, count = replace_failed(np.array(readable))
    assert (found.tolist(), count) == (place, num_replaced)


def test_a_batch_of_which_nothing_can_be_read_ends_the_training():
    with pytest.raises(DataError, match="continue with --resume"):
        replace_failed(np.array([False, False]))


@pytest.fixture
def table(tmp_path, monkeypatch) -> pa.Table:
    """Four grey images as they were when they were first read; object references are the objects themselves."""
    monkeypatch.setattr(stream.ray, "get", lambda reference: reference)
    monkeypatch.setattr(stream, "image_batches", image_batches)
    uris = [str(tmp_path / f"{number}.png") for number in range(4)]
    for number, uri in enumerate(uris):
        Image.new("L", (8, 8), 50 * number).save(uri)
    digests = [hashlib.sha256(Path(uri).read_bytes()).hexdigest() for uri in uris]
    labels = pa.array([0, 1, 0, 1], pa.int32())
    return pa.table({"image_id": ["a", "b", "c", "d"], "uri": uris, "sha256": digests, "class_index": labels})


def image_batches(manifest, schedule, pixels, *, batch_size, share):
    """Yields the batches of `stream.image_batches`, without Ray."""
    assert share is None
    for start in range(0, schedule.num_rows, batch_size):
        yield stream._decode_rows({"row": np.arange(start, start + batch_size)}, [manifest], schedule, pixels, 0)


def batches_of(table: pa.Table, split: str) -> tuple[list[int], int]:
    """Returns the grey levels of the split's images in batches of two, and how many images were replaced."""
    config = SimpleNamespace(image_size_px=8, augmentation=None, seed=0)
    empty = table.slice(0, 0)
    tables = {"train_table": [empty], "valid_table": [empty]} | {f"{split}_table": [table]}
    task: Any = SimpleNamespace(cache=None, config=config, intensity_range=None, share=None, **tables)
    batches = Batches(task)
    found = batches.of(split, PlainSchedule(num_rows=table.num_rows), 2)
    levels = [int(image.max()) for images, *_ in found for image in cast("Any", images).numpy()]
    return levels, batches.num_replaced


@pytest.mark.parametrize("split", ["train", "valid"])
def test_an_image_that_has_changed_since_it_was_first_read_ends_the_training(table, split):
    assert batches_of(table, split) == ([0, 50, 100, 150], 0)
    Path(table["uri"][0].as_py()).unlink()
    assert batches_of(table, split) == ([50, 50, 100, 150], 1)
    Image.new("L", (8, 8), 200).save(table["uri"][3].as_py())
    with pytest.raises(DataError) as caught:
        batches_of(table, split)
    assert str(caught.value) == (
        "Images have changed since the training first read them (1 so far, for example 'd'). Put them back as they "
        "were and continue with --resume, or begin anew with --overwrite."
    )
