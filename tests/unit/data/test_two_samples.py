"""Whether two samples come from one source: p-values beside those of SciPy, and how often they are small by chance."""

import math
from typing import Any, Literal

import numpy as np
import pytest
from scipy import stats

from tlray.data import two_samples

SIZES = [(72, 500), (300, 500), (500, 500)]


@pytest.mark.parametrize(("num_reference", "num_found"), SIZES)
@pytest.mark.parametrize("shift", [0.0, 0.3, 0.6])
def test_ordered_values_beside_the_exact_test(num_reference, num_found, shift):
    generator = np.random.default_rng(0)
    before, now = np.sort(generator.normal(size=num_reference)), generator.normal(shift, size=num_found)
    found = two_samples.ordered_values(before, now, num_reference=num_reference)
    exact: Any = stats.ks_2samp(before, now, method="exact")
    assert found == pytest.approx(min(1, 2 * math.exp(-2 * exact.statistic**2 / (1 / num_reference + 1 / num_found))))
    assert exact.pvalue <= found <= 5 * exact.pvalue + 0.05


def test_distances_are_found_on_both_sides_of_a_value():
    """Half of the one sample lies at a value where none of the other does."""
    before, now = np.array([1.0, 1.0, 2.0, 2.0]), np.array([2.0, 2.0, 2.0, 2.0])
    expected = 2 * math.exp(-2 * 0.25 * 2)
    assert two_samples.ordered_values(before, now, num_reference=4) == pytest.approx(expected)
    assert two_samples.ordered_values(now, before, num_reference=4) == pytest.approx(expected)
    assert two_samples.ordered_counts(np.array([2, 2]), np.array([0, 4]), num_reference=4) == pytest.approx(expected)


def test_bins_never_make_a_p_value_smaller():
    generator = np.random.default_rng(0)
    for _ in range(20):
        before, now = np.sort(generator.normal(size=200)), generator.normal(0.3, size=500)
        edges = np.quantile(before, np.arange(1, 10) / 10)
        counts = [np.bincount(np.searchsorted(edges, each, side="right"), minlength=10) for each in (before, now)]
        of_counts = two_samples.ordered_counts(*counts, num_reference=200)
        assert of_counts >= two_samples.ordered_values(before, now, num_reference=200)
        assert of_counts < 0.5


def fisher(table: Any, alternative: Literal["less", "greater"]) -> float:
    found: Any = stats.fisher_exact(table, alternative=alternative)
    return found.pvalue


@pytest.mark.parametrize("counts", [([10, 62], [200, 300]), ([0, 72], [30, 470]), ([36, 36], [250, 250])])
def test_two_classes_beside_fishers_exact_test(counts):
    before, now = map(np.array, counts)
    one_sided = min(fisher([before, now], each) for each in ("less", "greater"))
    found = two_samples.class_counts(before, now, num_reference=72)
    assert found == pytest.approx(min(1, 2 * one_sided))


def test_more_classes_are_corrected_for_their_number():
    before, now = np.array([30, 30, 40]), np.array([150, 100, 250])
    one_sided = [
        min(fisher([[b, 100 - b], [n, 500 - n]], each) for each in ("less", "greater"))
        for b, n in zip(before, now, strict=True)
    ]
    assert two_samples.class_counts(before, now, num_reference=100) == pytest.approx(min(1, 3 * 2 * min(one_sided)))


def test_a_reference_of_copies_counts_as_fewer_images():
    before, now = np.array([40, 60]), np.array([400, 100])
    four_times = two_samples.class_counts(4 * before, now, num_reference=100)
    assert four_times == pytest.approx(two_samples.class_counts(before, now, num_reference=100))
    values, found = np.arange(100.0), np.arange(500.0) / 4
    assert two_samples.ordered_values(np.repeat(values, 4), found, num_reference=100) == pytest.approx(
        two_samples.ordered_values(values, found, num_reference=100)
    )
    assert two_samples.highest_values(np.repeat(values, 4), found, num_reference=100) == pytest.approx(
        two_samples.highest_values(values, found, num_reference=100)
    )


def test_highest_values_by_hand():
    """Of 3 images before and 2 now both of now are the highest: of 10 orders one."""
    before = np.array([1.0, 2.0, 3.0])
    assert two_samples.highest_values(before, np.array([4.0, 5.0]), num_reference=3) == pytest.approx(1 / 10)
    # One of now, or both: of the 10 orders 4 have one of now at the end.
    assert two_samples.highest_values(before, np.array([0.0, 5.0]), num_reference=3) == pytest.approx(4 / 10)
    assert two_samples.highest_values(before, np.array([0.0, 3.0]), num_reference=3) == 1  # equal is not above


def test_independent_images():
    assert two_samples.independent_images(["a", "b", "c"]) == 3
    assert two_samples.independent_images(["a", "a", "b", "b"]) == 2
    assert two_samples.independent_images(["a"] * 9) == 1
    assert two_samples.independent_images(["a", "a", "b", "c"]) == 2  # 16 / 6


@pytest.mark.parametrize(("num_reference", "num_found"), SIZES)
def test_small_p_values_are_as_rare_as_they_say(num_reference, num_found):
    generator = np.random.default_rng(1)
    level, found = 0.05, []
    for _ in range(1000):
        before, now = np.sort(generator.gamma(2, size=num_reference)), generator.gamma(2, size=num_found)
        shares = [generator.multinomial(number, [0.5, 0.3, 0.15, 0.05]) for number in (num_reference, num_found)]
        found.append([
            two_samples.ordered_values(before, now, num_reference=num_reference),
            two_samples.highest_values(before, now, num_reference=num_reference),
            two_samples.class_counts(*shares, num_reference=num_reference),
        ])  # fmt: skip
    num_small = np.sum(np.array(found) < level, axis=0)
    assert (num_small <= stats.binom.ppf(0.999, len(found), level)).all()
    assert (num_small[:2] > 0.01 * len(found)).all()  # and are not simply never small
