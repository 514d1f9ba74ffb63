"""Drift of the latest images and predictions of a served model, compared with its training and validation images."""

import functools
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np

from tlray.data.drift import (
    TrainingImages,
    ValidationPredictions,
    chance_level,
    confidences,
    population_stability_index,
)

STATISTICS = ("grey_mean", "grey_deviation", "predicted_class", "confidence")
"""Names of the statistics whose drift is measured."""

WINDOW = 500
"""Number of latest images that are compared. With 400 training images in ten bins, one window in twenty of this size
has an index above 0.076 by chance alone; see `chance_level`."""

STRIDE = 50
"""Number of new images after which the indices are computed again."""


class DriftWindow:
    """Compares the latest images of one model with its training images and its predictions for validation images.

    Args:
        training: Grey levels of the images that the model was trained on; None: they are not known.
        predictions: The model's predictions for validation images; None: they are not known.
    """

    def __init__(self, training: TrainingImages | None, predictions: ValidationPredictions | None) -> None:
        self._training, self._predictions = training, predictions
        self._expected: dict[str, tuple[int, ...]] = {}
        if training is not None:
            self._expected |= {
                "grey_mean": training.grey_mean.counts,
                "grey_deviation": training.grey_deviation.counts,
            }
        if predictions is not None:
            self._expected |= {
                "predicted_class": predictions.class_counts,
                "confidence": predictions.confidence.counts,
            }
        self._last: deque[tuple[int, ...]] = deque(maxlen=WINDOW)
        self._num_new = 0

    @functools.cached_property
    def chance(self) -> Mapping[str, float]:
        """Maps each known statistic to its population stability index that chance alone exceeds in 1 of 20 windows."""
        return {name: chance_level(expected, WINDOW) for name, expected in self._expected.items()}

    def add(self, greys: Sequence[tuple[float, float]], probs_BK: np.ndarray) -> Mapping[str, float] | None:
        """Adds images to the window and returns its indices when they are due.

        Args:
            greys: The `grey_statistics` of each image; ignored if those of the training images are not known.
            probs_BK: The model's probabilities, [images, classes].

        Returns:
            The population stability index of each known statistic, whenever the window is full and has at least
            `STRIDE` new images; otherwise None.
        """
        self._last.extend(zip(*self._bins(greys, probs_BK), strict=True))
        self._num_new += len(probs_BK)
        if len(self._last) < WINDOW or self._num_new < STRIDE:
            return None
        self._num_new = 0
        found = zip(*self._last, strict=True)
        return {
            name: population_stability_index(expected, [bins.count(number) for number in range(len(expected))])
            for (name, expected), bins in zip(self._expected.items(), found, strict=True)
        }

    def _bins(self, greys: Sequence[tuple[float, float]], probs_BK: np.ndarray) -> list[list[int]]:
        """Returns, for each known statistic, the bin of each image."""
        bins: list[list[int]] = []
        if self._training is not None:
            mean, deviation = self._training.grey_mean, self._training.grey_deviation
            bins += [[mean.bin(grey[0]) for grey in greys], [deviation.bin(grey[1]) for grey in greys]]
        if self._predictions is not None:
            confidence = self._predictions.confidence
            bins += [probs_BK.argmax(axis=1).tolist(), [confidence.bin(value) for value in confidences(probs_BK)]]
        return bins
