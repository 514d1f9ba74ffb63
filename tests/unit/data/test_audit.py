import json

import pyarrow as pa
import pytest

from tlray.data import manifest, splits
from tlray.data.audit import audit, explain_failures, has_patients, leak_warnings, patients_by_class, warnings


def test_images_without_a_named_patient_are_counted():
    ids = ["alike: 1", "alike: 1", "alike: 1", "alike: 2", "alike: 2", "p1", "p1", "x", "00008"]
    groups = audit(make_table(*({"group_id": each} for each in ids)))["groups"]
    assert (groups["num_groups"], groups["num_unnamed"]) == (5, 6)


def test_the_patients_of_labelled_images_are_counted():
    ours, unlabelled = {"group_id": "p"}, {"label": None}
    groups = audit(make_table(ours, ours, {"group_id": "q", "label": "b"}, unlabelled | {"group_id": "r"}))["groups"]
    assert (groups["num_groups"], groups["num_patients"], groups["by_class"]) == (3, 2, {"a": 1, "b": 1})
    unnamed = {"group_id": "00002"}  # its own id
    assert audit(make_table(ours, ours, unlabelled | unnamed))["groups"]["num_patients"] == 1
    assert audit(make_table(ours, ours, unnamed))["groups"]["num_patients"] is None


@pytest.mark.parametrize(
    ("num_unnamed", "is_named"),
    [(0, True), (1, True), (2, False), (18, False), (20, False)],  # 18: one named pair
)
def test_patients_are_named_if_nearly_all_are(num_unnamed: int, is_named: bool):
    table = make_table(*({"group_id": f"{row:05}" if row < num_unnamed else f"p{row // 2}"} for row in range(20)))
    assert has_patients(audit(table)) is is_named


def make_table(*images: dict) -> pa.Table:
    """Makes a table of files that have been read; each image gives what differs from a plain training image."""
    schema = manifest.SCHEMA
    for name, kind in (("error_code", pa.string()), ("width_px", pa.int32()), ("height_px", pa.int32())):
        schema = schema.append(pa.field(name, kind))
    rows = [
        {
            "image_id": f"{index:05}",
            "uri": f"/{index:05}",
            "label": "a",
            "split": "train",
            "group_id": f"g{index}",
            "sha256": f"s{index}",
            "error_code": None,
            "width_px": 10,
            "height_px": 20,
        }
        | image
        for index, image in enumerate(images)
    ]
    return pa.Table.from_pylist(rows, schema=schema)


def failed(code: str) -> dict:
    return {"error_code": code, "width_px": None, "height_px": None}


def test_counts_errors_and_sizes():
    report = audit(
        make_table(
            {"width_px": 100},
            {"label": "b", "height_px": 40},
            {"split": "valid", "width_px": 7},
            {"split": None, "label": None},
            failed("empty"),
            failed("truncated") | {"image_id": "z"},
            failed("truncated") | {"image_id": "y"},
            {},
        )
    )
    assert report["num_images"] == 8
    assert report["num_readable"] == 5
    assert report["num_unlabelled"] == 1
    assert report["counts"] == {"train": {"a": 2, "b": 1}, "valid": {"a": 1}}
    assert report["imbalance_ratio"] == 2.0
    assert report["errors"] == {
        "empty": {"num_images": 1, "examples": ["00004"]},
        "truncated": {"num_images": 2, "examples": ["y", "z"]},
    }
    assert report["size_px"] == {
        "width": {"min": 7, "median": 10.0, "max": 100},
        "height": {"min": 20, "median": 20.0, "max": 40},
    }
    assert json.loads(json.dumps(report)) == report


def test_unsplit_data_is_counted_as_unassigned():
    report = audit(make_table({"split": None}, {"split": None, "label": "b"}, {"split": None}))
    assert report["counts"] == {"unassigned": {"a": 2, "b": 1}}
    assert report["imbalance_ratio"] == 2.0
    # Images in no split leak into none.
    assert report["groups"]["across_splits"]["num_groups"] == 0


def test_patients_are_counted_where_they_are_named():
    named = audit(
        make_table({"group_id": "p"}, {"group_id": "p"}, {"group_id": "p", "label": "b"}, {"label": None}, {})
    )
    assert patients_by_class(named) == {"a": 2, "b": 1}
    # An image without a named patient is not one more patient: its class has no number.
    for name in (f"{splits.ALIKE}0", "00000"):
        partly = make_table({"group_id": name}, {"group_id": "p"}, {"group_id": "p"}, {"label": "b", "group_id": "p"})
        assert patients_by_class(audit(partly)) == {"b": 1}
    earlier = {"num_readable": 9, "groups": {"num_groups": 8, "by_class": {"a": 8}}}
    for unknown in (earlier, {}):
        assert patients_by_class(unknown) == {}


def test_duplicates():
    report = audit(
        make_table(
            {"sha256": "x"},
            {"sha256": "x"},
            {"sha256": "x", "split": "test"},
            {"sha256": "y", "split": "valid"},
            {"sha256": "y", "split": "test", "label": "b"},
            {"sha256": "z", "label": None},
            {"sha256": "z"},
            {"sha256": "alone"},
            {"sha256": None},
            {"sha256": None},
            # Two empty files are no copies of an image.
            failed("empty") | {"sha256": "nothing"},
            failed("empty") | {"sha256": "nothing"},
        )
    )
    duplicates = report["duplicates"]
    assert (duplicates["num_groups"], duplicates["num_images"]) == (3, 7)
    x = {
        "sha256": "x",
        "images": [
            {"image_id": "00000", "split": "train", "label": "a"},
            {"image_id": "00001", "split": "train", "label": "a"},
            {"image_id": "00002", "split": "test", "label": "a"},
        ],
    }
    y = {
        "sha256": "y",
        "images": [
            {"image_id": "00003", "split": "valid", "label": "a"},
            {"image_id": "00004", "split": "test", "label": "b"},
        ],
    }
    z = {
        "sha256": "z",
        "images": [
            {"image_id": "00005", "split": "train", "label": None},
            {"image_id": "00006", "split": "train", "label": "a"},
        ],
    }
    assert duplicates["within_split"] == {"num_groups": 2, "num_images": 5, "examples": [x, z]}
    assert duplicates["across_splits"] == {"num_groups": 2, "num_images": 5, "examples": [x, y]}
    assert duplicates["conflicting_labels"] == {"num_groups": 1, "num_images": 2, "examples": [y]}


def test_copies_in_unsplit_data_are_within():
    duplicates = audit(make_table({"split": None, "sha256": "x"}, {"split": None, "sha256": "x"}))["duplicates"]
    assert duplicates["within_split"]["num_groups"] == 1
    assert duplicates["across_splits"]["num_groups"] == 0


def test_patients_in_several_splits():
    report = audit(
        make_table(
            {"group_id": "p1"},
            {"group_id": "p1", "split": "valid"},
            {"group_id": "p2"},
            {"group_id": "p2"},
            failed("empty") | {"group_id": "p2", "split": "test"},
        )
    )
    assert report["groups"] == {
        "num_groups": 2,
        "num_unnamed": 0,
        "by_class": {"a": 2},
        "num_patients": 2,
        "across_splits": {
            "num_groups": 1,
            "num_images": 2,
            "examples": [
                {
                    "group_id": "p1",
                    "images": [
                        {"image_id": "00000", "split": "train", "label": "a"},
                        {"image_id": "00001", "split": "valid", "label": "a"},
                    ],
                }
            ],
        },
    }


def test_examples_are_limited_and_totals_are_not():
    copies = [{"sha256": f"x{index // 30:02}", "group_id": "p"} for index in range(900)]
    report = audit(make_table(*copies, *(failed("empty") for _ in range(25))))
    within = report["duplicates"]["within_split"]
    assert (within["num_groups"], within["num_images"]) == (30, 900)
    assert [example["sha256"] for example in within["examples"]] == [f"x{index:02}" for index in range(20)]
    assert [image["image_id"] for image in within["examples"][1]["images"]] == [f"{i:05}" for i in range(30, 50)]
    assert report["errors"]["empty"]["num_images"] == 25
    assert report["errors"]["empty"]["examples"] == [f"{index:05}" for index in range(900, 920)]


def test_order_of_rows_makes_no_difference():
    table = make_table({"sha256": "x"}, {"sha256": "x", "split": "test"}, {"label": "b"}, failed("empty"))
    assert audit(table.take([3, 1, 2, 0])) == audit(table)


@pytest.mark.parametrize("table", [make_table(failed("empty")), make_table()])
def test_nothing_readable(table):
    report = audit(table)
    assert report["num_readable"] == 0
    assert report["counts"] == {}
    assert report["size_px"] is None
    assert report["imbalance_ratio"] is None
    assert report["duplicates"]["num_groups"] == 0


# Warnings


def test_nothing_wrong_gives_no_warning():
    images = [{"label": label} for label in ("a", "b") for _ in range(20)]
    held_out = [{"label": label, "split": split} for label in ("a", "b") for split in ("valid", "test")]
    # 2 of 46 images are under 5 %; copies within train do not flatter the metrics.
    assert warnings(audit(make_table(*images, *held_out, failed("empty"), failed("empty")))) == []
    assert warnings(audit(make_table(*images, *held_out, {"sha256": "x"}, {"sha256": "x"}))) == []


def test_warnings_say_what_and_how_to_mend():
    images = [{} for _ in range(201)]
    images[7] = {"sha256": "x", "group_id": "p"}
    images[8] = {"sha256": "x"}
    images += [
        {"sha256": "x", "split": "test", "group_id": "p", "label": "b"},
        *({"label": "b"} for _ in range(19)),
        {"split": "valid"},
        *(failed("empty") for _ in range(12)),
    ]
    assert warnings(audit(make_table(*images))) == [
        "3 images are byte for byte copies of one another in different splits (groups: 1, for example '00007' and "
        "'00201'), so the metrics of all images count images that the model knows. Keep the copies of "
        "an image in one split; this command writes a table of the images with such splits: `tlray audit --data DATA "
        "--weights WEIGHTS --out OUT --fix`",
        "Patients or groups with images in several splits: 1 (for example 'p'), so the metrics of all images count "
        "patients that the model knows. Split by patient.",
        "The same image has different labels (once in train and test, for example '00007' and '00201'). Correct the "
        "labels.",
        "Classes with fewer than 20 training images ('b': 19) are learned badly. "
        "Add images, or merge classes with a class map.",
        "The valid split has no image of 'b', so nothing can be measured for it. Add images or patients.",
        "The test split has no image of 'a', so nothing can be measured for it. Add images or patients.",
        "The largest class has 10.6 times the images of the smallest. "
        "Weight the classes or add images, and read balanced accuracy, not accuracy.",
        "12 of 234 images cannot be read (empty: 12). Repair or convert them; they are left out.",
    ]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            [("/d/id1", "not_found", "There is no such file.")] * 2,
            "for example '/d/id1' (not_found: There is no such file.), '/d/id1' (not_found: There is no such file.). "
            "The manifest's uri must have the file's extension, and its folder relative to the manifest.",
        ),
        (
            [("/d/C:/x/1.png", "not_found", "No.")],
            "for example '/d/C:/x/1.png' (not_found: No.). "
            "These are Windows paths: write them relative to the manifest, with forward slashes.",
        ),
        (
            [("/d/1.png", "not_found", "No.")],
            "for example '/d/1.png' (not_found: No.). "
            "Write paths relative to the manifest, or absolute ones that every node has.",
        ),
        (
            [("/z.zip!/1.png", "unreadable", "It is encrypted.")],
            "for example '/z.zip!/1.png' (unreadable: It is encrypted.). "
            "Check permissions and the storage, and unpack archives that have a password.",
        ),
        # The commonest code gives the remedy; three are named.
        (
            [("/1", "empty", "E."), ("/2", "truncated", "T."), ("/3", "truncated", "T."), ("/4", "truncated", "T.")],
            "for example '/1' (empty: E.), '/2' (truncated: T.), '/3' (truncated: T.). "
            "Copy the files again, or remove them.",
        ),
    ],
)
def test_failures_are_explained(rows, expected):
    uris, codes, errors = zip(*rows, strict=True)
    assert explain_failures(pa.table({"uri": uris, "error_code": codes, "error": errors})) == expected


def test_leaks_are_the_first_warnings():
    table = make_table({"sha256": "x", "group_id": "p"}, {"sha256": "x", "group_id": "p", "split": "test"})
    found = warnings(audit(table))
    assert leak_warnings(audit(table)) == found[:2]
    assert [text.split(" ")[1] for text in found[:2]] == ["images", "or"]
    assert all("so the metrics of all images count " in text for text in found[:2])
    assert not any("too good" in text for text in found[2:])
    assert leak_warnings(audit(make_table({"sha256": "x"}, {"sha256": "x"}))) == []


def test_the_first_leak_that_can_be_mended_ends_with_the_command():
    patients = make_table({"group_id": "p"}, {"group_id": "p", "split": "test"})
    (text,) = leak_warnings(audit(patients))
    assert text.endswith(
        "Split by patient; this command writes a table of the images with such splits: `tlray audit --data DATA "
        "--weights WEIGHTS --out OUT --fix`",
    )
    both = make_table({"sha256": "x", "group_id": "p"}, {"sha256": "x", "group_id": "p", "split": "test"})
    assert ["--fix" in text for text in leak_warnings(audit(both))] == [True, False]


def test_warnings_do_not_grow_with_the_classes():
    images = [{"label": f"class {index:03}"} for index in range(120) for _ in range(1 + (index == 7))]
    found = warnings(audit(make_table(*images, {"label": "class 000", "split": "test"})))
    small = ", ".join(f"'class {index:03}': 1" for index in (0, 1, 2, 3, 4, 5, 6, 8, 9, 10))
    assert found[0].startswith(f"Classes with fewer than 20 training images ({small} and 110 more) are learned badly.")
    absent = ", ".join(f"'class {index:03}'" for index in range(1, 11))
    assert found[1].startswith(f"The test split has no image of {absent} and 109 more, so nothing")


def test_a_leak_names_the_splits_whose_metrics_may_be_too_good():
    report = audit(make_table({"sha256": "x"}, {"sha256": "x", "split": "valid"}))
    (text,) = leak_warnings(report | {"leaked": {"valid": 1, "test": 0}})
    assert "so the metrics of all images of valid count images that the model knows" in text
    (text,) = leak_warnings(report | {"leaked": {"valid": 1, "test": 2}})
    assert "so the metrics of all images of valid and test count images that the model knows" in text


def looked_at(*, num_copies: int, num_series: int) -> dict:
    """Returns a report on images that were looked at, with so many groups that have images in several splits."""

    def found(num_groups: int) -> dict:
        images = [{"image_id": "x", "split": "train"}, {"image_id": "y", "split": "test"}]
        example = {"num_groups": num_groups, "num_images": 2 * num_groups, "examples": [{"images": images}]}
        return {"across_splits": example, "conflicting_labels": {"num_groups": 0}}

    return audit(make_table({})) | {"copies": {"copies": found(num_copies), "series": found(num_series)}}


def test_neighbours_in_several_splits_are_told_however_many_copies_others_have():
    """Ten pairs of copies are in one series; another series without copies is parted."""
    report = looked_at(num_copies=10, num_series=2)
    near = {"neighbours": {"valid": 0, "test": 12}, "neighbour_example": ["b1", "b2"]}
    copies, text = leak_warnings(report | near)
    assert copies.startswith("20 images are copies of one another")
    assert text == (
        "Images without a named patient that look like neighbouring slices of images that the model learns from: 12 "
        "in test (for example 'b1' and 'b2'). If these are slices of one patient, the metrics of test are too good. "
        "Name the patients: one folder for each, or the column group_id of a table."
    )
    (_, text) = leak_warnings(report | near | {"neighbours": {"valid": 3, "test": 12}})
    assert "3 in valid, 12 in test" in text
    assert "the metrics of valid and test are too good." in text


def test_neighbours_that_are_copies_or_of_named_patients_are_not_told():
    report = looked_at(num_copies=0, num_series=2)
    assert leak_warnings(report | {"neighbours": {"valid": 0, "test": 0}, "neighbour_example": None}) == []
    (earlier,) = leak_warnings(report)
    assert earlier.startswith("4 images are copies or neighbouring slices of one another in different splits")
    assert " If these are slices of one patient, the metrics are too good. Name" in earlier
    assert len(leak_warnings(looked_at(num_copies=2, num_series=2))) == 1
