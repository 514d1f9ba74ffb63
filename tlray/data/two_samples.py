"""Tests whether two samples, of which neither is large, come from one source; each test returns a p-value.

A reference of some hundred validation images is itself uncertain, so each test treats it as a sample, not as the truth.
No test relies on large samples: a p-value is exact, or an upper bound, also at one in a hundred thousand. The tests
need NumPy only, so that a process that serves can test without loading SciPy.

Images of a group, such as the slices of a patient, are not independent: `num_reference` is the number of independent
images that the reference counts as, see `independent_images`. With it the p-values hold approximately.
"""

import math
from collections.abc import Sequence

import numpy as np

HIGHEST_PART = 0.01
"""Share of the reference that `highest_values` takes for its highest. Few foreign images change only the upper end."""


def independent_images(groups: Sequence[str]) -> int:
    """Returns the number of independent images that show a distribution as exactly as groups of images do, at least 1.

    It is the number of images squared over the sum of squared group sizes (Kish 1965, Survey Sampling), rounded down:
    as if all images of a group agreed.

    Args:
        groups: The group of each image; at least one.
    """
    sizes = np.unique(np.asarray(groups, dtype=str), return_counts=True)[1].astype(np.float64)
    return max(1, math.floor(sizes.sum() ** 2 / np.sum(sizes**2) + 1e-9))


def ordered_values(reference: np.ndarray, found: np.ndarray, *, num_reference: int) -> float:
    """Returns the p-value of the two-sample test of Kolmogorov and Smirnov.

    It is the bound 2 exp(-2 d^2 nm / (n + m)) for the largest distance d of the distribution functions. Wei and Dudley
    (2012, Statistics and Probability Letters 82:636-644) show it for equal sizes from 458 on and, by computing, for
    different ones from 4 to 200, and conjecture it for all larger ones that differ. Equal values make the p-value
    larger than it need be.

    Args:
        reference: Numbers, ascending, float [n]; at least one.
        found: Numbers, float [m]; at least one.
        num_reference: See the module.
    """
    ordered = np.sort(found)
    points = np.concatenate([reference, ordered])
    distance = np.abs(
        np.searchsorted(reference, points, side="right") / len(reference)
        - np.searchsorted(ordered, points, side="right") / len(ordered)
    ).max()
    return _bound(float(distance), num_reference, len(found))


def ordered_counts(reference: np.ndarray, found: np.ndarray, *, num_reference: int) -> float:
    """Returns the p-value of `ordered_values` where only the numbers of images in bins are known; it is never smaller.

    Args:
        reference: Number of images in each bin, ascending, int [bins]; at least one image in all.
        found: The same for the other sample.
        num_reference: See the module.
    """
    shares = [np.cumsum(counts) / np.sum(counts) for counts in (reference, found)]
    return _bound(float(np.abs(shares[0] - shares[1]).max()), num_reference, int(np.sum(found)))


def highest_values(reference: np.ndarray, found: np.ndarray, *, num_reference: int) -> float:
    """Returns the probability that as many found numbers are above the highest 1 % of the reference.

    It is exact for numbers without ties, whatever their distribution: if the samples come from one source, all orders
    of their numbers are equally probable.

    Args:
        reference: Numbers, ascending, float [n]; at least one.
        found: Numbers, float [m]; at least one.
        num_reference: See the module.
    """
    num_highest = max(1, int(num_reference * HIGHEST_PART))
    place = min(len(reference), math.ceil(num_highest * len(reference) / num_reference))
    num_above = int(np.sum(found > reference[-place]))
    # At least as many are above it if, of that many and `num_highest` - 1 others at the upper end of both samples
    # together, fewer than `num_highest` are of the reference.
    num_end = num_above + num_highest - 1
    return min(1.0, float(_chances(num_reference, len(found), num_end)[:num_highest].sum()))


def class_counts(reference: np.ndarray, found: np.ndarray, *, num_reference: int) -> float:
    """Returns the p-value of Fisher's exact test of each class against the rest, corrected for the number of classes.

    The p-value of a class is twice that of its less probable side, and the smallest is multiplied by the number of
    classes (Bonferroni), unless there are two, whose tests are one.

    Args:
        reference: Number of images of each class, int [K]; at least one image in all.
        found: The same for the other sample.
        num_reference: See the module.
    """
    num_found, smallest = int(np.sum(found)), 1.0
    for before, now in zip(np.rint(reference * (num_reference / np.sum(reference))).astype(int), found, strict=True):
        num_class = min(int(before), num_reference) + int(now)
        chances = _chances(num_class, num_reference + num_found - num_class, num_found)
        smallest = min(smallest, 2 * float(min(chances[: int(now) + 1].sum(), chances[int(now) :].sum())))
    return min(1.0, smallest * (len(found) if len(found) > 2 else 1))


def _bound(distance: float, num_reference: int, num_found: int) -> float:
    return min(1.0, 2 * math.exp(-2 * distance**2 * num_reference * num_found / (num_reference + num_found)))


def _chances(num_marked: int, num_others: int, num_drawn: int) -> np.ndarray:
    """Returns the probabilities that 0, 1, ..., `num_drawn` of the drawn images are marked, float64 [num_drawn + 1].

    Images are drawn without replacement, so that this is the hypergeometric distribution.
    """
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, num_marked + num_others + 1)))])  # of factorials
    chances = np.zeros(num_drawn + 1)
    marked = np.arange(max(0, num_drawn - num_others), min(num_marked, num_drawn) + 1)
    ways = _log_choose(logs, num_marked, marked) + _log_choose(logs, num_others, num_drawn - marked)
    chances[marked] = np.exp(ways - _log_choose(logs, num_marked + num_others, np.array(num_drawn)))
    return chances


def _log_choose(logs: np.ndarray, num_all: int, num_chosen: np.ndarray) -> np.ndarray:
    return logs[num_all] - logs[num_chosen] - logs[num_all - num_chosen]
