"""Groups of images that are not independent, and those that a model knows from its training."""

from collections.abc import Sequence

import pyarrow as pa

from tests.unit.data.test_manifest import make_table
from tlray.data import manifest, splits
from tlray.data.splits import PICTURE


def with_pictures(table: pa.Table, pictures: Sequence[str | None]) -> pa.Table:
    return table.append_column(PICTURE, pa.array(pictures, pa.string()))


def test_patients_that_share_a_picture_are_one_group():
    table = make_table(*(("a", "train", patient) for patient in ("p1", "p1", "p2", "p3", "p4")))
    assert splits.image_groups(table) == ["p1", "p1", "p2", "p3", "p4"]
    assert splits.image_groups(with_pictures(table, ["1", "2", "2", None, None])) == ["p1", "p1", "p1", "p3", "p4"]
    # Bytes say less than pictures, and are asked only where pictures are not known.
    table = manifest.with_column(table, "sha256", ["s", None, None, "s", "t"])
    assert splits.image_groups(table) == ["p1", "p1", "p2", "p1", "p4"]
    assert splits.image_groups(with_pictures(table, ["1", "2", "3", "4", "4"])) == ["p1", "p1", "p2", "p3", "p3"]


def test_copies_stay_in_one_split_when_splits_are_cut():
    """Ten pictures of each class, each of them in three files whose bytes differ."""
    rows = [(label, None, f"{label}{number}") for label in "ab" for number in range(30)]
    pictures = [f"{label}{number % 10}" for label, _, patient in rows for number in [int(patient[1:])]]
    cut = splits.assign_splits(with_pictures(make_table(*rows), pictures), seed=0)
    found = set(zip(pictures, cut["split"].to_pylist(), strict=True))
    assert len(found) == len(set(pictures)) == 20
    assert {split for _, split in found} == set(manifest.SPLITS)


def test_what_a_model_knows_before_it_is_measured():
    table = make_table(
        ("a", "train", "p1"),
        ("a", "valid", "p1"),  # a patient of train
        ("a", "valid", "p2"),
        ("a", "test", "p2"),  # a patient of valid, whose images choose the model
        ("a", "test", "p3"),  # shows a picture of train
        ("a", "test", "p4"),
        (None, None, "p5"),
        ("a", "test", "p5"),  # an image that nobody learns from is no leak
    )
    found = splits.has_leaked(with_pictures(table, ["1", "2", "3", "4", "1", "5", "6", "7"]))
    assert found.tolist() == [False, True, False, True, True, False, False, False]


def test_images_in_a_series_with_images_that_were_learned_from():
    found = splits.in_learned_group([0, 0, 2, 2, 4, 5, 5], ["train", "test", "valid", "test", "test", None, "valid"])
    assert found.tolist() == [False, True, False, True, False, False, False]
