"""What is said about traits of the files that tell classes or splits."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tlray.data import manifest, splits, traits
from tlray.trust import copies, finding_warnings, findings, shortcuts


def trait_test(
    family: str, accuracy: float, balanced: float, *, told: str | None = None, trait: str | None = "x"
) -> dict[str, Any]:
    """A test as an audit of an earlier version has it, without an interval."""
    chance = 0.25 if told is None else 0.5
    return {
        "family": family, "told": told, "accuracy": accuracy, "majority": 0.32, "balanced_accuracy": balanced,
        "chance": chance, "trait": trait,
    }  # fmt: skip


def warn(*found: dict[str, Any], together: dict[str, Any] | None = None) -> list[str]:
    return finding_warnings.shortcut_warnings({"shortcuts": {"found": list(found), "together": together}})


def test_nothing_found_is_no_warning():
    assert finding_warnings.shortcut_warnings({}) == []
    assert warn(together=trait_test(shortcuts.ALL, 0.5, 0.5, trait=None)) == []
    assert finding_warnings.split_warnings({"split_shortcuts": {"found": [], "together": None}}) == []


def test_the_strongest_figure_comes_first():
    corners = trait_test("corners", 0.84, 0.74, told="b")
    (text,) = warn(corners, trait_test("size", 0.49, 0.48), together=trait_test(shortcuts.ALL, 0.8, 0.81))
    assert text.startswith(
        "Classes can be told without looking at the anatomy: traits of the files (size, format, grey levels, borders, "
        "corners, colour) alone reach a balanced accuracy of 0.81 (by guessing 0.25). A model can learn this"
    )
    # All traits together that are no shortcut themselves are not quoted.
    (text,) = warn(corners, together=trait_test(shortcuts.ALL, 0.8, 0.81, trait=None))
    assert text.startswith(
        "'b' can be told from the other classes without looking at the anatomy: the corners alone reach a balanced "
        "accuracy of 0.74 (by guessing 0.50)."
    )
    (text,) = warn(corners | {"balanced_accuracy_ci95": [0.655, 0.8125]})
    assert "a balanced accuracy of 0.74 (95 % interval 0.66 to 0.81; by guessing 0.50)." in text
    (text,) = warn(trait_test("size", 0.49, 0.48))
    assert "the picture size alone reaches a balanced accuracy of 0.48 (by guessing 0.25)" in text
    assert text.endswith("the same way; this tells whether it has helped: `tlray audit --data DATA --out OUT`")


def test_a_leak_is_told_with_its_interval():
    control = {"accuracy": 0.75, "accuracy_ci95": [0.5, 0.875], "chance": 0.25, "split": "test"}
    (text,) = finding_warnings.leak_warnings({"permuted_control": control | {"is_above_chance": True}})
    assert "for test images: 75.0 % right (95 % interval 50.0 % to 87.5 %; by chance 25.0 %)." in text
    assert finding_warnings.leak_warnings({"permuted_control": control | {"is_above_chance": False}}) == []


def test_series_that_are_divided_are_told_with_their_class():
    (text,) = finding_warnings.series_warnings({"long_series": {"num_images": 30, "classes": ["b"]}})
    assert text.startswith("30 images look like neighbouring slices of one series")
    assert "('b')" in text
    assert finding_warnings.series_warnings({"long_series": {"num_images": 0, "classes": []}}) == []


def test_every_family_has_a_name():
    for family in (*traits.FAMILIES, shortcuts.ALL):
        if family not in traits.ANATOMICAL:
            assert warn(trait_test(family, 0.9, 0.9))


def test_splits_that_differ():
    (text,) = finding_warnings.split_warnings(
        {"split_shortcuts": {"found": [trait_test("file", 0.9, 0.9)], "together": None}}
    )
    assert text.startswith("The splits differ in how their files were made, so training and test images may be from")
    assert "the file format and its bytes alone reach a balanced accuracy of 0.90" in text


def test_the_lines_for_people():
    nothing = {"num_groups": 0, "num_images": 0}
    found: dict[str, Any] = {"num_images": 20, "num_readable": 19, "groups": {"across_splits": {"num_groups": 2}}}
    # An audit of a version that did not look at the pictures.
    assert findings.rows(found) == [("images", "20, 1 cannot be read"), ("patients in several splits", "2")]
    copies = {"num_groups": 2, "num_images": 5, "across_splits": nothing, "conflicting_labels": nothing}
    found |= {
        "copies": {"identical": nothing, "copies": copies, "series": {"num_groups": 1, "num_images": 1}},
        "shortcuts": {"found": [], "num_folds": 0},
        "traits_control": None,
    }
    assert findings.rows(found) == [
        ("images", "20, 1 cannot be read"),
        ("the same pixels", "none"),
        ("copies of a picture", "5 images in 2 groups"),
        ("copies in several splits", "none"),
        ("copies with several labels", "none"),
        ("copies and neighbouring slices", "1 image in 1 group"),
        ("patients in several splits", "2"),
        ("what tells the classes", "not tested: it takes two classes, each with images of two patients"),
    ]
    for groups, text in (({"num_groups": 17, "num_alike": 2}, "not known: no patient has several images"),
                         ({"num_groups": 16, "num_alike": 2}, "2"),  # audits of earlier versions
                         ({"num_groups": 18, "num_unnamed": 17}, "2 known; 17 of 19 images have no named patient"),
                         ({"num_groups": 19, "num_unnamed": 0}, "2")):  # fmt: skip
        lines = findings.rows(found | {"groups": found["groups"] | groups})
        assert ("patients in several splits", text) in lines
    for num_unnamed, text in ((19, "not known: no patients are named"),
                              (17, "not known: 17 of 19 images have no named patient")):  # fmt: skip
        groups = {"num_groups": 18, "num_unnamed": num_unnamed, "across_splits": {"num_groups": 0}}
        assert ("patients in several splits", text) in findings.rows(found | {"groups": groups})
    found["shortcuts"] = {"found": [trait_test("corners", 0.8, 0.7), trait_test("size", 0.5, 0.6)], "num_folds": 5}
    found["traits_control"] = {
        "accuracy": 0.75, "accuracy_ci95": [0.5, 0.875], "chance": 0.25, "split": "test", "num_images": 40,
    }  # fmt: skip
    assert findings.rows(found)[-2:] == [
        ("what tells the classes", "corners, size"),
        ("told by the files alone", "0.750 of 40 test images (95 % interval 0.500 to 0.875; by chance 0.250)"),
    ]
    assert findings.rows(found | {"shortcuts": {"found": [], "num_folds": 5}})[-2][1] == "nothing that is sure"


@pytest.mark.parametrize(
    ("told", "row"),
    [
        ({"found": [trait_test("borders", 0.8, 0.7), trait_test("file", 0.5, 0.6)], "num_folds": 5}, "borders, file"),
        ({"found": [], "num_folds": 5}, "nothing that is sure"),
        ({"found": [], "num_folds": 0}, "not tested: it takes two splits, each with images of two patients"),
    ],
)
def test_what_tells_the_splits_is_a_line_only_if_the_data_gives_several(told, row):
    found: dict[str, Any] = {"num_images": 20, "num_readable": 19, "groups": {"across_splits": {"num_groups": 2}}}
    found["shortcuts"] = {"found": [trait_test("corners", 0.8, 0.7)], "num_folds": 5}
    lines = findings.rows(found | {"split_shortcuts": told | {"given": ["train", "valid"]}})
    assert lines[-2:] == [("what tells the classes", "corners"), ("what tells the splits", row)]
    # Cut by tlray; only train given; an audit of an earlier version.
    for unknown in ({"given": []}, {"given": ["train"]}, {}):
        assert findings.rows(found | {"split_shortcuts": told | unknown}) == lines[:-1]


def one_by_one(functions: Sequence[Callable[[], Any]]) -> list[Any]:
    return [function() for function in functions]


SLICES_EACH = 10


def find_in_series(seed: int, *, per_class: int, long: bool = False) -> dict[str, Any]:
    """Returns the findings of slices with unnamed patients, whose traits and features tell their series only.

    Args:
        seed: Seed of all that is drawn, a given test split of a third of the slices among it.
        per_class: Number of series of each of two classes, of `SLICES_EACH` slices each.
        long: Class b is one series.
    """
    rng = np.random.default_rng(seed)
    num_series = 2 * per_class
    series = np.repeat(np.arange(num_series), SLICES_EACH)
    is_b = series >= per_class
    ids = [f"{number:03}" for number in range(len(series))]
    named = np.where(is_b & long, per_class, series)
    first = [ids[int(np.argmax(named == each))] for each in named]
    listed = pa.table(
        {
            "image_id": ids,
            "group_id": ids,
            splits.PICTURE: ids,
            splits.SERIES: first,
            "label": np.where(is_b, "b", "a"),
            "split": np.where(rng.random(len(ids)) < 1 / 3, "test", "train"),
            "error_code": pa.nulls(len(ids), pa.string()),
        }
    )
    of_series, noise = rng.normal(size=(num_series, 40)), rng.normal(size=(len(ids), 40))
    features = of_series[series] + 0.05 * noise
    names = [name for name in traits.SCHEMA.names if name not in traits.CATEGORIES]
    columns = {name: features[:, place % 40] for place, name in enumerate(names)}
    columns |= {name: ["PNG" if name == "format" else "L"] * len(ids) for name in traits.CATEGORIES}
    seen: Any = SimpleNamespace(table=listed, traits=pa.table(columns), copies=None)
    return findings.find(listed, seen, features.astype(np.float16), seed=seed, call=one_by_one)


@pytest.fixture
def _without_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "describe", lambda *_: {})
    monkeypatch.setattr(shortcuts, "NUM_TREES", 20)


@pytest.mark.usefixtures("_without_copies")
@pytest.mark.parametrize("seed", range(2))
def test_few_series_are_no_shortcut_and_hide_no_leak(seed: int):
    """Four series of each class, parted by the given test split: only who knows a series knows its label."""
    found = find_in_series(seed, per_class=4)
    assert found["shortcuts"]["found"] == []
    assert found["shortcuts"]["num_groups"] == 8
    assert found["permuted_control"]["is_above_chance"]
    assert found["permuted_control"]["accuracy"] > 0.9
    assert found["long_series"] == {"num_images": 0, "classes": []}


@pytest.mark.usefixtures("_without_copies")
def test_a_class_of_one_series_is_named_and_tested_all_the_same():
    found = find_in_series(0, per_class=4, long=True)
    assert found["long_series"] == {"num_images": 40, "classes": ["b"]}
    assert found["shortcuts"]["num_folds"] > 0
    (text,) = finding_warnings.series_warnings(found)
    assert text.startswith("40 images look like")


@pytest.fixture
def _untested(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is tested or described: what is counted is left."""
    nothing = shortcuts.Shortcuts(tests=(), num_images=0, num_groups=0, num_folds=0, left_out=())
    monkeypatch.setattr(shortcuts, "find", lambda *_, **__: nothing)
    monkeypatch.setattr(copies, "describe", lambda *_: {})
    monkeypatch.setattr(findings, "_controls", lambda *_, **__: {})


@pytest.mark.usefixtures("_untested")
@pytest.mark.parametrize(
    ("groups", "num_near", "example"),
    [
        (["1", "2", "3", "4", "5"], 2, ["2", "3"]),
        (["p1", "p2", "p3", "p4", "p5"], 0, None),  # patients that are named are other patients
        (["1", "p2", "p3", "4", "5"], 1, ["1", "4"]),
        (["1", "p2", "p2", "p4", "5"], 0, None),  # 3 has leaked
    ],
)
def test_neighbours_are_images_whose_patients_are_not_named(
    groups: list[str], num_near: int, example: list[str] | None
):
    """2 and 3 of train and test are in a series, 1 and 4 in another; 5 is in none."""
    ids = ["1", "2", "3", "4", "5"]
    listed = pa.table(
        {
            "image_id": ids, "group_id": groups, splits.PICTURE: ids, splits.SERIES: ["1", "2", "2", "1", "5"],
            "label": ["a"] * 5, "split": ["train", "train", "test", "test", "test"],
            "error_code": pa.nulls(5, pa.string()),
        }
    )  # fmt: skip
    seen: Any = SimpleNamespace(table=listed, traits=pa.table({"x": [1.0] * 5}), copies=None)
    found = findings.find(listed, seen, seed=0, call=one_by_one)
    assert found["neighbours"] == {"valid": 0, "test": num_near}
    assert found["neighbour_example"] == example


@pytest.mark.usefixtures("_untested")
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["test", "train", "train", "train"], ["train", "test"]),
        ([None, "train", None, "valid"], ["train"]),  # the image of valid has no label
        ([None] * 4, []),
    ],
)
def test_the_findings_name_the_splits_that_the_data_gives_not_those_that_were_cut(given, expected):
    names = ["1", "2", "3", "4"]
    columns = {"image_id": names, "group_id": names, splits.PICTURE: names, "label": ["a", "b", "a", None]}
    listed = pa.table({**columns, "split": pa.array(given, pa.string()), "error_code": pa.nulls(4, pa.string())})
    seen: Any = SimpleNamespace(table=listed, traits=pa.table({"x": [1.0] * 4}), copies=None)
    cut = manifest.with_column(listed, "split", ["train", "valid", "test", None])
    found = findings.find(cut, seen, seed=0, call=one_by_one)
    assert found["split_shortcuts"]["given"] == expected


def test_a_range_of_images_that_are_not_trained_on_is_told():
    (text,) = finding_warnings.intensity_warnings(
        {"untrained_16_bit": {"valid": 30, "test": 7}, "intensity_range": [-1000.0, 400.0]}
    )
    assert text == (
        "No training image has 16 bits, but others have (valid: 30, test: 7), so that the pixel values that become 0 "
        "and 255 were found in these: -1000 and 400. Give --intensity-range LO,HI, or put some of them into train."
    )
    for found in ({}, {"untrained_16_bit": {}, "intensity_range": [0, 9]}, {"intensity_range": None}):
        assert finding_warnings.intensity_warnings(found) == []
