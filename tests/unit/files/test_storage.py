import io
import os
import re
import stat
import struct
import threading
import uuid
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pyarrow import fs

from tlray.errors import ConfigError, ImageError, ImageErrorCode
from tlray.files import storage


@pytest.fixture(params=["local", "file", "mock"])
def place(request, tmp_path):
    """A directory that is not there yet: a path, a file:// URI, and on pyarrow's stand-in for an object store."""
    if request.param == "mock":
        location = f"mock://{uuid.uuid4().hex}/dir"
        storage.make_directory(os.path.dirname(location))
        return location
    return str(tmp_path / "dir") if request.param == "local" else f"file://{tmp_path}/dir"


def fill(location: str, **files: bytes) -> str:
    """Writes files; `__` in a name stands for `/`."""
    for name, data in files.items():
        path = storage.join(location, name.replace("__", "/"))
        storage.make_directory(os.path.dirname(path))
        storage.write_bytes(path, data)
    return location


def contents(location: str) -> dict[str, bytes]:
    return {name: storage.read_bytes(storage.join(location, name)) for name in storage.walk(location)}


# Names


@pytest.mark.parametrize(
    ("location", "uri", "local"),
    [
        ("/a/b", False, True),
        ("a", False, True),
        ("C:/a", False, True),
        ("file:///a", True, True),
        ("s3://a/b", True, False),
        ("gs://a", True, False),
    ],
)
def test_kinds_of_location(location, uri, local):
    assert (storage.is_uri(location), storage.is_local(location)) == (uri, local)


def test_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert storage.absolute("a/../b/") == f"{tmp_path}/b"
    assert storage.absolute("~/runs") == "/home/me/runs"
    assert storage.absolute("s3://bucket/a/") == "s3://bucket/a"


@pytest.mark.parametrize(
    ("parts", "expected"),
    [(("/a", "b", "c"), "/a/b/c"), (("/a/", "b"), "/a/b"), (("s3://x/", "y"), "s3://x/y"), (("/", "a"), "/a")],
)
def test_join(parts, expected):
    assert storage.join(*parts) == expected


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("file:///a/b", "/a/b"),
        ("file:///a%20b/%23c", "/a b/#c"),  # a file:// URI is quoted
        ("mock://host/a b/#c%20d/", "a b/#c%20d"),  # a key is taken as it is
        ("gs://anonymous@bucket/a b/#c%20d@e/", "bucket/a b/#c%20d@e"),
    ],
)
def test_paths_on_file_systems(location, path):
    assert storage.open_location(location)[1] == path


@pytest.mark.parametrize(
    "uri", ["mock://host/a/b", "mock://host", "gs://anonymous@bucket/a/b", "gs://anonymous@bucket"]
)
def test_a_path_is_what_arrow_makes_of_the_uri(uri):
    assert storage.open_location(uri)[1] == fs.FileSystem.from_uri(uri)[1]


def test_relative_path_is_seen_from_the_working_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    file_system, path = storage.open_location("a")
    assert isinstance(file_system, fs.LocalFileSystem)
    assert path == f"{tmp_path}/a"


@pytest.mark.parametrize("location", ["ftp://host/a", "s4://bucket/a"])
def test_unknown_scheme_is_refused(location):
    scheme = location.partition(":")[0]
    with pytest.raises(ConfigError, match=f"Cannot open '{scheme}://.*Give a local path, or a file://, s3:// or gs://"):
        storage.open_location(location)


@pytest.mark.parametrize("location", ["file://runs/a", "file://localhost/a", "file://"])
def test_relative_file_uri_is_refused(location):
    with pytest.raises(ConfigError, match=f"'{location}' is not an absolute path. Write file:///PATH"):
        storage.open_location(location)


# Files and directories, on every file system


def test_what_is_written_is_read(place):
    file = storage.join(place, "a.txt")
    assert not storage.exists(file)
    storage.make_directory(place)
    storage.write_text(file, "größer\n")
    assert storage.exists(file)
    assert storage.exists(place)
    assert storage.read_bytes(file) == "größer\n".encode()
    storage.write_bytes(file, b"2")
    assert storage.read_bytes(file) == b"2"
    assert storage.file_info(file).size == 1
    assert storage.file_info(place).type == fs.FileType.Directory


def test_read_limit_is_exact(place):
    file = storage.join(fill(place, a=b"1234"), "a")
    assert storage.read_bytes(file, max_bytes=4) == b"1234"
    with pytest.raises(ImageError, match=r"The file has 4 bytes; the limit is 3\.") as caught:
        storage.read_bytes(file, max_bytes=3)
    assert caught.value.code == ImageErrorCode.TOO_LARGE


def test_missing_file(place):
    storage.make_directory(place)
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(storage.join(place, "a"))
    assert storage.list_names(storage.join(place, "b")) == []
    assert list(storage.walk(storage.join(place, "b"))) == []


def test_walk_and_list(place):
    fill(place, b=b"", a__z__2=b"", a__1=b"", c__3=b"")
    assert list(storage.walk(place)) == ["a/1", "a/z/2", "b", "c/3"]
    assert list(storage.walk(f"{place}/")) == ["a/1", "a/z/2", "b", "c/3"]
    assert list(storage.walk(storage.join(place, "a"))) == ["1", "z/2"]
    assert storage.list_names(place) == ["a", "b", "c"]


def test_delete(place):
    fill(place, a__1=b"", a__b__2=b"", c=b"")
    storage.delete(storage.join(place, "a"))
    storage.delete(storage.join(place, "nothing"))
    assert storage.list_names(place) == ["c"]
    storage.delete(storage.join(place, "c"))
    assert storage.list_names(place) == []


def test_copy_tree_to_and_from(place, tmp_path):
    files = {"a": b"1", "b/c": b"22", "b/d e/f": b""}
    source = fill(str(tmp_path / "source"), a=b"1", b__c=b"22")
    fill(source, **{"b__d e__f": b""})
    storage.copy_tree(source, place)
    assert contents(place) == files
    storage.copy_tree(place, str(tmp_path / "back"))
    assert contents(str(tmp_path / "back")) == files
    assert contents(source) == files


def test_copy_tree_into_what_is_there(place, tmp_path):
    fill(place, a=b"old", z=b"kept")
    storage.copy_tree(fill(str(tmp_path / "source"), a=b"new"), place)
    assert contents(place) == {"a": b"new", "z": b"kept"}


def test_copy_tree_of_some_files(place, tmp_path):
    source = fill(str(tmp_path / "source"), a=b"1", b__c=b"22", b__d=b"3")
    storage.copy_tree(source, place, {"b/c", "a", "nowhere", "../source/a"})
    assert contents(place) == {"a": b"1", "b/c": b"22"}


@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/evil", "..\\evil", "a\\..\\..\\evil", "C:\\evil", "C:evil"]
)
def test_copy_tree_writes_nothing_outside_of_the_destination(tmp_path, monkeypatch, name):
    """Keys of an object store may have such names."""
    source, target = fill(str(tmp_path / "bucket/source"), a__b=b"1"), str(tmp_path / "there/target")
    (tmp_path / "bucket/evil").write_bytes(b"2")
    monkeypatch.setattr(storage, "walk", lambda _: iter([name]))
    with pytest.raises(ConfigError, match=re.escape(f"has a file whose name leads out of it: '{name}'. Do not use")):
        storage.copy_tree(source, target)
    assert [path for path in (tmp_path / "there").rglob("*") if path.is_file()] == []


def test_copy_tree_takes_names_with_dots(tmp_path):
    source = fill(str(tmp_path / "source"), **{"..a": b"1", "b..__c.": b"2", ".d": b"3"})
    storage.copy_tree(source, str(tmp_path / "target"))
    assert contents(str(tmp_path / "target")) == {"..a": b"1", "b../c.": b"2", ".d": b"3"}


def test_move_tree(place):
    fill(place, a=b"1", b__c=b"2")
    moved = storage.join(os.path.dirname(place), "moved")
    storage.move_tree(place, moved)
    assert contents(moved) == {"a": b"1", "b/c": b"2"}
    assert not storage.exists(place)


def test_local_copy(place):
    fill(place, a=b"1", b__c=b"2")
    with storage.local_copy(place) as directory:
        assert {name: (directory / name).read_bytes() for name in ("a", "b/c")} == {"a": b"1", "b/c": b"2"}
        assert directory.name == "dir"
    with storage.local_copy(storage.join(place, "a")) as file:
        assert (file.name, file.read_bytes()) == ("a", b"1")
    # What was copied is gone, what was not is still there.
    assert directory.exists() == file.exists() == storage.is_local(place)


# Atomic writing


@pytest.mark.parametrize("failing", ["replace", "fdopen", "chmod"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_interrupted_write_leaves_the_old_file_alone(tmp_path, monkeypatch, failing, error):
    target = tmp_path / "a"
    target.write_bytes(b"old")

    def fail(*args: object) -> None:
        if failing == "fdopen":
            os.close(int(str(args[0])))
        raise error

    monkeypatch.setattr(storage.os, failing, fail)
    with pytest.raises(type(error)):
        storage.write_bytes(str(target), b"new")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_unwritable_data_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        storage.write_bytes(str(tmp_path / "new" / "a"), "text")  # pyright: ignore[reportArgumentType]
    assert list((tmp_path / "new").iterdir()) == []


def test_written_files_have_the_usual_mode(tmp_path):
    storage.write_bytes(str(tmp_path / "a"), b"")
    (tmp_path / "b").write_bytes(b"")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "b")]
    assert modes[0] == modes[1]


# Zip archives


def test_zip_members(tmp_path):
    # `!/` after something else than .zip is part of a path.
    root = tmp_path / "odd!"
    root.mkdir()
    with zipfile.ZipFile(root / "Set.ZIP", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a b/#1.png", b"one")
        archive.writestr("x!/2.png", b"two")
    assert storage.read_bytes(f"{root}/Set.ZIP!/a b/#1.png") == b"one"
    assert storage.read_bytes(f"{root}/Set.ZIP!/x!/2.png", max_bytes=3) == b"two"
    with pytest.raises(ImageError, match="The file has 3 bytes; the limit is 2"):
        storage.read_bytes(f"{root}/Set.ZIP!/x!/2.png", max_bytes=2)
    with pytest.raises(FileNotFoundError, match=r"has no member '3\.png'"):
        storage.read_bytes(f"{root}/Set.ZIP!/3.png")
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(f"{root}/other.zip!/1.png")


@pytest.mark.parametrize("place_of_damage", [36, 50])  # a wrong checksum, and a stream that zlib refuses
def test_damaged_zip_member(tmp_path, place_of_damage):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(range(256)) * 20)
    data = bytearray(path.read_bytes())
    data[place_of_damage] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ImageError, match="The zip member is damaged") as caught:
        storage.read_bytes(f"{path}!/a.png")
    assert caught.value.code == ImageErrorCode.DECODE_FAILED


def test_a_zip_member_whose_name_is_damaged(tmp_path):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ä.png", b"pixels")
    data = bytearray(path.read_bytes())
    data[30] = 0xFF  # the name in the local header, which is no UTF-8 any more
    path.write_bytes(data)
    with pytest.raises(ImageError, match="The zip member is damaged") as caught:
        storage.read_bytes(f"{path}!/ä.png")
    assert caught.value.code == ImageErrorCode.DECODE_FAILED


class SlowFile:
    """Stands for a file on an object store: each read waits until another thread reads too."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)
        self.seekable, self.seek, self.tell = self._file.seekable, self._file.seek, self._file.tell
        self.together: threading.Barrier | None = None

    def read(self, num_bytes: int = -1) -> bytes:
        self._wait()
        return self._file.read(num_bytes)

    def read_at(self, num_bytes: int, offset: int) -> bytes:
        self._wait()
        return self._file.getvalue()[offset : offset + num_bytes]

    def _wait(self) -> None:
        if self.together is not None:
            self.together.wait(timeout=20)  # breaks, and fails the test, where threads read one after another


def test_threads_read_members_of_a_zip_at_the_same_time(tmp_path, monkeypatch):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(2):
            archive.writestr(f"{number}.png", bytes([number]) * 5000)
    file = SlowFile(path.read_bytes())

    class Store:
        def open_input_file(self, path: str) -> SlowFile:  # noqa: ARG002
            return file

    monkeypatch.setattr(storage, "open_location", lambda location: (Store(), location))
    assert storage.read_bytes(f"{path}!/0.png") == bytes(5000)  # opens the archive
    file.together = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        contents = list(pool.map(lambda number: storage.read_bytes(f"{path}!/{number}.png"), range(2)))
    assert contents == [bytes(5000), b"\1" * 5000]


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_members_of_every_compression_with_long_extra_fields_behind_other_data(tmp_path, compression):
    contents = {"a.png": bytes(range(256)) * 9, "b.png": b"", "ä.png": os.urandom(3000)}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in contents.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = compression
            info.extra = struct.pack("<HH", 0x9999, 5000) + bytes(5000)
            archive.writestr(info, content)
    path = tmp_path / "set.zip"
    path.write_bytes(b"#!/bin/sh\n" + file.getvalue())  # what a self-extracting archive begins with
    for name, content in contents.items():
        assert storage.read_bytes(f"{path}!/{name}") == content


def test_a_zip_member_that_ends_early(tmp_path):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", bytes(100))
    data = bytearray(path.read_bytes())
    place = data.index(b"PK\1\2")
    data[place + 20 : place + 24] = struct.pack("<I", 10_000)  # the compressed size
    path.write_bytes(data)
    with pytest.raises(ImageError, match="damaged: its end is missing") as caught:
        storage.read_bytes(f"{path}!/a.png")
    assert caught.value.code == ImageErrorCode.DECODE_FAILED
    with pytest.raises(ImageError, match="The file has 10,000 bytes; the limit is 1,000"):
        storage.read_bytes(f"{path}!/a.png", max_bytes=1000)


def test_encrypted_zip_member(tmp_path):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", b"secret")
    data = bytearray(path.read_bytes())
    data[6] |= 1  # the flag of encryption in the local header and, below, in the central directory
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(ImageError, match=r"encrypted with a password\. Unpack the archive") as caught:
        storage.read_bytes(f"{path}!/a.png")
    assert caught.value.code == ImageErrorCode.UNREADABLE


def test_a_stream_that_fails_leaves_nothing(place):
    storage.make_directory(place)

    def fail() -> None:
        with storage.output_stream(storage.join(place, "scores.csv")) as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert storage.list_names(place) == []


# Output directories

KNOWN = frozenset({"report.html", "figures"})


def prepare(location: str, *, overwrite: bool) -> None:
    storage.prepare_output(location, kind="run", known_names=KNOWN, overwrite=overwrite)


@pytest.mark.parametrize("overwrite", [False, True])
def test_free_outputs(place, overwrite):
    prepare(place, overwrite=overwrite)
    assert contents(place) == {".tlray": b"run"}


def test_earlier_output_is_replaced_only_on_demand(place):
    prepare(place, overwrite=False)
    files = {".tlray": b"run", "report.html": b"1", "figures/a/b": b"2"}
    fill(place, **{"report.html": b"1"}, figures__a__b=b"2")
    with pytest.raises(ConfigError, match=re.escape(f"'{place}' is not empty. Give another one, or --overwrite")):
        prepare(place, overwrite=False)
    storage.check_output(place, kind="run", known_names=KNOWN, overwrite=True)
    assert contents(place) == files
    prepare(place, overwrite=True)
    assert contents(place) == {".tlray": b"run"}


def test_what_a_killed_writer_left_is_replaced(tmp_path):
    prepare(str(tmp_path), overwrite=False)
    (tmp_path / ".report.html.x1y2z3").write_bytes(b"half")
    prepare(str(tmp_path), overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == [".tlray"]
    (tmp_path / "xreport.html.bak").write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"\(xreport.html.bak\)"):
        prepare(str(tmp_path), overwrite=True)


def test_names_that_begin_alike_are_known_by_their_beginning(tmp_path):
    names = frozenset({"part-*.parquet"})
    storage.prepare_output(str(tmp_path), kind="run", known_names=names, overwrite=False)
    for name in ("part-00001.parquet", ".part-00002.parquet.x1y2"):  # the second as a killed writer leaves it
        (tmp_path / name).write_bytes(b"1")
    storage.prepare_output(str(tmp_path), kind="run", known_names=names, overwrite=True)
    assert contents(str(tmp_path)) == {".tlray": b"run"}
    (tmp_path / "departed").write_bytes(b"1")
    with pytest.raises(ConfigError, match=r"\(departed\)"):
        storage.prepare_output(str(tmp_path), kind="run", known_names=names, overwrite=True)


def test_an_output_that_was_only_begun_is_free(place):
    prepare(place, overwrite=False)
    prepare(place, overwrite=False)
    assert contents(place) == {".tlray": b"run"}


def test_what_was_read_before_an_output_was_begun_stays(place):
    """It has no mark of its own: in a folder of another kind, or of nobody, it is as any other file."""
    fill(place, _inspected__part=b"1")
    with pytest.raises(ConfigError, match="is not empty"):
        prepare(place, overwrite=False)
    storage.mark_output(place, kind="sweep")
    with pytest.raises(ConfigError, match="but not the mark"):
        prepare(place, overwrite=True)
    storage.mark_output(place, kind="run")
    files = {".tlray": b"run", "_inspected/part": b"1"}
    prepare(place, overwrite=False)
    assert contents(place) == files
    fill(place, **{"report.html": b"1"})
    with pytest.raises(ConfigError, match="is not empty"):
        prepare(place, overwrite=False)
    prepare(place, overwrite=True)
    assert contents(place) == files


@pytest.mark.parametrize("overwrite", [False, True])
def test_strangers_are_never_deleted(place, overwrite):
    prepare(place, overwrite=False)
    fill(place, **{"report.html": b"1", "figures__a": b"2", "thesis.doc": b"3"})
    files = contents(place)
    with pytest.raises(
        ConfigError, match=r"\(thesis\.doc\), so --overwrite does not delete them" if overwrite else "empty"
    ):
        prepare(place, overwrite=overwrite)
    assert contents(place) == files


@pytest.mark.parametrize("mark", [None, b"evaluation"])
def test_a_folder_that_only_looks_like_an_output_is_never_deleted(place, mark):
    fill(place, **{"report.html": b"1", "figures__paper": b"2"}, **({".tlray": mark} if mark else {}))
    files = contents(place)
    with pytest.raises(ConfigError, match=r"but not the mark \(\.tlray\) of an earlier run"):
        prepare(place, overwrite=True)
    assert contents(place) == files


@pytest.mark.parametrize("overwrite", [False, True])
def test_output_that_is_a_file_is_refused(place, overwrite):
    file = storage.join(fill(place, a=b"1"), "a")
    with pytest.raises(ConfigError, match=re.escape(f"The output '{file}' is a file.")):
        prepare(file, overwrite=overwrite)
    assert storage.read_bytes(file) == b"1"


def test_links_in_an_output_are_removed_and_not_followed(tmp_path):
    elsewhere = Path(fill(str(tmp_path / "elsewhere"), precious=b"1"))
    out = tmp_path / "out"
    prepare(str(out), overwrite=False)
    (out / "figures").symlink_to(elsewhere)
    prepare(str(out), overwrite=True)
    assert (elsewhere / "precious").read_bytes() == b"1"
    assert not (out / "figures").is_symlink()


def test_an_output_with_a_name_that_is_no_utf_8_is_refused(tmp_path):
    (tmp_path / os.fsdecode(b"\xff\xfe.png")).touch()
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="holds a file whose name is not UTF-8"):
            storage.check_output(str(tmp_path), kind="run", known_names=frozenset(), overwrite=overwrite)
