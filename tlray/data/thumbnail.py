"""Makes small pictures of images for people to look at: JPEGs of their pixels, without names or other metadata.

A bundle keeps such pictures; `decode` reads them again, to be compared with others.
"""

import io

import numpy as np
from PIL import Image

SIZE_PX = 96
"""Height and width of a thumbnail in pixels."""

QUALITY = 80
"""Quality of the JPEGs, from 1 to 95."""


def encode(image: Image.Image) -> bytes:
    """Returns the thumbnail of an image, `SIZE_PX` high and wide, as a JPEG.

    Args:
        image: An image of mode L or RGB, such as `decoding.decode` returns.
    """
    return to_jpeg(np.asarray(image.resize((SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR)))


def to_jpeg(pixels: np.ndarray) -> bytes:
    """Returns pixels as a JPEG that has nothing else in it.

    An image of Pillow carries the comment and other data of its file along; an array has none.

    Args:
        pixels: uint8 [height, width], grey, or [height, width, 3], RGB.
    """
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


def decode(jpeg: bytes) -> np.ndarray | None:
    """Returns the grey pixels of a thumbnail, uint8 [SIZE_PX, SIZE_PX]; None if it is damaged or of another size."""
    try:
        with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
            # The size is known before the pixels are decoded, so that no large image is.
            return np.asarray(image.convert("L")) if image.size == (SIZE_PX, SIZE_PX) else None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
