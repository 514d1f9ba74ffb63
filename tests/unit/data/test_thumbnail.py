"""Thumbnails are small JPEGs that have nothing of a file but its pixels."""

import io

import numpy as np
import pytest
from PIL import Image

from tlray.data import decoding, thumbnail

SECRET = b"Mustermann"


def with_metadata(pixels: np.ndarray) -> bytes:
    """A JPEG file that tells a name in its comment and its EXIF data."""
    exif = Image.Exif()
    exif[0x010E] = SECRET.decode()
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95, comment=SECRET, exif=exif)
    return stream.getvalue()


@pytest.mark.parametrize(("shape", "mode"), [((40, 60), "L"), ((40, 60, 3), "RGB")])
def test_only_pixels_are_kept(shape, mode):
    pixels = np.zeros(shape, np.uint8)
    pixels[:, 30:] = 200 if mode == "L" else (200, 100, 0)
    file = with_metadata(pixels)
    assert SECRET in file
    found = thumbnail.encode(decoding.decode(file, size_px=128))
    assert SECRET not in found
    image = Image.open(io.BytesIO(found))
    assert (image.format, image.mode, image.size) == ("JPEG", mode, (thumbnail.SIZE_PX, thumbnail.SIZE_PX))
    assert dict(image.getexif()) == {}
    np.testing.assert_allclose(np.asarray(image)[48, 80], pixels[20, 50], atol=6)
    np.testing.assert_allclose(np.asarray(image)[48, 10], pixels[20, 5], atol=6)
