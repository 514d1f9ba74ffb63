"""Identifies files that tlray does not read: other formats, and TIFF files with unusual pixel types."""

import io
import struct
from dataclasses import dataclass

from PIL import TiffImagePlugin, TiffTags

_SIGNATURES = (
    (0, b"GIF8", "a GIF"),
    (0, b"%PDF", "a PDF"),
    (0, b"PK\3\4", "a zip archive (.npz and .xlsx files are zip archives too)"),
    (0, b"\x1f\x8b", "gzip data (.tar.gz or .nii.gz, for example)"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself (fetch it with `git lfs pull`)"),
    (128, b"DICM", "a DICOM file"),
    (344, b"n+1\0", "a NIfTI file"),
)
_TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SAMPLE_FORMATS = {1: "unsigned integer", 2: "signed integer", 3: "floating point", 5: "complex", 6: "complex"}
_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 256, 257, 258, 262, 339


def name_format(data: bytes) -> str | None:
    """Returns the name of a file's format, with an article where it needs one; None if the format is not known."""
    for offset, mark, name in _SIGNATURES:
        if data.startswith(mark, offset):
            return name
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class TiffPixels:
    """Description of the pixels of a TIFF file.

    Attributes:
        text: Description for people, for example `64 bits, floating point`.
        has_usual_numbers: The pixels are unsigned 8-bit or signed or unsigned 16-bit integers, so that only their
            arrangement is unusual.
    """

    text: str
    has_usual_numbers: bool


def describe_tiff(data: bytes) -> TiffPixels | None:
    """Describes the pixels of a TIFF file by its tags.

    Returns:
        The description; None if the file is not a TIFF or its tags are damaged.
    """
    if not data.startswith(_TIFF_MARKS):
        return None
    stream = io.BytesIO(data)
    is_big = data[2:3] == b"+" or data[3:4] == b"+"
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if is_big else 8])
        stream.seek(tags.next)
        tags.load(stream)
        return _describe(tags) if tags.get(_WIDTH) and tags.get(_HEIGHT) else None
    except (ArithmeticError, LookupError, OSError, SyntaxError, TypeError, ValueError, Warning, struct.error):
        return None


def _describe(tags: TiffImagePlugin.ImageFileDirectory_v2) -> TiffPixels:
    bits, kinds = (_as_tuple(tags.get(tag, (1,))) for tag in (_BITS, _SAMPLE_FORMAT))
    names = sorted({_SAMPLE_FORMATS.get(kind, "of unknown kind") for kind in kinds})
    text = f"{' + '.join(str(each) for each in bits)} bits, {' and '.join(names)}"
    photometric = tags.get(_PHOTOMETRIC)
    known = TiffTags.lookup(_PHOTOMETRIC).enum
    found = [name for name, number in known.items() if number == photometric]
    numbers = {(size, kind) for size in bits for kind in kinds}
    return TiffPixels(
        text=text + (f", {found[0]}" if found else ""),
        has_usual_numbers=numbers <= {(8, 1), (16, 1), (16, 2)},
    )


def _as_tuple(value: object) -> tuple:
    return value if isinstance(value, tuple) else (value,)
