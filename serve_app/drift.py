"""The last images that a model was asked about, beside those that it was trained on."""

from collections import deque
from collections.abc import Mapping, Sequence

from tlray.drift import TrainingImages, population_stability_index

STATISTICS = ("grey_mean", "grey_deviation", "predicted_class")

WINDOW = 500
"""Images that are looked at, the last ones. Of so many, beside 400 training images in ten bins, one in twenty windows
has an index above 0.076 by chance alone; see `population_stability_index`."""

STRIDE = 50
"""Images from one look to the next."""


class DriftWindow:
    """Counts the last images of one model.

    Args:
        training: What it was trained on.
    """

    def __init__(self, training: TrainingImages) -> None:
        self._training = training
        self._expected = (training.grey_mean.counts, training.grey_deviation.counts, training.class_counts)
        self._last: deque[tuple[int, int, int]] = deque(maxlen=WINDOW)
        self._num_new = 0

    def add(self, greys: Sequence[tuple[float, float]], classes: Sequence[int]) -> Mapping[str, float] | None:
        """Adds images.

        Args:
            greys: See `grey_statistics`.
            classes: What the model took each for, by number.

        Returns:
            Of each of `STATISTICS` the population stability index, whenever the window is full and `STRIDE` images are
            new.
        """
        mean, deviation = self._training.grey_mean, self._training.grey_deviation
        self._last.extend(
            (mean.bin(grey[0]), deviation.bin(grey[1]), number) for grey, number in zip(greys, classes, strict=True)
        )
        self._num_new += len(greys)
        if len(self._last) < WINDOW or self._num_new < STRIDE:
            return None
        self._num_new = 0
        found = zip(*self._last, strict=True)
        return {
            name: population_stability_index(expected, [bins.count(number) for number in range(len(expected))])
            for name, expected, bins in zip(STATISTICS, self._expected, found, strict=True)
        }
