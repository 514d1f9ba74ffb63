"""Controls of a result: what accuracy comes without learning anatomy, and whether labels leak into the test images.

- `by_traits` knows the traits of the files only. If it does as well as the model, the accuracy says nothing.
- `by_neighbour` looks up the most similar training image. If it does as well, the test images may be too similar.
- `by_permuted_labels` learns labels without meaning, so it must be at chance. If it is better, labels leak.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tlray.data import traits
from tlray.errors import DataError
from tlray.probe import regression
from tlray.trust import shortcuts
from tlray.trust.groups import permuted
from tlray.trust.intervals import mean_interval

MAX_P_VALUE = 0.01
"""Largest p-value with which a control is surely above chance."""

NUM_PERMUTATIONS = 999
"""Number of permutations of the test labels; the smallest p-value is 1 / (1 + this)."""

NUM_PROBES = 5
"""Number of probes with permuted labels, each with its own permutation."""

INVERSE_PENALTY = 0.01
"""scikit-learn's C of these probes: with it they fit any labels of the training images of a small data set, so that
they would find a copy. It is in the middle of `regression.INVERSE_PENALTIES`."""

MAX_TRAIN_IMAGES = 2000
"""Number of training images above which a probe with permuted labels takes some of them, drawn at random."""

_BLOCK = 1024  # rows of features that are converted at once to float32, or turned in float64


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """The accuracy of a control on the test images.

    Attributes:
        name: `traits`, `nearest neighbour` or `permuted labels`.
        accuracy: Share of right predictions, in [0, 1]; a mean over the probes with permuted labels.
        accuracy_ci95: Its 95 % interval over groups, (low, high). It is for other test images and this same predictor.
        chance: Accuracy of the same predictions if the labels of the test images are exchanged between groups.
        majority: Share of the test images of the largest class.
        p_value: Probability of this accuracy, or a better one, by chance.
        num_images: Number of test images.
        num_groups: Number of their groups.
    """

    name: str
    accuracy: float
    accuracy_ci95: tuple[float, float]
    chance: float
    majority: float
    p_value: float
    num_images: int
    num_groups: int

    @property
    def is_above_chance(self) -> bool:
        """True if the accuracy is surely above chance. With permuted labels this is a leak."""
        return self.p_value <= MAX_P_VALUE


def by_traits(
    train: pa.Table,
    train_labels: np.ndarray,
    test: pa.Table,
    labels: np.ndarray,
    groups: Sequence[str],
    *,
    seed: int = 0,
) -> Control:
    """Predicts the test images from the technical traits of their files, by a forest of the training images.

    Args:
        train: The traits of the training images, from `traits.to_table`.
        train_labels: Their class indices, int [images].
        test: The traits of the test images.
        labels: Their class indices, int [images].
        groups: Their groups, such as patients; copies of an image should be in one group.
        seed: Seed of the forest and the permutations.

    Raises:
        DataError: The lengths differ, or there are no images.
    """
    _check(train_labels, train.num_rows)
    _check(labels, test.num_rows, len(groups))
    model = shortcuts.forest(seed).fit(traits.to_matrix(train, traits.TECHNICAL), train_labels)
    predicted = model.predict(traits.to_matrix(test, traits.TECHNICAL))
    return _judge("traits", predicted[None], labels[None], _numbers(groups), seed)


def by_neighbour(
    train_BD: np.ndarray,
    train_labels: np.ndarray,
    features_BD: np.ndarray,
    labels: np.ndarray,
    groups: Sequence[str],
    *,
    seed: int = 0,
) -> Control:
    """Gives each test image the label of the training image with the most similar features, by their cosine.

    Args:
        train_BD: Pooled features of the training images, floating point [images, features].
        train_labels: Their class indices, int [images].
        features_BD: Pooled features of the test images.
        labels: Their class indices, int [images].
        groups: Their groups, such as patients; copies of an image should be in one group.
        seed: Seed of the permutations.

    Raises:
        DataError: The lengths differ, or there are no images.
    """
    _check(train_labels, len(train_BD))
    _check(labels, len(features_BD), len(groups))
    predicted = train_labels[nearest(train_BD, features_BD)]
    return _judge("nearest neighbour", predicted[None], labels[None], _numbers(groups), seed)


def by_permuted_labels(
    features_BD: np.ndarray,
    labels: np.ndarray,
    groups: Sequence[str],
    is_test: np.ndarray,
    *,
    inverse_penalty: float = INVERSE_PENALTY,
    seed: int = 0,
) -> Control:
    """Trains linear probes after exchanging the labels between groups, and tests them with the exchanged labels.

    The labels mean nothing then, and are the same in a group only. A probe above chance has seen the groups of test
    images in training: patients, or copies if these are in one group, are in both parts.

    Args:
        features_BD: Pooled features of the training and test images, floating point [images, features].
        labels: Their class indices, int [images].
        groups: Their groups, such as patients; copies of an image should be in one group.
        is_test: Which are test images, bool [images].
        inverse_penalty: scikit-learn's C of the probes.
        seed: Seed of the permutations, and of the sample if there are more than `MAX_TRAIN_IMAGES`.

    Raises:
        DataError: The lengths differ, there are no training or no test images, or all have the same label.
    """
    _check(labels, len(features_BD), len(groups), len(is_test))
    train, test = np.flatnonzero(~is_test), np.flatnonzero(is_test)
    _check(train)
    _check(test)
    if len(np.unique(labels)) < 2:
        raise DataError("All images have the same label. Give images of two classes or more.")
    rng = np.random.default_rng(seed)
    numbers = _numbers(groups)
    if len(train) > MAX_TRAIN_IMAGES:
        train = np.sort(rng.choice(train, MAX_TRAIN_IMAGES, replace=False))
    basis = regression.basis(features_BD[train])
    train_turned = basis.turn(features_BD[train])
    exchanged_PB = np.stack([permuted(labels, numbers, rng) for _ in range(NUM_PROBES)])
    # Where the training images have one label there is nothing to learn: it is predicted.
    predicted_PB = np.repeat(exchanged_PB[:, train[:1]], len(test), axis=1)
    models = {}
    for number, exchanged in enumerate(exchanged_PB):
        if len(np.unique(exchanged[train])) > 1:
            models[number] = regression.regression(balanced=False)
            regression.solve(models[number], train_turned, exchanged[train], inverse_penalty=inverse_penalty)
    for start in range(0, len(test), _BLOCK):  # memory: turned features are float64
        turned = basis.turn(features_BD[test[start : start + _BLOCK]])
        for number, model in models.items():
            predicted_PB[number, start : start + _BLOCK] = model.predict(turned)
    test_numbers = np.unique(numbers[test], return_inverse=True)[1]
    return _judge("permuted labels", predicted_PB, exchanged_PB[:, test], test_numbers, seed)


def by_predictions(
    name: str, predicted: Sequence[str], labels: Sequence[str], groups: Sequence[str], *, seed: int = 0
) -> Control:
    """Judges predictions that were made elsewhere, such as by the forests of a cross-validation.

    Args:
        name: See `Control`.
        predicted: The predicted class of each image.
        labels: Its true class.
        groups: Its group, such as its patient; copies of an image should be in one group.
        seed: Seed of the permutations.

    Raises:
        DataError: The lengths differ, or there are no images.
    """
    codes = np.unique(np.array([*predicted, *labels], dtype=str), return_inverse=True)[1]
    told, true = codes[: len(predicted)], codes[len(predicted) :]
    _check(true, len(told), len(groups))
    return _judge(name, told[None], true[None], _numbers(groups), seed)


def nearest(train_BD: np.ndarray, features_BD: np.ndarray) -> np.ndarray:
    """Returns the row of the training image with the highest cosine for each image, int [images]."""
    unit_BD = _unit(features_BD)
    best = np.full(len(unit_BD), -np.inf, np.float32)
    place = np.zeros(len(unit_BD), np.int64)
    for start in range(0, len(train_BD), _BLOCK):
        cosine = unit_BD @ _unit(train_BD[start : start + _BLOCK]).T
        row = cosine.argmax(axis=1)
        value = cosine[np.arange(len(row)), row]
        place = np.where(value > best, start + row, place)
        best = np.maximum(best, value)
    return place


def _unit(features_BD: np.ndarray) -> np.ndarray:
    features_BD = np.asarray(features_BD, np.float32)
    return features_BD / np.maximum(np.linalg.norm(features_BD, axis=1, keepdims=True), 1e-12)


def _numbers(groups: Sequence[str]) -> np.ndarray:
    return np.unique(np.array(groups, dtype=str), return_inverse=True)[1]


def _check(labels: np.ndarray, *lengths: int) -> None:
    if not len(labels) or any(length != len(labels) for length in lengths):
        raise DataError(
            f"There are {len(labels)} labels for {' and '.join(map(str, lengths)) or 'no'} images, traits or groups. "
            "Give one of each for every image, and at least one image."
        )


def _judge(name: str, predicted_PB: np.ndarray, labels_PB: np.ndarray, groups: np.ndarray, seed: int) -> Control:
    """Compares predictions with labels, and with labels that were exchanged between groups.

    Args:
        name: Name of the control.
        predicted_PB: Predicted class indices, int [probes, images].
        labels_PB: True class indices, int [probes, images].
        groups: Numbers of the groups, int [images], from 0 without gaps.
        seed: Seed of the permutations.
    """
    rng = np.random.default_rng(seed)
    shuffled = np.zeros(NUM_PERMUTATIONS)
    for predicted, labels in zip(predicted_PB, labels_PB, strict=True):
        shuffled += [np.mean(permuted(labels, groups, rng) == predicted) for _ in range(NUM_PERMUTATIONS)]
    shuffled /= len(predicted_PB)
    # With several probes, each image counts by the share of them that are right.
    interval = mean_interval(np.mean(predicted_PB == labels_PB, axis=0), groups)
    return Control(
        name=name,
        accuracy=interval.value,
        accuracy_ci95=(interval.low, interval.high),
        chance=float(shuffled.mean()),
        majority=float(np.mean([np.bincount(labels).max() for labels in labels_PB]) / labels_PB.shape[1]),
        p_value=float((1 + np.sum(shuffled >= interval.value - 1e-9)) / (1 + NUM_PERMUTATIONS)),
        num_images=labels_PB.shape[1],
        num_groups=int(groups.max()) + 1,
    )
