"""Chooses the confidence below which a person must look at a prediction.

Import it to choose a threshold on labelled images that the model was not trained on, and to draw how errors fall as
more images are referred. `tlray.bundle.judgement` marks new predictions.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from tlray.errors import ConfigError, DataError
from tlray.trust.groups import effective_size_of_share, evidence_of, group_index

ALL_REFERRED = 1.1
"""Threshold above every confidence: all images are referred."""

NUM_STEPS = 50
"""Number of thresholds that are tried. Each step is then a fiftieth of the images; more steps cost no error level."""

MAX_FIRST_ERRORS = 3
"""Errors that the first test can bear, if this takes at most a quarter of the independent images: 153 images at an
error rate of 0.05 and a level of 0.05. Otherwise it bears fewer: none of 59 images, where one wrong label refers all.
In simulations of 150 to 600 images, a first test of a larger share found a threshold less often; so did several starts
that share the level."""

_ROUNDING = 1e-9  # of a number of groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """A confidence threshold: images with a lower confidence are referred.

    Attributes:
        value: The threshold, or `ALL_REFERRED`.
        coverage: Share of images that are accepted, in [0, 1].
        error_rate: Error rate of the accepted images, NaN if there are none.
        error_rate_high: Its upper confidence bound, one-sided (Clopper and Pearson); 1 if there are none.
        note: Why all images are referred; otherwise empty.
    """

    value: float
    coverage: float
    error_rate: float
    error_rate_high: float
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskCoverage:
    """The error rate of the most confident images, by how many are accepted (El-Yaniv and Wiener 2010).

    Attributes:
        thresholds: Confidences from high to low, float64 [images].
        coverages: Share of images accepted, float64 [images], from 1 / images to 1.
        risks: Error rate of the accepted images, float64 [images]. Images of equal confidence count as their mean.
    """

    thresholds: np.ndarray
    coverages: np.ndarray
    risks: np.ndarray


def choose_threshold(
    confidence: np.ndarray,
    is_right: np.ndarray,
    *,
    max_error: float = 0.05,
    delta: float = 0.05,
    groups: np.ndarray | None = None,
) -> Threshold:
    """Chooses the lowest threshold whose accepted images have an error rate of at most `max_error`, surely enough.

    Learn then test, by fixed-sequence tests (Angelopoulos et al. 2021, arXiv:2110.01052): thresholds are tested from
    high to low, each at the level `delta`, until the first that fails; the last that passed is chosen. With
    probability 1 - delta its error rate is at most `max_error`. The lowest threshold whose own bound of Clopper and
    Pearson holds would not do: it is the best of many tries on the same images. Each single test is that bound.

    The thresholds depend on the confidences, not on which images are right, so the order is fixed for the tests. For
    images with different error rates the binomial test is on the safe side (Hoeffding 1956, Ann. Math. Stat.
    27:713-721). With groups, the test counts the effective sample size of the accepted images, which is approximate.

    Args:
        confidence: Largest probability of each image, float [images], in [0, 1].
        is_right: Whether the most probable class is the true one, bool [images].
        max_error: Wished error rate of the accepted images, in (0, 1).
        delta: Probability with which the error rate may exceed it, in (0, 1).
        groups: Group of each image (its patient), [images], any values that can be sorted. None: each image is one.

    Returns:
        With no errors, log(delta) / log(1 - max_error) images must be accepted: 59 for the defaults.

    Raises:
        ConfigError: `max_error` or `delta` is out of range.
        DataError: No images, arrays of different lengths, or a confidence that is not in [0, 1].
    """
    if not (0 < max_error < 1 and 0 < delta < 1):
        raise ConfigError(f"max_error and delta must lie between 0 and 1. Received: {max_error} and {delta}")
    _check(confidence, is_right)
    index = group_index(np.arange(len(confidence)) if groups is None else groups, len(confidence))
    least = _num_needed(0, max_error, delta)
    chosen = Threshold(
        value=ALL_REFERRED,
        coverage=0.0,
        error_rate=math.nan,
        error_rate_high=1.0,
        note=f"All images are referred: these {len(confidence)} images show no threshold with an error rate of at "
        f"most {max_error:g}. Even without errors this takes {least} independent images.",
    )
    first_size = _first_size(evidence_of(index).effective_groups, max_error, delta)
    for value in _candidates(confidence, index, first_size):
        tested = _tested(float(value), confidence, is_right, index, delta)
        if tested.error_rate_high > max_error:
            break
        chosen = tested
    return chosen


def at_threshold(
    value: float,
    confidence: np.ndarray,
    is_right: np.ndarray,
    *,
    delta: float = 0.05,
    groups: np.ndarray | None = None,
) -> Threshold:
    """Returns how many images a given threshold accepts, and how many of these are wrong.

    Args:
        value: The threshold.
        confidence: See `choose_threshold`.
        is_right: See `choose_threshold`.
        delta: Probability with which the error rate may exceed its bound, in (0, 1).
        groups: See `choose_threshold`.

    Raises:
        DataError: See `choose_threshold`.
    """
    _check(confidence, is_right)
    if not (confidence >= value).any():
        return Threshold(value=value, coverage=0.0, error_rate=math.nan, error_rate_high=1.0)
    index = group_index(np.arange(len(confidence)) if groups is None else groups, len(confidence))
    return _tested(value, confidence, is_right, index, delta)


def risk_coverage(confidence: np.ndarray, is_right: np.ndarray) -> RiskCoverage:
    """Returns the error rate of the accepted images for each number of accepted images.

    Args:
        confidence: Largest probability of each image, float [images], in [0, 1].
        is_right: Whether the most probable class is the true one, bool [images].

    Raises:
        DataError: No images, arrays of different lengths, or a confidence that is not in [0, 1].
    """
    _check(confidence, is_right)
    order = np.argsort(-confidence, kind="stable")
    level = np.unique(-confidence, return_inverse=True)[1]
    mean_error = np.bincount(level, ~is_right) / np.bincount(level)
    num_accepted = np.arange(1, len(confidence) + 1)
    risks = np.cumsum(mean_error[level[order]]) / num_accepted
    return RiskCoverage(
        thresholds=confidence[order].astype(np.float64),
        coverages=num_accepted / len(confidence),
        risks=risks,
    )


def _check(confidence: np.ndarray, beside: np.ndarray) -> None:
    if confidence.ndim != 1 or confidence.shape != beside.shape or len(confidence) == 0:
        raise DataError(f"Each image needs one value in each array; got shapes {confidence.shape} and {beside.shape}.")
    bad = ~((confidence >= 0) & (confidence <= 1.001))  # a comparison with NaN is false
    if bad.any():
        raise DataError(f"A confidence must lie in [0, 1]; image {int(bad.argmax())} has {confidence[bad.argmax()]}.")


def _num_needed(num_errors: int, max_error: float, delta: float) -> int:
    """Returns the number of images of which a test bears this many errors: at `max_error`, fewer come with `delta`."""
    return int(stats.nbinom.ppf(1 - delta, num_errors + 1, max_error)) + num_errors + 1


def _first_size(num_independent: float, max_error: float, delta: float) -> int:
    """Returns the number of independent images that the first test takes; see `MAX_FIRST_ERRORS`."""
    sizes = [_num_needed(num_errors, max_error, delta) for num_errors in range(MAX_FIRST_ERRORS + 1)]
    return max([size for size in sizes if size <= num_independent / 4], default=sizes[0])


def _candidates(confidence: np.ndarray, index: np.ndarray, least: int) -> np.ndarray:
    """Returns thresholds from high to low, the first with at least `least` images accepted (effective size)."""
    order = np.argsort(-confidence, kind="stable")
    num_accepted = np.arange(1, len(order) + 1)
    # Of its group, the images accepted before: the sum of squared group sizes grows by twice this number, plus 1.
    by_group = np.argsort(index[order], kind="stable")
    starts = np.unique(index[order][by_group], return_index=True)[1]
    before = np.empty(len(order))
    before[by_group] = num_accepted - 1 - np.repeat(starts, np.bincount(index))
    effective_groups = num_accepted**2 / np.cumsum(2 * before + 1)
    enough = np.flatnonzero(effective_groups >= least - _ROUNDING)
    if not len(enough):
        return np.empty(0)
    places = np.unique(np.linspace(enough[0], len(order) - 1, NUM_STEPS).round().astype(int))
    return np.unique(confidence[order[places]])[::-1]


def _tested(value: float, confidence: np.ndarray, is_right: np.ndarray, index: np.ndarray, delta: float) -> Threshold:
    is_accepted = confidence >= value
    size = effective_size_of_share(~is_right[is_accepted], index[is_accepted])
    error_rate = float(np.mean(~is_right[is_accepted]))
    num_errors = error_rate * size
    high = float(stats.beta.ppf(1 - delta, num_errors + 1, size - num_errors)) if error_rate < 1 else 1.0
    return Threshold(value=value, coverage=float(is_accepted.mean()), error_rate=error_rate, error_rate_high=high)
