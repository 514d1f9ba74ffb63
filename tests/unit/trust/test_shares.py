"""A share and a mean with their intervals, and a given threshold, by hand."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from tlray.errors import DataError
from tlray.trust.intervals import mean_interval, share_interval
from tlray.trust.referral import at_threshold, choose_threshold

TEN = np.arange(10) < 3
"""Three true values of ten."""


def wilson(share: float, size: float, num_groups: int) -> tuple[float, float, float]:
    """The share, and Wilson's interval for an effective sample size, with Student's t."""
    t = float(stats.t.ppf(0.975, num_groups - 1))
    centre = (share + t**2 / (2 * size)) / (1 + t**2 / size)
    half = t * math.sqrt(share * (1 - share) / size + t**2 / (4 * size**2)) / (1 + t**2 / size)
    return share, centre - half, centre + half


def test_a_share_of_single_images():
    found = share_interval(TEN, np.array(list("jihgfedcba")))
    assert dataclasses.astuple(found) == pytest.approx(wilson(0.3, 10, 10))


def test_groups_widen_the_interval():
    """Ten groups of four equal images: variance 0.3 * 0.7 / 9, that of single images 0.3 * 0.7 / 39."""
    repeated = np.repeat(TEN, 4)
    grouped = share_interval(repeated, np.repeat(np.arange(10), 4))
    assert dataclasses.astuple(grouped) == pytest.approx(wilson(0.3, 40 * 9 / 39, 10))
    apart = share_interval(repeated, np.arange(40))
    assert grouped.low < apart.low < apart.high < grouped.high


@pytest.mark.parametrize("value", [True, False])
def test_all_alike(value):
    """Groups of three images and of one count as 4^2 / (3^2 + 1^2) = 1.6 images."""
    found = share_interval(np.full(4, value), np.array(["a", "a", "a", "b"]))
    edge = 1.6 / (1.6 + stats.t.ppf(0.975, 1) ** 2)
    assert dataclasses.astuple(found) == pytest.approx((1, edge, 1) if value else (0, 0, 1 - edge))


def test_no_images_and_one_group():
    nothing = share_interval(np.zeros(0, bool), np.zeros(0, str))
    assert all(math.isnan(each) for each in dataclasses.astuple(nothing))
    assert dataclasses.astuple(share_interval(np.array([True, False]), np.array(["a", "a"]))) == (0.5, 0, 1)
    assert dataclasses.astuple(share_interval(np.array([True]), np.array(["a"]))) == (1, 0, 1)
    with pytest.raises(DataError, match="needs a group"):
        share_interval(TEN, np.arange(9))


def test_a_mean_of_values_that_are_at_the_ends_of_their_range_is_a_share():
    groups = np.repeat(np.arange(5), 2)
    share, mean = share_interval(TEN, groups), mean_interval(np.where(TEN, 6.0, 2.0), groups, low=2, high=6)
    assert dataclasses.astuple(mean) == pytest.approx([2 + 4 * end for end in dataclasses.astuple(share)])


def test_values_that_vary_less_than_a_share_have_a_narrower_interval():
    """Half are 0.4 and half 0.6, so the variance is 0.01 in place of 0.25; two more values are 0 and 1."""
    values, size = np.repeat([0.4, 0.6], 50), 100
    found = mean_interval(values, np.arange(size))
    larger = size * 0.25 / ((size * 0.01 + 2 * 0.25) / (size + 2))
    assert dataclasses.astuple(found) == pytest.approx(wilson(0.5, larger, size))


def test_values_that_are_all_alike_have_an_interval_with_a_width():
    found = mean_interval(np.full(40, 1e-4), np.arange(40))
    t = stats.t.ppf(0.975, 39)
    assert found.low == pytest.approx(0, abs=1e-4)
    assert found.high == pytest.approx(t**2 / (40 + t**2), rel=0.01)  # that of none of 40


def test_a_rounding_out_of_the_range_is_no_error():
    found = mean_interval(np.array([2.000001, 2.000001, 2.0]), np.arange(3), high=2)
    assert found.value <= found.high
    assert found.low < 2
    assert dataclasses.astuple(mean_interval(np.array([1, 3]), np.zeros(2), low=1, high=4)) == (2, 1, 4)


CONFIDENCE = np.array([0.6, 0.9, 0.8, 0.7])
IS_RIGHT = np.array([False, True, False, True])


def test_a_threshold_accepts_images_that_reach_it():
    found = at_threshold(0.7, CONFIDENCE, IS_RIGHT)
    assert (found.value, found.coverage, found.note) == (0.7, 0.75, "")
    assert found.error_rate == pytest.approx(1 / 3)
    high = found.error_rate_high  # where at most one error of three comes with 0.05
    assert (1 - high) ** 3 + 3 * high * (1 - high) ** 2 == pytest.approx(0.05)
    less_sure = at_threshold(0.7, CONFIDENCE, IS_RIGHT, delta=0.5).error_rate_high
    assert less_sure == pytest.approx(0.5)  # the median of Beta(2, 2)


def test_no_image_is_accepted():
    for value in (0.91, 1.1):
        found = at_threshold(value, CONFIDENCE, IS_RIGHT)
        assert (found.value, found.coverage, found.error_rate_high) == (value, 0, 1)
        assert math.isnan(found.error_rate)


def test_all_accepted_are_right_or_wrong():
    confidence = np.linspace(0.5, 1, 59)
    assert at_threshold(0.5, confidence, np.ones(59, bool)).error_rate_high == pytest.approx(1 - 0.05 ** (1 / 59))
    wrong = at_threshold(0.5, confidence, np.zeros(59, bool))
    assert (wrong.coverage, wrong.error_rate, wrong.error_rate_high) == (1, 1, 1)


def test_images_of_a_group_count_as_one_where_all_are_right():
    confidence, groups = np.linspace(0.5, 1, 118), np.arange(118) // 2
    found = at_threshold(0.0, confidence, np.ones(118, bool), groups=groups)
    assert found.error_rate_high == pytest.approx(1 - 0.05 ** (1 / 59))


def test_it_says_of_a_chosen_threshold_what_the_choice_said():
    confidence = np.r_[np.linspace(0.8, 1, 400), np.linspace(0.3, 0.6, 100)]
    is_right = np.r_[np.arange(400) > 3, np.zeros(100, bool)]
    chosen = choose_threshold(confidence, is_right)
    assert 0 < chosen.error_rate < 0.05
    assert at_threshold(chosen.value, confidence, is_right) == chosen


def test_what_cannot_be_used_is_refused():
    with pytest.raises(DataError, match="one value in each array"):
        at_threshold(0.5, CONFIDENCE, IS_RIGHT[:3])
    with pytest.raises(DataError, match="confidence must lie in"):
        at_threshold(0.5, np.array([math.nan]), np.array([True]))
    with pytest.raises(DataError, match="needs a group"):
        at_threshold(0.5, CONFIDENCE, IS_RIGHT, groups=np.arange(3))
