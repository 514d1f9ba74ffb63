"""Which image comes when: the order of training and validation as a pure function of the row number.

A global batch holds the same images whatever the number of workers, and a resumed run starts at a row.
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
    """A part of a stream.

    Attributes:
        index: int64 [rows], the image's row in the manifest.
        epoch: int64 [rows], 0-based; -1: not augmented, whatever the stream's augmentation.
        weight: float32 [rows], 1, or 0 for a row that only fills up the last batch.
    """

    index: np.ndarray
    epoch: np.ndarray
    weight: np.ndarray


def view_of(rows: Rows, *, num_images: int, num_views: int, seed: int) -> np.ndarray:
    """Returns which of an image's stored views each row takes, int64 [rows].

    Each image begins with a view of its own and takes the next one in the next epoch.
    """
    first = np.random.default_rng([seed, num_images]).integers(num_views, size=num_images)
    return (first[rows.index] + np.maximum(rows.epoch, 0)) % num_views


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSchedule:
    """The rows of one rank's training stream: every epoch a permutation, cut into global batches.

    The last batch of an epoch is filled up with the epoch's first images at weight 0, so that every rank has the same
    number of steps and every image counts exactly once an epoch.

    Attributes:
        num_images: Images in the training split.
        batch_size: Global batch size, divisible by `num_workers`.
        num_workers: Number of ranks.
        rank: This stream's rank, from 0.
        seed: Decides the permutations.
        num_epochs: Epochs in the whole run.
        first_epoch: Where the stream starts, 0-based.
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
        """Global batches in an epoch."""
        return -(-self.num_images // self.batch_size)

    @property
    def rank_batch_size(self) -> int:
        """Rows that this rank contributes to a global batch."""
        return self.batch_size // self.num_workers

    @property
    def num_rows(self) -> int:
        """Rows of this rank's stream, all remaining epochs together."""
        return (self.num_epochs - self.first_epoch) * self.steps_per_epoch * self.rank_batch_size

    def num_images_in_step(self, step: int) -> int:
        """Returns how many rows of a global batch count (have weight 1)."""
        return min(self.batch_size, self.num_images - step * self.batch_size)

    def rows(self, positions: np.ndarray) -> Rows:
        """Returns what lies at some positions (int64, from 0 to `num_rows` - 1) of this rank's stream."""
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
    """The rows of one rank's validation stream: rank, rank + num_workers, ..., filled up at weight 0 to equal lengths.

    Attributes:
        num_images: Images in the split.
        num_workers: Number of ranks.
        rank: This stream's rank, from 0.
    """

    num_images: int
    num_workers: int
    rank: int

    @property
    def num_rows(self) -> int:
        """Rows of every rank's stream."""
        return -(-self.num_images // self.num_workers)

    def rows(self, positions: np.ndarray) -> Rows:
        """Returns what lies at some positions (int64, from 0 to `num_rows` - 1) of this rank's stream."""
        place = positions * self.num_workers + self.rank
        return Rows(
            index=place % self.num_images,
            epoch=np.zeros_like(positions),
            weight=(place < self.num_images).astype(np.float32),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainSchedule:
    """Every image once, in the manifest's order: what scoring reads."""

    num_rows: int

    def rows(self, positions: np.ndarray) -> Rows:
        """Returns the rows at some positions: the positions themselves."""
        return Rows(index=positions, epoch=np.zeros_like(positions), weight=np.ones(len(positions), dtype=np.float32))


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewSchedule:
    """Every row of a table once, each as the view that the table names: what feature extraction reads.

    Attributes:
        views: int32 [rows]; 0: the image as it is, v: augmented as in epoch v - 1 of a training.
    """

    views: np.ndarray

    @property
    def num_rows(self) -> int:
        """Rows of the stream."""
        return len(self.views)

    def rows(self, positions: np.ndarray) -> Rows:
        """Returns the rows at some positions, epoch -1 for images as they are."""
        epoch = self.views[positions].astype(np.int64) - 1
        return Rows(index=positions, epoch=epoch, weight=np.ones(len(positions), dtype=np.float32))
