"""Schedules, which say which image is at each row of a stream, for training, validation, scoring and features.

The image is a pure function of the row number, so that a stream can start at any row. A global batch of training holds
the same images for any number of workers.
"""

import functools
from dataclasses import dataclass

import numpy as np


@functools.lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, num_images: int) -> np.ndarray:
    """Returns the order of the images in one epoch, int64 [num_images], read-only."""
    order = np.random.default_rng([seed, epoch]).permutation(num_images)
    order.flags.writeable = False
    return order


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Some rows of a stream.

    Attributes:
        index: int64 [rows], the image's row in the manifest.
        epoch: int64 [rows], 0-based epoch for the augmentation; -1: the image is never augmented.
        weight: float32 [rows], 1, or 0 for a row that only pads the last batch.
    """

    index: np.ndarray
    epoch: np.ndarray
    weight: np.ndarray


def view_of(rows: Rows, *, num_images: int, num_views: int, seed: int) -> np.ndarray:
    """Returns the number of the stored view of its image that each row uses, int64 [rows].

    Each image starts with a random view and uses the next one in each following epoch.
    """
    first = np.random.default_rng([seed, num_images]).integers(num_views, size=num_images)
    return (first[rows.index] + np.maximum(rows.epoch, 0)) % num_views


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSchedule:
    """Rows of one rank's training stream: each epoch is a permutation of the images, cut into global batches.

    The last batch of an epoch is padded with the epoch's first images at weight 0, so that every rank has the same
    number of steps and every image counts exactly once per epoch.

    Attributes:
        num_images: Number of images in the training split.
        batch_size: Global batch size, divisible by `num_workers`.
        num_workers: Number of ranks.
        rank: This stream's rank, from 0.
        seed: Seed of the permutations.
        num_epochs: Number of epochs in the whole run.
        first_epoch: Epoch at which the stream starts, 0-based.
    """

    num_images: int
    batch_size: int
    num_workers: int
    rank: int
    seed: int
    num_epochs: int
    first_epoch: int = 0

    @property
    def steps_per_epoch(self) -> int:
        """Number of global batches in an epoch."""
        return -(-self.num_images // self.batch_size)

    @property
    def rank_batch_size(self) -> int:
        """Number of rows that each rank contributes to a global batch."""
        return self.batch_size // self.num_workers

    @property
    def num_rows(self) -> int:
        """Number of rows of this rank's stream, all remaining epochs together."""
        return (self.num_epochs - self.first_epoch) * self.steps_per_epoch * self.rank_batch_size

    def num_images_in_step(self, step: int) -> int:
        """Returns how many rows of an epoch's global batch number `step`, from 0, have weight 1."""
        return min(self.batch_size, self.num_images - step * self.batch_size)

    def rows(self, positions: np.ndarray) -> Rows:
        """Returns the rows at some positions (int64, from 0 to `num_rows` - 1) of this rank's stream."""
        rows_per_epoch = self.steps_per_epoch * self.rank_batch_size
        epoch = self.first_epoch + positions // rows_per_epoch
        step, offset = np.divmod(positions % rows_per_epoch, self.rank_batch_size)
        place = step * self.batch_size + self.rank * self.rank_batch_size + offset
        index = np.empty_like(place)
        for value in np.unique(epoch):
            chosen = epoch == value
            index[chosen] = permutation(self.seed, int(value), self.num_images)[place[chosen] % self.num_images]
        return Rows(index=index, epoch=epoch, weight=(place < self.num_images).astype(np.float32))


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSchedule:
    """Rows of one rank's validation stream: images rank, rank + num_workers, and so on.

    Streams are padded with images at weight 0, so that those of all ranks have the same length.

    Attributes:
        num_images: Number of images in the split.
        num_workers: Number of ranks.
        rank: This stream's rank, from 0.
    """

    num_images: int
    num_workers: int
    rank: int

    @property
    def num_rows(self) -> int:
        """Number of rows of each rank's stream."""
        return -(-self.num_images // self.num_workers)

    def rows(self, positions: np.ndarray) -> Rows:
        """Returns the rows at some positions (int64, from 0 to `num_rows` - 1) of this rank's stream."""
        place = positions * self.num_workers + self.rank
        return Rows(
            index=place % self.num_images,
            epoch=np.zeros_like(positions),
            weight=(place < self.num_images).astype(np.float32),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainSchedule:
    """Rows of a scoring stream: every image once, in the manifest's order."""

    num_rows: int

    def rows(self, positions: np.ndarray) -> Rows:
        """Returns the rows at some positions; each position is the image's row in the manifest."""
        return Rows(index=positions, epoch=np.zeros_like(positions), weight=np.ones(len(positions), dtype=np.float32))


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewSchedule:
    """Rows of a feature-extraction stream: every row of a table once, each with its own view of the image.

    Attributes:
        views: int32 [rows], the view of each row; 0: the image without augmentation, v: the image augmented as in epoch
            v - 1 of a training.
    """

    views: np.ndarray

    @property
    def num_rows(self) -> int:
        """Number of rows of the stream."""
        return len(self.views)

    def rows(self, positions: np.ndarray) -> Rows:
        """Returns the rows at some positions, with epoch -1 for images without augmentation."""
        epoch = self.views[positions].astype(np.int64) - 1
        return Rows(index=positions, epoch=epoch, weight=np.ones(len(positions), dtype=np.float32))
