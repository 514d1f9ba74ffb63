"""A learning curve: the accuracy of a probe by how many training images of each class it saw."""

from dataclasses import dataclass

import numpy as np

from tlray.probe import regression

SIZES = (5, 10, 20, 50)
"""Images of each class."""

MAX_SHARE = 0.8
"""Of the training images: a larger draw would tell what all of them tell."""

NUM_DRAWS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What probes reach with so many training images.

    Attributes:
        images_per_class: How many were drawn of each class that has as many; None: all images, without a draw.
        num_images: The training images of each probe.
        accuracies: Of each draw's probe, in [0, 1].
    """

    images_per_class: int | None
    num_images: int
    accuracies: tuple[float, ...]


def learning_curve(
    train: np.ndarray,
    train_labels: np.ndarray,
    valid: np.ndarray,
    valid_labels: np.ndarray,
    *,
    test: np.ndarray,
    test_labels: np.ndarray,
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
        test: Floating point [images, features], what is measured. None at all: `valid` is, which flatters.
        test_labels: Class indices, int [images].
        num_classes: At least 2.
        balanced: Weight each image by the inverse frequency of its class.
        seed: Decides what is drawn.

    Returns:
        A point for each of `SIZES` that leaves enough out (`MAX_SHARE`), and one for all images.
    """
    measured, labels = (test, test_labels) if len(test) else (valid, valid_labels)

    def accuracy(rows: np.ndarray) -> float:
        fitted = regression.fit(
            train[rows], train_labels[rows], valid, valid_labels, num_classes=num_classes, balanced=balanced
        )
        logits_BK = (measured - fitted.mean) / fitted.deviation @ fitted.weights + fitted.bias + fitted.shift
        return float((logits_BK.argmax(axis=1) == labels).mean())

    points = []
    for size in SIZES:
        draws = [draw(train_labels, size, np.random.default_rng([seed, size, number])) for number in range(NUM_DRAWS)]
        num_images = len(draws[0])
        if num_images <= MAX_SHARE * len(train):
            accuracies = tuple(map(accuracy, draws))
            points.append(Point(images_per_class=size, num_images=num_images, accuracies=accuracies))
    whole = Point(images_per_class=None, num_images=len(train), accuracies=(accuracy(np.arange(len(train))),))
    return (*points, whole)


def draw(labels: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the places of `size` random images of each class, or of all that it has, int [images]."""
    places = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return np.concatenate([rng.choice(each, min(size, len(each)), replace=False) for each in places])
