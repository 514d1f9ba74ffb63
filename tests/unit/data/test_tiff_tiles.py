import struct
import zlib

import numpy as np
import pytest

from tlray.data import decoding, tiff_tiles
from tlray.errors import ImageError, ImageErrorCode

BYTE, SHORT, LONG, LONG8, SLONG8 = 1, 3, 4, 16, 17
CODES = {BYTE: "B", SHORT: "H", LONG: "I", LONG8: "Q", SLONG8: "q"}
SIDE_PX = 8


def directory_of(entries: list[tuple[int, int, int]], *, start: int, order: str = "<", is_big: bool = False) -> bytes:
    """Returns a directory of tags with one value each.

    Args:
        entries: Number, type and value of each tag.
        start: Offset of the directory in its file, as values that are too long for their entries lie behind it.
        order: Byte order, `<` or `>`.
        is_big: The file is a BigTIFF.
    """
    count, head, place, room = ("Q", "HHQ", "Q", 8) if is_big else ("H", "HHI", "I", 4)
    end = start + struct.calcsize(f"={count}") + len(entries) * (struct.calcsize(f"={head}") + room) + room
    written, values = struct.pack(order + count, len(entries)), b""
    for number, kind, value in entries:
        content = struct.pack(order + CODES[kind], value)
        written += struct.pack(order + head, number, kind, 1)
        if len(content) > room:
            written += struct.pack(order + place, end + len(values))
            values += content
        else:
            written += content.ljust(room, b"\0")
    return written + bytes(room) + values


def head_of(start: int, *, order: str = "<", is_big: bool = False) -> bytes:
    mark = b"II" if order == "<" else b"MM"
    form, numbers = ("HHHQ", (43, 8, 0, start)) if is_big else ("HI", (42, start))
    return mark + struct.pack(order + form, *numbers)


def tiff(*layout: tuple[int, int, int], num_pixels: int = SIDE_PX**2) -> bytes:
    """Returns a deflated TIFF of 8 x 8 pixels, all of them 7, with further tags that tell its strips or tiles.

    The content is at offset 8 and has the given number of pixels.
    """
    content = zlib.compress(b"\7" * num_pixels)
    content += bytes(len(content) % 2)
    entries = [(256, SHORT, SIDE_PX), (257, SHORT, SIDE_PX), (258, SHORT, 8), (259, SHORT, 8), (262, SHORT, 1)]
    offsets, sizes = (324, 325) if any(number == 322 for number, *_ in layout) else (273, 279)
    entries += [(277, SHORT, 1), (offsets, LONG, 8), (sizes, LONG, len(content)), *layout]
    start = 8 + len(content)
    return head_of(start) + content + directory_of(sorted(entries), start=start)


def error_of(data: bytes, max_pixels: int | None = None) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decoding.load(data, max_pixels=max_pixels)
    return caught.value


def test_a_small_image_with_a_large_tile_is_refused():
    error = error_of(tiff((322, LONG, 2**14), (323, LONG, 2**14)))
    assert error.code == ImageErrorCode.TOO_LARGE
    assert error.message == "The TIFF has tiles of more than 89,478,485 pixels."


def test_the_limit_is_exact():
    data = tiff((322, SHORT, 16), (323, SHORT, 32), num_pixels=512)
    assert np.array_equal(np.asarray(decoding.load(data, max_pixels=512)), np.full((SIDE_PX, SIDE_PX), 7))
    error = error_of(data, max_pixels=511)
    assert (error.code, error.message) == (ImageErrorCode.TOO_LARGE, "The TIFF has tiles of more than 511 pixels.")


def test_sizes_that_only_the_decoder_reads_are_refused():
    """Pillow leaves out a tag of type SLONG8, and libtiff takes it."""
    error = error_of(tiff((322, SLONG8, 16), (323, SLONG8, 16), num_pixels=256))
    assert error.code == ImageErrorCode.DECODE_FAILED
    assert error.message == "The image cannot be decoded: the size of its tiles has the unusual type 17"


def test_strips_are_never_larger_than_the_image():
    """2^32 - 1 rows in a strip are usual: all rows are in one."""
    data = tiff((278, LONG, 2**32 - 1))
    assert np.array_equal(np.asarray(decoding.load(data, max_pixels=SIDE_PX**2)), np.full((SIDE_PX, SIDE_PX), 7))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("is_big", "kinds"), [(False, (SHORT, LONG)), (True, (SHORT, LONG, LONG8))])
def test_sizes_of_all_usual_types(order, is_big, kinds):
    start = 40
    head = head_of(start, order=order, is_big=is_big).ljust(start, b"\0")
    for kind in kinds:
        entries = [(256, SHORT, 8), (322, kind, 48), (323, kind, 1000), (324, LONG, 8)]
        data = head + directory_of(entries, start=start, order=order, is_big=is_big)
        assert tiff_tiles.tile_pixels(data, start) == 48_000
        # Of two equal tags the decoder takes the first.
        data = head + directory_of([*entries, (322, kind, 1)], start=start, order=order, is_big=is_big)
        assert tiff_tiles.tile_pixels(data, start) == 48_000
    without = head + directory_of([(256, SHORT, 8)], start=start, order=order, is_big=is_big)
    assert tiff_tiles.tile_pixels(without, start) == 0


@pytest.mark.parametrize("kind", [BYTE, LONG8])
def test_sizes_of_unusual_types_are_refused(kind):
    data = head_of(8) + directory_of([(322, kind, 16), (323, SHORT, 16)], start=8)
    with pytest.raises(ValueError, match=f"the size of its tiles has the unusual type {kind}"):
        tiff_tiles.tile_pixels(data, 8)


def test_directories_that_end_early():
    data = head_of(8) + directory_of([(256, SHORT, 8), (322, SHORT, 16), (323, SHORT, 16)], start=8)
    assert tiff_tiles.tile_pixels(data[: 8 + 2 + 3 * 12], 8) == 256
    assert tiff_tiles.tile_pixels(data[: 8 + 2 + 2 * 12 + 5], 8) == 0  # the third tag is cut off
    with pytest.raises(struct.error):
        tiff_tiles.tile_pixels(data, len(data))
