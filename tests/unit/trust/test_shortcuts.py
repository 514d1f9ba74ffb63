"""Planted shortcuts in tables of random traits. benchmarks/planted_shortcuts.py plants them in images."""

import numpy as np
import pyarrow as pa
import pytest

from tlray.data import traits
from tlray.errors import DataError
from tlray.trust import shortcuts
from tlray.trust.intervals import share_interval

NUM_IMAGES = 120
CLASSES = [("a", "b", "c")[place % 3] for place in range(NUM_IMAGES)]
GROUPS = [f"{place % 3}/{place // 6}" for place in range(NUM_IMAGES)]  # two images of one class each
IS_B = np.array(CLASSES) == "b"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shortcuts, "NUM_TREES", 5)
    monkeypatch.setattr(shortcuts, "MAX_FOLDS", 3)


def random_table(seed: int = 0, **columns) -> pa.Table:
    """Returns a table of traits; images of one group are alike, as the slices of a patient are."""
    rng = np.random.default_rng(seed)
    _, group_of = np.unique(GROUPS, return_inverse=True)
    numbers = [name for family in traits.FAMILIES.values() for name in family if name not in traits.CATEGORIES]
    data = {name: rng.normal(size=group_of.max() + 1)[group_of] + 0.1 * rng.normal(size=NUM_IMAGES) for name in numbers}
    data |= {"format": ["PNG"] * NUM_IMAGES, "mode": ["L"] * NUM_IMAGES} | columns
    return traits.to_table([{name: data[name][row] for name in data} for row in range(NUM_IMAGES)])


def higher(amount: float) -> np.ndarray:
    return np.random.default_rng(9).normal(size=NUM_IMAGES) + amount * IS_B


@pytest.mark.parametrize(
    ("family", "trait", "values"),
    [
        ("file", "format", ["JPEG" if is_b else "PNG" for is_b in IS_B]),
        ("size", "width_px", higher(6)),
        ("grey levels", "percentile_99", higher(6)),
        ("corners", "top_right_mean", higher(6)),
    ],
)
def test_planted_shortcut_is_named(family: str, trait: str, values):
    found = shortcuts.find(random_table(**{trait: values}), CLASSES, GROUPS)
    assert [(test.family, test.told, test.trait) for test in found.findings] == [(family, "b", trait)]
    (test,) = found.findings
    assert test.p_value == 1 / (1 + shortcuts.NUM_PERMUTATIONS)
    assert test.balanced_accuracy > 0.85
    assert test.majority == pytest.approx(2 / 3)
    low, high = test.balanced_accuracy_ci95
    assert 0.5 < low < test.balanced_accuracy <= high
    assert f"balanced accuracy {test.balanced_accuracy:.2f}, 95 % interval {low:.2f} to {high:.2f}" in test.describe()
    assert f"A forest that sees {family} only tells 'b' from the rest in" in test.describe()
    assert f"'{trait}'" in test.describe()
    assert (found.num_images, found.num_groups, found.num_folds, found.left_out) == (120, 60, 3, ())
    assert found.together is not None
    assert list(found.held_out) == list(range(NUM_IMAGES))
    is_right = [found.held_out[row] == label for row, label in enumerate(CLASSES)]
    assert np.mean(is_right) == pytest.approx(found.together.accuracy)


def test_perfect_shortcut_has_the_figures_by_hand():
    table = random_table(format=["JPEG" if is_b else "PNG" for is_b in IS_B], file_bytes=[1] * NUM_IMAGES)
    table = table.set_column(
        table.column_names.index("bytes_per_pixel"), "bytes_per_pixel", pa.array([1.0] * NUM_IMAGES)
    )
    (test,) = shortcuts.find(table, CLASSES, GROUPS).findings
    assert (test.accuracy, test.balanced_accuracy, test.margin, test.trait_balanced_accuracy) == (1, 1, 1, 1)
    # As of 20 of 20 groups of b, which has fewer than the rest.
    expected = share_interval(np.ones(20, bool), np.arange(20))
    assert test.balanced_accuracy_ci95 == pytest.approx((expected.low, 1))


def test_random_traits_are_no_shortcut():
    found = shortcuts.find(random_table(), CLASSES, GROUPS)
    assert found.findings == ()
    assert found.together is not None
    assert found.together.balanced_accuracy == pytest.approx(1 / 3, abs=0.2)


def test_traits_of_the_anatomy_are_tested_and_not_reported():
    found = shortcuts.find(random_table(percentile_50=higher(6)), CLASSES, GROUPS)
    assert found.findings == ()
    (test,) = [test for test in found.tests if (test.family, test.told) == ("tissue", "b")]
    assert test.balanced_accuracy > 0.9
    assert test.trait is None


def test_a_patient_told_by_its_traits_is_no_shortcut():
    # Each of six patients has its own format: told within patients, and not between them.
    groups = [f"{label}{place % 2}" for place, label in enumerate(CLASSES)]
    names, group_of = np.unique(groups, return_inverse=True)
    found = shortcuts.find(random_table(width_px=group_of * 10.0), CLASSES, groups)
    assert (len(names), found.num_folds, found.findings) == (6, 2, ())


def test_two_classes_are_tested_once():
    classes = ["b" if is_b else "rest" for is_b in IS_B]
    found = shortcuts.find(random_table(height_px=higher(6)), classes, GROUPS)
    assert len(found.tests) == len(traits.FAMILIES) + 1
    assert [(test.family, test.told, test.chance) for test in found.findings] == [("size", None, 0.5)]


def test_class_with_one_group_is_left_out():
    classes = ["single", "single", *CLASSES[2:]]
    found = shortcuts.find(random_table(), classes, ["x", "x", *GROUPS[2:]])
    assert found.left_out == ("single",)
    assert found.num_images == 118
    assert {test.told for test in found.tests} == {None, "a", "b", "c"}


def test_a_class_that_the_sample_leaves_in_one_group_is_left_out(monkeypatch: pytest.MonkeyPatch):
    """A class that occurs in two patients only, who have other slices too: whether both are drawn is left to chance."""
    monkeypatch.setattr(shortcuts, "MAX_IMAGES", 60)
    monkeypatch.setattr(shortcuts, "MIN_SAMPLED_GROUPS", 5)
    classes = CLASSES.copy()
    classes[3] = classes[117] = "rare"  # the second images of two groups, which are drawn by their first ones
    assert GROUPS[0] == GROUPS[3] != GROUPS[114] == GROUPS[117]
    found = {shortcuts.find(random_table(), classes, GROUPS, seed=seed).left_out for seed in range(8)}
    assert found == {(), ("rare",)}


@pytest.mark.parametrize("classes", [["a"] * NUM_IMAGES, ["a"] * (NUM_IMAGES - 1) + ["b"]])
def test_one_class_is_not_tested(classes: list[str]):
    found = shortcuts.find(random_table(), classes, GROUPS)
    assert (found.tests, found.findings, found.together, found.num_folds) == ((), (), None, 0)


def test_no_images():
    found = shortcuts.find(traits.to_table([]), [], [])
    assert (found.tests, found.num_images) == ((), 0)


def test_lengths_must_agree():
    with pytest.raises(DataError, match="traits of 120 images, 120 classes and 119 groups"):
        shortcuts.find(random_table(), CLASSES, GROUPS[1:])


def test_many_images_are_sampled_in_whole_groups(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shortcuts, "MAX_IMAGES", 60)
    monkeypatch.setattr(shortcuts, "MIN_SAMPLED_GROUPS", 5)
    found = shortcuts.find(random_table(), CLASSES, GROUPS)
    assert (found.num_images, found.num_groups) == (60, 30)
