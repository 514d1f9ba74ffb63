"""Outputs of a model for image files, of which some cannot be read."""

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tlray.data.stream import Pixels
from tlray.training import logits

NUM_IMAGES = 2 * logits.IMAGE_BATCH + 6
UNREADABLE = (0, logits.IMAGE_BATCH, NUM_IMAGES - 1)


@pytest.fixture
def table(tmp_path) -> pa.Table:
    """Images of two classes; the grey level of each is its number."""
    paths = [tmp_path / f"{number:02d}.png" for number in range(NUM_IMAGES)]
    for number, path in enumerate(paths):
        Image.new("L", (8, 8), number).save(path)
    for number in UNREADABLE:
        paths[number].write_bytes(b"no image")
    return pa.table({"uri": list(map(str, paths)), "class_index": pa.array([0, 1] * (NUM_IMAGES // 2), pa.int32())})


def run(images: np.ndarray) -> list[np.ndarray]:
    """Gives the grey level of each image as its only logit."""
    assert len(images) <= logits.IMAGE_BATCH
    return [images[:, 0, 0, :1].astype(np.float32)]


def test_each_output_is_that_of_its_image(table):
    found = logits.of_images(run, {"valid": table}, Pixels(size_px=8))["valid"]
    assert found.places.tolist() == [place for place in range(NUM_IMAGES) if place not in UNREADABLE]
    assert found.logits_BK[:, 0].tolist() == found.places.tolist()
    assert found.features_BD is None


def test_of_many_images_each_class_has_its_share(table):
    found = logits.of_images(run, {"valid": table}, Pixels(size_px=8), max_images=20)["valid"]
    assert 17 <= len(found.places) <= 20
    assert abs(np.bincount(found.places % 2)[0] - 10) <= 2
    assert found.logits_BK[:, 0].tolist() == found.places.tolist()


def test_images_are_drawn_among_the_rows_that_are_given(table):
    """The limit counts these ten alone, the first of which cannot be read."""
    rows = np.arange(0, NUM_IMAGES, NUM_IMAGES // 10)[:10]
    found = logits.of_images(run, {"valid": table}, Pixels(size_px=8), rows_of={"valid": rows}, max_images=10)["valid"]
    assert found.places.tolist() == [place for place in rows.tolist() if place not in UNREADABLE]
    assert found.logits_BK[:, 0].tolist() == found.places.tolist()
    nothing = logits.of_images(run, {"valid": table}, Pixels(size_px=8), rows_of={"valid": rows[:0]})
    assert nothing == {}


def test_a_split_without_a_readable_image_has_no_outputs(table):
    assert logits.of_images(run, {"valid": table.take([*UNREADABLE])}, Pixels(size_px=8)) == {}
