"""Reads some images of a table in this process, without Ray, for a quick comparison or to be shown."""

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import pyarrow as pa
from PIL import Image

from tlray.data import decoding, stream
from tlray.data.stream import Pixels
from tlray.errors import ImageError

T = TypeVar("T")

NUM_READERS = 8
"""Number of threads that read; they wait for the storage more than they work."""


def spread(num_rows: int, max_rows: int) -> np.ndarray:
    """Returns at most `max_rows` row numbers, evenly spread over a table, ascending, int64 [rows]."""
    return np.unique(np.linspace(0, num_rows - 1, min(num_rows, max_rows)).astype(np.int64))


def spread_by_class(labels: np.ndarray, max_rows: int) -> np.ndarray:
    """Returns at most `max_rows` row numbers: of each class its share, evenly spread over the rows of the class.

    Args:
        labels: The class of each row, int [rows of the table].
        max_rows: Maximum number of rows.

    Returns:
        Ascending row numbers, int64 [rows]; all of them if there are no more than `max_rows`.
    """
    return np.sort(np.argsort(labels, kind="stable")[spread(len(labels), max_rows)])


def read_each(
    uris: Sequence[str],
    pixels: Pixels,
    convert: Callable[[Image.Image], T],
    *,
    sha256: Sequence[str | None] | None = None,
) -> list[T | None]:
    """Reads images in threads, and returns something else made of each.

    Args:
        uris: Locations of the image files.
        pixels: How files become pixels; nothing is augmented.
        convert: A function of an image as `decoding.decode` returns it. It is called in the threads, so that no more
            than `NUM_READERS` images are in memory unless it keeps them.
        sha256: The sha256 of each file when it was first read, see `stream.known_digests`; None: none is known.

    Returns:
        What `convert` returned for each image; None for those that cannot be read, or have changed.
    """

    def read(uri: str, known: str | None) -> T | None:
        with contextlib.suppress(ImageError):
            content = stream.read_file(uri, sha256=known)
            return convert(decoding.decode(content, size_px=pixels.size_px, intensity_range=pixels.intensity_range))
        return None

    with ThreadPoolExecutor(NUM_READERS) as pool:
        return list(pool.map(read, uris, sha256 or [None] * len(uris)))


def read_some(table: pa.Table, pixels: Pixels, *, max_images: int) -> dict[int, np.ndarray]:
    """Reads some images, evenly spread over a table; those that cannot be read, or have changed, are left out.

    Args:
        table: A manifest; `sha256` may be missing, see `stream.known_digests`.
        pixels: How files become pixels; nothing is augmented.
        max_images: Maximum number of images.

    Returns:
        Row number to pixels, uint8 [size, size, 3].
    """
    places = spread(table.num_rows, max_images).tolist()
    chosen = table.take(pa.array(places, pa.int64()))
    digests = stream.known_digests(chosen)
    found = read_each(chosen["uri"].to_pylist(), pixels, decoding.to_array, sha256=digests)
    return {place: image for place, image in zip(places, found, strict=True) if image is not None}
