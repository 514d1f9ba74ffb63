"""Reads members of a zip archive from many threads at a time, with their names decoded correctly.

`zipfile` reads the directory. The bytes of each member are fetched in a separate request, so that threads do not wait
for one another if the archive is on an object store. They are decompressed here, because `zipfile` holds more bytes in
memory than the directory promises if the directory is wrong.
"""

import bz2
import lzma
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

from tlray.errors import ImageError, ImageErrorCode, too_large

_LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Layout of a member's local header: signature, length of the name, length of the extra field
(https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, 4.3.7)."""

_EXTRA_BYTES = 1024
"""Bytes to fetch for the extra field of a local header, whose length is known only once the header has been read.

A longer field costs a second request."""

_UTF8_FLAG, _ENCRYPTED_FLAG = 0x800, 0x1
_LZMA_END_FLAG = 0x2
"""Flag of an LZMA member that ends with a marker (APPNOTE 4.4.4)."""

_LZMA_HEADER = struct.Struct("<2xHBI")
"""Start of an LZMA member: version, length of the properties, and of these the coder's settings and the dictionary's
size in bytes (APPNOTE 5.8.8)."""

_UNICODE_PATH = 0x7075
"""Tag of the extra field that holds a member's name in UTF-8 (APPNOTE 4.6.9)."""


def member_name(info: zipfile.ZipInfo) -> str:
    """Returns a member's name in the encoding that the archive's writer used.

    Linux's `zip -r` writes names in UTF-8 without setting the UTF-8 flag; `zipfile` decodes them as code page 437.
    """
    if info.flag_bits & _UTF8_FLAG:
        return info.filename
    raw = info.orig_filename.encode("cp437")
    try:
        return _unicode_path(info.extra, raw) or raw.decode("utf-8")
    except UnicodeDecodeError:
        return info.filename


def _unicode_path(extra: bytes, raw_name: bytes) -> str | None:
    """Returns the UTF-8 name in an extra field; None if there is none, or it does not belong to the current name."""
    while len(extra) >= 4:
        tag, size = struct.unpack_from("<HH", extra)
        content, extra = extra[4 : 4 + size], extra[4 + size :]
        if tag == _UNICODE_PATH and len(content) > 5 and content[0] == 1:
            checksum = int.from_bytes(content[1:5], "little")
            return content[5:].decode("utf-8") if checksum == zlib.crc32(raw_name) else None
    return None


class ZipArchive:
    """A zip archive that is opened when it is first read.

    Args:
        open_file: Opens the archive and returns its file, for example a `pyarrow.NativeFile`. Several threads may call
            the file's `read_at(num_bytes, offset)` at a time.
    """

    def __init__(self, open_file: Callable[[], Any]) -> None:
        self._open_file = open_file
        self._file: Any = None
        self._members: list[zipfile.ZipInfo] = []
        self._member_of: dict[str, zipfile.ZipInfo] = {}
        self._lock = threading.Lock()

    def members(self) -> list[zipfile.ZipInfo]:
        """Returns the entries of the archive's directory.

        Raises:
            OSError: The archive cannot be read.
            zipfile.BadZipFile: The file is not a zip archive.
        """
        with self._lock:
            if self._file is None:
                file = self._open_file()
                self._members = zipfile.ZipFile(file).infolist()
                self._member_of = {info.filename: info for info in self._members}
                self._member_of |= {member_name(info): info for info in self._members}
                self._file = file
        return self._members

    def find(self, name: str) -> zipfile.ZipInfo | None:
        """Returns a member's entry in the archive's directory; None if there is no such member.

        Args:
            name: The member's name, see `member_name`.

        Raises:
            OSError: The archive cannot be read.
            zipfile.BadZipFile: The file is not a zip archive.
        """
        self.members()
        return self._member_of.get(name)

    def read(self, name: str, max_bytes: int | None = None) -> bytes:
        """Returns the decompressed bytes of a member.

        Args:
            name: The member's name, see `member_name`.
            max_bytes: Refuse larger members.

        Raises:
            FileNotFoundError: There is no such member.
            ImageError: The member is larger than `max_bytes` (`too_large`), encrypted (`unreadable`) or damaged
                (`decode_failed`). A member that is larger than the archive's directory says is damaged, too. It is
                decompressed up to that size only.
            OSError: The archive cannot be read.
            zipfile.BadZipFile: The file is not a zip archive.
        """
        info = self.find(name)
        if info is None:
            raise FileNotFoundError(f"The zip archive has no member '{name}'.")
        # Compression may add a few bytes to data that it cannot shrink, but never doubles them.
        if max_bytes is not None and max(info.file_size, info.compress_size // 2) > max_bytes:
            size_bytes = info.file_size if info.file_size > max_bytes else info.compress_size
            raise too_large(size_bytes, max_bytes)
        if info.flag_bits & _ENCRYPTED_FLAG:
            raise ImageError(
                ImageErrorCode.UNREADABLE, "The zip member is encrypted with a password. Unpack the archive."
            )
        try:
            return _decompress(self._compressed(info), info)
        except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError) as error:
            raise ImageError(ImageErrorCode.DECODE_FAILED, f"The zip member is damaged: {error}") from error

    def _compressed(self, info: zipfile.ZipInfo) -> bytes:
        raw_name = info.orig_filename.encode("utf-8" if info.flag_bits & _UTF8_FLAG else "cp437")
        expected_bytes = _LOCAL_HEADER.size + len(raw_name) + _EXTRA_BYTES + info.compress_size
        content = self._file.read_at(expected_bytes, info.header_offset)
        if len(content) < _LOCAL_HEADER.size:
            raise EOFError("its header is missing")
        signature, name_bytes, extra_bytes = _LOCAL_HEADER.unpack_from(content)
        found = content[_LOCAL_HEADER.size :][:name_bytes]
        if signature != b"PK\3\4" or found != raw_name:
            raise zipfile.BadZipFile("its header does not match the archive's directory")
        start = _LOCAL_HEADER.size + name_bytes + extra_bytes
        data = content[start : start + info.compress_size]
        if len(data) < info.compress_size:
            data = self._file.read_at(info.compress_size, info.header_offset + start)
        if len(data) < info.compress_size:
            raise EOFError("its end is missing")
        return data


def _decompress(data: bytes, info: zipfile.ZipInfo) -> bytes:
    """Returns the decompressed bytes of a member.

    Args:
        data: The member's bytes in the archive.
        info: Its entry in the archive's directory.

    Raises:
        zipfile.BadZipFile: The bytes are damaged, or their size or checksum is not that of the directory.
        NotImplementedError: They were compressed with an unusual method.
    """
    try:
        content = _at_most(info.file_size + 1, data, info)
    except (OSError, OverflowError, lzma.LZMAError, struct.error, zlib.error) as error:
        raise zipfile.BadZipFile(str(error)) from error
    if len(content) > info.file_size:
        raise zipfile.BadZipFile("it is larger than the archive's directory says")
    if zlib.crc32(content) != info.CRC:
        raise zipfile.BadZipFile("its checksum does not match the archive's directory")
    return content


def _at_most(max_bytes: int, data: bytes, info: zipfile.ZipInfo) -> bytes:
    """Returns the first `max_bytes` decompressed bytes of a member, for which no more are decompressed.

    A stored member is returned whole, as its bytes are in memory.
    """
    if info.compress_type == zipfile.ZIP_STORED:
        return data
    if info.compress_type == zipfile.ZIP_DEFLATED:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, max_bytes)
    if info.compress_type == zipfile.ZIP_BZIP2:
        return bz2.BZ2Decompressor().decompress(data, max_bytes)
    if info.compress_type == zipfile.ZIP_LZMA:
        return lzma.LZMADecompressor(lzma.FORMAT_ALONE).decompress(_as_lzma_file(data, info), max_bytes)
    raise NotImplementedError(f"its compression method {info.compress_type} is not supported")


def _as_lzma_file(data: bytes, info: zipfile.ZipInfo) -> bytes:
    """Returns an LZMA member as a `.lzma` file, whose header has the size of the decompressed bytes too."""
    properties_bytes, settings, dictionary_bytes = _LZMA_HEADER.unpack_from(data)
    size_bytes = 2**64 - 1 if info.flag_bits & _LZMA_END_FLAG else info.file_size  # the former: up to the marker
    # The decoder allocates the dictionary, of which it needs no more than the size of all bytes.
    header = struct.pack("<BIQ", settings, min(dictionary_bytes, info.file_size), size_bytes)
    return header + data[4 + properties_bytes :]
