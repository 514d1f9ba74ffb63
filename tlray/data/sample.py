"""Reads some images of a table in this process, without Ray, for a quick comparison."""

import contextlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from tlray.data import decoding, stream
from tlray.data.stream import Pixels
from tlray.errors import ImageError

NUM_READERS = 8
"""Number of threads that read; they wait for the storage more than they work."""


def spread(num_rows: int, max_rows: int) -> np.ndarray:
    """Returns at most `max_rows` row numbers, evenly spread over a table, ascending, int64 [rows]."""
    return np.unique(np.linspace(0, num_rows - 1, min(num_rows, max_rows)).astype(np.int64))


def read_some(table: pa.Table, pixels: Pixels, *, max_images: int) -> dict[int, np.ndarray]:
    """Reads some images, evenly spread over a table; those that cannot be read are left out.

    Args:
        table: A manifest.
        pixels: How files become pixels; nothing is augmented.
        max_images: Maximum number of images.

    Returns:
        Row number to pixels, uint8 [size, size, 3].
    """
    uris = table["uri"].to_pylist()
    places = spread(len(uris), max_images).tolist()

    def read(place: int) -> np.ndarray | None:
        with contextlib.suppress(ImageError):
            content = stream.read_file(uris[place])
            image = decoding.decode(content, size_px=pixels.size_px, intensity_range=pixels.intensity_range)
            return decoding.to_array(image)
        return None

    with ThreadPoolExecutor(NUM_READERS) as pool:
        found = dict(zip(places, pool.map(read, places), strict=True))
    return {place: image for place, image in found.items() if image is not None}
