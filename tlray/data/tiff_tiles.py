"""Finds the size of a TIFF file's tiles, which may be far larger than its image."""

import struct

_WIDTH, _LENGTH = 322, 323
"""Numbers of the tags with the width and the height of a tile in pixels."""

_SHORT, _LONG, _LONG8 = 3, 4, 16
"""Numbers of the types of integers with 2, 4 and 8 bytes."""


def tile_pixels(data: bytes, directory: int) -> int:
    """Returns the number of pixels of a tile, all of which the decoder holds in memory even if the image is smaller.

    The tags are read here as the decoder, libtiff, reads them. Pillow leaves out tags of some types.

    Args:
        data: The bytes of a TIFF file, classic or BigTIFF
            (https://www.awaresystems.be/imaging/tiff/bigtiff.html).
        directory: Offset of the image's directory of tags in bytes.

    Returns:
        The number of pixels; 0 if the file has no tiles. Strips need no such check, because libtiff cuts them off at
        the image's height.

    Raises:
        ValueError: The size of the tiles has an unusual type.
        struct.error: The directory lies beyond the end of the file.
    """
    order = "<" if data.startswith(b"II") else ">"
    is_big = b"+" in data[2:4]
    count, entry = (struct.Struct(order + each) for each in (("Q", "HHQ8s") if is_big else ("H", "HHI4s")))
    codes = {_SHORT: "H", _LONG: "I"} | ({_LONG8: "Q"} if is_big else {})
    start = directory + count.size
    num_entries = min(count.unpack_from(data, directory)[0], (len(data) - start) // entry.size)
    sizes_px: dict[int, int] = {}
    for number, kind, _, value in entry.iter_unpack(data[start : start + num_entries * entry.size]):
        if number not in (_WIDTH, _LENGTH):
            continue
        if kind not in codes:
            raise ValueError(f"the size of its tiles has the unusual type {kind}")
        sizes_px.setdefault(number, struct.unpack_from(order + codes[kind], value)[0])  # the first of two tags counts
    return sizes_px.get(_WIDTH, 0) * sizes_px.get(_LENGTH, 0)
