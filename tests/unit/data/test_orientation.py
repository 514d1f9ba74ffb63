import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from tlray.data import decoding

ASCII, SHORT, LONG, RATIONAL, SLONG = 2, 3, 4, 5, 9
ORIENTATION, DATE_TIME, XMP, EXIF_DIRECTORY = 0x0112, 0x0132, 700, 34665

STORED = np.arange(0, 240, 40, dtype=np.uint8).reshape(2, 3)
TURNED = {
    1: STORED,
    2: STORED[:, ::-1],
    3: STORED[::-1, ::-1],
    4: STORED[::-1],
    5: STORED.T,
    6: np.rot90(STORED, -1),
    7: STORED[::-1, ::-1].T,
    8: np.rot90(STORED),
}
"""The stored pixels as they are shown with each orientation (https://exiftool.org/TagNames/EXIF.html)."""

Field = tuple[int, int, bytes]


def short(value: int) -> Field:
    return SHORT, 1, struct.pack("<H", value)


def block(fields: dict[int, Field], content: bytes = b"") -> bytes:
    """Writes a TIFF file, which is also what EXIF data are, by hand: Pillow writes no odd ones.

    Args:
        fields: Type, number of values and values for each tag.
        content: What lies behind the first 8 bytes.
    """
    start = 8 + len(content)
    values_start = start + 2 + 12 * len(fields) + 4
    entries, values = b"", b""
    for tag, (kind, count, value) in sorted(fields.items()):
        place = value.ljust(4, b"\0")
        if len(value) > 4:
            place = struct.pack("<I", values_start + len(values))
            values += value
        entries += struct.pack("<HHI", tag, kind, count) + place
    head = b"II*\0" + struct.pack("<I", start) + content
    return head + struct.pack("<H", len(fields)) + entries + bytes(4) + values


def encode(file_format: str, exif: bytes, **options) -> bytes:
    buffer = io.BytesIO()
    lossless = {"lossless": True} if file_format == "WEBP" else {}
    Image.fromarray(STORED).save(buffer, file_format, exif=exif, **lossless, **options)
    return buffer.getvalue()


def tiff(fields: dict[int, Field]) -> bytes:
    """Writes a TIFF file of the stored pixels with further tags."""
    height, width = STORED.shape
    needed = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: STORED.size}
    return block({tag: short(value) for tag, value in needed.items()} | fields, STORED.tobytes())


def exif(fields: dict[int, Field]) -> bytes:
    return b"Exif\0\0" + block(fields)


def shown(data: bytes) -> np.ndarray:
    return np.asarray(decoding.load(data).convert("L"))


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_images_are_turned_as_pillow_turns_them(file_format, orientation):
    fields = {ORIENTATION: short(orientation)}
    data = tiff(fields) if file_format == "TIFF" else encode(file_format, exif(fields))
    image = decoding.load(data)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert (image.mode, image.size, image.format) == (expected.mode, expected.size, file_format)
    assert np.array_equal(np.asarray(image), np.asarray(expected))
    if file_format != "JPEG":
        assert np.array_equal(np.asarray(image.convert("L")), TURNED.get(orientation, STORED))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [2, 6])
def test_exif_data_that_pillow_cannot_write_do_no_harm(file_format, orientation):
    odd = {DATE_TIME: (RATIONAL, 1, struct.pack("<II", 3, 2))}
    plain, turned = (encode(file_format, exif({ORIENTATION: short(each)} | odd)) for each in (1, orientation))
    expected = {2: lambda pixels: pixels[:, ::-1], 6: lambda pixels: np.rot90(pixels, -1)}[orientation]
    assert np.array_equal(shown(turned), expected(shown(plain)))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("damaged", [b"Exif\0\0no TIFF at all", b"Exif\0\0II*\0", b"Exif\0\0"])
@pytest.mark.filterwarnings("ignore:.*EXIF:UserWarning")
def test_damaged_exif_data_count_as_none(file_format, damaged):
    assert np.array_equal(shown(encode(file_format, damaged)), shown(encode(file_format, exif({}))))


@pytest.mark.parametrize(
    ("field", "orientation"),
    [
        ((LONG, 1, struct.pack("<I", 6)), 6),
        ((RATIONAL, 1, struct.pack("<II", 6, 1)), 6),
        ((RATIONAL, 1, struct.pack("<II", 6, 0)), 1),
        ((RATIONAL, 1, struct.pack("<II", 13, 2)), 1),
        ((ASCII, 2, b"6\0"), 1),
        ((SHORT, 2, struct.pack("<HH", 6, 6)), 1),
        ((SLONG, 1, struct.pack("<i", -6)), 1),
    ],
    ids=["long", "ratio", "infinite", "no integer", "text", "two", "negative"],
)
@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_orientations_of_other_types(file_format, field, orientation):
    assert np.array_equal(shown(encode(file_format, exif({ORIENTATION: field}))), TURNED[orientation])


def test_an_orientation_in_xmp_data_counts():
    xmp = b'<rdf:Description tiff:Orientation="6"/>'
    assert np.array_equal(shown(encode("WEBP", b"", xmp=xmp)), TURNED[6])


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(
    "odd",
    [
        {XMP: (ASCII, 12, b"<x:xmpmeta/>")},
        {XMP: (SHORT, 3, bytes(6))},
        {EXIF_DIRECTORY: (SLONG, 1, struct.pack("<i", -5))},
        {EXIF_DIRECTORY: (ASCII, 2, b"5\0")},
    ],
    ids=["xmp text", "xmp numbers", "negative offset", "offset as text"],
)
def test_odd_metadata_of_a_tiff_do_no_harm(odd, orientation):
    turned = {} if orientation == 1 else {ORIENTATION: short(orientation)}
    assert np.array_equal(shown(tiff(odd | turned)), TURNED[orientation])
