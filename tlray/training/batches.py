"""The batches that a training worker learns from: images from Ray Data, or features from shared memory."""

from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import tensorflow as tf

from tlray.data import stream
from tlray.data.schedule import Rows, view_of
from tlray.data.stream import Schedule
from tlray.errors import DataError
from tlray.features.cache import FeatureReader
from tlray.training.task import TrainTask


class Batches:
    """The batches of one rank.

    Args:
        task: The inputs of the worker.

    Attributes:
        num_replaced: Number of images so far that could no longer be read and were replaced by others of their batch.
    """

    def __init__(self, task: TrainTask) -> None:
        self.num_replaced = 0
        self._task = task
        self._features = FeatureReader(task.cache) if task.cache is not None else None
        self._labels = {
            "train": ray.get(task.train_table[0])["class_index"].to_numpy(),
            "valid": ray.get(task.valid_table[0])["class_index"].to_numpy(),
        }

    def of(self, split: str, schedule: Schedule, batch_size: int) -> Generator[tuple[Any, Any, Any]]:
        """Yields the trunk's input (images or features), the labels and the weights of each batch of a split."""
        batches = self._streamed if self._features is None else self._cached
        for rows, inputs in batches(split, schedule, batch_size):
            labels = tf.constant(self._labels[split][rows.index], tf.int32)
            yield inputs, labels, tf.constant(rows.weight)

    def _streamed(self, split: str, schedule: Schedule, batch_size: int) -> Iterator[tuple[Rows, Any]]:
        """Yields rows and images; an image that can no longer be read is replaced by another: no rank ends early.

        Raises:
            DataError: An image has changed since it was first read, or none of a batch can be read.
        """
        task = self._task
        table = task.train_table if split == "train" else task.valid_table
        image_ids = ray.get(table[0])["image_id"]
        pixels = stream.Pixels(
            size_px=task.config.image_size_px,
            intensity_range=task.intensity_range,
            augmentation=task.config.augmentation if split == "train" else None,
            seed=task.config.seed,
        )
        for batch in stream.image_batches(table[0], schedule, pixels, batch_size=batch_size, share=task.share):
            stream.refuse_changed(batch["error_code"].tolist(), image_ids.take(pa.array(batch["row"])).to_pylist())
            place, num_failed = replace_failed(batch["error_code"] == "")
            self.num_replaced += num_failed
            rows = Rows(index=batch["row"][place], epoch=batch["epoch"], weight=batch["weight"])
            yield rows, tf.constant(batch["image"][place])

    def _cached(self, split: str, schedule: Schedule, batch_size: int) -> Iterator[tuple[Rows, Any]]:
        assert self._task.cache is not None and self._features is not None  # noqa: PT018, S101
        views = self._task.cache.rows[split]
        for start in range(0, schedule.num_rows, batch_size):
            rows = schedule.rows(np.arange(start, min(start + batch_size, schedule.num_rows)))
            view = view_of(rows, num_images=len(views), num_views=views.shape[1], seed=self._task.config.seed)
            yield rows, [tf.constant(each) for each in self._features.take(views[rows.index, view])]


def replace_failed(readable: np.ndarray) -> tuple[np.ndarray, int]:
    """Chooses a readable row of the same batch in place of each that cannot be read.

    Args:
        readable: Whether each row could be read, bool [rows].

    Returns:
        The row to take at each place, int64 [rows], and the number of rows replaced.

    Raises:
        DataError: No row of the batch can be read.
    """
    place = np.arange(len(readable))
    if readable.all():
        return place, 0
    if not readable.any():
        raise DataError(
            f"None of the {len(readable)} images of a batch can be read any more, though all could before training. "
            "Check the storage, and continue with --resume."
        )
    place[~readable] = np.resize(place[readable], int((~readable).sum()))
    return place, int((~readable).sum())
