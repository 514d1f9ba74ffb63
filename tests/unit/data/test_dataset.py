"""What a data set says of its images, from its manifest, and which files are measured."""

import hashlib
from pathlib import Path

import pyarrow as pa
from PIL import Image

from tests.unit.data.test_splits import unnamed, with_pictures, with_series
from tlray.data import dataset, manifest
from tlray.data.dataset import Dataset


def test_the_group_of_an_image_has_its_copies_and_its_neighbouring_slices_but_only_copies_are_known():
    """Images 0 and 1 are copies, and 2 is their neighbour; 4 is a neighbour of 5, whose patient is named."""
    splits = ("train", "valid", "test", "train", "train", "test", "test", "train")
    table = unnamed(*(("a", split) for split in splits))
    table = manifest.with_column(table, "group_id", ["0", "1", "2", "3", "4", "p", "6", "7"])
    table = with_series(with_pictures(table, list("00234567")), ["0", "0", "0", "3", "4", "4", None, "0"])
    errors = [None] * 7 + ["truncated"]  # an image that cannot be read has no group
    images = Dataset(table=table.append_column("error_code", pa.array(errors, pa.string())), findings={})
    assert images.group_of == {"0": "0", "1": "0", "2": "0", "3": "3", "4": "4", "5": "p", "6": "6"}
    assert images.leaked == {"1"}


def test_grey_levels_are_those_of_files_that_have_not_changed(tmp_path: Path):
    uris = [str(tmp_path / f"{number}.png") for number in range(3)]
    for number, uri in enumerate(uris):
        Image.new("L", (8, 8), 10 * (number + 1)).save(uri)
    files: list[tuple[str, str | None]] = [(uri, hashlib.sha256(Path(uri).read_bytes()).hexdigest()) for uri in uris]
    Image.new("L", (8, 8), 200).save(uris[1])
    found = dataset._measure(files, ["p", "q", "r"], 8, None)
    assert found is not None
    assert (found.num_independent, sum(found.grey_mean.counts)) == (2, 2)
    assert 10 <= min(found.grey_mean.edges) <= max(found.grey_mean.edges) <= 30
