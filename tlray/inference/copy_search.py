"""Finds copies among images that may be suggested for labelling, and of the training images that the bundle keeps.

`tlray.inference.suggest` gives it to `tlray.inference.selection`. It reads the images in this process.
"""

import contextlib
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
from threadpoolctl import threadpool_limits

from tlray.bundle.lookalikes import KeptImages
from tlray.bundle.novelty import directions
from tlray.data import looks, sample, stream
from tlray.data.looks import Look
from tlray.errors import ImageError
from tlray.trust.copies import find_copies
from tlray.trust.suggestions import Seen


class CopySearch:
    """Looks at images, and compares them by their pictures as the audit of a training does; see `find_copies`.

    Args:
        uris: Locations of all images that may be suggested.
        places_BC: Where they lie in the space that the training images span, floating point [images, components];
            finite for the images that are looked at. None: not known; copies are found by their pictures alone.
        kept: The training images that the bundle keeps; None: it keeps none.
    """

    def __init__(self, uris: pa.ChunkedArray, places_BC: np.ndarray | None, kept: KeptImages | None) -> None:
        self._uris = uris
        self._places_BC = places_BC
        self._kept_BHW = np.empty((0, looks.THUMBNAIL_PX, looks.THUMBNAIL_PX), np.uint8)
        self._toward_BC = None
        if kept is not None:
            self._kept_BHW, numbers = kept.pictures()
            self._toward_BC = kept.directions[numbers]
        self._looks: dict[int, Look | None] = {}
        self._copies_of: dict[int, set[int]] = {}  # of an image with copies: its index, and theirs; see `_join`

    def find(self, indices: Sequence[int]) -> Seen:
        """Compares images with one another and with the training images that the bundle keeps.

        An image that cannot be read any more is a copy of none. What an earlier call found stays: among more images a
        copy may no longer be among the nearest, which are compared.

        Args:
            indices: Indices of the images, without repetition. Those of an earlier call are not read again.
        """
        new = [index for index in indices if index not in self._looks]
        uris = self._uris.take(pa.array(new, pa.int64())).to_pylist()
        with ThreadPoolExecutor(sample.NUM_READERS) as readers:
            self._looks |= zip(new, readers.map(_look, uris), strict=True)
        seen = {index: found for index in indices if (found := self._looks[index]) is not None}
        num_kept = len(self._kept_BHW)
        if not seen:
            return Seen(known=frozenset() if num_kept else None)
        shown = list(seen)
        digests = [each.pixels_sha256 for each in seen.values()]
        with threadpool_limits(1, "blas"):  # as in `pictures.compare`: its threads would only wait for one another
            found = find_copies(
                self._features(shown),
                np.concatenate([np.stack([each.thumbnail for each in seen.values()]), self._kept_BHW]),
                [*digests, *(f"in the bundle {number}" for number in range(num_kept))],
                num_known=num_kept,
            )
        self._join([*shown, *(-1 - number for number in range(num_kept))], found.group_of.tolist())
        picture_of = {index: min(self._copies_of.get(index, {index})) for index in shown}
        known = frozenset(index for index, picture in picture_of.items() if picture < 0)
        return Seen(picture_of=picture_of, known=known if num_kept else None)

    def _join(self, indices: Sequence[int], groups: Sequence[int]) -> None:
        """Notes which images are copies of one another.

        Args:
            indices: Indices of images; those of the bundle count down from -1.
            groups: The group of each image; images of one group are copies.
        """
        members: dict[int, list[int]] = defaultdict(list)
        for index, group in zip(indices, groups, strict=True):
            members[group].append(index)
        for group in members.values():
            joined = set[int]().union(*(self._copies_of.get(index, {index}) for index in group))
            if len(joined) > 1:
                self._copies_of |= dict.fromkeys(joined, joined)

    def _features(self, indices: Sequence[int]) -> np.ndarray | None:
        """Returns the directions of images, followed by those of the kept ones, float32 [images, components]."""
        if self._places_BC is None:
            return None
        own_BC = directions(self._places_BC[indices])
        return own_BC if self._toward_BC is None else np.concatenate([own_BC, self._toward_BC])


def _look(uri: str) -> Look | None:
    """Returns what an image shows; None if it cannot be read."""
    with contextlib.suppress(ImageError):
        return looks.look(stream.read_file(uri))
    return None
