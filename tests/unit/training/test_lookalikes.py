"""Which training images a bundle keeps: one of several copies, and only those that can be read."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tlray.bundle.novelty import Novelty, directions
from tlray.data import splits, thumbnail
from tlray.data.stream import Pixels
from tlray.training import lookalikes
from tlray.training.logits import Outputs

PIXELS = Pixels(size_px=16)
NOVELTY = Novelty(mean=np.zeros(4, np.float32), basis=np.eye(2, 4, dtype=np.float32), threshold=0.5)
FEATURES_BD = np.random.default_rng(0).random((4, 4)).astype(np.float32)


@pytest.fixture
def table(tmp_path: Path) -> pa.Table:
    """Six images of two classes; the fourth is a copy of the second."""
    uris = [str(tmp_path / f"patient {number}.png") for number in range(6)]
    for number, uri in enumerate(uris):
        Image.new("L", (16, 16), 40 * number).save(uri)
    columns = {"image_id": uris, "uri": uris, "class_index": pa.array([0, 1, 0, 1, 0, 1], pa.int32())}
    return pa.table({**columns, splits.PICTURE: ["0", "1", "2", "1", None, "5"]})


def outputs(places: list[int], features_BD: np.ndarray | None = FEATURES_BD) -> Outputs:
    return Outputs(places=np.array(places), logits_BK=np.zeros((len(places), 2), np.float32), features_BD=features_BD)


def test_copies_and_unreadable_images_are_left_out(table):
    Path(table["uri"][5].as_py()).write_bytes(b"")
    found = lookalikes.collect(outputs([1, 3, 4, 5]), table, NOVELTY, PIXELS)
    assert found is not None
    assert found.labels.tolist() == [1, 0]
    assert found.num_pictures == 5  # of all training images: the bundle has not all
    np.testing.assert_allclose(found.directions, directions(NOVELTY.place(FEATURES_BD)[1])[[0, 2]], atol=1e-6)
    images = [Image.open(io.BytesIO(jpeg)) for jpeg in found.jpegs]
    assert [image.size for image in images] == [(thumbnail.SIZE_PX, thumbnail.SIZE_PX)] * 2
    np.testing.assert_allclose([np.asarray(image).mean() for image in images], [40, 160], atol=2)
    for array in found.arrays().values():
        assert b"patient" not in array.tobytes()


def test_where_copies_were_not_looked_for_all_are_kept(table):
    found = lookalikes.collect(outputs([1, 3, 4, 5]), table.drop_columns([splits.PICTURE]), NOVELTY, PIXELS)
    assert found is not None
    assert found.labels.tolist() == [1, 1, 0, 1]


def test_there_may_be_nothing_to_keep(table):
    assert lookalikes.collect(outputs([1, 3], None), table, NOVELTY, PIXELS) is None
    for uri in table["uri"].to_pylist():
        Path(uri).unlink()
    assert lookalikes.collect(outputs([1, 3, 4, 5]), table, NOVELTY, PIXELS) is None


def test_thumbnails_that_are_in_memory_are_not_read_again(table):
    """16-bit images are read: the window of each thumbnail is its own."""
    table = table.append_column("is_16_bit", pa.array([False, True, False, False, False, False]))
    uris = table["uri"].to_pylist()
    order = uris[::-1]
    thumbnails_BHW = np.stack([np.full((96, 96), 10 * uris.index(uri), np.uint8) for uri in order])
    known = lookalikes.encode(table, order, thumbnails_BHW)
    assert list(known) == [uris[0], *uris[2:]]
    for uri in known:
        Path(uri).unlink()
    found = lookalikes.collect(outputs([1, 2, 4, 5]), table, NOVELTY, PIXELS, known)
    assert found is not None
    images = [Image.open(io.BytesIO(jpeg)) for jpeg in found.jpegs]
    assert [image.mode for image in images] == ["L"] * 4
    np.testing.assert_allclose([np.asarray(image).mean() for image in images], [40, 20, 40, 50], atol=2)


def test_no_more_are_encoded_than_a_bundle_keeps(table, monkeypatch):
    monkeypatch.setattr(lookalikes, "MAX_TRAIN_OUTPUTS", 3)
    table = table.append_column("is_16_bit", pa.array([False] * 6))
    known = lookalikes.encode(table, table["uri"].to_pylist(), np.zeros((6, 96, 96), np.uint8))
    kept = table.filter(pa.array([uri in known for uri in table["uri"].to_pylist()]))
    assert len(known) == 3
    assert set(kept["class_index"].to_pylist()) == {0, 1}


def test_images_that_have_changed_since_they_were_first_read_are_left_out(table):
    digests = [hashlib.sha256(Path(uri).read_bytes()).hexdigest() for uri in table["uri"].to_pylist()]
    table = table.append_column("sha256", pa.array(digests))
    Image.new("L", (16, 16), 255).save(table["uri"][4].as_py())
    found = lookalikes.collect(outputs([1, 3, 4, 5]), table, NOVELTY, PIXELS)
    assert found is not None
    assert found.labels.tolist() == [1, 1]
    levels = [np.asarray(Image.open(io.BytesIO(jpeg))).mean() for jpeg in found.jpegs]
    np.testing.assert_allclose(levels, [40, 200], atol=2)
