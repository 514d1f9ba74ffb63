"""Which images an evaluation looks at."""

import dataclasses

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tests.unit.bundle.test_spec import SPEC
from tests.unit.data.test_manifest import make_table
from tlray.bundle.spec import BundleSpec
from tlray.data import manifest
from tlray.evaluation import evaluate, scope
from tlray.evaluation.scope import Scope

LISTED = make_table(
    *(("a", "train", f"p{number}") for number in range(5)),
    *(("b", "valid", f"q{number}") for number in range(3)),
    *(("a", "test", f"r{number}") for number in range(2)),
    (None, "test", "s"),
)


def trained_on(table: pa.Table) -> BundleSpec:
    fingerprints = {"id_fingerprint": manifest.id_fingerprint(table)}
    return dataclasses.replace(SPEC, split_fingerprint=manifest.split_fingerprint(table), **fingerprints)


def chosen(spec: BundleSpec, listed: pa.Table, split: str) -> Scope:
    return scope.choose(spec, listed, evaluate.select_split(listed, split), split)


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
    found = chosen(trained_on(cut), listed, "valid")
    assert found.knows_splits
    assert read(found) == ["valid"] * 3 + ["train"] * 5
    # A labelled image without a split is one of train.
    some = manifest.with_column(listed, "split", [None if row == 0 else each for row, each in enumerate(given)])
    assert read(chosen(trained_on(cut), some, "valid")) == ["valid"] * 3 + ["train"] * 5


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
