"""What is said of images that a model knows."""

import dataclasses

import pytest

from tlray.bundle.leaks import IMAGES, NOTHING, PICTURES, LeakSearch, answer, are_too_good, verb

NONE = {"num_images": 20, "num_leaked": 0, "leak_free": None}


@pytest.mark.parametrize(
    ("search", "text"),
    [
        (
            LeakSearch(among=IMAGES, num_compared=70, is_own=True, knows_splits=True),
            "a copy, or another image of its patient, among those that the model learned from. They were compared with "
            "the 70 images that it learned from.",
        ),
        (
            LeakSearch(among=PICTURES, num_compared=70, num_pictures=70),
            "a copy among the training images. They were compared with pictures of all training images (70 in the "
            "bundle). Other images of the same patients are not found.",
        ),
        (
            LeakSearch(among=PICTURES, num_compared=70),
            "a copy among the training images. They were compared with the 70 training pictures in the bundle: if "
            "these are not all, copies of the others are not found. Other images of the same patients are not found.",
        ),
        (
            LeakSearch(among=PICTURES, num_compared=70, num_pictures=90, is_own=True, knows_splits=True),
            "a copy, or another image of its patient, among those that the model learned from. They were compared with "
            "the 70 of 90 training pictures that the bundle keeps: copies of the others are not found.",
        ),
        (
            LeakSearch(among=NOTHING, is_own=True, knows_splits=True),
            "another image of its patient, among those that the model learned from. The bundle keeps no pictures of "
            "its training images, so copies of them cannot be found.",
        ),
    ],
)
def test_what_images_were_compared_with_is_told(search, text):
    assert answer("test images", NONE, search=search) == (f"None of the test images is known to have {text}", False)


@pytest.mark.parametrize(
    ("num_pictures", "unknown"),
    [(70, "which of them chose it, as its validation images"), (71, "on which"), (None, "on which")],
)
def test_a_model_on_its_own_data_of_which_nothing_tells_what_it_learned_from(num_pictures, unknown):
    """Pictures of all training images show none of the validation images."""
    search = LeakSearch(among=PICTURES, num_compared=70, num_pictures=num_pictures, is_own=True)
    assert search.is_blind
    for num_near, metrics in ((0, NONE), (3, NONE), (0, {"num_images": 20})):
        found = answer("measured images", metrics, num_near=num_near, search=search)
        assert found is not None
        assert found[1]
        assert f"it is not known {unknown}: give the manifest.parquet of its run as --data." in found[0]
    for known in (dataclasses.replace(search, knows_splits=True), dataclasses.replace(search, is_own=False)):
        assert not known.is_blind


def test_what_helps_against_slices_of_the_same_series_depends_on_the_data():
    """A bundle knows no patients."""
    own = LeakSearch(among=IMAGES, num_compared=70, is_own=True, knows_splits=True)
    for search, remedy in (
        (None, "Name the patients: one folder for each, or the column group_id of a table."),
        (own, "Name the patients: one folder for each, or the column group_id of a table."),
        (LeakSearch(among=PICTURES, num_compared=70), "Measure it on images of other patients."),
    ):
        found = answer("test images", NONE, num_near=3, search=search)
        assert found is not None
        assert found[1]
        assert found[0].endswith(f"so the figures are probably too good. {remedy}")


def test_without_any_knowledge_nothing_is_said():
    assert answer("test images", {"num_images": 20}) is None


def test_all_images_are_known():
    metrics = {"num_images": 20, "num_leaked": 20, "leak_free": None}
    assert answer("train images", metrics, search=LeakSearch(among=NOTHING)) == (
        "Yes: each of the train images has a copy among the training images. Measure it on images of other patients.",
        True,
    )


def test_figures_are_too_good_where_new_images_have_lower_ones():
    higher = {"accuracy": 0.8, "leak_free": {"accuracy": 0.9}}
    lower = {"accuracy": 0.8, "leak_free": {"accuracy": 0.7}}
    unknown = {"accuracy": 0.8, "leak_free": None}
    assert [are_too_good(each) for each in (higher, lower, unknown, {"accuracy": 0.8})] == [False, True, False, False]
    assert verb({"valid": higher, "test": unknown}) == verb({}) == "may be"
    assert verb({"valid": higher, "test": lower}) == "are"
