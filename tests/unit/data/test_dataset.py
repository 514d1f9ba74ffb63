"""What a data set says of its images, from its manifest; none is read."""

import pyarrow as pa

from tests.unit.data.test_splits import unnamed, with_pictures, with_series
from tlray.data import manifest
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
