"""Which rows of a table are taken as a sample, and how their images are read."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tlray.data import sample
from tlray.data.stream import Pixels


def test_each_class_has_its_share_of_a_sample():
    labels = np.array([0, 1] * 40 + [1] * 80 + [0] * 40)  # 80 of class 0, 120 of class 1
    rows = sample.spread_by_class(labels, 10)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert np.bincount(labels[rows]).tolist() == [4, 6]
    assert (rows[labels[rows] == 0] < 80).any()  # from the whole table
    assert (rows[labels[rows] == 0] >= 160).any()


@pytest.mark.parametrize("num_rows", [0, 1, 10])
def test_a_small_table_is_taken_whole(num_rows):
    labels = np.arange(num_rows) % 2
    assert sample.spread_by_class(labels, 10).tolist() == list(range(num_rows))


def test_each_image_becomes_what_is_made_of_it(tmp_path: Path):
    uris = []
    for number in range(3):
        uris.append(str(tmp_path / f"{number}.png"))
        Image.new("L", (8, 8), 50 * number).save(uris[-1])
    Path(uris[1]).write_bytes(b"")
    found = sample.read_each(uris, Pixels(size_px=4), lambda image: (image.size, image.getpixel((0, 0))))
    assert found == [((4, 4), 0), None, ((4, 4), 100)]


def test_images_that_have_changed_since_they_were_first_read_are_left_out(tmp_path: Path):
    uris = [str(tmp_path / f"{number}.png") for number in range(3)]
    for number, uri in enumerate(uris):
        Image.new("L", (8, 8), 50 * number).save(uri)
    digests = [hashlib.sha256(Path(uri).read_bytes()).hexdigest() for uri in uris[:2]] + [None]
    Image.new("L", (8, 8), 200).save(uris[1])
    Image.new("L", (8, 8), 250).save(uris[2])
    pixels = Pixels(size_px=4)
    assert sample.read_each(uris, pixels, lambda image: image.getpixel((0, 0)), sha256=digests) == [0, None, 250]
    table = pa.table({"uri": uris, "sha256": digests})
    assert {place: image.max() for place, image in sample.read_some(table, pixels, max_images=3).items()} == {
        0: 0,
        2: 250,
    }
    assert [*sample.read_some(table.drop_columns(["sha256"]), pixels, max_images=3)] == [0, 1, 2]
