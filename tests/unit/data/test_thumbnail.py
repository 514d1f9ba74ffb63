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


def test_a_thumbnail_is_read_again_if_it_is_whole_and_as_large_as_thumbnails_are():
    pixels = np.tile(np.linspace(0, 255, thumbnail.SIZE_PX).astype(np.uint8), (thumbnail.SIZE_PX, 1))
    jpeg = thumbnail.to_jpeg(pixels)
    found = thumbnail.decode(jpeg)
    assert found is not None
    assert (found.dtype, found.shape) == (np.uint8, pixels.shape)
    np.testing.assert_allclose(found.astype(int), pixels, atol=6)
    colour = thumbnail.decode(thumbnail.to_jpeg(np.stack([pixels] * 3, axis=2)))
    assert colour is not None
    assert colour.shape == pixels.shape
    assert thumbnail.decode(thumbnail.to_jpeg(pixels[:64])) is None
    assert thumbnail.decode(jpeg[: len(jpeg) // 2]) is None
    assert thumbnail.decode(b"") is None
