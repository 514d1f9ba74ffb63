"""Learning curves: the accuracy of linear probes by the number of training images of each class."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tlray.probe import regression

SIZES = (5, 10, 20, 50)
"""Numbers of images of each class to draw."""

MAX_SHARE = 0.8
"""Maximum share of the training images in a draw. A larger draw would show the same as all of them."""

NUM_DRAWS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A point of a learning curve: the accuracies of probes with one number of training images.

    Attributes:
        images_per_class: Images drawn of each class (all of a class that has fewer); None: all images, without a draw.
        num_images: Number of training images of each probe.
        accuracies: Accuracy of each draw's probe, in [0, 1].
        accuracy_ci95: The 95 % interval of their mean, (low, high), for other images to measure on. The draws are
            taken as they are: how much others would change it, `accuracies` show.
    """

    images_per_class: int | None
    num_images: int
    accuracies: tuple[float, ...]
    accuracy_ci95: tuple[float, float]


def learning_curve(
    train: np.ndarray,
    train_labels: np.ndarray,
    valid: np.ndarray,
    valid_labels: np.ndarray,
    *,
    test: np.ndarray,
    test_labels: np.ndarray,
    interval: Callable[[np.ndarray], tuple[float, float]],
    num_classes: int,
    balanced: bool,
    seed: int,
) -> tuple[Point, ...]:
    """Fits probes on a few random training images of each class and on all, and measures their accuracy.

    A class with fewer images than are to be drawn gives all that it has: from then on the draws are as unbalanced as
    the data. Images are drawn, not patients: some images of many patients teach more than as many of a few.

    Args:
        train: Floating point [images, features].
        train_labels: Class indices, int [images]; every class occurs.
        valid: Floating point [images, features]; all of them choose the penalty of each probe.
        valid_labels: Class indices, int [images].
        test: Floating point [images, features]; accuracies are measured on them. Without images, `valid` is used
            instead, which flatters.
        test_labels: Class indices, int [images].
        interval: Returns the 95 % interval (low, high) of a mean over the measured images, given their values, float64
            [images] in [0, 1].
        num_classes: At least 2.
        balanced: Weight each image by the inverse frequency of its class.
        seed: Decides which images are drawn.

    Returns:
        A point for each of `SIZES` whose draws have at most `MAX_SHARE` of the images, and one for all images.
    """
    measured, labels = (test, test_labels) if len(test) else (valid, valid_labels)

    def is_right(rows: np.ndarray) -> np.ndarray:
        fitted = regression.fit(
            train[rows], train_labels[rows], valid, valid_labels, num_classes=num_classes, balanced=balanced
        )
        logits_BK = (measured - fitted.mean) / fitted.deviation @ fitted.weights + fitted.bias + fitted.shift
        return logits_BK.argmax(axis=1) == labels

    def point(size: int | None, draws: list[np.ndarray]) -> Point:
        is_right_DB = np.stack([is_right(rows) for rows in draws])
        return Point(
            images_per_class=size,
            num_images=len(draws[0]),
            accuracies=tuple(is_right_DB.mean(axis=1).tolist()),
            accuracy_ci95=interval(is_right_DB.mean(axis=0)),
        )

    points = []
    for size in SIZES:
        draws = [draw(train_labels, size, np.random.default_rng([seed, size, number])) for number in range(NUM_DRAWS)]
        if len(draws[0]) <= MAX_SHARE * len(train):
            points.append(point(size, draws))
    return (*points, point(None, [np.arange(len(train))]))


def draw(labels: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the indices of `size` random images of each class, or of all images of a smaller one, int [images]."""
    places = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return np.concatenate([rng.choice(each, min(size, len(each)), replace=False) for each in places])
