"""Features that a run has computed, in Ray's object store: every process takes the rows that it wants from there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import ray


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureCache:
    """Where the features of each image lie.

    Attributes:
        names: The features' names.
        parts: In the object store: name to float16 [rows, ...].
        num_rows: Rows of each part.
        rows: Split to int64 [images, views], in the order of the split's table: the row, counted through all parts.
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
        """Returns the features of some rows, float16 [rows, ...] for each of some names, or of all."""
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        places = rows - self._starts[numbers]
        where = list(zip(numbers, places, strict=True))
        return [
            np.stack([self._parts[number][name][place] for number, place in where]) for name in names or self._names
        ]
