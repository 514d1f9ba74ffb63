"""What one look at an image file sees."""

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tlray.data import looks, traits
from tlray.data.looks import THUMBNAIL_PX
from tlray.errors import ImageError

PIXELS = np.random.default_rng(0).integers(0, 256, (50, 70), dtype=np.uint8)


def saved(image: Image.Image, file_format: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format)
    return stream.getvalue()


def test_the_same_pixels_have_the_same_hash_in_every_lossless_format():
    grey = Image.fromarray(PIXELS)
    files = (saved(grey), saved(grey.convert("RGB")), saved(grey, "BMP"), saved(grey, "TIFF"))
    found = [looks.look(data) for data in files]
    assert len({each.pixels_sha256 for each in found}) == 1
    other = PIXELS.copy()
    other[0, 0] ^= 1
    assert looks.look(saved(Image.fromarray(other))).pixels_sha256 != found[0].pixels_sha256
    assert looks.look(saved(grey.resize((140, 100)))).pixels_sha256 != found[0].pixels_sha256
    for each in found:
        assert np.array_equal(each.thumbnail, found[0].thumbnail)
        assert (each.info.width_px, each.info.height_px, each.info.is_16_bit) == (70, 50, False)


def test_a_picture_in_colour_is_not_its_grey_version():
    colour = Image.fromarray(np.stack([PIXELS, PIXELS // 2, PIXELS], axis=2))
    assert looks.look(saved(colour)).pixels_sha256 != looks.look(saved(colour.convert("L"))).pixels_sha256


def test_a_16_bit_image_has_a_window_of_its_own():
    """Hounsfield units around 1,000 would all be nearly black in the whole range of 16 bits."""
    values = 1000 + 2 * PIXELS.astype(np.uint16)
    found = looks.look(saved(Image.fromarray(values)))
    assert found.info.is_16_bit
    small = np.asarray(Image.fromarray(PIXELS).resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BILINEAR))
    assert np.corrcoef(found.thumbnail.ravel(), small.ravel())[0, 1] > 0.9
    assert found.thumbnail.std() > 20
    flat = looks.look(saved(Image.fromarray(np.full((40, 40), 7, np.uint16))))
    assert np.ptp(flat.thumbnail) == 0


def test_a_look_becomes_a_row_and_back():
    found = [looks.look(saved(Image.fromarray(np.roll(PIXELS, shift, axis=1)))) for shift in range(3)]
    table = pa.Table.from_pylist([each.as_row() for each in found], schema=looks.SCHEMA)
    for part, expected in ((table, found), (table.slice(1), found[1:]), (pa.concat_tables([table, table]), found * 2)):
        assert np.array_equal(looks.thumbnails(part), np.stack([each.thumbnail for each in expected]))
        assert looks.traits_of(part).equals(traits.to_table(each.traits for each in expected))
    assert looks.thumbnails(table.slice(0, 0)).shape == (0, THUMBNAIL_PX, THUMBNAIL_PX)


def test_what_cannot_be_decoded_is_refused():
    with pytest.raises(ImageError):
        looks.look(b"no image")
