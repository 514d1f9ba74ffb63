"""Looks at an image file once: its size, the traits of the file, and a thumbnail and a hash to find copies by."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from tlray.data import decoding, traits
from tlray.data.decoding import ImageInfo

VERSION = 1
"""Version of the results of `look`. Raise it when they change, so that stored ones are no longer used."""

THUMBNAIL_PX = 96
"""Height and width of thumbnails. 100,000 of them need 0.9 GB."""

TRAIT_PREFIX = "trait_"
"""Start of the names of the columns with traits."""

SCHEMA = pa.schema(
    [
        ("pixels_sha256", pa.string()),
        ("thumbnail", pa.binary(THUMBNAIL_PX**2)),
        *((TRAIT_PREFIX + field.name, field.type) for field in traits.SCHEMA),
    ]
)
"""Columns that a look adds to a table of images; null where an image cannot be read."""

KEPT = tuple(TRAIT_PREFIX + name for name in traits.CATEGORIES)
"""Names of those that a manifest keeps: the file format and the mode, which are short."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Size, traits, thumbnail and hash of a readable image file.

    Attributes:
        info: Its size and pixel type.
        traits: See `traits.measure`.
        thumbnail: Grey values, uint8 [THUMBNAIL_PX, THUMBNAIL_PX].
        pixels_sha256: Hash of the decoded pixels and their size: the same for a copy that was saved losslessly, with
            as many bits.
    """

    info: ImageInfo
    traits: Mapping[str, float | str]
    thumbnail: np.ndarray
    pixels_sha256: str

    def as_row(self) -> dict[str, Any]:
        """Returns the values of `SCHEMA` by name."""
        named = {TRAIT_PREFIX + name: value for name, value in self.traits.items()}
        return {"pixels_sha256": self.pixels_sha256, "thumbnail": self.thumbnail.tobytes(), **named}


def look(data: bytes) -> Look:
    """Decodes an image file once and measures it.

    The thumbnail of a 16-bit image has a window of its own, from the 0.1 to the 99.9 percentile of its pixels, so that
    copies look alike whatever range the data set has.

    Args:
        data: The bytes of an image file.

    Raises:
        ImageError: The image cannot be used; the error's code says why.
    """
    image = decoding.load(data)
    info = decoding.describe(image)
    window = None
    if info.is_16_bit:
        low, high = np.percentile(np.asarray(image), (0.1, 99.9))
        window = float(low), float(max(high, low + 1))
    shown = decoding.to_grey_or_rgb(image, window)
    pixels = np.asarray(image if info.is_16_bit else shown)
    small = shown.resize((2 * THUMBNAIL_PX, 2 * THUMBNAIL_PX), Image.Resampling.BILINEAR).convert("L")
    return Look(
        info=info,
        traits=traits.measure(image, shown, num_bytes=len(data)),
        thumbnail=np.asarray(small.resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BOX)),
        pixels_sha256=hashlib.sha256(f"{pixels.dtype} {pixels.shape}".encode() + pixels.tobytes()).hexdigest(),
    )


def thumbnails(table: pa.Table) -> np.ndarray:
    """Returns the thumbnails of a table with `SCHEMA` and no nulls, uint8 [images, THUMBNAIL_PX, THUMBNAIL_PX]."""
    column = table["thumbnail"].combine_chunks()
    start = column.offset * THUMBNAIL_PX**2
    pixels = np.frombuffer(column.buffers()[1], np.uint8)[start : start + len(column) * THUMBNAIL_PX**2]
    return pixels.reshape(-1, THUMBNAIL_PX, THUMBNAIL_PX)


def traits_of(table: pa.Table) -> pa.Table:
    """Returns the traits of a table with `SCHEMA`, as a table with `traits.SCHEMA`."""
    return pa.table({name: table[TRAIT_PREFIX + name] for name in traits.SCHEMA.names})
