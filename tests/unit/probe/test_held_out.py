"""Logits of images from probes that do not know their patients."""

import math

import numpy as np
import pytest
from scipy import special

from tlray.probe import held_out, regression

NUM_GROUPS, GROUP_SIZE = 12, 5


def telling_features(num_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features that show a class, and the patient; the label is this class, except that of the first patient.

    Returns:
        Features, labels, groups, and the classes that the features show.
    """
    rng = np.random.default_rng(0)
    number = np.repeat(np.arange(NUM_GROUPS), GROUP_SIZE)
    labels = number % num_classes
    shown = np.where(number == 0, 1, labels)
    classes = np.eye(num_classes)[shown] + 0.1 * rng.normal(size=(len(number), num_classes))
    features = np.concatenate([classes, np.eye(NUM_GROUPS)[number]], axis=1).astype(np.float16)
    return features, labels, np.array([f"patient {each}" for each in number]), shown


def out_of_fold(
    features, labels, groups, num_classes, *, balanced=False, inverse_penalty: float | None = 10.0, num_folds=5, seed=0
):
    return held_out.logits(
        features, labels, groups,
        num_classes=num_classes, balanced=balanced, inverse_penalty=inverse_penalty, num_folds=num_folds, seed=seed,
    )  # fmt: skip


@pytest.mark.parametrize("num_classes", [2, 3])
def test_no_probe_knows_the_patient(num_classes):
    features, labels, groups, shown = telling_features(num_classes)
    logits_BK = out_of_fold(features, labels, groups, num_classes)
    assert logits_BK is not None
    assert (logits_BK.shape, logits_BK.dtype) == ((60, num_classes), np.float32)
    assert logits_BK.argmax(axis=1).tolist() == shown.tolist()
    # A probe that knows the patients gives their labels.
    known = regression.fit(
        features, labels, features, labels, num_classes=num_classes, balanced=False, inverse_penalties=(10.0,)
    )
    assert known.train_accuracy == 1


def test_features_that_are_always_0_change_nothing_even_if_there_are_more_than_images():
    features, labels, groups, _ = telling_features(3)
    wide = np.concatenate([features, np.zeros((60, 100), np.float16)], axis=1)
    found, expected = out_of_fold(wide, labels, groups, 3), out_of_fold(features, labels, groups, 3)
    assert found is not None
    assert expected is not None
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.03 * np.abs(expected).max())


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize(("counts", "num_folds"), [((20, 10), 5), ((20, 10), 2), ((20, 10, 10), 5)])
def test_without_any_difference_the_logits_assume_the_shares(counts, num_folds, balanced):
    """Each probe is fitted on the same part of each class, such as four fifths."""
    labels = np.repeat(np.arange(len(counts)), counts)
    groups = np.array([str(number) for number in range(len(labels))])
    features = np.ones((len(labels), 3))
    logits_BK = out_of_fold(features, labels, groups, len(counts), balanced=balanced, num_folds=num_folds)
    assert logits_BK is not None
    expected = 0 if balanced else math.log(10 / 20)
    np.testing.assert_allclose(logits_BK[:, 1:] - logits_BK[:, :1], expected, atol=0.01)


def test_the_seed_decides_the_folds():
    features, labels, groups, _ = telling_features(2)
    found = [out_of_fold(features, labels, groups, 2, seed=seed) for seed in (0, 0, 1, 2, 3)]
    first, again, *others = (np.asarray(logits_BK) for logits_BK in found)
    assert np.array_equal(first, again)
    assert not all(np.array_equal(first, other) for other in others)


@pytest.mark.parametrize(
    ("of_second", "is_known"),
    [(["x"] * 5, False), (["x", "x", "x", "y", "y"], True), ([], False)],
    ids=["one group", "two groups", "no image"],
)
def test_a_class_needs_two_groups(of_second, is_known):
    labels = np.array([0] * 10 + [1] * len(of_second))
    groups = np.array([*map(str, range(10)), *of_second])
    features = np.random.default_rng(0).normal(size=(len(labels), 4))
    found = out_of_fold(features, labels, groups, 2, inverse_penalty=0.1)
    assert (found is not None) is is_known
    if found is not None:
        assert np.isfinite(found).all()
        assert (np.abs(found).sum(axis=1) > 0).all()  # each image was held out once


@pytest.mark.parametrize("balanced", [False, True])
def test_without_a_penalty_the_one_that_does_best_on_images_held_out_is_taken(balanced):
    """One feature tells the classes, badly, and 20 tell nothing: neither end of the penalties is best."""
    rng = np.random.default_rng(0)
    labels = (np.arange(120) % 3 == 0).astype(int)
    features = np.concatenate([labels[:, None] + rng.normal(size=(120, 1)), rng.normal(size=(120, 20))], axis=1)
    groups = np.arange(120).astype(str)
    candidates = [
        np.asarray(out_of_fold(features, labels, groups, 2, balanced=balanced, inverse_penalty=each))
        for each in regression.INVERSE_PENALTIES
    ]
    shift = np.log([2 / 3, 1 / 3]) if balanced else np.zeros(2)  # the loss is that of images with these shares
    logs = [special.log_softmax(logits_BK.astype(np.float64) + shift, axis=1) for logits_BK in candidates]
    best = int(np.argmin([-np.mean(each[np.arange(120), labels]) for each in logs]))
    assert 0 < best < len(candidates) - 1
    found = np.asarray(out_of_fold(features, labels, groups, 2, balanced=balanced, inverse_penalty=None))
    differences = [float(np.abs(found - each).max()) for each in candidates]
    # Fits of one fold begin where the last penalty's have ended, so that they differ by their tolerance.
    assert differences.pop(best) < 1e-3
    assert min(differences) > 0.02


@pytest.mark.parametrize("num_rare", [0, 2])
def test_of_many_images_some_groups_choose_the_penalty(monkeypatch, num_rare):
    """All images then get the logits of that one penalty. A class of two patients is in the sample, too."""
    features, labels, groups, _ = telling_features(2)
    labels = np.where(np.isin(groups, [f"patient {number}" for number in range(num_rare)]), 2, labels)
    num_classes = 3 if num_rare else 2
    monkeypatch.setattr(held_out, "MAX_CHOOSING", 20)
    some = held_out._some_groups(labels, groups, num_folds=2, seed=0)
    num_groups = [len(np.unique(groups[some][labels[some] == label])) for label in range(num_classes)]
    assert num_groups == [2] * num_classes
    assert len(some) == 5 * sum(num_groups)  # whole patients
    sizes: list[int] = []
    solve = regression.solve

    def solve_and_note(model, rows, *rest, **named):
        sizes.append(len(rows))
        return solve(model, rows, *rest, **named)

    monkeypatch.setattr(regression, "solve", solve_and_note)
    found = out_of_fold(features, labels, groups, num_classes, inverse_penalty=None, num_folds=2)
    assert len(sizes) == 2 * len(regression.INVERSE_PENALTIES) + 2
    assert max(sizes[:-2]) < 20 < min(sizes[-2:])
    monkeypatch.undo()
    same = (
        out_of_fold(features, labels, groups, num_classes, inverse_penalty=each, num_folds=2)
        for each in regression.INVERSE_PENALTIES
    )
    assert any(found is not None and each is not None and np.array_equal(each, found) for each in same)
