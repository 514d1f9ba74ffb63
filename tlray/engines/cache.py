"""The directory in which this user's machine keeps networks for OpenVINO, and notes about them, for later runs."""

import atexit
import functools
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tlray.engines import openvino_engine
from tlray.files import storage

DIGEST = "sha256"
"""Name of a file in the cache that tells whether the files beside it are whole."""


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


def find(folder: str, name: str) -> str | None:
    """Returns a directory of the cache with a network for OpenVINO; None where it is missing or damaged.

    Args:
        folder: The kind of network.
        name: The network's fingerprint.
    """
    try:
        target = _own_root() / _place(folder, name)
        return os.fspath(target) if _is_whole(target) else None
    except (OSError, RuntimeError):  # no home directory
        return None


def kept(folder: str, name: str, make: Callable[[str], None]) -> str:
    """Returns a directory of the cache with a network for OpenVINO; makes it where it is missing or damaged.

    Args:
        folder: The kind of network.
        name: The network's fingerprint. Another version of OpenVINO has a directory of its own.
        make: Fills a new directory. What it raises is raised here.
    """
    place = _place(folder, name)
    try:
        return _kept(_own_root() / place, make)
    except (OSError, RuntimeError):  # this process may not write there, or has no home directory
        return _kept(_own_directory() / place, make)


def _place(folder: str, name: str) -> str:
    return os.path.join(folder, f"{name}-{openvino_engine.version()}")


@functools.cache
def _own_directory() -> Path:
    path = Path(tempfile.mkdtemp(prefix="tlray-cache-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def _kept(target: Path, make: Callable[[str], None]) -> str:
    if target.exists():  # what another process makes from now on is whole, and stays
        if _is_whole(target):
            return os.fspath(target)
        shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=target.parent) as temporary:
        directory = os.path.join(temporary, "new")
        os.mkdir(directory)
        make(directory)
        Path(directory, DIGEST).write_text(_digest(Path(directory)))
        try:
            os.rename(directory, target)
        except OSError:
            if not _is_whole(target):  # otherwise another process was faster
                raise
    return os.fspath(target)


def _is_whole(directory: Path) -> bool:
    try:
        return (directory / DIGEST).read_text() == _digest(directory)
    except OSError:
        return False


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
