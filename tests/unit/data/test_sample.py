"""Which rows of a table are taken as a sample, and how their images are read."""

from pathlib import Path

import numpy as np
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
