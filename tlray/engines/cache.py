"""The directory in which this user's machine keeps networks for OpenVINO, and notes about them, for later runs."""

import atexit
import contextlib
import functools
import hashlib
import importlib.resources
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tlray.engines import openvino_engine
from tlray.files import storage

DIGEST = "sha256"
"""Name of a file in the cache that tells whether the files beside it are whole."""

MAX_ENTRIES = 12
"""Number of networks that stay in a folder of the cache when another one is added, the last ones used. InceptionV3 has
80 MB."""

UNUSED_S = 7 * 24 * 3600.0
"""Seconds after which networks of another version of tlray or OpenVINO are removed if nobody uses them, and files that
an ended process has left. Not at once: two versions may be used by turns."""

CODE = ("tlray.models", "tlray.engines")
"""Packages whose code converts networks."""

_UNFINISHED = ".new-"
"""Begin of the names of directories that are being filled or removed."""


def root() -> Path:
    """Returns the directory for files that can be made again (XDG Base Directory Specification 0.8).

    Raises:
        RuntimeError: The user has no home directory.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    return Path(given if os.path.isabs(given) else Path.home() / ".cache") / "tlray"


def _own_root() -> Path:
    """Returns the directory; it is made where it is missing, and closed to others, who could change networks there.

    Raises:
        OSError: It cannot be made, or belongs to somebody else.
        RuntimeError: The user has no home directory.
    """
    path = root()
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    about = path.stat()
    if about.st_uid != os.getuid():
        raise PermissionError(f"{path} belongs to somebody else.")
    if about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        path.chmod(0o700)
    return path


def code_digest(packages: Sequence[str]) -> str:
    """Returns the sha256 of the code of these packages, without their subpackages."""
    digest = hashlib.sha256()
    for package in packages:
        for each in sorted(importlib.resources.files(package).iterdir(), key=lambda each: each.name):
            if each.name.endswith(".py"):
                digest.update(each.read_bytes())
    return digest.hexdigest()


_CODE_DIGEST = code_digest(CODE)[:16]
"""Digest of `CODE`, computed when this module is imported: the files may be replaced while the process runs."""


def find(folder: str, name: str) -> str | None:
    """Returns a directory of the cache with a network for OpenVINO; None where it is missing or damaged.

    Args:
        folder: The kind of network.
        name: The network's fingerprint; see `kept`.
    """
    try:
        target = _own_root() / folder / f"{name}{_suffix()}"
        return os.fspath(target) if _is_usable(target) else None
    except (OSError, RuntimeError):  # no home directory
        return None


def kept(folder: str, name: str, make: Callable[[str], None], *, max_entries: int = MAX_ENTRIES) -> str:
    """Returns a directory of the cache with a network for OpenVINO; makes it where it is missing or damaged.

    Another process may remove the directory at any time, to make room. Who cannot read it calls this function again.

    Args:
        folder: The kind of network.
        name: The network's fingerprint. Another version of OpenVINO, or of the code that converts networks, has a
            directory of its own.
        make: Fills a new directory. What it raises is raised here.
        max_entries: Number of networks that stay in the folder if this one is made; those that were used last.
    """
    place = os.path.join(folder, f"{name}{_suffix()}")
    try:
        return _kept(_own_root() / place, make, max_entries)
    except (OSError, RuntimeError):  # this process may not write there, or has no home directory
        return _kept(_own_directory() / place, make, max_entries)


def _suffix() -> str:
    """Returns the end of the names of networks that this version of OpenVINO and this code have converted."""
    return f"-{openvino_engine.version()}-{_CODE_DIGEST}"


@functools.cache
def _own_directory() -> Path:
    path = Path(tempfile.mkdtemp(prefix="tlray-cache-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def _kept(target: Path, make: Callable[[str], None], max_entries: int) -> str:
    if _is_usable(target):
        return os.fspath(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=target.parent) as temporary:
        directory = os.path.join(temporary, "new")
        os.mkdir(directory)
        make(directory)
        Path(directory, DIGEST).write_text(_digest(Path(directory)))
        _publish(directory, target)
    _make_room(target.parent, max_entries)
    return os.fspath(target)


def _publish(directory: str, target: Path) -> None:
    """Renames a directory to its place in the cache, unless another process has put a whole one there.

    Raises:
        OSError: A damaged one is there and cannot be moved away.
    """
    try:
        os.rename(directory, target)
    except OSError:  # something is there
        if _is_usable(target):
            return
        damaged = Path(f"{directory}-damaged")
        os.rename(target, damaged)
        # Another process may have mended it in the meantime. Then that one goes back.
        os.rename(damaged if _is_usable(damaged) else directory, target)


def _make_room(folder: Path, max_entries: int) -> None:
    """Removes the networks of a folder that were not used for long; see `MAX_ENTRIES` and `UNUSED_S`."""
    used_s: dict[Path, float] = {}
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # another process has removed it
            used_s[path] = path.stat().st_mtime
    suffix, oldest_s = _suffix(), time.time() - UNUSED_S
    removed = [path for path in used_s if not path.name.endswith(suffix) and used_s[path] < oldest_s]
    entries = [path for path in used_s if not path.name.startswith(_UNFINISHED) and path not in removed]
    removed += sorted(entries, key=lambda path: used_s[path], reverse=True)[max_entries:]
    for path in removed:
        # Renamed first: other processes find all of a network, or nothing.
        with (
            contextlib.suppress(OSError),
            tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=folder) as temporary,
        ):
            os.rename(path, os.path.join(temporary, "old"))


def _is_usable(directory: Path) -> bool:
    """Tells whether a network is there and whole; notes then that it was used now."""
    try:
        is_whole = (directory / DIGEST).read_text() == _digest(directory)
    except (OSError, ValueError):  # the latter: its digest is no text
        return False
    if is_whole:
        with contextlib.suppress(OSError):
            os.utime(directory)
    return is_whole


def _digest(directory: Path) -> str:
    """Returns the sha256 of a network's two files."""
    names = (openvino_engine.STRUCTURE, openvino_engine.WEIGHTS)
    return " ".join(hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in names)


def note(name: str, about: Mapping[str, Any]) -> None:
    """Notes in the cache what is known about a network. Does nothing where the cache cannot be written.

    Args:
        name: A sha256 of all that the network is made from.
        about: What is known, for JSON.
    """
    try:
        storage.write_text(os.fspath(_own_root() / "notes" / f"{name}.json"), json.dumps(about) + "\n")
    except (OSError, RuntimeError):
        return


def noted(name: str) -> Mapping[str, Any]:
    """Returns what `note` has noted; empty where it has not, or where somebody has damaged it."""
    try:
        found = json.loads((_own_root() / "notes" / f"{name}.json").read_bytes())
    except (OSError, RuntimeError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
