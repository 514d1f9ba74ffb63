"""File stamps (size and time of last change), which show whether a file has changed without reading it."""

import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from tlray.files import storage

COLUMN = "stamp"
"""Name of the column for stamps in tables. An unknown stamp is an empty string."""

THREADS = 8
"""Number of files that one call of `stamps` looks up concurrently, which hides an object store's latency."""


def stamps(locations: Sequence[str]) -> list[str]:
    """Returns the stamp of each file: its size and the time of its last change.

    The stamp of a zip archive's member is that of the archive, followed by the member's size and CRC-32.

    Args:
        locations: Files, and members of zip archives.

    Returns:
        A string for each location; empty if there is no such file, or its size or time is not known.
    """
    places = [storage.split_member(location) for location in locations]
    files = list(dict.fromkeys(file for file, _ in places))
    with ThreadPoolExecutor(THREADS) as pool:
        found = dict(zip(files, pool.map(_file_stamp, files), strict=True))
    return [found[file] and found[file] + _member_stamp(file, member) for file, member in places]


def _file_stamp(location: str) -> str:
    try:
        info = storage.file_info(location)
    except (OSError, ValueError, pa.ArrowException):
        return ""
    return f"{info.size} {info.mtime_ns}" if info.is_file and info.mtime_ns is not None else ""


def _member_stamp(archive: str, member: str | None) -> str:
    if member is None:
        return ""
    try:
        info = storage.open_zip(archive).find(member)
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return ""
    return f" {info.file_size} {info.CRC}" if info else ""
