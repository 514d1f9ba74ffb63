"""Drift of the latest images and predictions of a served model, compared with its training and validation images."""

import functools
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tlray.data import two_samples
from tlray.data.drift import (
    Distribution,
    TrainingImages,
    ValidationPredictions,
    chance_level,
    confidences,
    population_stability_index,
    rounded_scores,
)

STATISTICS = ("grey_mean", "grey_deviation", "predicted_class", "confidence", "ood_score")
"""Names of the statistics whose drift is measured."""

WINDOW = 500
"""Number of latest images that are compared. With 400 training images in ten bins, one window in twenty of this size
has an index above 0.076 by chance alone; see `chance_level`."""

STRIDE = 50
"""Number of new images after which the window is looked at again."""

FALSE_ALARM_RATE = 0.001
"""Largest share of looks that find drift where there is none: one in 50,000 images. It is a mean over models too: of a
model whose validation images happen to be unusual, many looks in a row find it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The drift of each statistic in a full window, found by one look at it.

    Attributes:
        indices: Maps each known statistic to its population stability index: how large its drift is. NaN: not known.
        p_values: Maps each known statistic to the probability that it differs as much without drift, times the number
            of statistics (Bonferroni), at most 1: how sure its drift is. NaN: not known.
        is_news: Other statistics have drifted than at the last look.
    """

    indices: Mapping[str, float]
    p_values: Mapping[str, float]
    is_news: bool = False

    @property
    def drifted(self) -> tuple[str, ...]:
        """The statistics that have drifted. In a look without any drift it is empty but for `FALSE_ALARM_RATE`."""
        return tuple(name for name, value in self.p_values.items() if value < FALSE_ALARM_RATE)

    def describe(self) -> str:
        """Returns a sentence for people: what has drifted."""
        found = [f"{name} (p {self.p_values[name]:.2g}, index {self.indices[name]:.2g})" for name in self.drifted]
        if not found:
            return f"no drift any more in the latest {WINDOW} images."
        return f"drift in the latest {WINDOW} images: {', '.join(found)}. Look at them, and measure the model on them."


@dataclass(frozen=True, slots=True, kw_only=True)
class _Numbers:
    """A reference of one number per image.

    Attributes:
        distribution: Its histogram.
        num_independent: Number of independent images that it counts as.
        values: The numbers one by one, ascending; empty: not known.
        is_high_end_tested: A few images with higher numbers than before count as drift by themselves.
    """

    distribution: Distribution
    num_independent: int
    values: np.ndarray
    is_high_end_tested: bool = False

    @property
    def counts(self) -> tuple[int, ...]:
        return self.distribution.counts

    def count(self, found: np.ndarray) -> np.ndarray:
        """Returns the number of images in each bin."""
        bins = np.searchsorted(self.distribution.edges, found, side="right")
        return np.bincount(bins, minlength=len(self.counts))

    def p_value(self, found: np.ndarray) -> float:
        number = self.num_independent
        if not len(self.values):
            return two_samples.ordered_counts(np.array(self.counts), self.count(found), num_reference=number)
        whole = two_samples.ordered_values(self.values, found, num_reference=number)
        if not self.is_high_end_tested:
            return whole
        return min(1.0, 2 * min(whole, two_samples.highest_values(self.values, found, num_reference=number)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Classes:
    """A reference of the predicted classes; see `_Numbers`."""

    counts: tuple[int, ...]
    num_independent: int

    def count(self, found: np.ndarray) -> np.ndarray:
        return np.bincount(found.astype(np.int64), minlength=len(self.counts))

    def p_value(self, found: np.ndarray) -> float:
        before = np.array(self.counts)
        return two_samples.class_counts(before, self.count(found), num_reference=self.num_independent)


class DriftWindow:
    """Compares the latest images of one model with its training images and its predictions for validation images.

    Args:
        training: Grey levels of the images that the model was trained on; None: they are not known.
        predictions: The model's predictions for validation images; None: they are not known.
    """

    def __init__(self, training: TrainingImages | None, predictions: ValidationPredictions | None) -> None:
        self._knows_greys = training is not None
        self._references: dict[str, _Numbers | _Classes] = {}
        if training is not None:
            self._references |= _of_images(training)
        if predictions is not None:
            self._references |= _of_predictions(predictions)
        self._last: deque[tuple[float, ...]] = deque(maxlen=WINDOW)
        self._num_new = 0
        self._drifted: tuple[str, ...] = ()

    @functools.cached_property
    def chance(self) -> Mapping[str, float]:
        """Maps each known statistic to its population stability index that chance alone exceeds in 1 of 20 windows."""
        return {name: chance_level(each.counts, WINDOW) for name, each in self._references.items()}

    def prepare(self) -> None:
        """Computes `chance`, which loads SciPy and takes a tenth of a second the first time in a process."""
        _ = self.chance

    def add(
        self,
        greys: Sequence[tuple[float, float]],
        probs_BK: np.ndarray,
        ood_scores: np.ndarray | None = None,
    ) -> Look | None:
        """Adds images to the window and looks at it when that is due.

        Args:
            greys: The `grey_statistics` of each image; ignored if those of the training images are not known.
            probs_BK: The model's probabilities, [images, classes].
            ood_scores: How foreign the images are, floating point [images]; NaN, or None, where it is not known.

        Returns:
            What was found, whenever the window is full and has at least `STRIDE` new images; otherwise None.
        """
        num_images = len(probs_BK)
        unknown = np.full(num_images, np.nan)
        greys_B2 = np.full((num_images, 2), np.nan)
        if self._knows_greys:
            greys_B2 = np.array(greys, dtype=np.float64).reshape(-1, 2)
        scores = rounded_scores(unknown if ood_scores is None else ood_scores)
        rows = np.column_stack([greys_B2, probs_BK.argmax(axis=1), confidences(probs_BK), scores])
        self._last.extend(map(tuple, rows.tolist()))
        self._num_new += num_images
        if len(self._last) < WINDOW or self._num_new < STRIDE:
            return None
        self._num_new = 0
        return self._look()

    def _look(self) -> Look:
        columns: dict[str, np.ndarray] = dict(zip(STATISTICS, np.array(self._last).T, strict=True))
        indices: dict[str, float] = {}
        p_values: dict[str, float] = {}
        for name, reference in self._references.items():
            found = columns[name][np.isfinite(columns[name])]
            indices[name] = p_values[name] = np.nan
            if len(found):
                indices[name] = population_stability_index(reference.counts, reference.count(found).tolist())
                p_values[name] = min(1.0, len(self._references) * reference.p_value(found))
        look = Look(indices=indices, p_values=p_values)
        before, self._drifted = self._drifted, look.drifted
        return Look(indices=indices, p_values=p_values, is_news=look.drifted != before)


def _of_images(training: TrainingImages) -> dict[str, _Numbers | _Classes]:
    """Returns the references of the statistics of images."""
    none = np.zeros(0)
    return {
        name: _Numbers(distribution=each, num_independent=training.num_independent or sum(each.counts), values=none)
        for name, each in (("grey_mean", training.grey_mean), ("grey_deviation", training.grey_deviation))
    }


def _of_predictions(predictions: ValidationPredictions) -> dict[str, _Numbers | _Classes]:
    """Returns the references of the statistics of predictions."""
    num_independent = predictions.num_independent or sum(predictions.class_counts)
    references: dict[str, _Numbers | _Classes] = {
        "predicted_class": _Classes(counts=predictions.class_counts, num_independent=num_independent),
        "confidence": _Numbers(
            distribution=predictions.confidence,
            num_independent=num_independent,
            values=np.array(predictions.confidences),
        ),
    }
    foreign = predictions.ood_score
    if foreign is not None:
        references["ood_score"] = _Numbers(
            distribution=foreign,
            num_independent=num_independent,
            values=np.array(predictions.ood_scores),
            is_high_end_tested=True,
        )
    return references
