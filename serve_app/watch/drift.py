"""The last images that a model was asked about, beside those that it was trained on and validated with."""

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

WINDOW = 500
"""Images that are looked at, the last ones. Of so many, beside 400 training images in ten bins, one in twenty windows
has an index above 0.076 by chance alone; see `chance_level`."""

STRIDE = 50
"""Images from one look to the next."""


class DriftWindow:
    """Counts the last images of one model.

    Args:
        training: The images that it was trained on; None: their grey levels are not known.
        predictions: Its predictions for validation images; None: they are not known.

    Attributes:
        chance: For each statistic that is known, the index that one in twenty full windows exceeds without any drift.
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
        self.chance = {name: chance_level(expected, WINDOW) for name, expected in self._expected.items()}
        self._last: deque[tuple[int, ...]] = deque(maxlen=WINDOW)
        self._num_new = 0

    def add(self, greys: Sequence[tuple[float, float]], probs_BK: np.ndarray) -> Mapping[str, float] | None:
        """Adds images.

        Args:
            greys: See `grey_statistics`; not looked at where those of the training images are not known.
            probs_BK: The model's probabilities, [images, classes].

        Returns:
            Of each of `STATISTICS` that is known the population stability index, whenever the window is full and
            `STRIDE` images are new.
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
        """Returns for each statistic that is known the bin of each image."""
        bins: list[list[int]] = []
        if self._training is not None:
            mean, deviation = self._training.grey_mean, self._training.grey_deviation
            bins += [[mean.bin(grey[0]) for grey in greys], [deviation.bin(grey[1]) for grey in greys]]
        if self._predictions is not None:
            confidence = self._predictions.confidence
            bins += [probs_BK.argmax(axis=1).tolist(), [confidence.bin(value) for value in confidences(probs_BK)]]
        return bins
