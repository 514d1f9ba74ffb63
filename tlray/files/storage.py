"""Where things lie: local paths and URIs through pyarrow's file systems, and outputs that appear whole or not at all.

A location is a local path or a URI (`file://`, `s3://`, `gs://`, `hdfs://`). A file inside a zip archive is written
`ARCHIVE!/MEMBER`, for example `s3://bucket/scans.zip!/normal/1.png`.
"""

import functools
import os
import re
import shutil
import tempfile
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from tlray.errors import ConfigError, too_large
from tlray.files.zip_archive import ZipArchive

ZIP_SEPARATOR = "!/"

MARK = ".tlray"
"""The file by which an output of tlray is known: what has none is never deleted."""

UNFINISHED = "_inspected"
"""The folder of an output in which a command keeps what it has read before the output is begun (see `inspected`). A
directory that holds nothing else counts as empty. Readers of Parquet folders pass over the name."""


def is_uri(location: str) -> bool:
    """Tells whether a location has a scheme such as `s3://` (a Windows drive letter is none)."""
    return "://" in location


def is_local(location: str) -> bool:
    """Tells whether a location is on this node's own file system (by its form; a mount may still be shared)."""
    return not is_uri(location) or location.startswith("file://")


def absolute(location: str) -> str:
    """Returns a location that means the same in every process: local paths absolute, URIs as they are."""
    if is_uri(location):
        return location.rstrip("/")
    return os.path.abspath(os.path.expanduser(location))


def join(location: str, *parts: str) -> str:
    """Appends path components to a location, with `/` between them."""
    return "/".join([location.rstrip("/"), *parts])


@functools.lru_cache(maxsize=64)
def _file_system(scheme_and_host: str) -> fs.FileSystem:
    try:
        return fs.FileSystem.from_uri(scheme_and_host)[0]
    except (pa.ArrowInvalid, ValueError) as error:
        raise ConfigError(
            f"Cannot open '{scheme_and_host}': {error}. Give a local path, or a file://, s3:// or gs:// URI."
        ) from error


def open_location(location: str) -> tuple[fs.FileSystem, str]:
    """Resolves a location.

    Returns:
        The pyarrow file system and the path on it.

    Raises:
        ConfigError: The scheme is unknown, or a `file://` URI is relative.
    """
    if not is_uri(location):
        return _local_file_system(), absolute(location)
    scheme, _, rest = location.partition("://")
    if scheme == "file":
        if not rest.startswith("/"):
            raise ConfigError(f"'{location}' has no absolute path. Write file:///PATH, with three slashes.")
        return _local_file_system(), urllib.parse.unquote(rest)
    bucket, _, _ = rest.partition("/")
    # The host alone is parsed as a URI, so that keys with spaces, `#` or `%` reach the store as they are.
    return _file_system(f"{scheme}://{bucket}/"), rest.rstrip("/")


@functools.lru_cache(maxsize=1)
def _local_file_system() -> fs.LocalFileSystem:
    return fs.LocalFileSystem()


def file_info(location: str) -> fs.FileInfo:
    """Returns type and size of what lies at a location (`FileType.NotFound` if nothing does)."""
    file_system, path = open_location(location)
    return file_system.get_file_info(path)


def exists(location: str) -> bool:
    """Tells whether a file or directory lies at a location."""
    return file_info(location).type != fs.FileType.NotFound


def list_names(location: str) -> list[str]:
    """Returns the sorted names of a directory's entries, none if there is no such directory."""
    file_system, path = open_location(location)
    selector = fs.FileSelector(path, allow_not_found=True)
    return sorted(info.base_name for info in file_system.get_file_info(selector))


def split_member(location: str) -> tuple[str, str | None]:
    """Returns the file at a location and, where that is a zip archive (`ARCHIVE!/MEMBER`), the member's name."""
    # A folder's name may end with `!`; only `.zip!/` marks a member.
    in_zip = re.match(rf"(.+?\.zip){ZIP_SEPARATOR}(.+)", location, re.IGNORECASE | re.DOTALL)
    return (in_zip[1], in_zip[2]) if in_zip else (location, None)


def read_bytes(location: str, max_bytes: int | None = None) -> bytes:
    """Reads a whole file.

    Args:
        location: A path, a URI, or a member of a zip archive (`ARCHIVE!/MEMBER`).
        max_bytes: Refuse larger files.

    Raises:
        ImageError: The file is larger than `max_bytes` (`too_large`), or see `ZipArchive.read`.
        OSError: The file cannot be read (`FileNotFoundError` if it is not there).
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
    """Returns the zip archive at a location, once in a process; it is opened when it is first read."""
    file_system, path = open_location(location)
    return ZipArchive(lambda: file_system.open_input_file(path))


def write_bytes(location: str, data: bytes) -> None:
    """Writes a whole file, its directory too; another process sees the old file or the new one, never a part."""
    with output_stream(location) as file:
        file.write(data)


@contextmanager
def output_stream(location: str) -> Iterator[Any]:
    """Opens a file for writing bytes; it appears, whole, when the block ends without an error."""
    file_system, path = open_location(location)
    if not isinstance(file_system, fs.LocalFileSystem):
        # Object stores publish what there is when a stream is closed, after an error too: it is opened last.
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
    """Writes a whole UTF-8 file; see `write_bytes`."""
    write_bytes(location, text.encode())


def make_directory(location: str) -> None:
    """Makes a directory and its parents; one that is there already is no error."""
    file_system, path = open_location(location)
    file_system.create_dir(path, recursive=True)


def delete(location: str) -> None:
    """Deletes a file or a directory with all that is in it; nothing there is no error."""
    file_system, path = open_location(location)
    match file_system.get_file_info(path).type:
        case fs.FileType.Directory:
            file_system.delete_dir(path)
        case fs.FileType.NotFound:
            return
        case _:
            file_system.delete_file(path)


def copy_tree(source: str, destination: str) -> None:
    """Copies a directory's files to another location, on another file system if need be.

    Args:
        source: The directory to copy.
        destination: The directory to fill; made where it is missing.
    """
    source_fs, source_path = open_location(source)
    destination_fs, destination_path = open_location(destination)
    destination_fs.create_dir(destination_path, recursive=True)
    for relative in walk(source):
        target = f"{destination_path}/{relative}"
        destination_fs.create_dir(os.path.dirname(target), recursive=True)
        with (
            source_fs.open_input_stream(f"{source_path}/{relative}") as reader,
            destination_fs.open_output_stream(target) as writer,
        ):
            shutil.copyfileobj(reader, writer, 8 << 20)


def move_tree(source: str, destination: str) -> None:
    """Moves a directory within a file system, to a place where nothing is."""
    file_system, source_path = open_location(source)
    if isinstance(file_system, fs.LocalFileSystem):
        os.replace(source_path, open_location(destination)[1])
        return
    copy_tree(source, destination)  # an object store cannot rename a directory
    delete(source)


def walk(location: str) -> Iterator[str]:
    """Yields the paths, relative to a directory, of all files below it, sorted."""
    file_system, path = open_location(location)
    infos = file_system.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    prefix = path.rstrip("/") + "/"
    yield from sorted(info.path.removeprefix(prefix) for info in infos if info.is_file)


@contextmanager
def local_copy(location: str) -> Iterator[Path]:
    """Gives a local path with the content of a location: the path itself where it is local, else a temporary copy."""
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
    """Makes sure that an output directory may be filled, without touching it.

    Args:
        location: The output directory.
        kind: What is going to lie there, for example "training".
        known_names: The names that this kind of output has at its top level; one that ends in `-` begins names.
        overwrite: An earlier output of this kind may be replaced. Only one that bears the mark of `prepare_output` and
            holds nothing else, so that a mistyped `--out` cannot cost anybody their files.

    Raises:
        ConfigError: Something is there already, and may not be deleted.
    """
    if file_info(location).type == fs.FileType.File:
        raise ConfigError(f"The output '{location}' is a file. Give a directory that does not exist yet.")
    try:
        names = list_names(location)
    except UnicodeDecodeError as error:  # no output of ours, and nothing that may be deleted
        raise ConfigError(
            f"The output directory '{location}' holds a file whose name is not UTF-8. Give another one."
        ) from error
    is_marked = MARK in names and read_bytes(join(location, MARK)) == kind.encode()
    if not names or (is_marked and set(names) <= {MARK, UNFINISHED}):
        return
    if not overwrite:
        raise ConfigError(
            f"The output directory '{location}' is not empty. Give another one, or --overwrite to replace it."
        )
    if not is_marked:
        raise ConfigError(
            f"The output directory '{location}' holds files and no mark ({MARK}) of an earlier {kind} of tlray, so "
            "--overwrite does not touch it. Give another directory."
        )
    # A process that was killed while it wrote has left `.NAME.RANDOM` (see `write_bytes`).
    prefixes = tuple(name for name in known_names if name.endswith("-"))
    begin = prefixes + tuple(f".{name}" if name in prefixes else f".{name}." for name in known_names)
    strangers = [name for name in names if name not in known_names | {MARK, UNFINISHED} and not name.startswith(begin)]
    if strangers:
        raise ConfigError(
            f"The output directory '{location}' holds files that are not an earlier output of this command "
            f"({', '.join(strangers[:5])}), so --overwrite does not touch it. Give another directory."
        )


def prepare_output(location: str, *, kind: str, known_names: frozenset[str], overwrite: bool) -> None:
    """Empties an output directory, if `check_output` allows it, but for `UNFINISHED`; leaves its kind's mark there."""
    check_output(location, kind=kind, known_names=known_names, overwrite=overwrite)
    for name in list_names(location):
        if name not in (MARK, UNFINISHED):
            delete(join(location, name))
    mark_output(location, kind=kind)


def mark_output(location: str, *, kind: str) -> None:
    """Makes an output directory that bears the mark of its kind."""
    make_directory(location)
    write_text(join(location, MARK), kind)
