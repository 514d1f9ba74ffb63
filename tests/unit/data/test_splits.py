"""Groups of images that are not independent, and those that a model knows from its training."""

from collections.abc import Sequence

import pyarrow as pa
import pytest

from tests.unit.data.test_manifest import make_table
from tlray.data import manifest, splits
from tlray.data.splits import PICTURE, SERIES


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


def with_series(table: pa.Table, series: Sequence[str | None]) -> pa.Table:
    return table.append_column(SERIES, pa.array(series, pa.string()))


def test_neighbours_are_one_group_but_known_only_by_copies():
    table = with_pictures(make_table(*(("a", "train", f"p{number}") for number in range(7))), list("1134567"))
    table = with_series(table, ["1", "1", "1", "4", "5", "6", None])
    assert splits.image_groups(table) == ["p0", "p0", "p2", "p3", "p4", "p5", "p6"]
    assert splits.independent_groups(table) == ["p0", "p0", "p0", "p3", "p4", "p5", "p6"]
    assert splits.independent_groups(table.drop_columns([SERIES])) == splits.image_groups(table)
    apart = manifest.with_column(table, "split", ["test", "train", "test", *(["train"] * 4)])
    assert splits.has_leaked(apart).tolist() == [True, *([False] * 6)]


@pytest.mark.parametrize(("num_series", "is_joined"), [(5, True), (4, False)])
def test_series_that_would_join_most_of_a_class_count_for_nothing(num_series, is_joined):
    """Class a has six patients, whose slices are of so many series; class b has two patients, of a series each."""
    table = make_table(*(("a", None, f"a{number}") for number in range(6)), ("b", None, "b0"), ("b", None, "b1"))
    series = [str(min(number, num_series - 1)) for number in range(6)]
    groups = splits.independent_groups(with_series(table, [*series, "b0", "b1"]))
    assert (len({*groups}) == num_series + 2) == is_joined
    assert len({*groups}) == num_series + 2 if is_joined else 8


def test_neighbours_stay_in_one_split_when_splits_are_cut():
    rows = [(label, None, f"{label}{number}") for label in "ab" for number in range(40)]
    series = [f"{label}{int(patient[1:]) % 20}" for label, _, patient in rows]
    cut = splits.assign_splits(with_series(make_table(*rows), series), seed=0)
    found = set(zip(series, cut["split"].to_pylist(), strict=True))
    assert len(found) == len(set(series)) == 40
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
