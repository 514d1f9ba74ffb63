"""Statistics for drift: reference distributions of images and predictions, and the population stability index.

Served images are compared with training images. Predictions are compared with the model's own predictions for
validation images, not with labels: a model that makes errors predicts other class shares than the labels have, without
any drift. Nor with those for training images, of which a model is too sure, and which are less foreign to it.
"""

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageStat

from tlray.data.two_samples import independent_images

NUM_BINS = 10
"""Maximum number of equal-frequency bins (deciles) of a reference distribution."""

MIN_IMAGES_PER_BIN = 40
"""Minimum number of validation images per bin, if there are more than two bins. With that many, the index of 500 served
images without drift is below 0.1 in 19 of 20 cases; see `chance_level`."""

MAX_VALUES = 1000
"""Maximum number of validation images whose confidences and `ood_score` a bundle keeps one by one: some 20 kB."""

CHANCE = 0.95
"""Fraction of windows without drift whose index is below `chance_level`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """A histogram of one number per image.

    Attributes:
        edges: Boundaries between the bins, ascending; a value equal to an edge belongs to the bin above it.
        counts: Number of images in each bin, one more than `edges`: the first and the last bin are open.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, values: Sequence[float], num_bins: int = NUM_BINS) -> "Distribution":
        """Returns the distribution of values in at most `num_bins` equal-frequency bins; fewer if many are equal."""
        edges = np.unique(np.quantile(values, np.arange(1, num_bins) / num_bins))
        counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
        return cls(edges=tuple(edges.tolist()), counts=tuple(counts.tolist()))

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "Distribution":
        """Returns the distribution from the result of `dataclasses.asdict`.

        Raises:
            KeyError, TypeError, ValueError: `raw` is not a distribution.
        """
        edges, counts = tuple(map(float, raw["edges"])), _counts(raw["counts"])
        if list(edges) != sorted(edges) or not all(map(math.isfinite, edges)) or len(counts) != len(edges) + 1:
            raise ValueError(f"a distribution must have ascending edges and one more count. It has: {raw}")
        return cls(edges=edges, counts=counts)

    def bin(self, value: float) -> int:
        """Returns the index of the bin that a value is in."""
        return bisect.bisect_right(self.edges, value)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingImages:
    """Distributions of the grey levels of the images that a model was trained on.

    They are those of a sample of the training images, resized to the model's input; see `grey_statistics`.

    Attributes:
        grey_mean: Distribution of the images' mean grey levels.
        grey_deviation: Distribution of the images' standard deviations of grey levels.
        num_independent: Number of independent images that they count as, see `two_samples.independent_images`; None:
            not known, as in bundles of earlier versions.
    """

    grey_mean: Distribution
    grey_deviation: Distribution
    num_independent: int | None = None

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "TrainingImages":
        """Returns the distributions from the result of `dataclasses.asdict`.

        Class counts, which earlier versions added, are ignored.

        Raises:
            KeyError, TypeError, ValueError: `raw` has no such distributions.
        """
        return cls(
            grey_mean=Distribution.from_json(raw["grey_mean"]),
            grey_deviation=Distribution.from_json(raw["grey_deviation"]),
            num_independent=_num_independent(raw),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationPredictions:
    """Distribution of a model's predictions for its validation images, calibrated as it predicts.

    Bundles of earlier versions have the first two only.

    Attributes:
        class_counts: Number of images for which the model predicts each class.
        confidence: Distribution of the probability of the predicted class; see `confidences`.
        confidences: These probabilities one by one, ascending, of at most `MAX_VALUES` images; empty: not known.
        ood_scores: How foreign the same images are, ascending; see `rounded_scores`. Empty: not known.
        num_independent: Number of independent images that they count as, see `two_samples.independent_images`; None:
            not known.
    """

    class_counts: tuple[int, ...]
    confidence: Distribution
    confidences: tuple[float, ...] = ()
    ood_scores: tuple[float, ...] = ()
    num_independent: int | None = None

    @classmethod
    def of(cls, probs_BK: np.ndarray, ood_scores: np.ndarray, groups: np.ndarray) -> "ValidationPredictions":
        """Returns the distribution of predictions.

        Args:
            probs_BK: Probabilities, floating point [images, classes], of at least one image.
            ood_scores: How foreign the images are, floating point [images]; NaN where it is not known.
            groups: The group of each image, str [images], such as its patient.
        """
        num_kept = min(MAX_VALUES, len(probs_BK))
        kept = np.random.default_rng(0).choice(len(probs_BK), num_kept, replace=False)
        scores = ood_scores[kept]
        return cls(
            class_counts=tuple(np.bincount(probs_BK.argmax(axis=1), minlength=probs_BK.shape[1]).tolist()),
            confidence=Distribution.of(confidences(probs_BK), _num_bins(len(probs_BK))),
            confidences=tuple(sorted(confidences(probs_BK[kept]))),
            ood_scores=tuple(sorted(rounded_scores(scores))) if np.isfinite(scores).all() else (),
            num_independent=independent_images(groups[kept].tolist()),
        )

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "ValidationPredictions":
        """Returns the predictions' distribution from the result of `dataclasses.asdict`.

        Raises:
            KeyError, TypeError, ValueError: `raw` is not such a distribution.
        """
        return cls(
            class_counts=_counts(raw["class_counts"]),
            confidence=Distribution.from_json(raw["confidence"]),
            confidences=_ascending(raw.get("confidences", ())),
            ood_scores=_ascending(raw.get("ood_scores", ())),
            num_independent=_num_independent(raw),
        )

    @property
    def ood_score(self) -> Distribution | None:
        """Distribution of `ood_scores`; None: they are not known."""
        return Distribution.of(self.ood_scores, _num_bins(len(self.ood_scores))) if self.ood_scores else None


def confidences(probs_BK: np.ndarray) -> list[float]:
    """Returns the highest probability of each image, rounded to four digits.

    Many are 1 except for rounding errors, and 1 may be the edge of a bin.
    """
    return np.round(probs_BK.max(axis=1).astype(np.float64), 4).tolist()


def rounded_scores(ood_scores: np.ndarray) -> list[float]:
    """Returns scores of how foreign images are, see `tlray.bundle.novelty`, rounded to six digits, as they are kept."""
    return np.round(ood_scores.astype(np.float64), 6).tolist()


def _num_bins(num_images: int) -> int:
    return min(NUM_BINS, max(2, num_images // MIN_IMAGES_PER_BIN))


def _ascending(raw: Sequence[Any]) -> tuple[float, ...]:
    values = tuple(map(float, raw))
    if not all(map(math.isfinite, values)) or list(values) != sorted(values):
        raise ValueError("values of images must be finite and ascending")
    return values


def _num_independent(raw: Mapping[str, Any]) -> int | None:
    number = raw.get("num_independent")
    if number is not None and (type(number) is not int or number < 1):
        raise ValueError(f"num_independent must be a whole number from 1 on. It is: {number}")
    return number


def _counts(raw: Sequence[Any]) -> tuple[int, ...]:
    if not all(type(count) is int and count >= 0 for count in raw) or not sum(raw):
        raise ValueError(f"counts must be whole numbers, not all 0. They are: {raw}")
    return tuple(raw)


def grey_statistics(image: Image.Image) -> tuple[float, float]:
    """Returns the mean and the standard deviation of an image's grey levels (ITU-R 601 luma), in [0, 255]."""
    statistics = ImageStat.Stat(image.convert("L"))
    return statistics.mean[0], statistics.stddev[0]


def population_stability_index(expected: Sequence[int], found: Sequence[int]) -> float:
    """Returns how much two histograms differ: the sum over bins of (f - e) ln(f / e), where f and e are shares.

    It is 0 if the shares are equal. Usually a value below 0.1 is taken as no change and one from 0.25 on as a large
    change (N. Siddiqi, Credit Risk Scorecards, Wiley, 2006), unless `chance_level` is higher. No share may be 0, so
    the share of half an image of the smaller sample is added to each share of both.

    Args:
        expected: Number of images in each bin of the reference; at least one image in all.
        found: Number of images in each bin now; at least one image in all.
    """
    added = 0.5 / min(sum(expected), sum(found))
    before, now = (np.asarray(counts, np.float64) / sum(counts) + added for counts in (expected, found))
    before, now = before / before.sum(), now / now.sum()
    return float(((now - before) * np.log(now / before)).sum())


def chance_level(expected: Sequence[int], num_found: int) -> float:
    """Returns the population stability index that two samples from the same source exceed in one of 20 cases.

    For samples of sizes N and M from one source, the index is distributed as (1/N + 1/M) times a chi-square variable
    with one degree of freedom less than there are bins (B. Yurdakul, Statistical Properties of Population Stability
    Index, 2018, https://scholarworks.wmich.edu/dissertations/3208).

    Args:
        expected: Number of images in each bin of the reference.
        num_found: Number of images now.
    """
    from scipy.special import gammaincinv  # noqa: PLC0415 (a replica that starts does not wait for SciPy)

    chi_square = 2 * gammaincinv((len(expected) - 1) / 2, CHANCE)
    return float((1 / sum(expected) + 1 / num_found) * chi_square)
