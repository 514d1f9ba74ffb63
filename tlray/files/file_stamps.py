"""Stamps of files: what tells a changed file from an unchanged one without reading it."""

import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from tlray.files import storage

COLUMN = "stamp"
"""Name of the column that tables have for stamps. A stamp that is not known is an empty text."""

THREADS = 8
"""Number of files that one call asks for at a time, which hides an object store's latency."""


def stamps(locations: Sequence[str]) -> list[str]:
    """Returns the size of each file and the time of its last change.

    A member of a zip archive has besides those of the archive its own size and CRC-32.

    Args:
        locations: Files, and members of zip archives.

    Returns:
        A text for each; empty where there is no such file, or where nothing is known of it.
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
