"""Whose images are measured: those that a model was trained on, or others. Needs no running Ray."""

import dataclasses

import pyarrow as pa
import pytest

from tests.unit.bundle.test_spec import SPEC
from tests.unit.data.test_manifest import make_table
from tlray.bundle.leaks import PICTURES, LeakSearch
from tlray.config.training import TrainConfig
from tlray.data import dataset, manifest
from tlray.data.dataset import Dataset
from tlray.evaluation import evaluate, scope
from tlray.training import finish

# Six patients of each class: a validation and a test split are cut.
CLASSES = [(label, f"{label}{number}") for label in "ab" for number in range(6)]
NOTHING_FOUND = {"across_splits": {"num_groups": 0}}
GIVEN = {"given": ["train", "test"]}
FINDINGS = {"intensity_range": None, "duplicates": NOTHING_FOUND, "groups": NOTHING_FOUND}


@pytest.mark.parametrize("given", [None, "train"])
def test_data_is_known_again_where_splits_were_cut(given):
    """The listing has no split, or lacks some; the run's own manifest has all of them."""
    listed = make_table(*((label, given, patient) for label, patient in CLASSES))
    read = manifest.with_column(listed, "sha256", [f"s{number}" for number in range(12)])
    read = read.append_column("error_code", pa.nulls(12, pa.string()))
    cut = dataset.with_splits(read, seed=0)
    assert set(cut["split"].to_pylist()) == set(manifest.SPLITS)
    config = TrainConfig(data="d", out="o").resolved()
    spec = finish.make_spec(config, Dataset(table=cut, findings=FINDINGS), "symmetric")
    assert scope.is_own(spec, listed)
    assert scope.is_own(spec, cut)
    assert not scope.is_own(spec, listed.slice(1))


def test_a_training_that_cuts_valid_knows_the_splits_and_files_again_that_it_was_given():
    """Two images cannot be read: one of test, and one that has no split."""
    rows = [(label, "test" if patient[1] in "45" else "train", patient) for label, patient in CLASSES]
    listed = make_table(*rows, ("a", "test", "x"), ("b", None, "y"))
    read = manifest.with_column(listed, "sha256", [f"s{number}" for number in range(14)])
    read = read.append_column("error_code", pa.array([None] * 12 + ["empty"] * 2, pa.string()))
    images = Dataset(table=dataset.with_splits(read, seed=0), findings=FINDINGS | {"split_shortcuts": GIVEN})
    assert "valid" in images.table["split"].to_pylist()
    spec = finish.make_spec(TrainConfig(data="d", out="o").resolved(), images, "symmetric")
    for table in (listed, images.table):
        found = scope.choose(spec, table, evaluate.select_split(table, "test"), "test")
        assert (found.knows_splits, found.has_learned) == (True, True)
        assert scope.with_files(found, spec, read, "test").has_own_files is True
    fold = [{"train": "test", "test": "train"}.get(each, each) for each in listed["split"].to_pylist()]
    other = manifest.with_column(listed, "split", fold)
    assert not scope.choose(spec, other, evaluate.select_split(other, "test"), "test").knows_splits
    # A run that an earlier version has begun does not know which splits the data gave.
    begun = dataclasses.replace(images, findings=FINDINGS)
    spec = finish.make_spec(TrainConfig(data="d", out="o").resolved(), begun, "symmetric")
    assert spec.given_split_fingerprint is None
    assert not scope.choose(spec, listed, evaluate.select_split(listed, "test"), "test").knows_splits


def test_a_bundle_of_an_earlier_version_knows_the_splits():
    listed = make_table(("a", "train", "1"), ("b", "test", "2"))
    spec = dataclasses.replace(SPEC, id_fingerprint=None, split_fingerprint=manifest.split_fingerprint(listed))
    assert scope.is_own(spec, listed)
    assert not scope.is_own(spec, make_table(("a", "train", "1"), ("b", "valid", "2")))


def test_a_search_that_is_blind_does_not_tell_that_images_are_new():
    """The bundle keeps 2 of 9 training pictures, and the model was trained on images with these ids."""
    search = LeakSearch(among=PICTURES, num_compared=2, num_pictures=9)
    blind = dataclasses.replace(search, is_own=True)
    values = {"num_images": 9, "num_leaked": 0, "leak_free": None}
    assert evaluate.quoted("all", values, search)["is_leak_free"] is True
    assert evaluate.quoted("all", values, blind) == {
        "num_images": 9,
        "num_leaked": 0,
        "split": "all",
        "is_leak_free": None,
    }
    some = values | {"num_leaked": 2, "leak_free": {"num_images": 7}}
    assert evaluate.quoted("all", some, blind)["is_leak_free"] is None
    assert evaluate.quoted("all", some, blind)["num_images"] == 7
    assert evaluate.quoted("all", values | {"num_leaked": 9}, blind)["is_leak_free"] is False
