"""The corrected manifest of an audit, and what it says of labels in the terminal."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest

from tlray.data import splits
from tlray.data.listing import list_images
from tlray.evaluation import data_audit
from tlray.evaluation.data_audit import AuditResult, fix, fix_warnings
from tlray.trust.copies import Copies, _components, describe


def table(*rows: tuple[str, str | None, str | None, str, str]) -> pa.Table:
    """A manifest of (id, label, split, patient, picture)."""
    names = ("image_id", "label", "split", "group_id", splits.PICTURE)
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    columns |= {"uri": [f"/data/{each}" for each in columns["image_id"]], "sha256": columns[splits.PICTURE]}
    return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})


def copies(
    num_images: int,
    *,
    identical: Sequence[tuple[int, int]] = (),
    copied: Sequence[tuple[int, int]] = (),
    neighbours: Sequence[tuple[int, int]] = (),
) -> Copies:
    identical_of = np.arange(num_images)
    for first, second in identical:
        identical_of[second] = first
    kinds = np.repeat(["identical", "copy", "neighbour"], [len(identical), len(copied), len(neighbours)])
    pairs = np.array([*identical, *copied, *neighbours], np.int64).reshape(-1, 2)
    return Copies(
        group_of=_components(pairs[kinds != "neighbour"], num_images), identical_of=identical_of,
        series_of=_components(pairs, num_images), pairs=pairs, kinds=kinds,
        scores=np.ones(len(kinds), np.float32), is_mirrored=np.zeros(len(kinds), bool),
    )  # fmt: skip


def test_copies_become_a_group_in_one_split_and_conflicts_go():
    images = table(
        ("1", "a", "train", "p1", "1"),
        ("2", "a", "test", "p2", "1"),  # a copy of 1
        ("3", "a", "valid", "p2", "3"),  # the same patient as 2
        ("4", "b", "train", "p4", "4"),
        ("5", "a", "test", "p5", "4"),  # a copy of 4 with another label
        ("6", "b", "test", "p6", "6"),
        ("7", None, None, "p7", "7"),
    )
    found = fix(images, copies(7, copied=[(0, 1), (3, 4)])).to_pylist()
    assert [(row["image_id"], row["split"], row["group_id"]) for row in found] == [
        ("1", "train", "p1"),
        ("2", "train", "p1"),
        ("3", "train", "p1"),
        ("6", "test", "p6"),
        ("7", None, "p7"),
    ]
    assert found[1] == {"image_id": "2", "uri": "/data/2", "label": "a", "split": "train", "group_id": "p1"}


def test_what_else_a_table_says_is_kept():
    images = table(("1", "a", "train", "p1", "1"), ("2", "b", "train", "p2", "2"))
    images = images.append_column("given_scanner", pa.array(["old", "new"])).append_column("width_px", pa.array([1, 2]))
    found = fix(images, copies(2))
    assert found.column_names == ["image_id", "uri", "label", "split", "group_id", "given_scanner"]
    assert found["given_scanner"].to_pylist() == ["old", "new"]


@pytest.mark.parametrize("labels", [("a", "a", "b"), ("a", None, "b"), ("a", "b", "b"), ("a", "b", None)])
def test_of_a_chain_of_copies_all_go_if_two_disagree_as_the_report_counts_them(labels):
    """0 is a copy of 1, and 1 of 2; 3 is a neighbouring slice of 2 with another label, and no copy."""
    images = table(*((str(place), label, None, f"p{place}", "0") for place, label in enumerate([*labels, "c"])))
    found = copies(4, copied=[(0, 1), (1, 2)], neighbours=[(2, 3)])
    reported = describe(found, images)["copies"]["conflicting_labels"]
    left = fix(images, found)["image_id"].to_pylist()
    assert left == ["3"]
    assert (reported["num_groups"], reported["num_images"]) == (1, images.num_rows - len(left))


@pytest.mark.parametrize("labels", [("a", "a", "a"), ("a", None, "a"), (None, None, None)])
def test_a_chain_of_copies_with_one_label_stays(labels):
    images = table(*((str(place), label, None, f"p{place}", "0") for place, label in enumerate([*labels, "c"])))
    found = copies(4, copied=[(0, 1), (1, 2)], neighbours=[(2, 3)])
    assert describe(found, images)["copies"]["conflicting_labels"]["num_groups"] == 0
    assert fix(images, found)["image_id"].to_pylist() == ["0", "1", "2", "3"]


def test_of_identical_images_all_go_if_two_disagree():
    """Each is paired with the first one only, and so is the copy 3."""
    rows = [(str(place), label, None, f"p{place}", "0") for place, label in enumerate("abaa")]
    found = fix(table(*rows), copies(4, identical=[(0, 1), (0, 2)], copied=[(0, 3)])).to_pylist()
    assert found == []


def test_a_labelled_image_without_a_split_is_one_of_train_where_there_are_splits():
    images = table(
        ("1", "a", None, "p1", "1"),
        ("2", "a", "test", "p2", "1"),
        ("3", None, "train", "p3", "3"),
        ("4", "a", "test", "p4", "3"),  # nobody learns from the unlabelled 3
    )
    found = fix(images, copies(4, copied=[(0, 1), (2, 3)])).to_pylist()
    assert [row["split"] for row in found] == ["train", "train", "train", "test"]
    # Without any split, training cuts them, and the groups suffice.
    without = images.set_column(images.column_names.index("split"), "split", pa.nulls(4, pa.string()))
    assert [row["split"] for row in fix(without, copies(4, copied=[(0, 1)])).to_pylist()] == [None] * 4


def slices(*rows: tuple[str, str, str]) -> pa.Table:
    """A manifest of slices of (label, split, series) whose patients are not named."""
    places = [str(place) for place in range(len(rows))]
    labels, in_split, series = zip(*rows, strict=True)
    found = table(
        *((each, label, split, each, each) for each, label, split in zip(places, labels, in_split, strict=True))
    )
    return found.append_column(splits.SERIES, pa.array(series, pa.string()))


def test_a_series_in_several_splits_goes_to_train():
    images = slices(
        ("a", "train", "1"), ("a", "test", "1"), ("a", "test", "2"), ("a", "valid", "3"), ("b", "test", "4")
    )
    found = fix(images, copies(5))
    assert found["split"].to_pylist() == ["train", "train", "test", "valid", "test"]
    assert found["group_id"].to_pylist() == ["alike: 0", "alike: 0", "2", "3", "4"]
    again = fix(found.append_column(splits.PICTURE, found["image_id"]), copies(5))
    assert again["group_id"].to_pylist() == found["group_id"].to_pylist()
    assert fix_warnings(images, found) == ()


def test_slices_that_all_look_alike_keep_the_given_splits():
    images = slices(*(("ab"[place % 2], split, "1") for place, split in enumerate([*["train"] * 6, "valid", "test"])))
    found = fix(images, copies(8))
    assert found["split"].to_pylist() == images["split"].to_pylist()
    assert found["group_id"].to_pylist() == images["image_id"].to_pylist()


def test_a_split_or_class_that_is_gone_is_named():
    images = slices(
        *(("a", split, f"a{place % 4}") for place, split in enumerate([*["train"] * 4, *["test"] * 4])),
        *(("b", split, f"b{place}") for place, split in enumerate([*["train"] * 4, *["test"] * 4])),
    )
    (class_gone,) = fix_warnings(images, fix(images, copies(16)))
    assert class_gone.startswith("fixed.csv has no image of 'a' in the split test any more")
    disagree = table(("1", "a", "train", "p1", "1"), ("2", "b", "train", "p2", "1"), ("3", "b", "train", "p3", "3"))
    (in_train,) = fix_warnings(disagree, fix(disagree, copies(3, copied=[(0, 1)])))
    assert in_train.startswith("fixed.csv has no image of 'a' in the split train any more")
    only_a = images.slice(0, 8)
    (split_gone,) = fix_warnings(only_a, fix(only_a, copies(8)))
    assert split_gone.startswith("fixed.csv has no labelled image in test any more")


@pytest.mark.parametrize(
    ("checked", "text"),
    [
        ({"num_images": 20, "num_suspects": 3, "note": ""}, "3 of 20: out/suspect_labels.csv"),
        ({"num_images": 20, "num_suspects": 0, "note": ""}, "none of 20"),
        ({"num_images": 20, "num_suspects": 3, "note": "c left out"}, "3 of 20: out/suspect_labels.csv; c left out"),
        ({"num_images": 20, "num_suspects": 0, "note": "c left out"}, "none of 20; c left out"),
        ({"num_images": 20, "num_suspects": None, "note": "one class"}, "not looked for: one class"),
        (None, None),
    ],
)
def test_labels_to_check_are_counted_if_there_are_features(checked, text):
    found = {"num_images": 20, "num_readable": 20, "groups": {"across_splits": {"num_groups": 0}}}
    result = AuditResult(out="out", findings=found | {"suspect_labels": checked}, warnings=())
    rows = dict(result.rows())
    assert rows.get("labels to check") == text
    assert list(rows)[-1] == "report"


def test_the_corrected_table_has_no_formulas_and_is_read_as_it_was(tmp_path):
    columns = {"image_id": ["-1.png", "'-1.png"], "uri": ["/-1.png", "/'-1.png"], "label": ["=a", None]}
    fixed = pa.table(columns | {"split": ["train", None], "group_id": ["-12", "'-12"]})
    pyarrow.csv.write_csv(data_audit._as_texts(fixed), tmp_path / "fixed.csv")
    text = (tmp_path / "fixed.csv").read_text()
    assert '"\'-12"' in text
    assert '"-12"' not in text
    read = list_images(str(tmp_path / "fixed.csv")).table.select(fixed.column_names).sort_by("uri")
    assert read.to_pylist() == fixed.sort_by("uri").to_pylist()
