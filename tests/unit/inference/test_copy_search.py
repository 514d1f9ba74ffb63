"""Copies among images to be suggested, and of training images, found by the pictures of real files."""

import io
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tlray.bundle.lookalikes import KeptImages
from tlray.bundle.novelty import directions
from tlray.data import looks, phantom_drawing, phantoms, thumbnail
from tlray.inference import copy_search
from tlray.inference.copy_search import CopySearch
from tlray.trust.suggestions import Seen

NUM_PATIENTS = 6


@pytest.fixture(scope="module")
def slices() -> np.ndarray:
    """A slice of each of 6 patients."""
    rng = np.random.default_rng(0)
    anatomies = [phantoms.sample_anatomy(rng) for _ in range(NUM_PATIENTS)]
    return np.stack([phantom_drawing.render_slice(each, None, rng=rng, size_px=192) for each in anatomies])


def png(pixels: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def scribbled(pixels: np.ndarray) -> np.ndarray:
    changed = pixels.copy()
    changed[40:48, 30:150] = 255
    return changed


def write(root: Path, pictures: Sequence[np.ndarray]) -> pa.ChunkedArray:
    for number, pixels in enumerate(pictures):
        (root / f"{number}.png").write_bytes(png(pixels))
    return pa.chunked_array([[str(root / f"{number}.png") for number in range(len(pictures))]])


def places(num_images: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(num_images, 4)).astype(np.float16)


def kept_of(pictures: Sequence[np.ndarray], *damaged: bytes) -> KeptImages:
    jpegs = [*damaged, *(thumbnail.to_jpeg(looks.look(png(pixels)).thumbnail) for pixels in pictures)]
    toward = directions(np.random.default_rng(2).normal(size=(len(jpegs), 4)))
    return KeptImages(directions=toward, labels=np.zeros(len(jpegs), np.int64), jpegs=jpegs)


def groups_of(seen: Seen) -> set[frozenset[int]]:
    members: dict[int, set[int]] = {}
    for index, picture in seen.picture_of.items():
        members.setdefault(picture, set()).add(index)
    return {frozenset(each) for each in members.values()}


@pytest.mark.parametrize("with_places", [True, False])
def test_mirrored_and_scribbled_copies_show_one_picture(slices, tmp_path, with_places):
    shown = [slices[0], slices[1], slices[0][:, ::-1], slices[2], scribbled(slices[1]), slices[2]]
    search = CopySearch(write(tmp_path, shown), places(6) if with_places else None, None)
    found = search.find(range(6))
    assert groups_of(found) == {frozenset({0, 2}), frozenset({1, 4}), frozenset({3, 5})}
    assert found.known is None  # there is nothing to compare with
    assert groups_of(search.find([1, 2, 3])) == {frozenset({1}), frozenset({2}), frozenset({3})}


def test_a_copy_that_was_found_stays_one(slices, tmp_path, monkeypatch):
    """Only the nearest images are compared: among more of them, a copy may no longer be one of these."""
    shown = [slices[0], slices[0][:, ::-1], slices[1], scribbled(slices[2])]
    search = CopySearch(write(tmp_path, shown), None, kept_of([slices[2]]))
    assert groups_of(search.find([0, 1, 3])) == {frozenset({0, 1}), frozenset({3})}
    monkeypatch.setattr(copy_search, "find_copies", lambda *_, **__: SimpleNamespace(group_of=np.arange(5)))
    found = search.find(range(4))
    assert groups_of(found) == {frozenset({0, 1}), frozenset({2}), frozenset({3})}
    assert found.known == {3}


@pytest.mark.parametrize("with_places", [True, False])
def test_copies_of_training_images_are_known(slices, tmp_path, with_places):
    shown = [slices[0], slices[1], scribbled(slices[2]), slices[3]]
    kept = kept_of([slices[0][:, ::-1], slices[2], slices[4]])
    found = CopySearch(write(tmp_path, shown), places(4) if with_places else None, kept).find(range(4))
    assert found.known == {0, 2}
    assert groups_of(found) == {frozenset({number}) for number in range(4)}


def test_a_damaged_picture_in_the_bundle_is_passed_over(slices, tmp_path):
    uris = write(tmp_path, slices[:2])
    assert CopySearch(uris, places(2), kept_of(slices[1:2], b"")).find([0, 1]).known == {1}
    assert CopySearch(uris, places(2), kept_of([], b"")).find([0, 1]).known is None


def test_an_image_that_cannot_be_read_any_more_is_a_copy_of_none(slices, tmp_path):
    uris = write(tmp_path, [slices[0], slices[1], slices[0]])
    (tmp_path / "0.png").unlink()
    search = CopySearch(uris, None, kept_of(slices[:1]))
    found = search.find([0, 1, 2])
    assert (found.picture_of.keys(), found.known) == ({1, 2}, {2})
    assert search.find([0]) == Seen(known=frozenset())
    assert CopySearch(uris, None, None).find([0]) == Seen()


def test_an_image_is_read_once(slices, tmp_path, monkeypatch):
    read: list[str] = []
    read_file = copy_search.stream.read_file
    monkeypatch.setattr(copy_search.stream, "read_file", lambda uri: read.append(uri) or read_file(uri))
    uris = write(tmp_path, slices[:4])
    search = CopySearch(uris, None, None)
    search.find([3, 0])
    search.find([0, 1, 3])
    assert sorted(read) == [uris.to_pylist()[number] for number in (0, 1, 3)]
