"""The error of a mean over groups of images, by hand."""

import math

import numpy as np
import pytest

from tlray.tuning.comparison import mean_by_group


def test_by_hand():
    # The values 2 of one patient and 0, 1, 2 of another: a mean of 5/4, sums that deviate by 2 - 5/4 and 3 - 15/4, and
    # sqrt(2 / 1 * (0.75^2 + 0.75^2)) / 4.
    assert mean_by_group(np.array([2.0, 3.0]), np.array([1, 3])) == (1.25, 0.375)


def test_of_single_images_it_is_the_usual_error():
    values = np.array([0.0, 1.0, 2.0, 5.0])
    mean, error = mean_by_group(values, np.ones(4, int))
    assert (mean, error) == (2.0, pytest.approx(values.std(ddof=1) / 2))


@pytest.mark.parametrize("num_copies", [2, 10])
def test_copies_of_slices_make_it_no_smaller(num_copies):
    sums, sizes = np.array([0.5, 2.0, 1.0]), np.array([1, 3, 2])
    mean, error = mean_by_group(sums, sizes)
    assert mean_by_group(sums * num_copies, sizes * num_copies) == (pytest.approx(mean), pytest.approx(error))


def test_one_group_tells_nothing_of_others():
    assert mean_by_group(np.array([3.0]), np.array([2])) == (1.5, math.inf)
