"""Prediction sets: thresholds by hand, and that they cover as promised, by patient and by class."""

import math

import numpy as np
import pytest

from tlray.bundle.judgement import prediction_sets
from tlray.errors import ConfigError, DataError
from tlray.trust.conformal import fit, min_groups


def scored(scores):
    """Probabilities of two classes with these scores of the first, which is the true one."""
    scores = np.asarray(scores, np.float64)
    return np.stack([1 - scores, scores], axis=1), np.zeros(len(scores), int)


def simulated(rng, num_patients, num_classes=3):
    """Patients with 1 to 10 images each, which share most of their noise; the last class is harder."""
    labels = rng.integers(0, num_classes, num_patients)
    groups = np.repeat(np.arange(num_patients), rng.integers(1, 11, num_patients))
    logits_BK = 1.5 * rng.normal(size=(num_patients, num_classes))[groups]
    logits_BK += 0.7 * rng.normal(size=(len(groups), num_classes))
    logits_BK[np.arange(len(groups)), labels[groups]] += np.where(labels[groups] == num_classes - 1, 1, 3)
    probs_BK = np.exp(logits_BK)
    return probs_BK / probs_BK.sum(axis=1, keepdims=True), labels[groups], groups


def test_the_quantile_by_hand():
    # ceil(20 * 0.9) = 18: the 18th smallest of 19 scores, whatever their order.
    probs_BK, labels = scored(np.arange(19, 0, -1) / 20)
    found = fit(probs_BK, labels, 0.1)
    assert found.thresholds == pytest.approx((0.9, 0.9))
    assert (found.is_class_conditional, found.num_groups) == ((False, False), (19, 0))


def test_with_few_images_the_threshold_is_the_largest_score_then_1():
    assert fit(*scored(np.arange(1, 10) / 20), 0.1).thresholds[0] == pytest.approx(9 / 20)  # ceil(10 * 0.9) = 9
    assert fit(*scored(np.arange(1, 9) / 20), 0.1).thresholds[0] == 1  # ceil(9 * 0.9) = 9 of 8
    assert fit(*scored([0.2]), 0.1).thresholds == (1, 1)


def test_images_of_a_patient_share_its_weight():
    # Patients with 1, 1 and 4 images, alpha 0.5: weights up to 0.5 * 4 = 2. Sorted: 0.1 (1), 0.2 to 0.5 (1/4 each).
    probs_BK, labels = scored([0.1, 0.9, 0.2, 0.3, 0.4, 0.5])
    groups = np.array(["a", "b", "c", "c", "c", "c"])
    assert fit(probs_BK, labels, 0.5, groups).thresholds[0] == pytest.approx(0.5)
    assert fit(probs_BK, labels, 0.5).thresholds[0] == pytest.approx(0.4)  # ceil(7 * 0.5) = 4


def test_a_repeated_image_changes_nothing():
    probs_BK, labels = scored(np.arange(1, 31) / 40)
    repeats = np.arange(30) % 4 + 1
    again = fit(
        np.repeat(probs_BK, repeats, axis=0), np.repeat(labels, repeats), 0.1, np.repeat(np.arange(30), repeats)
    )
    assert again == fit(probs_BK, labels, 0.1)


@pytest.mark.parametrize(("alpha", "least"), [(0.1, 19), (0.05, 39), (0.2, 9), (0.5, 3), (0.3, 6)])
def test_the_number_of_groups_for_a_threshold_of_a_class(alpha, least):
    assert min_groups(alpha) == least
    assert least >= math.ceil(1 / alpha) - 1


def of_three(scores, labels):
    """Probabilities of three classes with these scores of the true one; the others share the rest evenly."""
    true_BK = np.eye(3)[labels]
    return (1 - true_BK) * scores[:, None] / 2 + true_BK * (1 - scores[:, None])


def test_classes_with_few_patients_share_a_threshold():
    scores = np.r_[np.arange(1, 41) / 100, np.full(10, 0.8), np.full(9, 0.9)]
    labels = np.repeat([0, 1, 2], [40, 10, 9])
    probs_BK = of_three(scores, labels)
    found = fit(probs_BK, labels, 0.1)
    assert found.is_class_conditional == (True, False, False)
    assert found.thresholds == pytest.approx((0.37, 0.9, 0.9))  # ceil(41 * 0.9) = 37 of 40; ceil(20 * 0.9) = 18 of 19


def test_if_these_have_too_few_the_next_smallest_class_joins_them():
    scores = np.r_[np.arange(1, 41) / 100, np.full(30, 0.5), np.full(18, 0.8)]
    labels = np.repeat([0, 1, 2], [40, 30, 18])
    probs_BK = of_three(scores, labels)
    found = fit(probs_BK, labels, 0.1)
    assert found.is_class_conditional == (True, False, False)
    assert found.thresholds == pytest.approx((0.37, 0.8, 0.8))  # ceil(49 * 0.9) = 45 of 48
    alone = fit(probs_BK[labels != 1], labels[labels != 1], 0.1)  # and a class without images
    assert alone.is_class_conditional == (False, False, False)
    assert alone.thresholds == pytest.approx((0.8, 0.8, 0.8))  # ceil(59 * 0.9) = 54 of 58


def test_a_threshold_of_1_takes_all_classes():
    everything = fit(*scored([0.2]), 0.1)
    assert prediction_sets(np.array([[1.0, 0.0]]), everything.thresholds).all()


def coverage(sets_BK, labels, groups):
    """Mean over patients of the share of their images whose set has the true class."""
    index = np.unique(groups, return_inverse=True)[1]
    is_covered = sets_BK[np.arange(len(labels)), labels]
    return np.mean(np.bincount(index, is_covered) / np.bincount(index))


def test_sets_cover_by_patient_and_by_class():
    """150 sets of 150 patients for the thresholds, and as many new patients."""
    rng = np.random.default_rng(0)
    of_all, of_class = [], []
    for _ in range(150):
        probs_BK, labels, groups = simulated(rng, 150)
        conformal = fit(probs_BK, labels, 0.1, groups)
        assert all(conformal.is_class_conditional)
        probs_BK, labels, groups = simulated(rng, 150)
        sets_BK = prediction_sets(probs_BK, conformal.thresholds)
        of_all.append(coverage(sets_BK, labels, groups))
        of_class.append([coverage(sets_BK[labels == k], labels[labels == k], groups[labels == k]) for k in range(3)])
    assert np.mean(of_all) == pytest.approx(0.9, abs=0.02)
    assert np.mean(of_class, axis=0) == pytest.approx([0.9, 0.9, 0.9], abs=0.02)


def test_sets_cover_all_patients_together_where_the_hardest_classes_have_few():
    """150 sets of 60, 60, 15 and 10 patients; the images of the last two classes look like those of the others."""
    rng = np.random.default_rng(0)

    def draw() -> tuple[np.ndarray, np.ndarray]:
        labels = np.repeat([0, 1, 2, 3], [60, 60, 15, 10])
        logits_BK = rng.normal(size=(len(labels), 4))
        logits_BK[np.arange(len(labels)), labels] += np.where(labels >= 2, 0, 4)
        probs_BK = np.exp(logits_BK)
        return probs_BK / probs_BK.sum(axis=1, keepdims=True), labels

    of_all, of_few = [], []
    for _ in range(150):
        conformal = fit(*draw(), 0.1)
        assert conformal.is_class_conditional == (True, True, False, False)
        probs_BK, labels = draw()
        is_covered = prediction_sets(probs_BK, conformal.thresholds)[np.arange(len(labels)), labels]
        of_all.append(np.mean(is_covered))
        of_few.append(np.mean(is_covered[labels >= 2]))
    assert np.mean(of_all) == pytest.approx(0.9, abs=0.02)
    assert np.mean(of_few) == pytest.approx(0.9, abs=0.025)


def test_what_cannot_be_used_is_refused():
    probs_BK, labels = scored([0.1, 0.2])
    for alpha in (0, 1, math.nan):
        with pytest.raises(ConfigError, match="alpha must lie between 0 and 1"):
            fit(probs_BK, labels, alpha)
    with pytest.raises(DataError, match="finite"):
        fit(np.array([[math.nan, 0.5]]), np.array([0]), 0.1)
    with pytest.raises(DataError, match="needs a group"):
        fit(probs_BK, labels, 0.1, np.array([1]))
