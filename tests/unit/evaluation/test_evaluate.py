"""Whose images are measured: those that a model was trained on, or others. Needs no running Ray."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from tests.unit.bundle.test_spec import SPEC
from tests.unit.data.test_manifest import make_table
from tlray.bundle.leaks import NOTHING, PICTURES, LeakSearch
from tlray.bundle.spec import BundleSpec
from tlray.config.training import TrainConfig
from tlray.data import dataset, manifest
from tlray.data.dataset import Dataset
from tlray.evaluation import evaluate, measurement
from tlray.training import finish

# Six patients of each class: a validation and a test split are cut.
CLASSES = [(label, f"{label}{number}") for label in "ab" for number in range(6)]
NOTHING_FOUND = {"across_splits": {"num_groups": 0}}
FINDINGS = {"intensity_range": None, "duplicates": NOTHING_FOUND, "groups": NOTHING_FOUND}


def make_spec(images: Dataset) -> BundleSpec:
    config = TrainConfig(data="d", out="o").resolved()
    return dataclasses.replace(finish.make_spec(config, images, "symmetric"), leaks=SPEC.leaks)


@pytest.mark.parametrize("given", [None, "train"])
def test_leaks_are_known_where_splits_were_cut(given):
    """The listing has no split, or lacks some; the run's own manifest has all of them."""
    listed = make_table(*((label, given, patient) for label, patient in CLASSES))
    read = manifest.with_column(listed, "sha256", [f"s{number}" for number in range(12)])
    read = read.append_column("error_code", pa.nulls(12, pa.string()))
    cut = dataset.with_splits(read, seed=0)
    assert set(cut["split"].to_pylist()) == set(manifest.SPLITS)
    spec = make_spec(Dataset(table=cut, findings=FINDINGS))
    assert evaluate.known_leaks(spec, listed) == SPEC.leaks
    assert evaluate.known_leaks(spec, cut) == SPEC.leaks
    assert evaluate.known_leaks(spec, listed.slice(1)) == ()


def test_images_that_the_model_knows_are_warned_of():
    assert evaluate.leak_warnings({"num_images": 9}) == ()
    assert evaluate.leak_warnings({"num_images": 9, "num_leaked": 0, "leak_free": None}) == ()
    for accuracy, verb in ((0.5, "are"), (0.9, "may be")):
        metrics = {"num_images": 9, "num_leaked": 4, "accuracy": 0.75, "leak_free": {"accuracy": accuracy}}
        assert evaluate.leak_warnings(metrics) == (
            f"The model knows 4 of the 9 images from its training, so the metrics of all images {verb} too good: quote "
            "those of the new images.",
        )
    (whole,) = evaluate.leak_warnings({"num_images": 9, "num_leaked": 9, "leak_free": None})
    assert whole.startswith("The model knows all 9 images from its training: measure it on images of other patients.")
    # What the training has found says why some images are known, but not that all are.
    assert evaluate.all_leaks(("Copies.",), {"num_images": 9, "num_leaked": 9, "leak_free": None}) == (whole, "Copies.")
    assert evaluate.all_leaks(("Copies.",), metrics) == ("Copies.",)
    assert evaluate.all_leaks((), metrics) == evaluate.leak_warnings(metrics)


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


def test_a_doubt_about_leaks_comes_with_its_question():
    plain = measurement.measure_probabilities(
        np.array([0, 1]), np.eye(2), ("a", "b"), groups=np.array(["x", "y"]), image_ids=np.array(["0", "1"]),
        ood_scores=np.full(2, np.nan, np.float32), limits=SPEC.limits,
    )  # fmt: skip
    blind = {"leak_search": dataclasses.asdict(LeakSearch(among=NOTHING, is_own=True))}
    told, *_ = evaluate._doubts("all", plain, SPEC, blind)
    assert told.startswith("Has the model seen these images before? Not known. The bundle keeps no pictures")
    known = measurement.with_leak_free(plain, {"0", "1"})
    assert not [each for each in evaluate._doubts("all", known, SPEC, blind) if "seen these images" in each]


def test_a_bundle_of_an_earlier_version_knows_the_splits():
    listed = make_table(("a", "train", "1"), ("b", "test", "2"))
    spec = dataclasses.replace(SPEC, id_fingerprint=None, split_fingerprint=manifest.split_fingerprint(listed))
    assert evaluate.known_leaks(spec, listed) == SPEC.leaks
    assert evaluate.known_leaks(spec, make_table(("a", "train", "1"), ("b", "valid", "2"))) == ()
