"""Drift: how far the images that a model is asked about, and its predictions, have moved from those that are known.

Images are compared with training images. Predictions are compared with the model's own predictions for validation
images: labels would not do, as a model that errs predicts other shares than there are, without any drift.
"""

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageStat
from scipy.special import gammaincinv

NUM_BINS = 10
"""Number of equal-frequency bins (deciles) of a reference distribution, the most that are used."""

MIN_IMAGES_PER_BIN = 40
"""Fewest validation images in a bin, where there are more than two bins. With so many, chance alone leaves the index of
500 served images below 0.1 in 19 of 20 cases; see `chance_level`."""

CHANCE = 0.95
"""Share of the windows without drift whose index lies below `chance_level`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """A histogram of a number over some images.

    Attributes:
        edges: Between the bins, ascending; a value that is an edge belongs to the bin above it.
        counts: Images in each bin, one more than edges: the first and the last are open.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, values: Sequence[float], num_bins: int = NUM_BINS) -> "Distribution":
        """Returns the distribution of some values in at most so many bins: fewer where many are the same."""
        edges = np.unique(np.quantile(values, np.arange(1, num_bins) / num_bins))
        counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
        return cls(edges=tuple(edges.tolist()), counts=tuple(counts.tolist()))

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "Distribution":
        """Reads what `dataclasses.asdict` made.

        Raises:
            KeyError, TypeError, ValueError: It is something else.
        """
        edges, counts = tuple(map(float, raw["edges"])), _counts(raw["counts"])
        if list(edges) != sorted(edges) or not all(map(math.isfinite, edges)) or len(counts) != len(edges) + 1:
            raise ValueError(f"a distribution must have ascending edges and one more count. It has: {raw}")
        return cls(edges=edges, counts=counts)

    def bin(self, value: float) -> int:
        """Returns the number of the bin that a value is in."""
        return bisect.bisect_right(self.edges, value)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingImages:
    """What is kept of the images that a model was trained on.

    Attributes:
        grey_mean: Of a sample of them, at the model's size; see `grey_statistics`.
        grey_deviation: Of the same.
    """

    grey_mean: Distribution
    grey_deviation: Distribution

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "TrainingImages":
        """Reads what `dataclasses.asdict` made, or an earlier version, which counted classes too.

        Raises:
            KeyError, TypeError, ValueError: It is something else.
        """
        return cls(
            grey_mean=Distribution.from_json(raw["grey_mean"]),
            grey_deviation=Distribution.from_json(raw["grey_deviation"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationPredictions:
    """Distribution of a model's predictions for its validation images.

    Attributes:
        class_counts: Images that it takes for each class.
        confidence: The probability of that class; see `confidences`.
    """

    class_counts: tuple[int, ...]
    confidence: Distribution

    @classmethod
    def of(cls, probs_BK: np.ndarray) -> "ValidationPredictions":
        """Counts predictions.

        Args:
            probs_BK: Probabilities, floating point [images, classes], of one image at least.
        """
        num_bins = min(NUM_BINS, max(2, len(probs_BK) // MIN_IMAGES_PER_BIN))
        return cls(
            class_counts=tuple(np.bincount(probs_BK.argmax(axis=1), minlength=probs_BK.shape[1]).tolist()),
            confidence=Distribution.of(confidences(probs_BK), num_bins),
        )

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "ValidationPredictions":
        """Reads what `dataclasses.asdict` made.

        Raises:
            KeyError, TypeError, ValueError: It is something else.
        """
        return cls(class_counts=_counts(raw["class_counts"]), confidence=Distribution.from_json(raw["confidence"]))


def confidences(probs_BK: np.ndarray) -> list[float]:
    """Returns the highest probability of each image, to four digits: many are 1 but for rounding, an edge of a bin."""
    return np.round(probs_BK.max(axis=1).astype(np.float64), 4).tolist()


def _counts(raw: Sequence[Any]) -> tuple[int, ...]:
    if not all(type(count) is int and count >= 0 for count in raw) or not sum(raw):
        raise ValueError(f"counts must be whole numbers, not all 0. They are: {raw}")
    return tuple(raw)


def grey_statistics(image: Image.Image) -> tuple[float, float]:
    """Returns mean and standard deviation of an image's grey levels (ITU-R 601 luma), in [0, 255]."""
    statistics = ImageStat.Stat(image.convert("L"))
    return statistics.mean[0], statistics.stddev[0]


def population_stability_index(expected: Sequence[int], found: Sequence[int]) -> float:
    """Returns how different two samples' shares of some bins are: the sum of (f - e) ln(f / e), 0 where they are equal.

    The usual reading: below 0.1 nothing has changed, from 0.25 much has (N. Siddiqi, Credit Risk Scorecards, Wiley,
    2006), unless `chance_level` is higher. As no share may be 0, the share of half an image of the smaller sample is
    added to each share of both.

    Args:
        expected: Images in each bin, before; one image at least.
        found: The same, now.
    """
    added = 0.5 / min(sum(expected), sum(found))
    before, now = (np.asarray(counts, np.float64) / sum(counts) + added for counts in (expected, found))
    before, now = before / before.sum(), now / now.sum()
    return float(((now - before) * np.log(now / before)).sum())


def chance_level(expected: Sequence[int], num_found: int) -> float:
    """Returns the population stability index that two samples from one source exceed in one of 20 cases.

    Of samples of N and M the index is, by chance alone, (1/N + 1/M) times a chi-square of one degree of freedom less
    than bins (B. Yurdakul, Statistical Properties of Population Stability Index, 2018,
    https://scholarworks.wmich.edu/dissertations/3208).

    Args:
        expected: Images in each bin, before.
        num_found: Images now.
    """
    chi_square = 2 * gammaincinv((len(expected) - 1) / 2, CHANCE)
    return float((1 / sum(expected) + 1 / num_found) * chi_square)
