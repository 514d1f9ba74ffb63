"""Which images an evaluation looks at."""

import dataclasses
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tests.unit.bundle.test_spec import SPEC
from tests.unit.data.test_manifest import make_table
from tlray.bundle.spec import BundleSpec
from tlray.data import fingerprints, manifest
from tlray.evaluation import evaluate, scope
from tlray.evaluation.scope import Scope

LISTED = make_table(
    *(("a", "train", f"p{number}") for number in range(5)),
    *(("b", "valid", f"q{number}") for number in range(3)),
    *(("a", "test", f"r{number}") for number in range(2)),
    (None, "test", "s"),
)


def trained_on(table: pa.Table, cut: Sequence[str] = ()) -> BundleSpec:
    """A bundle whose model was trained on images with these splits, some of which tlray has cut from train."""
    return dataclasses.replace(
        SPEC,
        id_fingerprint=manifest.id_fingerprint(table),
        split_fingerprint=manifest.split_fingerprint(table),
        given_split_fingerprint=fingerprints.of_given_splits(table, cut),
        file_fingerprints=fingerprints.of_files(table),
    )


def earlier(spec: BundleSpec) -> BundleSpec:
    """The bundle as a version has made it that did not know the given splits and the files."""
    return dataclasses.replace(spec, given_split_fingerprint=None, file_fingerprints={})


def chosen(spec: BundleSpec, listed: pa.Table, split: str) -> Scope:
    return scope.choose(spec, listed, evaluate.select_split(listed, split), split)


def with_split(table: pa.Table, splits: Sequence[str | None]) -> pa.Table:
    return manifest.with_column(table, "split", splits)


def with_own_files(spec: BundleSpec, listed: pa.Table, split: str) -> Scope:
    """Returns the scope once its files were read: those of the training, with the sha256 that the table has."""
    return scope.with_files(chosen(spec, listed, split), spec, listed, split)


def read(found: Scope) -> list[str | None]:
    """Returns the splits of the images that are read, and checks that the measured ones are among them."""
    assert found.is_read[found.is_measured].all()
    return found.table.filter(pa.array(found.is_read))["split"].to_pylist()


@pytest.mark.parametrize(
    ("split", "others"), [("train", []), ("valid", ["train"] * 5), ("test", ["train"] * 5 + ["valid"] * 3), ("all", [])]
)
def test_of_a_models_own_data_what_it_learned_from_is_read_too(split, others):
    found = chosen(trained_on(LISTED), LISTED, split)
    assert (found.is_own, found.knows_splits, found.has_learned) == (True, True, True)
    assert found.table.num_rows == 10  # the unlabelled image is not measured
    measured = [each for each in LISTED["split"].to_pylist()[:10] if split in (each, "all")]
    assert read(found) == measured + others
    assert found.is_measured.sum() == len(measured)
    labels = found.table["label"].to_pylist()
    assert None not in labels[: len(measured)]
    assert set(labels[len(measured) :]) <= {None}


def test_more_images_than_that_are_not_read(monkeypatch):
    monkeypatch.setattr(scope, "MAX_LEARNED", 7)
    spec = trained_on(LISTED)
    found = chosen(spec, LISTED, "test")
    assert (found.knows_splits, found.has_learned) == (True, False)
    assert read(found) == ["test"] * 2
    assert found.table.num_rows == 10  # whose patients matter all the same
    assert chosen(spec, LISTED, "valid").has_learned


@pytest.mark.parametrize("spec", [SPEC, dataclasses.replace(SPEC, id_fingerprint=None, split_fingerprint=None)])
def test_of_other_data_only_the_measured_images_matter(spec):
    """The second bundle was made from a model of one's own."""
    found = chosen(spec, LISTED, "test")
    assert (found.is_own, found.knows_splits, found.has_learned) == (False, False, False)
    assert read(found) == [None, None]
    assert found.table["image_id"].to_pylist() == ["00008", "00009"]


def test_splits_that_are_not_those_of_the_training_tell_nothing():
    swapped = {"train": "test", "valid": "valid", "test": "train"}
    others = [swapped[each] for each in LISTED["split"].to_pylist()]
    found = chosen(trained_on(LISTED), manifest.with_column(LISTED, "split", others), "test")
    assert (found.is_own, found.knows_splits) == (True, False)
    uncut = manifest.with_column(LISTED, "split", [None] * LISTED.num_rows)
    found = chosen(trained_on(LISTED), uncut, "all")
    assert (found.is_own, found.knows_splits, found.table.num_rows) == (True, False, 10)


def test_splits_that_are_missing_were_cut_from_train():
    """Image 4 went to test in the training, and counts as one of train: it is no copy of a validation image."""
    listed = LISTED.filter(pc.field("split") != "test")
    given = listed["split"].to_pylist()
    cut = manifest.with_column(listed, "split", ["test" if row == 4 else each for row, each in enumerate(given)])
    found = chosen(trained_on(cut, ["test"]), listed, "valid")
    assert found.knows_splits
    assert found.whole_splits == {"valid"}
    assert read(found) == ["valid"] * 3 + ["train"] * 5
    # A labelled image without a split is one of train.
    some = manifest.with_column(listed, "split", [None if row == 0 else each for row, each in enumerate(given)])
    assert read(chosen(trained_on(cut, ["test"]), some, "valid")) == ["valid"] * 3 + ["train"] * 5


GIVEN = ["train"] * 8 + ["test"] * 4
ENDED = ["train"] * 6 + ["valid"] * 2 + ["test"] * 4


def test_of_the_splits_of_a_data_set_without_valid_only_those_that_the_training_was_given_are_its_own():
    """Its training cut valid from train. The other fold has four of its training images in test."""
    images = make_table(*(("ab"[number % 2], None, f"p{number}") for number in range(12)))
    spec = trained_on(with_split(images, ENDED), ["valid"])
    same = chosen(spec, with_split(images, GIVEN), "test")
    assert (same.is_own, same.knows_splits, same.has_learned) == (True, True, True)
    assert read(same) == ["test"] * 4 + ["train"] * 8
    for other in (["test"] * 4 + ["train"] * 8, ["test"] * 4 + ["valid"] * 2 + ["train"] * 6):
        found = chosen(spec, with_split(images, other), "test")
        assert (found.is_own, found.knows_splits, found.has_learned) == (True, False, False)
        assert read(found) == [None] * 4
        assert found.whole_splits == frozenset()
    # The manifest of the run has all of its splits, of which a bundle of an earlier version knows, too.
    for each in (spec, earlier(spec)):
        found = chosen(each, with_split(images, ENDED), "test")
        assert read(found) == ["test"] * 4 + ["train"] * 6 + ["valid"] * 2
        assert found.whole_splits == {"train", "valid", "test"}
    assert not chosen(earlier(spec), with_split(images, GIVEN), "test").knows_splits


def test_given_splits_are_known_again_though_some_images_could_not_be_read():
    """An unreadable image keeps the split that it has, or has none."""
    rows = [("a", "train", "0"), ("a", "train", "1"), ("b", None, "2"), ("b", "test", "3"), ("a", None, "4")]
    listed = make_table(*rows)
    ended = with_split(listed, ["valid", "train", "train", "test", None])
    ended = ended.append_column("error_code", pa.array([None, None, None, "empty", "empty"], pa.string()))
    assert chosen(trained_on(ended, ["valid"]), listed, "test").knows_splits
    # The readable test images were cut; the unreadable one is of test as it was given.
    ended = with_split(ended, ["test", "train", "train", "test", None])
    assert chosen(trained_on(ended, ["valid", "test"]), listed, "test").knows_splits


READ = manifest.with_column(LISTED, "sha256", [f"s{row}" for row in range(LISTED.num_rows)])


def changed(*rows: int) -> pa.Table:
    """The images, of which the files in some rows are others now."""
    old = READ["sha256"].to_pylist()
    return manifest.with_column(READ, "sha256", ["other" if row in rows else each for row, each in enumerate(old)])


@pytest.mark.parametrize(
    ("split", "row", "is_same"),
    [
        ("test", 8, False), ("test", 0, False), ("test", 5, False), ("test", 10, True),
        ("valid", 5, False), ("valid", 4, False), ("valid", 8, True), ("train", 0, False), ("train", 5, True),
        ("all", 0, False), ("all", 9, False), ("all", 10, True),
    ],
)  # fmt: skip
def test_files_are_those_of_the_training_if_all_that_are_looked_at_have_its_checksums(split, row, is_same):
    """Image 10 has no label, so it is not looked at."""
    spec = trained_on(READ)
    assert chosen(spec, READ, split).has_own_files is None
    assert with_own_files(spec, READ, split).has_own_files is True
    found = with_own_files(spec, changed(row), split)
    assert found.has_own_files is is_same
    # What is known of the images by their ids stays.
    assert (found.is_own, found.knows_splits, found.has_learned) == (True, True, True)
    assert read(found) == read(chosen(spec, READ, split))


def test_of_files_that_cannot_be_compared_nothing_is_said(monkeypatch):
    spec = trained_on(READ)
    assert with_own_files(earlier(spec), READ, "test").has_own_files is None
    assert with_own_files(SPEC, READ, "test").has_own_files is None
    # A split of another division; all images together are the same.
    swap = {"train": "test", "valid": "valid", "test": "train"}
    swapped = with_split(READ, [swap[each] for each in READ["split"].to_pylist()])
    assert with_own_files(spec, swapped, "test").has_own_files is None
    assert with_own_files(spec, swapped, "all").has_own_files is True
    # Files that are too many to be read, and an image that cannot be found any more.
    monkeypatch.setattr(scope, "MAX_LEARNED", 1)
    assert with_own_files(spec, changed(0), "test").has_own_files is True
    gone = manifest.with_column(READ, "sha256", [None if row == 8 else f"s{row}" for row in range(READ.num_rows)])
    assert with_own_files(spec, gone, "test").has_own_files is False


def test_files_of_given_splits_are_compared_with_those_that_the_training_was_given():
    """It cut image 4 from train for test, so its training split has other images."""
    listed = READ.filter(pc.field("split") != "test")
    given = listed["split"].to_pylist()
    ended = with_split(listed, ["test" if row == 4 else each for row, each in enumerate(given)])
    spec = trained_on(ended, ["test"])
    assert with_own_files(spec, listed, "valid").has_own_files is True
    assert with_own_files(spec, listed, "train").has_own_files is None
    assert with_own_files(spec, listed, "all").has_own_files is True
    assert with_own_files(spec, changed(5).filter(pc.field("split") != "test"), "valid").has_own_files is False


@pytest.mark.parametrize("version", ["this", "an earlier"])
def test_an_image_that_the_training_could_not_read_has_no_split_in_its_manifest(version):
    """All splits were cut. The patient of the unreadable image has an image in test, which the model does not know."""
    listed = make_table(("a", None, "x"), ("a", "test", "x"), ("b", "train", "y"), ("b", "valid", "z"))
    spec = trained_on(listed)
    if version != "this":
        spec = dataclasses.replace(spec, id_fingerprint=None)
    found = chosen(spec, listed, "test")
    assert found.knows_splits
    assert found.table["split"].to_pylist() == ["test", None, "train", "valid"]
    assert read(found) == ["test", "train", "valid"]
    assert read(chosen(spec, listed, "all")) == [None, "test", "train", "valid"]


def test_a_bundle_of_an_earlier_version_knows_its_data_by_the_splits():
    spec = dataclasses.replace(trained_on(LISTED), id_fingerprint=None)
    assert chosen(spec, LISTED, "test").has_learned
    assert not chosen(spec, LISTED.slice(1), "test").is_own
