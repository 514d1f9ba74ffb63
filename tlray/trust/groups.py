"""Counts how much groups of images tell: images of one patient, or near-duplicates, are not independent of each other.

The intervals, prediction sets and referral thresholds of this package use these counts and variances.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import stats

from tlray.errors import DataError

_CHUNK_BYTES = 2**25  # of weights at once: 2,000 resamples of 20,000 groups would take 320 MB
_ROUNDING = 1e-12
_LEVEL = 0.975  # upper quantile of a two-sided 95 % interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """How much data a metric rests on.

    Attributes:
        num_images: Number of images.
        num_groups: Number of groups of images.
        effective_groups: Images squared over the sum of squared group sizes: groups of unequal sizes count as fewer
            (Kish 1965, Survey Sampling). It is the effective sample size if all images of a group agree.
    """

    num_images: int
    num_groups: int
    effective_groups: float


def group_index(groups: np.ndarray, num_images: int) -> np.ndarray:
    """Returns the group of each image as a number from 0, int [images].

    Args:
        groups: Group of each image, [images], any values that can be sorted.
        num_images: Number of images.

    Raises:
        DataError: There are no images, or not every image has a group.
    """
    if groups.shape != (num_images,) or num_images == 0:
        raise DataError(f"Each of {num_images} images needs a group, with at least one image; got {groups.shape}.")
    return np.unique(groups, return_inverse=True)[1]


def evidence_of(index: np.ndarray) -> Evidence:
    """Counts the images and groups of group numbers, int [images], which may leave numbers out."""
    sizes_G = np.bincount(index).astype(np.float64)
    sizes_G = sizes_G[sizes_G > 0]
    effective = float(sizes_G.sum() ** 2 / np.sum(sizes_G**2)) if len(sizes_G) else 0.0
    return Evidence(num_images=len(index), num_groups=len(sizes_G), effective_groups=effective)


def weakest_class(labels: np.ndarray, index: np.ndarray) -> Evidence:
    """Counts all images, and the groups of the class that has the fewest groups.

    Args:
        labels: Classes, int [images].
        index: Number of each image's group, int [images].
    """
    classes = [evidence_of(index[labels == each]) for each in np.unique(labels)]
    return Evidence(
        num_images=len(index),
        num_groups=min(each.num_groups for each in classes),
        effective_groups=min(each.effective_groups for each in classes),
    )


def in_two_groups(labels: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Returns which images are of a class that is in two groups or more, bool [images].

    Args:
        labels: Classes, int [images], at least 0.
        index: Number of each image's group, int [images].
    """
    of_class, _ = np.unique(np.stack([labels, index]), axis=1)  # each class once for each of its groups
    return np.isin(labels, np.flatnonzero(np.bincount(of_class) > 1))


def resample(num_groups: int, rng: np.random.Generator, num_resamples: int) -> Iterator[np.ndarray]:
    """Draws the weights of the Bayesian bootstrap (Rubin 1981), exponential with the mean 1 and above 0.

    Yields:
        float64 [some of the resamples, groups], at most 32 MB at once, unless one resample takes more.
    """
    rows = max(1, _CHUNK_BYTES // (8 * num_groups))
    for start in range(0, num_resamples, rows):
        yield rng.standard_exponential((min(rows, num_resamples - start), num_groups))


def permuted(labels: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Exchanges labels between groups: each group gets the label of another, or of itself.

    A group with several labels gives them in random order and as often as they occur in it. The number of images of a
    label changes where groups differ in size.

    Args:
        labels: int [images].
        groups: Numbers of the groups, int [images], from 0 without gaps.
        rng: Source of randomness.

    Returns:
        int [images].
    """
    order = np.argsort(groups, kind="stable")
    sizes = np.bincount(groups)
    starts = np.cumsum(sizes) - sizes
    source = rng.permutation(len(sizes))[groups]
    return labels[order[starts[source] + (rng.random(len(labels)) * sizes[source]).astype(np.int64)]]


def corrected_p_values(found: np.ndarray, shuffled: np.ndarray) -> np.ndarray:
    """Returns the p-value of each test, corrected for their number by the largest statistic of each permutation (maxT).

    Args:
        found: The statistic of each test, float [tests].
        shuffled: The same with exchanged labels, float [permutations, tests].
    """
    mean, deviation = shuffled.mean(axis=0), shuffled.std(axis=0)
    scale = np.where(deviation > 1e-9, deviation, np.inf)  # a test that always predicts the same says nothing
    largest = ((shuffled - mean) / scale).max(axis=1)
    statistic = (found - mean) / scale
    return (1 + (largest[:, None] >= statistic).sum(axis=0)) / (1 + len(shuffled))


def bootstrap_variance(replicates: np.ndarray, evidence: Evidence) -> float:
    """Returns the variance of a metric from its values in the resamples, float [resamples].

    The factor makes it unbiased for a mean over groups: the weights' own variance is that of (groups + 1) values.
    """
    return float(np.var(replicates)) * (evidence.num_groups + 1) / max(evidence.num_groups - 1, 1)


def jackknife_variance(without_G: np.ndarray, evidence: Evidence) -> float:
    """Returns the variance of a metric from its values without each group in turn, float [groups].

    This is the delete-one jackknife (Efron and Stein 1981, Annals of Statistics 9:586-596). Groups that
    do not matter for the metric change nothing; the factor counts those of `evidence`.
    """
    factor = (evidence.num_groups - 1) / max(evidence.num_groups, 1)
    return float(np.sum((without_G - without_G.mean()) ** 2)) * factor


def linear_variance(influence: np.ndarray, index: np.ndarray) -> float:
    """Returns the variance of a metric from how much each image moves it.

    Args:
        influence: Change of the metric by each image, float [images], with the sum 0.
        index: Number of each image's group, int [images].
    """
    sums_G = np.bincount(index, influence)
    return float(np.sum(sums_G**2)) * len(sums_G) / max(len(sums_G) - 1, 1)


def effective_size(image_variance: float, variance: float, evidence: Evidence) -> float:
    """Returns the number of independent images that would show a metric as exactly.

    Args:
        image_variance: Variance of one image: p (1 - p) for a proportion p, with the mean over the images taken.
        variance: Unbiased variance of the metric over groups.
        evidence: The images and groups.

    Returns:
        At most the number of images, and equal to it if each image is a group. If all images agree,
        `image_variance` is 0 and nothing tells how much groups differ: then `effective_groups`, as if all images of a
        group always agreed.
    """
    if image_variance < _ROUNDING:
        return evidence.effective_groups
    unbiased = image_variance * evidence.num_images / max(evidence.num_images - 1, 1)
    return min(evidence.num_images, unbiased / max(variance, _ROUNDING))


def effective_size_of_share(values: np.ndarray, index: np.ndarray) -> float:
    """Returns the effective sample size of the share of true values.

    The variance is that of a ratio over groups (Cochran 1977, Sampling Techniques).

    Args:
        values: Bool [images], at least one.
        index: Number of each image's group, int [images]; numbers may be left out.
    """
    present = np.unique(index, return_inverse=True)[1]
    share = float(np.mean(values))
    variance = linear_variance((values - share) / len(values), present)
    return effective_size(share * (1 - share), variance, evidence_of(present))


def student(evidence: Evidence) -> float:
    """Returns Student's t for a two-sided 95 % interval over groups."""
    return float(stats.t.ppf(_LEVEL, evidence.num_groups - 1))
