"""Reads, writes, lists, copies and deletes files at local paths and URIs, and prepares output directories.

All access goes through pyarrow's file systems. Files are written atomically: they appear whole or not at all.

A location is a local path or a URI (`file://`, `s3://`, `gs://`). A URI may have a user, such as
`gs://anonymous@bucket/1.png` for a public bucket, but no password. A file inside a zip archive is written
`ARCHIVE!/MEMBER`, for example `s3://bucket/scans.zip!/normal/1.png`.
"""

import fnmatch
import functools
import os
import re
import shutil
import tempfile
import urllib.parse
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import Any

import pyarrow as pa
from pyarrow import fs

from tlray.errors import ConfigError, too_large
from tlray.files.passwords import refuse_password
from tlray.files.zip_archive import ZipArchive

ZIP_SEPARATOR = "!/"

MARK = ".tlray"
"""Name of the file that marks a directory as an output of tlray. A directory without it is never overwritten."""

UNFINISHED = "_inspected"
"""Name of the folder in an output directory where a command saves what it has read of the images so far (see
`tlray.data.inspected`). A directory with nothing but this folder and `MARK` counts as empty. The name starts with an
underscore so that readers of Parquet folders ignore it."""


def is_uri(location: str) -> bool:
    """Tells whether a location has a scheme such as `s3://` (a Windows drive letter does not count)."""
    return "://" in location


def is_local(location: str) -> bool:
    """Tells whether a location is a local path or a `file://` URI (even if that path is a shared mount)."""
    return not is_uri(location) or location.startswith("file://")


def absolute(location: str) -> str:
    """Returns a location that means the same in any working directory.

    Local paths become absolute, with `~` expanded. URIs only lose a `/` at their end.

    Raises:
        ConfigError: See `refuse_password`.
    """
    if is_uri(location):
        refuse_password(location)
        return location.rstrip("/")
    return os.path.abspath(os.path.expanduser(location))


def join(location: str, *parts: str) -> str:
    """Returns a location with path components appended, separated by `/`."""
    return "/".join([location.rstrip("/"), *parts])


@functools.lru_cache(maxsize=64)
def _file_system(scheme_and_host: str) -> tuple[fs.FileSystem, str]:
    """Returns a file system, and the path on it of what a URI without a key names: a bucket without the user."""
    try:
        return fs.FileSystem.from_uri(scheme_and_host)
    except (pa.ArrowInvalid, ValueError) as error:
        raise ConfigError(
            f"Cannot open '{scheme_and_host}': {error}. Give a local path, or a file://, s3:// or gs:// URI."
        ) from error


def open_location(location: str) -> tuple[fs.FileSystem, str]:
    """Returns the pyarrow file system of a location and the path on it.

    Raises:
        ConfigError: The scheme is unknown, a `file://` URI is relative, or a URI has a password.
    """
    if not is_uri(location):
        return _local_file_system(), absolute(location)
    refuse_password(location)
    scheme, _, rest = location.partition("://")
    if scheme == "file":
        if not rest.startswith("/"):
            raise ConfigError(f"'{location}' is not an absolute path. Write file:///PATH, with three slashes.")
        return _local_file_system(), urllib.parse.unquote(rest)
    bucket, _, key = rest.partition("/")
    # Only scheme and host are parsed as a URI, so that keys with spaces, `#` or `%` reach the store unchanged.
    file_system, root = _file_system(f"{scheme}://{bucket}/")
    return file_system, (join(root, key) if root else key).rstrip("/")


@functools.lru_cache(maxsize=1)
def _local_file_system() -> fs.LocalFileSystem:
    return fs.LocalFileSystem()


def file_info(location: str) -> fs.FileInfo:
    """Returns type, size and time of change of the file or directory at a location (`FileType.NotFound` for none)."""
    file_system, path = open_location(location)
    return file_system.get_file_info(path)


def exists(location: str) -> bool:
    """Tells whether there is a file or directory at a location."""
    return file_info(location).type != fs.FileType.NotFound


def list_names(location: str) -> list[str]:
    """Returns the sorted names of the entries of a directory; an empty list if there is no such directory."""
    file_system, path = open_location(location)
    selector = fs.FileSelector(path, allow_not_found=True)
    return sorted(info.base_name for info in file_system.get_file_info(selector))


def split_member(location: str) -> tuple[str, str | None]:
    """Splits `ARCHIVE!/MEMBER` into the archive's location and the member's name; the name is None for other files."""
    # A folder's name may end with `!`, so only `.zip!/` separates archive and member.
    in_zip = re.match(rf"(.+?\.zip){ZIP_SEPARATOR}(.+)", location, re.IGNORECASE | re.DOTALL)
    return (in_zip[1], in_zip[2]) if in_zip else (location, None)


def read_bytes(location: str, max_bytes: int | None = None) -> bytes:
    """Reads a whole file.

    Args:
        location: A path, a URI, or a member of a zip archive (`ARCHIVE!/MEMBER`).
        max_bytes: Refuse larger files.

    Raises:
        ImageError: The file is larger than `max_bytes` (`too_large`). For other reasons see `ZipArchive.read`.
        OSError: The file cannot be read (`FileNotFoundError` if it does not exist).
    """
    archive, member = split_member(location)
    if member is not None:
        return open_zip(archive).read(member, max_bytes)
    file_system, path = open_location(location)
    with file_system.open_input_file(path) as file:
        size_bytes = file.size()
        if max_bytes is not None and size_bytes > max_bytes:
            raise too_large(size_bytes, max_bytes)
        return file.read()


@functools.lru_cache(maxsize=8)
def open_zip(location: str) -> ZipArchive:
    """Returns the zip archive at a location, cached in this process; its file is opened when it is first read."""
    file_system, path = open_location(location)
    return ZipArchive(lambda: file_system.open_input_file(path))


def write_bytes(location: str, data: bytes) -> None:
    """Writes a file atomically and creates missing parent directories; see `output_stream`."""
    with output_stream(location) as file:
        file.write(data)


@contextmanager
def output_stream(location: str) -> Iterator[Any]:
    """Opens a file for writing bytes atomically.

    The file appears when the block ends without an error. Until then other processes see the old file, if there is one.
    """
    file_system, path = open_location(location)
    if not isinstance(file_system, fs.LocalFileSystem):
        # Closing the stream publishes what was written so far, even after an error, so it is opened last.
        with tempfile.TemporaryFile() as file:
            yield file
            file.seek(0)
            with file_system.open_output_stream(path) as sink:
                shutil.copyfileobj(file, sink, 8 << 20)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


@functools.lru_cache(maxsize=1)
def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(location: str, text: str) -> None:
    """Writes a text file in UTF-8 atomically; see `write_bytes`."""
    write_bytes(location, text.encode())


def make_directory(location: str) -> None:
    """Creates a directory and its parents; an existing directory is not an error."""
    file_system, path = open_location(location)
    file_system.create_dir(path, recursive=True)


def delete(location: str) -> None:
    """Deletes a file, or a directory with all its content; a missing one is not an error."""
    file_system, path = open_location(location)
    match file_system.get_file_info(path).type:
        case fs.FileType.Directory:
            file_system.delete_dir(path)
        case fs.FileType.NotFound:
            return
        case _:
            file_system.delete_file(path)


def copy_tree(source: str, destination: str, names: Collection[str] | None = None) -> None:
    """Copies the files of a directory to another location, which may be on another file system.

    Args:
        source: The directory to copy.
        destination: The directory to copy into; created if it does not exist.
        names: Paths in `source` of the files to copy, those that exist; None: all files.

    Raises:
        ConfigError: A file's path leads out of the directory, as a key of an object store can.
    """
    source_fs, source_path = open_location(source)
    destination_fs, destination_path = open_location(destination)
    destination_fs.create_dir(destination_path, recursive=True)
    for relative in walk(source) if names is None else sorted({*names}.intersection(walk(source))):
        path = PureWindowsPath(relative)  # it takes `/` and a backslash for separators
        if path.anchor or ".." in path.parts:
            raise ConfigError(f"'{source}' has a file whose name leads out of it: '{relative}'. Do not use it.")
        target = f"{destination_path}/{relative}"
        destination_fs.create_dir(os.path.dirname(target), recursive=True)
        with (
            source_fs.open_input_stream(f"{source_path}/{relative}") as reader,
            destination_fs.open_output_stream(target) as writer,
        ):
            shutil.copyfileobj(reader, writer, 8 << 20)


def move_tree(source: str, destination: str) -> None:
    """Moves a directory to a location on the same file system where nothing exists yet."""
    file_system, source_path = open_location(source)
    if isinstance(file_system, fs.LocalFileSystem):
        os.replace(source_path, open_location(destination)[1])
        return
    copy_tree(source, destination)  # an object store cannot rename a directory
    delete(source)


def walk(location: str) -> Iterator[str]:
    """Yields the paths of all files below a directory, relative to it and sorted."""
    file_system, path = open_location(location)
    infos = file_system.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    prefix = path.rstrip("/") + "/"
    yield from sorted(info.path.removeprefix(prefix) for info in infos if info.is_file)


@contextmanager
def local_copy(location: str) -> Iterator[Path]:
    """Yields a local path to the content of a location: its own path if it is local, otherwise a temporary copy."""
    if is_local(location):
        yield Path(open_location(location)[1])
        return
    with tempfile.TemporaryDirectory(prefix="tlray-") as directory:
        target = Path(directory) / location.rstrip("/").rsplit("/", 1)[-1]
        if file_info(location).type == fs.FileType.Directory:
            copy_tree(location, str(target))
        else:
            target.write_bytes(read_bytes(location))
        yield target


def check_output(location: str, *, kind: str, known_names: frozenset[str], overwrite: bool) -> None:
    """Checks that an output directory may be filled, without changing it.

    Args:
        location: The output directory.
        kind: Kind of output, for example "training".
        known_names: Names that this kind of output has at its top level, or glob patterns of them.
        overwrite: Accept an earlier output of this kind. It must have the mark of `mark_output` and hold no other
            files, so that a mistyped `--out` cannot delete anybody's files.

    Raises:
        ConfigError: The location holds something that may not be deleted.
    """
    if file_info(location).type == fs.FileType.File:
        raise ConfigError(f"The output '{location}' is a file. Give a directory that does not exist yet.")
    try:
        names = list_names(location)
    except UnicodeDecodeError as error:  # not an output of tlray, so it must not be deleted
        raise ConfigError(
            f"The output directory '{location}' holds a file whose name is not UTF-8. Give another one."
        ) from error
    is_marked = output_kind(location) == kind
    if not names or (is_marked and set(names) <= {MARK, UNFINISHED}):
        return
    if not overwrite:
        raise ConfigError(
            f"The output directory '{location}' is not empty. Give another one, or --overwrite to replace it."
        )
    if not is_marked:
        raise ConfigError(
            f"The output directory '{location}' holds files but not the mark ({MARK}) of an earlier {kind} of tlray, "
            "so --overwrite does not delete them. Give another directory."
        )
    # A process that was killed while writing leaves `.NAME.RANDOM` behind (see `output_stream`).
    known = {MARK, UNFINISHED, *known_names, *(f".{name}.*" for name in known_names)}
    strangers = [name for name in names if not any(fnmatch.fnmatchcase(name, pattern) for pattern in known)]
    if strangers:
        raise ConfigError(
            f"The output directory '{location}' holds files that are not an earlier output of this command "
            f"({', '.join(strangers[:5])}), so --overwrite does not delete them. Give another directory."
        )


def prepare_output(location: str, *, kind: str, known_names: frozenset[str], overwrite: bool) -> None:
    """Empties an output directory, except for `UNFINISHED`, and marks it with its kind.

    Its arguments and errors are those of `check_output`.
    """
    check_output(location, kind=kind, known_names=known_names, overwrite=overwrite)
    for name in list_names(location):
        if name not in (MARK, UNFINISHED):
            delete(join(location, name))
    mark_output(location, kind=kind)


def mark_output(location: str, *, kind: str) -> None:
    """Creates an output directory, if it does not exist, and writes the file `MARK` with its kind into it."""
    make_directory(location)
    write_text(join(location, MARK), kind)


def output_kind(location: str) -> str | None:
    """Returns the kind with which `mark_output` has marked a directory; None where it is not an output of tlray."""
    try:
        return read_bytes(join(location, MARK)).decode()
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
        return None
