"""Members whose size in the archive's directory is wrong; tests of right archives are in test_storage.py."""

import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from tlray.errors import ImageError, ImageErrorCode
from tlray.files import storage

COMPRESSIONS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
CONTENT = bytes(2**24)


def write(path: Path, compression: int, **fields: int) -> str:
    """Writes an archive with 16 MiB of zeros, with other numbers in its directory, and returns the member's location.

    Args:
        path: The archive's path.
        compression: Number of the compression method.
        fields: New values of the entry's fields.
    """
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a.png", CONTENT)
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\1\2")
    for name, value in fields.items():
        offset, form = {"method": (10, "<H"), "checksum": (16, "<I"), "size_bytes": (24, "<I")}[name]
        struct.pack_into(form, data, entry + offset, value)
    path.write_bytes(data)
    return f"{path}!/a.png"


def error_of(location: str, max_bytes: int | None = None) -> ImageError:
    with pytest.raises(ImageError) as caught:
        storage.read_bytes(location, max_bytes=max_bytes)
    return caught.value


@pytest.mark.parametrize(("compression", "size_bytes"), [(each, size) for each in COMPRESSIONS for size in (0, 100)])
def test_no_more_is_decompressed_than_the_directory_says(tmp_path, compression, size_bytes):
    location = write(tmp_path / "set.zip", compression, size_bytes=size_bytes)
    error_of(location, max_bytes=2**20)  # opens the archive
    tracemalloc.start()
    try:
        error = error_of(location, max_bytes=2**20)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # A stored member takes as many bytes in the archive, which are refused unread.
    is_stored = compression == zipfile.ZIP_STORED
    assert error.code == (ImageErrorCode.TOO_LARGE if is_stored else ImageErrorCode.DECODE_FAILED)
    # bz2's own table takes 4 bytes for each of the 900,000 of a block.
    assert peak_bytes < (5_000_000 if compression == zipfile.ZIP_BZIP2 else 500_000)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_size_that_is_too_small_is_damage(tmp_path, compression):
    location = write(tmp_path / "set.zip", compression, size_bytes=len(CONTENT) - 1)
    error = error_of(location)
    assert error.code == ImageErrorCode.DECODE_FAILED
    assert error.message == "The zip member is damaged: it is larger than the archive's directory says"


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_wrong_checksum_is_damage(tmp_path, compression):
    error = error_of(write(tmp_path / "set.zip", compression, checksum=7))
    assert error.code == ImageErrorCode.DECODE_FAILED
    assert error.message == "The zip member is damaged: its checksum does not match the archive's directory"


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_bytes_that_do_not_decompress_are_damage(tmp_path, compression):
    path = tmp_path / "set.zip"
    location = write(path, compression)
    data = bytearray(path.read_bytes())
    start = 30 + len("a.png") + (9 if compression == zipfile.ZIP_LZMA else 0)  # LZMA: after its properties
    data[start : start + 8] = b"\xff" * 8
    path.write_bytes(data)
    assert error_of(location).code == ImageErrorCode.DECODE_FAILED


def test_an_unknown_compression_is_named(tmp_path):
    error = error_of(write(tmp_path / "set.zip", zipfile.ZIP_STORED, method=97))
    assert error.code == ImageErrorCode.DECODE_FAILED
    assert "its compression method 97 is not supported" in error.message


def test_a_dictionary_that_is_larger_than_the_member_takes_no_memory(tmp_path):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.png", b"pixels" * 1000)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 30 + len("a.png") + 5, 2**30)
    path.write_bytes(data)
    assert storage.read_bytes(f"{path}!/a.png") == b"pixels" * 1000  # opens the archive
    tracemalloc.start()
    try:
        storage.read_bytes(f"{path}!/a.png")
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 500_000


def test_an_lzma_member_without_a_marker_at_its_end(tmp_path):
    """As 7-Zip writes it: the flag is not set, and the size says where the member ends."""
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.png", CONTENT)
    data = bytearray(path.read_bytes())
    for start in (6, data.rindex(b"PK\1\2") + 8):
        assert data[start] & 2
        data[start] &= ~2
    path.write_bytes(data)
    assert storage.read_bytes(f"{path}!/a.png") == CONTENT
