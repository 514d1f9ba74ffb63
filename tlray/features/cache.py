"""The features of a run in Ray's object store, from which every process takes the rows that it wants."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import ray


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureCache:
    """The location of each image's features in Ray's object store.

    Attributes:
        names: The features' names.
        parts: References to the parts, each of which maps names to float16 [rows, ...].
        num_rows: Number of rows of each part.
        rows: Split to the row of each image and view, counted through all parts, int64 [images, views], in the order of
            the split's table.
    """

    names: list[str]
    parts: "list[ray.ObjectRef[Mapping[str, np.ndarray]]]"
    num_rows: list[int]
    rows: Mapping[str, np.ndarray]


class FeatureReader:
    """Takes rows from a cache, whose memory all processes of a node share."""

    def __init__(self, cache: FeatureCache) -> None:
        self._names = cache.names
        self._parts = ray.get(cache.parts)
        self._starts = np.cumsum([0, *cache.num_rows])

    def take(self, rows: np.ndarray, names: Sequence[str] | None = None) -> list[np.ndarray]:
        """Returns the features of some rows, an array float16 [rows, ...] for each of `names` (None: all features)."""
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        places = rows - self._starts[numbers]
        where = list(zip(numbers, places, strict=True))
        return [
            np.stack([self._parts[number][name][place] for number, place in where]) for name in names or self._names
        ]
