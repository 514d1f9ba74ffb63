"""Which splits have copies with different labels."""

import pytest

from tlray.data import label_conflicts


def finding(*rows: tuple[str | None, str | None]) -> dict:
    images = [{"image_id": str(number), "split": split, "label": label} for number, (split, label) in enumerate(rows)]
    return {"num_groups": 1, "num_images": len(rows), "examples": [{"images": images}]}


def test_copies_count_where_the_pictures_were_looked_at_and_files_otherwise():
    copies, files = finding(("train", "a"), ("test", "b")), finding(("train", "a"), ("train", "b"))
    duplicates = {"duplicates": {"conflicting_labels": files}}
    assert label_conflicts.conflicts(duplicates) == files
    assert label_conflicts.conflicts(duplicates | {"copies": {"copies": {"conflicting_labels": copies}}}) == copies
    assert label_conflicts.conflicts({}) == {}


def test_all_groups_count_where_the_audit_has_counted_them():
    """The examples are of the first groups only; pictures that a bundle keeps are no images of the data."""
    counted = finding(("train", "a"), ("train", "b")) | {"num_images": 42, "num_by_split": {"train": 40, "test": 2}}
    assert label_conflicts.by_split(counted) == {"train": 40, "test": 2}
    assert not label_conflicts.is_partial(counted)
    kept = {"image_id": label_conflicts.IN_BUNDLE, "split": "train", "label": "a"}
    assert label_conflicts.count_by_split([[kept, {"image_id": "i", "split": "test", "label": "b"}]]) == {"test": 1}


@pytest.mark.parametrize(
    ("rows", "by_split", "place"),
    [
        ([("test", "a"), ("test", "b")], {"test": 2}, " in test"),
        ([("test", "a"), ("train", "b"), ("valid", "a")], {"test": 1, "train": 1, "valid": 1},
         " in train and valid and test"),
        ([("test", None), ("train", "a"), ("train", "b")], {"train": 2}, " in train"),
        ([(None, "a"), (None, "b")], {}, ""),
    ],
)  # fmt: skip
def test_images_are_counted_by_their_split_if_they_have_a_label(rows, by_split, place):
    assert label_conflicts.by_split(finding(*rows)) == by_split
    assert label_conflicts.place(finding(*rows)) == place
    assert label_conflicts.place({}) == ""
