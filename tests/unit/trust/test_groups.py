"""Groups of images that are not independent."""

import numpy as np
import pytest

from tlray.errors import DataError
from tlray.trust import groups as trust_groups
from tlray.trust.groups import evidence_of, group_index, in_two_groups, weakest_class


def test_images_and_groups_are_counted():
    found = evidence_of(np.array([0, 0, 0, 1, 4]))
    assert (found.num_images, found.num_groups) == (5, 3)
    assert found.effective_groups == pytest.approx(25 / 11)  # (3 + 1 + 1)^2 / (9 + 1 + 1)
    assert evidence_of(np.arange(7)).effective_groups == pytest.approx(7)


def test_the_class_with_the_fewest_groups_counts():
    found = weakest_class(np.array([0, 0, 0, 1, 1, 1]), np.array([0, 1, 2, 3, 3, 4]))
    assert (found.num_images, found.num_groups) == (6, 2)
    assert found.effective_groups == pytest.approx(9 / 5)


def test_groups_that_do_not_fit_are_refused():
    assert group_index(np.array(["b", "a", "b"]), 3).tolist() == [1, 0, 1]
    for groups, num_images in ((np.array(["a"]), 2), (np.array([]), 0)):
        with pytest.raises(DataError, match="needs a group"):
            group_index(groups, num_images)


def test_permuted_gives_each_group_the_label_of_a_group():
    labels, groups = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 0, 1, 2, 2, 2])
    seen = set()
    for seed in range(50):
        found = trust_groups.permuted(labels, groups, np.random.default_rng(seed))
        assert found[0] == found[1]
        assert found[3] == found[4] == found[5]
        seen.add((found[0], found[2], found[3]))
    assert seen == {(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)}
    np.testing.assert_array_equal(labels, [0, 0, 1, 2, 2, 2])


def test_classes_in_one_group_are_told():
    labels, index = np.array([0, 0, 1, 1, 2]), np.array([5, 6, 5, 5, 7])
    assert in_two_groups(labels, index).tolist() == [True, True, False, False, False]
    assert in_two_groups(labels[:0], index[:0]).tolist() == []
