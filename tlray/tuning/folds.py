"""The folds of a sweep's cross-validation: which images are learned from, and which are held out."""

import numpy as np
import pyarrow as pa
from sklearn.model_selection import StratifiedGroupKFold

from tlray.data.dataset import Dataset
from tlray.data.splits import dividing_groups, independent_groups
from tlray.errors import DataError

Folds = tuple[tuple[np.ndarray, np.ndarray], ...]
"""Indices of the training images and of the held-out images of each fold."""


def check_num_groups(num_groups: int, *, num_folds: int) -> None:
    """Checks that the smallest class has a group (a patient, or a single image) for each fold.

    Args:
        num_groups: Number of groups of the smallest class.
        num_folds: Number of folds.

    Raises:
        DataError: It has not.
    """
    if num_groups < num_folds:
        raise DataError(
            f"A class has images of only {num_groups} patients (or single images, or series of neighbouring slices), "
            f"too few for --num-folds {num_folds}. Add patients, or lower --num-folds."
        )


def make_folds(images: Dataset, *, num_folds: int, seed: int) -> Folds:
    """Splits training and validation images into folds; groups stay whole, see `splits.dividing_groups`.

    Raises:
        DataError: A class has too few groups for this number of folds.
    """
    table = learned_from(images)
    labels = table["class_index"].to_numpy()
    groups = np.unique(np.array(dividing_groups(table)), return_inverse=True)[1]
    num_groups = min(len(set(groups[labels == label])) for label in range(len(images.classes)))
    check_num_groups(num_groups, num_folds=num_folds)
    splitter = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
    folds = tuple(splitter.split(labels, labels, groups))
    if any(len(set(labels[train])) < len(images.classes) for train, _ in folds):
        raise DataError(
            f"Not every class has training images in all {len(folds)} folds. Add patients, or lower --num-folds."
        )
    return folds


def groups_of(images: Dataset) -> np.ndarray:
    """Returns the group number of each image of `learned_from`, int64 [images]; see `splits.independent_groups`."""
    table = learned_from(images)
    return np.unique(np.array(independent_groups(table)), return_inverse=True)[1]


def learned_from(images: Dataset) -> pa.Table:
    """Returns the images that a sweep learns from: those for training, then those for validation."""
    return pa.concat_tables([images.split("train"), images.split("valid")])
