"""Suspect labels by hand, and among planted ones."""

import numpy as np
import pytest

from tlray.errors import DataError
from tlray.trust import suspects


def test_by_hand():
    probs_BK = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.3, 0.7], [0.2, 0.8], [0.45, 0.55]])
    labels = np.array([0, 0, 0, 1, 1, 0])
    # The means are 0.5625 for the first class and 0.75 for the second: 0.55 is not enough.
    (found,) = suspects.find(probs_BK, labels)
    assert (found.place, found.label, found.suggested) == (2, 0, 1)
    assert (found.label_prob, found.suggested_prob) == (0.1, 0.9)


def test_the_least_probable_label_comes_first():
    probs_BK = np.array([[0.9, 0.1]] * 8 + [[0.1, 0.9]] * 8 + [[0.2, 0.8], [0.05, 0.95]])
    labels = np.array([0] * 8 + [1] * 8 + [0, 0])
    assert [each.place for each in suspects.find(probs_BK, labels)] == [17]
    probs_BK[16] = [0.08, 0.92]
    assert [each.place for each in suspects.find(probs_BK, labels)] == [17, 16]


def test_planted_labels_are_found():
    rng = np.random.default_rng(0)
    true = rng.integers(0, 3, 600)
    logits_BK = rng.normal(size=(600, 3)) + 5 * np.eye(3)[true]
    probs_BK = np.exp(logits_BK) / np.exp(logits_BK).sum(axis=1, keepdims=True)
    labels = true.copy()
    planted = rng.choice(600, 30, replace=False)
    labels[planted] = (true[planted] + 1) % 3
    found = {each.place for each in suspects.find(probs_BK, labels)}
    # A suggested class must be as probable as it is on average, which not every planted label reaches.
    assert len(found & set(planted.tolist())) >= 20
    assert len(found - set(planted.tolist())) <= 15


def test_a_class_without_images_and_labels_without_doubt():
    assert suspects.find(np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]]), np.array([0, 1])) == []
    with pytest.raises(DataError):
        suspects.find(np.zeros((0, 2)), np.zeros(0, int))
