"""Fingerprints of the splits and files of a training's images."""

import hashlib

import pyarrow as pa

from tests.unit.data.test_manifest import make_table
from tlray.data import fingerprints, manifest


def sha256(*lines: str) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def test_files_are_told_by_split_and_together():
    """Image 2 has no label, image 3 no split, and the file of image 1 could not be read."""
    table = make_table(("a", "train", "p"), ("b", "train", "q"), (None, "train", "r"), ("a", None, "s"))
    read = manifest.with_column(table, "sha256", ["A", None, "C", "D"])
    train = ['["00000", "A"]', '["00001", null]']
    wanted = {"train": sha256(*train), "all": sha256(*train, '["00003", "D"]')}
    assert fingerprints.of_files(read) == wanted
    assert fingerprints.of_files(read.take(pa.array([3, 1, 0, 2]))) == wanted
    assert fingerprints.of_files(manifest.with_column(read, "label", [None] * 4)) == {}


def test_splits_that_were_cut_count_as_train_and_so_do_images_without_one():
    """Image 3 has no label, so its split does not matter. Image 4 could not be read, so it was not moved."""
    rows = [("a", "test", "p"), ("b", None, "q"), ("b", "valid", "r"), (None, "test", "s"), ("a", "test", "t")]
    table = make_table(*rows)
    table = table.append_column("error_code", pa.array([None] * 4 + ["empty"], pa.string()))
    lines = ['["00000", "train"]', '["00001", "train"]', '["00002", "valid"]', '["00004", "test"]']
    assert fingerprints.of_given_splits(table, ["test"]) == sha256(*lines)
    lines[0] = '["00000", "test"]'
    assert fingerprints.of_given_splits(table) == sha256(*lines)
    assert fingerprints.of_given_splits(table.drop_columns(["error_code"])) == sha256(*lines)
