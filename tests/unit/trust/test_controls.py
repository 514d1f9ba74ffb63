"""Controls on random features, with and without a leak."""

import numpy as np
import pyarrow as pa
import pytest

from tlray.data import traits
from tlray.errors import DataError
from tlray.probe import regression
from tlray.trust import controls
from tlray.trust.intervals import share_interval

NUM_CLASSES = 3
LABELS = np.arange(90) % NUM_CLASSES
GROUPS = [str(number) for number in range(90)]
IS_TEST = np.arange(90) >= 60


def features(seed: int = 0, num_images: int = 90) -> np.ndarray:
    return np.random.default_rng(seed).random((num_images, 40)).astype(np.float16)


def table(widths: np.ndarray) -> pa.Table:
    names = [name for family in traits.FAMILIES.values() for name in family]
    row = {name: "PNG" if name == "format" else "L" if name == "mode" else 1.0 for name in names}
    return traits.to_table([row | {"width_px": float(width)} for width in widths])


def test_nearest_is_by_the_angle():
    train = np.array([[1, 0], [0, 5], [3, 3]], np.float16)
    found = controls.nearest(train, np.array([[0.1, 9], [2, 2.1], [7, 0], [0, 0]], np.float16))
    assert found[:3].tolist() == [1, 2, 0]


def test_nearest_in_several_blocks(monkeypatch: pytest.MonkeyPatch):
    train, some = features(0), features(1)
    expected = controls.nearest(train, some)
    monkeypatch.setattr(controls, "_BLOCK", 7)
    np.testing.assert_array_equal(controls.nearest(train, some), expected)


def test_neighbour_finds_copies():
    train = features()
    found = controls.by_neighbour(train, LABELS, train[:30], LABELS[:30], GROUPS[:30])
    assert (found.name, found.accuracy, found.num_images, found.num_groups) == ("nearest neighbour", 1, 30, 30)
    assert found.majority == pytest.approx(1 / 3)
    expected = share_interval(np.ones(30, bool), np.arange(30))
    assert found.accuracy_ci95 == pytest.approx((expected.low, 1))
    assert found.chance == pytest.approx(1 / 3, abs=0.01)
    assert found.p_value == 1 / (1 + controls.NUM_PERMUTATIONS)
    assert found.is_above_chance


def test_neighbour_of_random_features_is_at_chance():
    found = controls.by_neighbour(features(0), LABELS, features(1), LABELS, GROUPS)
    assert not found.is_above_chance
    assert found.accuracy == pytest.approx(1 / 3, abs=0.15)


def test_one_patient_says_nothing_however_many_images_it_has():
    found = controls.by_neighbour(features(), LABELS, features()[:60:3], LABELS[:60:3], ["one"] * 20)
    assert (found.accuracy, found.num_groups, found.p_value) == (1, 1, 1)
    assert found.accuracy_ci95 == (0, 1)
    assert not found.is_above_chance


def test_traits_that_tell_the_class():
    widths = 100.0 + LABELS
    train, test = table(widths[~IS_TEST]), table(widths[IS_TEST])
    found = controls.by_traits(train, LABELS[~IS_TEST], test, LABELS[IS_TEST], GROUPS[60:])
    assert (found.name, found.accuracy, found.is_above_chance) == ("traits", 1, True)


def test_traits_that_do_not():
    widths = np.random.default_rng(0).random(90)
    train, test = table(widths[~IS_TEST]), table(widths[IS_TEST])
    assert not controls.by_traits(train, LABELS[~IS_TEST], test, LABELS[IS_TEST], GROUPS[60:]).is_above_chance


@pytest.mark.parametrize("seed", range(5))
def test_permuted_labels_are_at_chance_without_a_leak(seed: int):
    # The features tell the true classes, which makes no difference here.
    told = features() + np.eye(40, dtype=np.float16)[LABELS] * 3
    found = controls.by_permuted_labels(told, LABELS, GROUPS, IS_TEST, seed=seed)
    assert not found.is_above_chance
    assert found.accuracy == pytest.approx(found.chance, abs=0.12)
    low, high = found.accuracy_ci95
    assert 0 < low < found.accuracy < high < 1


def test_permuted_labels_show_copies_in_training():
    copied = features()
    copied[60:80] = copied[:20]
    groups = [*GROUPS[:60], *GROUPS[:20], *GROUPS[80:]]
    labels = np.concatenate([LABELS[:60], LABELS[:20], LABELS[80:]])
    found = controls.by_permuted_labels(copied, labels, groups, IS_TEST, inverse_penalty=10.0)
    assert found.is_above_chance
    assert found.accuracy > 0.6  # 20 of 30 are known
    assert found.chance < 0.45


def test_permuted_labels_of_two_groups():
    # The training images are of one group, so there is but one label to learn.
    groups = ["train"] * 60 + ["test"] * 30
    labels = IS_TEST.astype(int)
    found = controls.by_permuted_labels(features(), labels, groups, IS_TEST)
    assert (found.accuracy, found.p_value) == (0, 1)


def test_many_training_images_are_sampled(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(controls, "MAX_TRAIN_IMAGES", 20)
    assert controls.by_permuted_labels(features(), LABELS, GROUPS, IS_TEST).num_images == 30


def test_test_images_are_turned_in_blocks(monkeypatch: pytest.MonkeyPatch):
    expected = controls.by_permuted_labels(features(), LABELS, GROUPS, IS_TEST)
    turn, turned = regression.Basis.turn, []

    def counted(basis: regression.Basis, some: np.ndarray) -> np.ndarray:
        turned.append(len(some))
        return turn(basis, some)

    monkeypatch.setattr(regression.Basis, "turn", counted)
    monkeypatch.setattr(controls, "_BLOCK", 7)
    assert controls.by_permuted_labels(features(), LABELS, GROUPS, IS_TEST) == expected
    assert turned == [60, 7, 7, 7, 7, 2]  # the training images first


def test_wrong_lengths():
    with pytest.raises(DataError, match="90 labels for 90 and 90 and 3"):
        controls.by_permuted_labels(features(), LABELS, GROUPS, IS_TEST[:3])
    with pytest.raises(DataError, match="at least one image"):
        controls.by_permuted_labels(features(), LABELS, GROUPS, np.ones(90, bool))
    with pytest.raises(DataError, match="same label"):
        controls.by_permuted_labels(features(), LABELS * 0, GROUPS, IS_TEST)
    with pytest.raises(DataError, match="Give one of each"):
        controls.by_neighbour(features(), LABELS[1:], features(), LABELS, GROUPS)
