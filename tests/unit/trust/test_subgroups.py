"""Accuracy on subgroups of images, by hand."""

import json

import numpy as np
import pyarrow as pa
import pytest

from tlray.trust import subgroups
from tlray.trust.intervals import share_interval

ALONE = np.arange(100)


def test_what_divides_images():
    table = pa.table(
        {
            "width_px": pa.array([100, 257, None, 2000], pa.int32()),
            "height_px": pa.array([256, 20, None, 10], pa.int32()),
            "trait_format": ["PNG", "JPEG", None, "PNG"],
            "trait_mode": ["L", "RGB", None, "L"],
            "given_scanner": ["a", None, "b", "a"],
            "label": ["x", "y", "x", "y"],
        }
    )
    assert subgroups.columns_of(table) == {
        "picture size": ["1 to 256 px", "257 to 384 px", None, "1025 px and more"],
        "file format": ["PNG", "JPEG", None, "PNG"],
        "mode": ["L", "RGB", None, "L"],
        "scanner": ["a", None, "b", "a"],
    }
    assert subgroups.columns_of(table.select(["label"])) == {}


def test_only_what_is_surely_worse_is_called_out_and_comes_first():
    """60 images of scanner a are right; of 30 of b 6 are; of 10 of c 9 are. Right overall: 75 of 100."""
    scanner = ["a"] * 60 + ["b"] * 30 + ["c"] * 10
    is_right = np.array([True] * 60 + [True] * 6 + [False] * 24 + [True] * 9 + [False])
    found = subgroups.find({"scanner": scanner}, is_right, ALONE)
    assert found["num_looked_at"] == 3
    assert [(each["value"], each["num_images"], each["is_worse"]) for each in found["lowest"]] == [
        ("b", 30, True),
        ("c", 10, False),
        ("a", 60, False),
    ]
    worst = found["lowest"][0]
    expected = share_interval(is_right[60:90], ALONE[60:90])
    assert worst["accuracy"] == pytest.approx(0.2)
    assert worst["accuracy_ci95"] == [expected.low, expected.high]
    assert worst["accuracy_ci95"][1] < 0.75
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_images_of_one_patient_prove_nothing():
    is_right = np.array([True] * 60 + [False] * 40)
    groups = np.array([*range(60), *[60] * 40])
    found = subgroups.find({"scanner": ["a"] * 60 + ["b"] * 40}, is_right, groups)
    assert [(each["value"], each["num_groups"], each["is_worse"]) for each in found["lowest"]] == [
        ("b", 1, False),
        ("a", 60, False),
    ]


def test_small_subgroups_and_columns_without_or_with_many_values_are_left_out():
    is_right = np.arange(100) % 2 == 0
    columns = {
        "constant": ["x"] * 100,
        "unknown": [None] * 100,
        "many": [str(number % 21) for number in range(100)],
        "few": ["rare"] * 9 + ["common"] * 80 + [None] * 11,
    }
    found = subgroups.find(columns, is_right, ALONE)
    assert [(each["column"], each["value"], each["num_images"]) for each in found["lowest"]] == [("few", "common", 80)]


def test_at_most_some_are_kept_and_all_are_counted():
    columns = {str(number): ["a"] * 50 + ["b"] * 50 for number in range(10)}
    found = subgroups.find(columns, np.arange(100) >= 50, ALONE)
    assert found["num_looked_at"] == 20
    assert [each["value"] for each in found["lowest"]] == ["a"] * 10 + ["b"] * 2


def test_those_that_are_worse_are_counted_beyond_those_that_are_kept():
    columns = {str(number): ["a"] * 50 + ["b"] * 50 for number in range(14)}
    found = subgroups.find(columns, np.arange(100) >= 50, ALONE)
    assert (found["num_worse"], len(found["lowest"])) == (14, subgroups.MAX_KEPT)
