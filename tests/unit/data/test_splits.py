"""Groups of images that are not independent, and those that a model knows from its training."""

from collections import Counter
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


def unnamed(*rows: tuple[str | None, str | None]) -> pa.Table:
    """Returns a table of images (label, split) without patients, whose ids are 0, 1, ..."""
    table = make_table(*((label, split, str(number)) for number, (label, split) in enumerate(rows)))
    return manifest.with_column(table, "image_id", [str(number) for number in range(len(rows))])


def test_neighbours_are_one_group_but_known_only_by_copies():
    table = with_pictures(unnamed(*[("a", "train")] * 7), list("1134567"))
    table = with_series(table, ["1", "1", "1", "4", "5", "6", None])
    assert splits.image_groups(table) == ["0", "0", "2", "3", "4", "5", "6"]
    assert splits.independent_groups(table) == ["0", "0", "0", "3", "4", "5", "6"]
    assert splits.independent_groups(table.drop_columns([SERIES])) == splits.image_groups(table)
    apart = manifest.with_column(table, "split", ["test", "train", "test", *(["train"] * 4)])
    assert splits.has_leaked(apart).tolist() == [True, *([False] * 6)]


def test_neighbours_of_named_patients_are_not_joined():
    table = make_table(*(("a", "train", patient) for patient in ("p1", "p1", "p2", "p3")))
    assert splits.independent_groups(with_series(table, ["1"] * 4)) == ["p1", "p1", "p2", "p3"]


@pytest.mark.parametrize(
    ("sizes", "is_joined"),
    [
        ([2] * 5, True),
        ([5, 5], True),  # exactly half of the class
        ([5, 1, 1, 1, 2], True),
        ([6, 1, 1, 1, 1], False),  # more than half of the class
    ],
)
def test_a_series_that_leaves_nothing_to_divide_counts_for_nothing(sizes: list[int], is_joined: bool):
    """Class a has series of these sizes, class b six of two slices."""
    series = [
        f"{label}{place}"
        for label, of in (("a", sizes), ("b", [2] * 6))
        for place, n in enumerate(of)
        for _ in range(n)
    ]
    table = with_series(unnamed(*((each[0], None) for each in series)), series)
    assert len({*splits.independent_groups(table)}) == len(sizes) + 6
    expected = len(sizes) if is_joined else sum(sizes)
    groups = splits.dividing_groups(table)
    assert len({*groups[: sum(sizes)]}) == expected
    assert len({*groups[sum(sizes) :]}) == 6


def test_neighbours_stay_in_one_split_when_splits_are_cut():
    rows = [(label, None) for label in "ab" for _ in range(40)]
    series = [f"{label}{number % 20}" for number, (label, _) in enumerate(rows)]
    cut = splits.assign_splits(with_series(unnamed(*rows), series), seed=0)
    found = set(zip(series, cut["split"].to_pylist(), strict=True))
    assert len(found) == len(set(series)) == 40
    assert {split for _, split in found} == set(manifest.SPLITS)


def test_a_test_split_that_parts_each_series_leaves_images_for_validation():
    """Six series of ten slices of each class, two slices of each series in the given test."""
    series = [f"{label}{number}" for label in "ab" for number in range(6) for _ in range(10)]
    given = ["test" if number % 10 < 2 else "train" for number in range(len(series))]
    table = unnamed(*((each[0], split) for each, split in zip(series, given, strict=True)))
    cut = splits.assign_splits(with_series(table, series), seed=0)
    found = list(zip(cut["label"].to_pylist(), cut["split"].to_pylist(), strict=True))
    assert {("a", "valid"), ("b", "valid")} <= {*found}
    kept = [split for split, before in zip(cut["split"].to_pylist(), given, strict=True) if before == "test"]
    assert {*kept} == {"test"}


@pytest.mark.parametrize("seed", range(5))
def test_a_series_that_a_given_split_parts_is_moved_only_if_others_do_not_suffice(seed: int):
    """Twenty series of five slices of each class; the first ten have a slice in the given test."""
    series = [f"{label}{number:02}" for label in "ab" for number in range(20) for _ in range(5)]
    given = ["test" if int(each[1:]) < 10 and place % 5 == 0 else "train" for place, each in enumerate(series)]
    table = unnamed(*((each[0], split) for each, split in zip(series, given, strict=True)))
    cut = splits.assign_splits(with_series(table, series), seed=seed)
    moved = {each for each, split in zip(series, cut["split"].to_pylist(), strict=True) if split == "valid"}
    assert moved
    assert all(int(each[1:]) >= 10 for each in moved)


def test_a_series_of_more_than_half_of_a_class_is_named_with_its_class():
    table = with_series(unnamed(*((label, None) for label in "aaaabbb")), ["1", "1", "1", "2", "3", "4", None])
    assert splits.long_series(table) == {"1": {"a"}}
    all_alike = with_series(unnamed(*((label, None) for label in "aabb")), ["1"] * 4)
    assert splits.long_series(all_alike) == {"1": {"a", "b"}}
    named = with_series(make_table(*(("a", "train", "p1") for _ in range(4))), ["1", "1", "1", "2"])
    assert splits.long_series(named) == {}  # their patients are named
    assert splits.long_series(unnamed(("a", None))) == {}  # series were not looked for


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("num_singles", [60, 80])
def test_a_long_series_does_not_take_the_training_images(seed: int, num_singles: int):
    series = [f"{label}{max(0, number - 39)}" for label in "ab" for number in range(40 + num_singles)]
    cut = splits.assign_splits(with_series(unnamed(*((each[0], None) for each in series)), series), seed=seed)
    for label in "ab":
        found = [
            (each, split) for each, split in zip(series, cut["split"].to_pylist(), strict=True) if each[0] == label
        ]
        split_of = dict(found)
        assert len({*found}) == len(split_of) == num_singles + 1  # the series is whole
        shares = {split: [each for _, each in found].count(split) / len(found) for split in manifest.SPLITS}
        assert shares == pytest.approx({"train": 0.7, "valid": 0.15, "test": 0.15}, abs=0.01)


@pytest.mark.parametrize("seed", range(20))
def test_a_large_patient_is_not_left_alone_in_train(seed: int):
    """Class a has a patient with 60 images, and of two and of one image six each; class b ten patients."""
    sizes = {"a": [60, *[2] * 6, *[1] * 6], "b": [3] * 10}
    rows = [
        (label, None, f"{label}{place}") for label, of in sizes.items() for place, n in enumerate(of) for _ in range(n)
    ]
    cut = splits.assign_splits(make_table(*rows), seed=seed)
    found = set(zip(cut["group_id"].to_pylist(), cut["split"].to_pylist(), strict=True))
    patients = Counter(split for patient, split in found if patient[0] == "a")
    assert patients == {"train": 5, "test": 4, "valid": 4}
    assert ("a0", "train") in found


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


def test_series_count_where_the_patient_is_not_named():
    table = with_series(unnamed(*[("a", "train")] * 4), ["0", "0", "0", None])
    table = manifest.with_column(table, "group_id", ["0", f"{splits.ALIKE}1", "p", "3"])
    assert splits.has_named_patient(table).tolist() == [False, False, True, False]
    assert splits.unnamed_series(table) == ["0", "0", None, None]


def test_images_in_no_group_are_in_none_that_was_learned_from():
    assert splits.in_learned_group([None, None, 1, 1], ["train", "test", "train", "test"]).tolist() == [False] * 3 + [
        True
    ]
