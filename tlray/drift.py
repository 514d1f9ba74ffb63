"""Drift: how far the images that a model is asked about have moved from those that it was trained on."""

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageStat

NUM_BINS = 10
"""Of a distribution, each with the same share of the training images: deciles, as is usual with the index below."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """How many training images have which values of a number.

    Attributes:
        edges: Between the bins, ascending; a value that is an edge belongs to the bin above it.
        counts: Images in each bin, one more than edges: the first and the last are open.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> "Distribution":
        """Returns the distribution of some values in at most `NUM_BINS` bins: fewer where many are the same."""
        edges = np.unique(np.quantile(values, np.arange(1, NUM_BINS) / NUM_BINS))
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
        class_counts: How many of all of them each class has.
    """

    grey_mean: Distribution
    grey_deviation: Distribution
    class_counts: tuple[int, ...]

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "TrainingImages":
        """Reads what `dataclasses.asdict` made.

        Raises:
            KeyError, TypeError, ValueError: It is something else.
        """
        return cls(
            grey_mean=Distribution.from_json(raw["grey_mean"]),
            grey_deviation=Distribution.from_json(raw["grey_deviation"]),
            class_counts=_counts(raw["class_counts"]),
        )


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
    2006). Of samples of N and M from one source it is, by chance alone, (1/N + 1/M) times a chi-square of one degree of
    freedom less than bins (B. Yurdakul, Statistical Properties of Population Stability Index, 2018,
    https://scholarworks.wmich.edu/dissertations/3208). As no share may be 0, each bin is given half an image more.

    Args:
        expected: Images in each bin, before.
        found: The same, now.
    """
    before, now = (np.asarray(counts, np.float64) + 0.5 for counts in (expected, found))
    before, now = before / before.sum(), now / now.sum()
    return float(((now - before) * np.log(now / before)).sum())
