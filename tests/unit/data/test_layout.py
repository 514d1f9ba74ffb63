"""Layouts of public data sets: what becomes a class, a split or a patient, and what is refused as ambiguous."""

from pathlib import Path

import pytest

from tests.unit.data.test_manifest import make_files, make_zip, rows
from tlray.data import listing
from tlray.data.layout import split_of
from tlray.errors import DataError


def make(root: Path, *folders: str) -> str:
    """Makes two images in each folder."""
    make_files(root, *(f"{folder}/{number}.png" for folder in folders for number in (1, 2)))
    return str(root)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("Training", "train"), ("training_set", "train"), ("TrainSet", "train"), ("train-data", "train"),
        ("train_images", "train"), ("dev", "valid"), ("Dev_Set", "valid"), ("Validation set", "valid"),
        ("VAL", "valid"), ("Testing", "test"), ("test_set", "test"), ("testset", "test"), ("test.data", "test"),
        ("Test cases", None), ("trained", None), ("testis", None), ("contest", None), ("seg_train", None),
        ("developed", None), ("valve", None), ("set", None), ("", None), ("train_2", None),
    ],
)  # fmt: skip
def test_names_of_splits(name, split):
    assert split_of(name) == split


@pytest.mark.parametrize(
    ("folders", "splits"),
    [(("Training", "Testing"), ("train", "test")), (("training_set", "test_set", "dev"), ("train", "test", "valid"))],
)
def test_usual_names_of_splits_are_known(tmp_path, folders, splits):
    # The brain-tumour MRI set has `Training` and `Testing`.
    make(tmp_path, *(f"{folder}/{label}" for folder in folders for label in ("glioma", "notumor")))
    found = rows(listing.list_images(str(tmp_path)), "image_id", "label", "split", "group_id")
    assert sorted(found) == sorted(
        (f"{folder}/{label}/{number}.png", label, split, f"{folder}/{label}/{number}.png")
        for folder, split in zip(folders, splits, strict=True)
        for label in ("glioma", "notumor")
        for number in (1, 2)
    )


def test_usual_names_of_splits_in_a_csv(tmp_path):
    (tmp_path / "list.csv").write_text("uri,split\n1.png,Training\n2.png,dev\n3.png,test_set\n")
    found = listing.list_images(str(tmp_path / "list.csv"))
    assert rows(found, "image_id", "split") == [("1.png", "train"), ("2.png", "valid"), ("3.png", "test")]


def test_one_folder_of_images_in_every_class_is_no_patient(tmp_path):
    make(tmp_path, "COVID/images", "Normal/images")
    assert rows(listing.list_images(str(tmp_path)), "image_id", "label", "group_id") == [
        (f"{label}/images/{number}.png", label, f"{label}/images/{number}.png")
        for label in ("COVID", "Normal")
        for number in (1, 2)
    ]


@pytest.mark.parametrize("split", ["", "train/"])
def test_patients_below_a_folder_of_images(tmp_path, split):
    make(tmp_path, f"{split}COVID/images/P1", f"{split}COVID/images/P2", f"{split}Normal/images/P3")
    found = rows(listing.list_images(str(tmp_path)), "image_id", "label", "group_id")
    assert found == [
        (f"{split}{label}/images/{patient}/{number}.png", label, patient)
        for label, patient in (("COVID", "P1"), ("COVID", "P2"), ("Normal", "P3"))
        for number in (1, 2)
    ]
    make(tmp_path, f"{split}Normal/images/train", f"{split}Normal/images/test")
    with pytest.raises(DataError, match=r"hold split folders \('test', 'train'\)"):
        listing.list_images(str(tmp_path))


AMBIGUOUS = {
    "images and masks": (
        ["COVID/images", "COVID/masks", "Normal/images", "Normal/masks"],
        r"'images', 'masks'\) hold kinds of files, not patients\. Choose one with a glob \(--data 'ROOT/\*/images/\*\*",
    ),
    "masks of one class": (["COVID/images", "COVID/masks", "Normal/images"], "hold kinds of files"),
    "masks beside images": (
        ["COVID", "COVID/masks", "Normal"],
        r"below the classes \('masks'\) hold kinds of files, not patients\. Move them away, or list the images",
    ),
    "a kind before images in the alphabet": (
        ["COVID/annotations", "COVID/slices", "Normal/annotations", "Normal/slices"],
        r"'annotations', 'slices'\) hold .* with a glob \(--data 'ROOT/\*/slices/\*\*'\)",
    ),
    "masks below a folder of images": (
        ["train/COVID/images/masks", "train/COVID/images/png", "train/Normal/images/png"],
        r"'masks', 'png'\) hold .*--data 'ROOT/\*/\*/\*/png/\*\*'",
    ),
    "images and masks of patients": (
        ["COVID/P1/images", "COVID/P1/masks", "Normal/P2/images", "Normal/P2/masks"],
        r"below the patients \('images', 'masks'\) hold kinds of files.*--data 'ROOT/\*\*/images/\*\*'",
    ),
    "masks of one patient's scan": (
        ["train/COVID/P1/scan1/Images", "train/COVID/P1/scan1/lung_masks", "train/Normal/P2", "valid/Normal/P3"],
        r"below the patients \('Images', 'lung_masks'\).*--data 'ROOT/\*\*/Images/\*\*'",
    ),
    "masks beside images of patients": (
        ["COVID/P1", "COVID/P1/masks", "Normal/P2"],
        r"below the patients \('masks'\) hold kinds of files, not patients\. Move them away, or",
    ),
    "kinds as classes": (
        ["images", "masks"],
        r"'images', 'masks' are named like kinds of files, not like classes\. Put the images into class folders",
    ),
    "kinds as classes in splits": (
        ["train/images", "train/labels", "valid/images", "valid/labels"],
        r"'images', 'labels' are named like kinds of files, not like classes\. Put the images",
    ),
    "kinds of nnU-Net": (["imagesTr", "imagesTs", "labelsTr"], r"'imagesTr', 'imagesTs', 'labelsTr' are named like"),
    "a kind beside classes": (["COVID", "Normal", "Masks"], r"'Masks' are named like .* classes\. Move them away"),
    "kinds above classes": (
        ["masks/COVID", "masks/Normal", "images/COVID", "images/Normal"],
        r"'images', 'masks' are named like .*\. Give the one that holds the class folders as --data \(ROOT/images\)",
    ),
    "kinds above splits": (["images/train/a", "images/test/a", "labels/train/a"], r"--data \(ROOT/images\)"),
    "kinds above classes in splits": (
        ["train/images/COVID", "train/masks/COVID"],
        r"'images', 'masks' are named like kinds of files, not like classes\. Put the images into class folders",
    ),
    "the class's name twice": (
        ["normal/normal", "covid"],
        r"'normal' holds a folder of the same name\. .*; otherwise move its images up into 'normal', or list",
    ),
    "patients named by words": (
        ["covid/john", "covid/mary", "normal"],
        r"below 'covid' \('john', 'mary'\) look like .* if they are patients, give a CSV .* uri, label and group_id\.$",
    ),
    "parts of a class": (["tumor/left", "healthy"], "if they are parts of 'tumor', move their images up; if "),
    "masks in splits": (
        ["Train/COVID/images", "Train/COVID/lung masks", "Test/COVID/images", "Train/Normal/images"],
        r"'images', 'lung masks'.*--data 'ROOT/\*/\*/images/\*\*'",
    ),
    "beside a wrapping folder": (
        ["Test cases", "The set/The set/Benign cases", "The set/The set/Normal cases"],
        r"'The set' holds a folder of the same name\. If .* give it as --data \(ROOT/The set/The set\); otherwise move",
    ),
    "beside a wrapping folder with a number": (
        ["extra", "covid19/covid19/Benign", "covid19/covid19/Normal"],
        r"'covid19' holds a folder of the same name\. If .* \(ROOT/covid19/covid19\)",
    ),
    "classes two levels down": (
        ["colon_sets/colon_aca", "colon_sets/colon_n", "lung_sets/lung_aca", "lung_sets/lung_n", "lung_sets/lung_scc"],
        r"below 'colon_sets' \('colon_aca', 'colon_n'\) look like classes",
    ),
    "the same grades in every class": (
        ["left/grade0", "left/grade1", "right/grade0", "right/grade1"],
        r"the folders 'left', 'right' have subfolders of the same names \('grade0', 'grade1'\), which may be patients "
        r"or classes\. Give a CSV manifest with the columns uri, label and group_id; leave out group_id if they are "
        r"classes\.$",
    ),
    "the same grades in every class and split": (
        ["train/left/1", "train/right/2", "test/left/2", "test/right/1"],
        r"'left', 'right' have subfolders of the same names \('1', '2'\)",
    ),
    "splits below classes": (
        ["covid/train", "covid/test", "normal/train", "normal/test"],
        r"'covid', 'normal' hold split folders \('test', 'train'\).*SPLIT/CLASS",
    ),
    "doubled names of splits": (["train/seg_train/covid", "test/seg_test/covid"], r"below '(train|test)/seg_"),
    "splits beside others": (["train/a", "extra"], r"split folders \('train'\) beside others \('extra'\)"),
}


@pytest.mark.parametrize(("folders", "message"), AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_what_is_ambiguous_is_refused_and_scored_without_labels(tmp_path, folders, message):
    source = make(tmp_path / "source", *folders)
    names = sorted(f"{folder}/{number}.png" for folder in folders for number in (1, 2))
    archive = make_zip(tmp_path / "source.zip", *names)
    for each in (source, archive):
        with pytest.raises(DataError, match=message):
            listing.list_images(each)
        found = listing.list_images(each, labels_needed=False)
        assert rows(found, "image_id", "label", "split", "group_id") == [(name, None, None, name) for name in names]
        assert found.num_skipped == 0


def test_the_remedies_work(tmp_path):
    source = make(tmp_path, *AMBIGUOUS["images and masks"][0])
    assert set(rows(listing.list_images(f"{source}/*/images/**"), "label", "image_id")) == {
        (label, f"{label}/images/{number}.png") for label in ("COVID", "Normal") for number in (1, 2)
    }
    source = make(tmp_path / "patients", *AMBIGUOUS["masks of one patient's scan"][0], "train/Normal/P2/images")
    found = listing.list_images(f"{source}/**/[Ii]mages/**")
    assert set(rows(found, "label", "split", "group_id")) == {("COVID", "train", "P1"), ("Normal", "train", "P2")}
    source = make(tmp_path / "kinds", *AMBIGUOUS["kinds above classes"][0])
    found = listing.list_images(f"{source}/images")
    assert set(rows(found, "label", "image_id")) == {
        (label, f"{label}/{number}.png") for label in ("COVID", "Normal") for number in (1, 2)
    }
    source = make(tmp_path / "lungs", *AMBIGUOUS["classes two levels down"][0])
    found = listing.list_images(f"{source}/lung_sets")
    assert set(found.table["label"].to_pylist()) == {"lung_aca", "lung_n", "lung_scc"}


@pytest.mark.parametrize(
    "folders",
    [
        ["covid/P001", "covid/P002", "normal/P001", "normal/N3"],
        ["covid/1.2.840.113", "normal/1.2.840.114"],
        # One odd name among patients, and a class whose patients are not known.
        ["covid/P1", "covid/P2", "covid/unknown", "normal"],
        # More patients with the same numbers than there are grades or kinds.
        [f"{label}/{number}" for label in ("a", "b") for number in range(11)],
        # A folder beside images of the class holds more of it.
        ["covid", "covid/more", "normal"],
        # One kind of file of each patient, or images of a patient beside more of them.
        ["covid/P1/images", "covid/P2/Images", "normal/P3/images"],
        ["covid/P1/masks", "normal/P3/masks"],
        ["covid/P1", "covid/P1/images", "normal/P3"],
    ],
)
def test_patients_below_classes_stay_patients(tmp_path, folders):
    found = rows(listing.list_images(make(tmp_path, *folders)), "image_id", "label", "group_id")
    assert sorted(found) == sorted(
        (name, label, group or name)
        for folder in folders
        for number in (1, 2)
        for label, group in [(*folder.split("/"), None)[:2]]
        for name in [f"{folder}/{number}.png"]
    )


@pytest.mark.parametrize("folder", ["@eaDir", "__MACOSX", "$RECYCLE.BIN", "lost+found", ".thumbnails", "#recycle"])
def test_what_machines_leave_is_skipped_and_counted(tmp_path, folder):
    source = make(tmp_path, "covid", "normal", f"covid/{folder}/1.png", folder)
    for labels_needed in (True, False):
        found = listing.list_images(source, labels_needed=labels_needed)
        assert rows(found, "image_id", "label", "group_id") == [
            (f"{label}/{number}.png", label, f"{label}/{number}.png")
            for label in ("covid", "normal")
            for number in (1, 2)
        ]
        assert found.num_skipped == 2  # a folder each time


def test_a_licence_beside_patients_is_no_image_of_the_class(tmp_path):
    source = make(tmp_path / "a", "left/grade0", "left/grade1", "right/grade0", "right/grade1")
    (tmp_path / "a/left/LICENSE").touch()
    with pytest.raises(DataError, match=r"'left', 'right' have subfolders of the same names \('grade0', 'grade1'\)"):
        listing.list_images(source)
    make(tmp_path / "b", "covid/john", "normal")
    (tmp_path / "b/covid/README").touch()
    with pytest.raises(DataError, match="below 'covid' \\('john'\\) look like classes"):
        listing.list_images(str(tmp_path / "b"))


def test_names_without_an_ending_are_images_where_none_has_one(tmp_path):
    make_files(tmp_path, "covid/IM0001", "covid/more/IM0002", "normal/1.png")
    assert rows(listing.list_images(str(tmp_path)), "image_id", "label", "group_id") == [
        ("covid/IM0001", "covid", "covid/IM0001"),
        ("covid/more/IM0002", "covid", "more"),
        ("normal/1.png", "normal", "normal/1.png"),
    ]
