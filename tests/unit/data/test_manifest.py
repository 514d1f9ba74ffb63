import hashlib
import json
import os
import struct
import unicodedata
import zipfile
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tlray.data import labels, listing, manifest
from tlray.data.splits import assign_splits, check_trainable
from tlray.errors import ConfigError, DataError
from tlray.files import storage


def make_files(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


def make_zip(path: Path, *members: str) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        for member in members:
            archive.writestr(member, member)
    return str(path)


def rows(found: listing.Listing, *names: str) -> list[tuple]:
    return list(zip(*(found.table[name].to_pylist() for name in names), strict=True))


def make_table(*images: tuple[str | None, str | None, str]) -> pa.Table:
    """Makes a manifest from (label, split, group_id)."""
    return pa.table(
        {
            "image_id": [f"{index:05}" for index in range(len(images))],
            "uri": [f"/{index:05}" for index in range(len(images))],
            "label": [image[0] for image in images],
            "split": [image[1] for image in images],
            "group_id": [image[2] for image in images],
            "sha256": [None for _ in images],
        },
        schema=manifest.SCHEMA,
    )


def splits_of_groups(table: pa.Table) -> dict[str, str | None]:
    """Returns the split of each group, and fails if a group has two."""
    found: dict[str, str | None] = {}
    for group, split in zip(table["group_id"].to_pylist(), table["split"].to_pylist(), strict=True):
        assert found.setdefault(group, split) == split
    return found


def by_hash(seed: int, groups: list[str]) -> list[str]:
    return sorted(groups, key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).hexdigest())


# Folders


def test_split_folder_in_any_case(tmp_path):
    make_files(tmp_path, "Train/a/1.png", "VALID/a/2.png", "val/b/3.png", "validation/b/4.png", "test/b/5.PNG")
    found = listing.list_images(str(tmp_path))
    assert found.table.schema == manifest.SCHEMA
    assert found.num_skipped == 0
    assert rows(found, "image_id", "label", "split", "group_id", "sha256") == [
        ("Train/a/1.png", "a", "train", "Train/a/1.png", None),
        ("VALID/a/2.png", "a", "valid", "VALID/a/2.png", None),
        ("test/b/5.PNG", "b", "test", "test/b/5.PNG", None),
        ("val/b/3.png", "b", "valid", "val/b/3.png", None),
        ("validation/b/4.png", "b", "valid", "validation/b/4.png", None),
    ]
    assert found.table["uri"].to_pylist()[0] == f"{tmp_path}/Train/a/1.png"


def test_class_folder_lists_every_file_and_names_patients(tmp_path):
    make_files(tmp_path, "b/p1/1.png", "b/p1/series/2", "a/p1/3.txt", "a/4.png")
    assert rows(listing.list_images(str(tmp_path)), "image_id", "label", "split", "group_id") == [
        ("a/4.png", "a", None, "a/4.png"),
        ("a/p1/3.txt", "a", None, "p1"),
        ("b/p1/1.png", "b", None, "p1"),
        ("b/p1/series/2", "b", None, "p1"),
    ]


def test_flat_folder_is_unlabelled(tmp_path):
    make_files(tmp_path, "2.png", "1.jpg", "notes.txt")
    assert rows(listing.list_images(str(tmp_path)), "image_id", "uri", "label", "split", "group_id") == [
        ("1.jpg", f"{tmp_path}/1.jpg", None, None, "1.jpg"),
        ("2.png", f"{tmp_path}/2.png", None, None, "2.png"),
        ("notes.txt", f"{tmp_path}/notes.txt", None, None, "notes.txt"),
    ]


def test_unlabelled_split_beside_labelled_ones(tmp_path):
    make_files(tmp_path, "train/a/1.png", "test/2.png")
    assert rows(listing.list_images(str(tmp_path)), "label", "split") == [(None, "test"), ("a", "train")]


def test_hidden_and_loose_files_are_counted(tmp_path):
    make_files(
        tmp_path, "a/1.png", "b/2.png", "README.md", ".git/x/config", "a/.DS_Store", "a/Thumbs.db", "__MACOSX/a/._1.png"
    )
    found = listing.list_images(str(tmp_path))
    assert rows(found, "image_id", "label") == [("a/1.png", "a"), ("b/2.png", "b")]
    assert found.num_skipped == 5


def test_a_hidden_folder_is_not_entered_and_counts_once(tmp_path, monkeypatch):
    """At the root of a disk only root may read lost+found and the like; elsewhere .git has many files."""
    names = (".Trash-1000", ".git", "lost+found", "System Volume Information")
    make_files(
        tmp_path, "a/1.png", "b/2.png", "b/.cache/x", *(f"{name}/{number}.png" for name in names for number in "12")
    )
    (tmp_path / ".link").symlink_to(tmp_path / "a")
    forbidden = {f"{tmp_path}/{name}" for name in (*names, "b/.cache")}
    scandir = os.scandir

    def scan(directory: str):
        if directory in forbidden:
            raise PermissionError(13, "Permission denied", directory)
        return scandir(directory)

    monkeypatch.setattr(listing.os, "scandir", scan)
    found = listing.list_images(str(tmp_path))
    assert rows(found, "image_id", "label") == [("a/1.png", "a"), ("b/2.png", "b")]
    assert found.num_skipped == 6  # these five, and the link
    for pattern in ("**", "*/*.png"):
        assert rows(listing.list_images(f"{tmp_path}/{pattern}"), "label") == [("a",), ("b",)]
    # A folder that might hold images must be readable.
    forbidden.add(f"{tmp_path}/b")
    with pytest.raises(DataError, match=r"Cannot read '.*': \[Errno 13\] Permission denied: '.*/b'\. Check"):
        listing.list_images(str(tmp_path))


def test_loose_files_beside_splits_and_inside_them_are_counted(tmp_path):
    make_files(tmp_path, "train/a/1.png", "train/preview.png", "preview.png")
    found = listing.list_images(str(tmp_path))
    assert rows(found, "image_id") == [("train/a/1.png",)]
    assert found.num_skipped == 2


def test_images_beside_folders_make_all_unlabelled(tmp_path):
    make_files(tmp_path, "1.png", "more/2.png", "more/deep/3.png")
    assert rows(listing.list_images(str(tmp_path)), "image_id", "label", "group_id") == [
        ("1.png", None, "1.png"),
        ("more/2.png", None, "more/2.png"),
        ("more/deep/3.png", None, "more/deep/3.png"),
    ]


def test_split_folders_beside_others_are_refused(tmp_path):
    make_files(tmp_path, "train/a/1.png", "extra/2.png")
    with pytest.raises(DataError, match=r"split folders \('train'\) beside others \('extra'\)"):
        listing.list_images(str(tmp_path))


def test_wrapping_folders_are_entered(tmp_path):
    make_files(tmp_path / "source", "archive/Data/train/a/1.png", "archive/Data/test/a/2.png", ".DS_Store")
    found = listing.list_images(str(tmp_path / "source"))
    assert rows(found, "image_id", "uri", "label", "split") == [
        ("test/a/2.png", f"{tmp_path}/source/archive/Data/test/a/2.png", "a", "test"),
        ("train/a/1.png", f"{tmp_path}/source/archive/Data/train/a/1.png", "a", "train"),
    ]
    assert found.num_skipped == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("normal/1.png", ("normal/1.png", "normal", None)),  # holds images: a class
        ("source/1.png", ("1.png", None, None)),  # named like the source: what packing a folder makes
        ("train/a/1.png", ("train/a/1.png", "a", "train")),  # a split, not a wrapping
    ],
)
def test_what_is_no_wrapping_folder(tmp_path, name, expected):
    make_files(tmp_path / "source", name)
    archive = make_zip(tmp_path / "source.zip", name)
    for source in (str(tmp_path / "source"), archive):
        assert rows(listing.list_images(source), "image_id", "label", "split") == [expected]


def test_links_are_followed_and_loops_end(tmp_path):
    make_files(tmp_path / "elsewhere", "1.png")
    make_files(tmp_path / "root", "b/2.png")
    (tmp_path / "root/a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/b/link.png").symlink_to(tmp_path / "elsewhere/1.png")
    (tmp_path / "root/b/broken.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "root/b/loop").symlink_to(tmp_path / "root")
    (tmp_path / "root/b/itself.png").symlink_to(tmp_path / "root/b/itself.png")
    found = listing.list_images(str(tmp_path / "root"))
    assert rows(found, "image_id", "label") == [
        ("a/1.png", "a"),
        ("b/2.png", "b"),
        ("b/broken.png", "b"),
        ("b/itself.png", "b"),
        ("b/link.png", "b"),
    ]
    assert found.num_skipped == 1


def test_pipes_are_skipped(tmp_path):
    make_files(tmp_path, "1.png")
    os.mkfifo(tmp_path / "2.png")
    found = listing.list_images(str(tmp_path))
    assert rows(found, "image_id") == [("1.png",)]
    assert found.num_skipped == 1


def test_file_name_that_is_not_utf8_is_refused(tmp_path):
    with open(os.fsencode(tmp_path) + b"/\xff.png", "wb"):
        pass
    with pytest.raises(DataError, match=r"not UTF-8\. Rename"):
        listing.list_images(str(tmp_path))


def test_file_uri_gives_the_same_as_the_path(tmp_path):
    make_files(tmp_path / "my scans", "a/1.png", "b/2.png")
    expected = listing.list_images(str(tmp_path / "my scans")).table
    assert listing.list_images(f"file://{tmp_path}/my scans").table.equals(expected)
    assert listing.list_images(f"file://{tmp_path}/my%20scans/").table.equals(expected)


def test_relative_path_gives_absolute_uris(tmp_path, monkeypatch):
    make_files(tmp_path, "scans/1.png")
    monkeypatch.chdir(tmp_path)
    assert rows(listing.list_images("scans"), "uri") == [(f"{tmp_path}/scans/1.png",)]


@pytest.fixture
def bucket():
    """A location on a file system that is not local: pyarrow's own stand-in for an object store."""
    location = "mock://bucket/scans"
    for folder in ("train/a", "test/b c"):
        storage.make_directory(storage.join(location, folder))
    storage.write_bytes("mock://bucket/scans/train/a/1.png", b"1")
    storage.write_bytes("mock://bucket/scans/test/b c/2.png", b"2")
    storage.write_bytes("mock://bucket/scans/list.csv", b"uri,label\ntrain/a/1.png,x\n../scans/test/b c/2.png,y\n")
    yield location
    storage.delete(location)


def test_uri_of_a_store(bucket):
    found = listing.list_images(f"{bucket}/")
    assert rows(found, "image_id", "uri", "label", "split") == [
        ("test/b c/2.png", "mock://bucket/scans/test/b c/2.png", "b c", "test"),
        ("train/a/1.png", "mock://bucket/scans/train/a/1.png", "a", "train"),
    ]
    assert found.num_skipped == 1


def test_glob_and_manifest_in_a_store(bucket):
    assert rows(listing.list_images(f"{bucket}/t*/a/*.png"), "uri", "label", "split") == [
        ("mock://bucket/scans/train/a/1.png", "a", "train")
    ]
    assert rows(listing.list_images(f"{bucket}/list.csv"), "image_id", "uri", "label") == [
        ("../scans/test/b c/2.png", "mock://bucket/scans/test/b c/2.png", "y"),
        ("train/a/1.png", "mock://bucket/scans/train/a/1.png", "x"),
    ]


def test_zip_in_a_store(bucket, tmp_path):
    archive = f"{bucket}/set.zip"
    storage.write_bytes(archive, Path(make_zip(tmp_path / "set.zip", "a/1.png", "b/2.png")).read_bytes())
    found = listing.list_images(archive)
    assert rows(found, "uri", "label") == [(f"{archive}!/a/1.png", "a"), (f"{archive}!/b/2.png", "b")]
    assert storage.read_bytes(f"{archive}!/b/2.png") == b"b/2.png"


# One file, globs


def test_one_file_is_one_unlabelled_row(tmp_path):
    make_files(tmp_path, "1.txt")
    found = listing.list_images(str(tmp_path / "1.txt"))
    assert rows(found, "image_id", "uri", "label", "split", "group_id") == [
        ("1.txt", f"{tmp_path}/1.txt", None, None, "1.txt")
    ]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("train/*/*.png", [("a/1.png", "a", None), ("b/2.png", "b", None)]),
        (
            "*/[ab]/?.png",
            [("test/b/4.png", "b", "test"), ("train/a/1.png", "a", "train"), ("train/b/2.png", "b", "train")],
        ),
        ("train/a/*", [("1.png", None, None), ("3.jpg", None, None)]),
        ("**/*.jpg", [("train/a/3.jpg", "a", "train")]),
        ("test/**", [("b/4.png", "b", None)]),
    ],
)
def test_glob(tmp_path, pattern, expected):
    # A folder `test` of one class alone reads as `CLASS/*`.
    make_files(tmp_path, "train/a/1.png", "train/b/2.png", "train/a/3.jpg", "test/b/4.png", "train/a/._1.png")
    assert rows(listing.list_images(f"{tmp_path}/{pattern}"), "image_id", "label", "split") == expected
    assert listing.list_images(f"file://{tmp_path}/{pattern}").table["uri"][0].as_py().startswith(f"{tmp_path}/")


def test_glob_enters_only_folders_that_can_match(tmp_path, monkeypatch):
    make_files(tmp_path, "1.png", "a1/x/y/3.png", "b1/4.png")
    entered = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: [entered.append(os.path.relpath(path, tmp_path)), scandir(path)][1])
    assert rows(listing.list_images(f"{tmp_path}/*.png"), "image_id") == [("1.png",)]
    assert entered == ["."]
    entered.clear()
    assert rows(listing.list_images(f"{tmp_path}/a*/**/*.png"), "image_id", "label") == [("y/3.png", "y")]
    assert entered == [".", "a1", "a1/x", "a1/x/y"]


def test_name_that_looks_like_a_glob_is_taken_literally(tmp_path):
    make_files(tmp_path, "scan[1].png", "scan1.png")
    assert rows(listing.list_images(f"{tmp_path}/scan[1].png"), "image_id") == [("scan[1].png",)]


# Zip archives


def test_zip_of_splits_with_wrapping_folder(tmp_path):
    archive = make_zip(
        tmp_path / "set.zip", "Data/", "Data/train/a/p1/1.png", "Data/test/b/2.png", "__MACOSX/Data/._1", "Data/README"
    )
    found = listing.list_images(archive)
    assert rows(found, "image_id", "uri", "label", "split", "group_id") == [
        ("test/b/2.png", f"{archive}!/Data/test/b/2.png", "b", "test", "test/b/2.png"),
        ("train/a/p1/1.png", f"{archive}!/Data/train/a/p1/1.png", "a", "train", "p1"),
    ]
    assert found.num_skipped == 2
    assert [storage.read_bytes(uri) for (uri,) in rows(found, "uri")] == [
        b"Data/test/b/2.png",
        b"Data/train/a/p1/1.png",
    ]


def test_zip_and_folder_have_the_same_ids(tmp_path):
    make_files(tmp_path / "chest", "a/1.png", "b/2.png")
    archive = make_zip(tmp_path / "chest.zip", "chest/a/1.png", "chest/b/2.png")
    assert rows(listing.list_images(archive), "image_id", "label", "group_id") == rows(
        listing.list_images(str(tmp_path / "chest")), "image_id", "label", "group_id"
    )


@pytest.mark.parametrize("names", [["1.png"], ["1.png", "2.png"]])
def test_flat_zip(tmp_path, names):
    archive = make_zip(tmp_path / "flat.ZIP", *names)
    assert rows(listing.list_images(f"file://{archive}"), "image_id", "uri", "label") == [
        (name, f"{archive}!/{name}", None) for name in names
    ]


def test_zip_member_keeps_its_odd_name(tmp_path):
    folder = make_files(tmp_path, "wow!/x")
    archive = make_zip(folder / "wow!/s.zip", "./a/1.png", "b!/2.png")
    found = listing.list_images(archive)
    assert rows(found, "image_id", "uri") == [
        ("a/1.png", f"{archive}!/./a/1.png"),
        ("b!/2.png", f"{archive}!/b!/2.png"),
    ]
    assert [storage.read_bytes(uri) for (uri,) in rows(found, "uri")] == [b"./a/1.png", b"b!/2.png"]
    assert storage.read_bytes(f"{tmp_path}/wow!/x") == b"wow!/x"


@pytest.mark.parametrize("member", ["../1.png", "a/../../1.png", "/etc/1.png", "a\\1.png", "C:/1.png", "c:1.png"])
def test_zip_members_that_climb_out_are_refused(tmp_path, member):
    archive = make_zip(tmp_path / "bad.zip", "a/1.png", member)
    with pytest.raises(DataError) as error:
        listing.list_images(archive)
    assert f"'{member}'" in str(error.value)


def test_zip_with_a_repeated_member_is_refused(tmp_path):
    archive = make_zip(tmp_path / "twice.zip", "a/1.png", "./a/1.png")
    with pytest.raises(DataError, match=r"'a/1\.png' twice"):
        listing.list_images(archive)


@pytest.mark.parametrize("keep", [0, 10, -30, -5])
def test_damaged_zip(tmp_path, keep):
    archive = Path(make_zip(tmp_path / "good.zip", "a/1.png", "a/2.png"))
    damaged = tmp_path / "damaged.zip"
    damaged.write_bytes(archive.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"damaged\.zip.* is damaged"):
        listing.list_images(str(damaged))


def test_a_zip_with_a_damaged_name(tmp_path):
    archive = Path(make_zip(tmp_path / "damaged.zip", "a/ä.png"))
    data = bytearray(archive.read_bytes())
    data[data.index(b"PK\1\2") + 46 + len("a/")] = 0xFF  # in the central directory: no UTF-8 any more
    archive.write_bytes(data)
    with pytest.raises(DataError, match=r"damaged\.zip.* is damaged"):
        listing.list_images(str(archive))


def make_old_zip(path: Path, *members: bytes, extra: bytes = b"") -> str:
    """Packs members, each with its name as content, as programs do that do not say how their names are encoded."""
    with zipfile.ZipFile(path, "w") as archive:
        for letter, member in zip("xyz", members, strict=False):
            info = zipfile.ZipInfo(letter * len(member))
            info.extra = extra
            archive.writestr(info, member)
    data = path.read_bytes()
    for letter, member in zip(b"xyz", members, strict=False):  # in the local headers and in the directory
        data = data.replace(bytes([letter]) * len(member), member)
    path.write_bytes(data)
    return str(path)


def test_names_in_utf8_without_the_flag(tmp_path):
    # Linux's `zip -r` writes them so.
    names = ["Pneumonía/größe.png", "正常/12.png"]
    archive = make_old_zip(tmp_path / "set.zip", *(name.encode() for name in names))
    found = listing.list_images(archive)
    assert rows(found, "image_id", "label", "uri") == [
        (name, name.split("/")[0], f"{archive}!/{name}") for name in names
    ]
    assert [storage.read_bytes(uri).decode() for (uri,) in rows(found, "uri")] == names
    # A manifest may name them too.
    (tmp_path / "list.csv").write_text(f"uri\nset.zip!/{names[1]}\n")
    ((uri,),) = rows(listing.list_images(str(tmp_path / "list.csv")), "uri")
    assert storage.read_bytes(uri).decode() == names[1]


def test_names_in_code_page_437(tmp_path):
    archive = make_old_zip(tmp_path / "set.zip", "größe/1.png".encode("cp437"))
    found = listing.list_images(archive)
    assert rows(found, "image_id", "label") == [("größe/1.png", "größe")]
    assert storage.read_bytes(found.table["uri"][0].as_py()) == "größe/1.png".encode("cp437")


@pytest.mark.parametrize(("is_current", "label"), [(True, "正常"), (False, "ab")])
def test_name_in_the_extra_field(tmp_path, is_current, label):
    # The field counts only if the name has not been changed since it was written.
    raw, name = b"ab/1.png", "正常/1.png".encode()
    content = struct.pack("<BI", 1, zlib.crc32(raw) ^ (not is_current)) + name
    extra = struct.pack("<HHI", 0x5455, 4, 0) + struct.pack("<HH", 0x7075, len(content)) + content
    archive = make_old_zip(tmp_path / "set.zip", raw, extra=extra)
    found = listing.list_images(archive)
    assert rows(found, "image_id", "label") == [(f"{label}/1.png", label)]
    assert storage.read_bytes(found.table["uri"][0].as_py()) == raw


NFC, NFD = "Pneumoní\u0061", "Pneumoni\u0301\u0061"


def test_names_have_one_normal_form_and_uris_stay(tmp_path):
    assert (unicodedata.normalize("NFC", NFD), unicodedata.normalize("NFD", NFC)) == (NFC, NFD)
    assert NFC != NFD
    root = make_files(tmp_path / "set", f"train/{NFC}/{NFC}1/1.png", f"test/{NFD}/{NFD}1/2.png", "train/b/3.png")
    archive = make_zip(tmp_path / "set.zip", f"train/{NFC}/{NFC}1/1.png", f"test/{NFD}/{NFD}1/2.png", "train/b/3.png")
    for source, separator in ((str(root), "/"), (archive, "!/")):
        found = listing.list_images(source)
        assert rows(found, "image_id", "label", "group_id", "uri") == [
            (f"test/{NFC}/{NFC}1/2.png", NFC, f"{NFC}1", f"{source}{separator}test/{NFD}/{NFD}1/2.png"),
            (f"train/{NFC}/{NFC}1/1.png", NFC, f"{NFC}1", f"{source}{separator}train/{NFC}/{NFC}1/1.png"),
            ("train/b/3.png", "b", "train/b/3.png", f"{source}{separator}train/b/3.png"),
        ]
        assert [storage.read_bytes(uri).decode()[-5:] for (uri,) in rows(found, "uri")] == ["2.png", "1.png", "3.png"]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_names_in_manifests_have_one_normal_form(tmp_path, suffix):
    make_files(tmp_path, f"{NFD}.png")
    table = pa.table({"uri": [f"{NFD}.png", "2.png"], "label": [NFD, NFC], "group_id": [NFC, NFD]})
    if suffix == "csv":
        lines = [",".join(row.values()) for row in table.to_pylist()]
        (tmp_path / "list.csv").write_text("\n".join(["uri,label,group_id", *lines]))
    else:
        pq.write_table(table, tmp_path / "list.parquet")
    found = listing.list_images(str(tmp_path / f"list.{suffix}"))
    assert rows(found, "image_id", "label", "group_id") == [("2.png", NFC, NFC), (f"{NFC}.png", NFC, NFC)]
    assert storage.read_bytes(found.table["uri"][1].as_py()) == f"{NFD}.png".encode()


def test_two_files_whose_names_differ_in_their_form_alone(tmp_path):
    make_files(tmp_path, f"{NFC}.png", f"{NFD}.png")
    found = listing.list_images(str(tmp_path))
    assert sorted(rows(found, "image_id", "uri")) == sorted(
        (f"{name}.png", f"{tmp_path}/{name}.png") for name in (NFC, NFD)
    )


@pytest.mark.parametrize(("written", "stored"), [(NFC, NFD), (NFD, NFC)])
def test_files_are_found_in_the_form_that_they_have(tmp_path, written, stored):
    make_files(tmp_path, f"{stored}/{stored}.png", f"{written}.png", f"{stored}2.png", "1.png")
    make_zip(tmp_path / f"{stored}.zip", f"{stored}.png")
    uris = [f"{written}/{written}.png", f"{written}.png", f"{written}2.png", f"{written}.zip!/{written}.png", "1.png"]
    (tmp_path / "list.csv").write_text("\n".join(["uri", *uris, f"{written}3.png"]))
    found = listing.list_images(str(tmp_path / "list.csv"))
    assert sorted(rows(found, "image_id", "uri")) == sorted(
        [
            ("1.png", f"{tmp_path}/1.png"),
            (f"{NFC}.png", f"{tmp_path}/{written}.png"),
            (f"{NFC}/{NFC}.png", f"{tmp_path}/{stored}/{stored}.png"),
            (f"{NFC}2.png", f"{tmp_path}/{stored}2.png"),
            (f"{NFC}3.png", f"{tmp_path}/{written}3.png"),  # it is in neither form
            (f"{NFC}.zip!/{NFC}.png", f"{tmp_path}/{stored}.zip!/{stored}.png"),
        ]
    )


def test_files_on_a_store_are_found_in_the_form_that_they_have(bucket):
    for folder, name in ((NFD, f"1{NFD}"), (NFD, f"2{NFD}"), ("b", NFC)):
        storage.make_directory(f"{bucket}/{folder}")
        storage.write_bytes(f"{bucket}/{folder}/{name}.png", b"")
    storage.write_bytes(f"{bucket}/list.csv", f"uri\n{NFC}/1{NFC}.png\n{NFC}/2{NFC}.png\nb/{NFC}.png\n".encode())
    assert rows(listing.list_images(f"{bucket}/list.csv"), "uri") == [
        (f"{bucket}/{NFD}/1{NFD}.png",),
        (f"{bucket}/{NFD}/2{NFD}.png",),
        (f"{bucket}/b/{NFC}.png",),
    ]


def test_class_maps_and_classes_have_the_same_form(tmp_path):
    for name, text in (("map.json", json.dumps({NFD: f"{NFD}!"})), ("map.csv", f"name,class\n{NFD},{NFD}!\n")):
        (tmp_path / name).write_text(text)
        assert labels.read_class_map(str(tmp_path / name)) == {NFC: f"{NFC}!"}
    table = make_table((NFC, "test", "1"), (f"{NFC}_left", "train", "2"))
    # The names of an earlier bundle stay as they are.
    matched, class_of = labels.match_classes(table, [NFD, "b"])
    assert matched["label"].to_pylist() == [NFD, NFD]
    assert labels.renamed(class_of) == {f"{NFC}_left": NFD}
    mapped, _ = labels.match_classes(table, [NFD, "b"], {NFC: NFC, f"{NFC}_left": NFC})
    assert mapped["label"].to_pylist() == [NFD, NFD]


# CSV and Parquet manifests


def test_csv_with_all_columns(tmp_path):
    path = tmp_path / "list.csv"
    path.write_bytes(
        b"\xef\xbb\xbfuri,label, split,group_id,image_id,age\r\n"
        b'"x, 1.png",01, Val,p1,one,61\r\n'
        b"sub/../sub/2.png,,,,,\r\n"
        b"\r\n"
        b"/abs/3.png,02,TRAIN,p2,,9\r\n"
        b"file:///my%20scans/4.png,02,test,,,\r\n"
        b"s3://bucket/5 6.png,02,validation,,,\r\n"
    )
    found = listing.list_images(str(path))
    assert rows(found, "image_id", "uri", "label", "split", "group_id") == [
        ("/abs/3.png", "/abs/3.png", "02", "train", "p2"),
        ("file:///my%20scans/4.png", "/my scans/4.png", "02", "test", "file:///my%20scans/4.png"),
        ("one", f"{tmp_path}/x, 1.png", "01", "valid", "p1"),
        ("s3://bucket/5 6.png", "s3://bucket/5 6.png", "02", "valid", "s3://bucket/5 6.png"),
        ("sub/2.png", f"{tmp_path}/sub/2.png", None, None, "sub/2.png"),
    ]
    assert found.num_skipped == 0


def test_csv_with_renamed_columns(tmp_path):
    (tmp_path / "list.csv").write_text("path,dx,label\n1.png,a,z\n")
    found = listing.list_images(str(tmp_path / "list.csv"), columns={"uri": "path", "label": "dx"})
    assert rows(found, "image_id", "label") == [("1.png", "a")]


def test_further_columns_with_few_values_are_kept(tmp_path):
    header = "uri,scanner,site,age,path"
    lines = [f"{number}.png,{'ab'[number % 2]},{'' if number else 'x'},{number},p{number}" for number in range(25)]
    (tmp_path / "list.csv").write_text("\n".join([header, *lines]) + "\n")
    found = listing.list_images(str(tmp_path / "list.csv")).table
    assert found.column_names == [*manifest.SCHEMA.names, "given_scanner"]
    assert rows(listing.list_images(str(tmp_path / "list.csv")), "image_id", "given_scanner")[:3] == [
        ("0.png", "a"), ("1.png", "b"), ("10.png", "a"),
    ]  # fmt: skip
    # In Parquet of any type that has a text form; what was listed before keeps its name.
    table = pa.table(
        {
            "uri": ["1.png", "2.png", "3.png"],
            "kv": [100.0, 120.0, None],
            "given_scanner": pa.array(["a", "b", "a"]).dictionary_encode(),
            "contrast": [True, False, True],
            "tags": [["x"], ["y"], ["z"]],
            "label": ["c", "d", "c"],
        }
    )
    pq.write_table(table, tmp_path / "list.parquet")
    found = listing.list_images(str(tmp_path / "list.parquet"))
    assert found.table.column_names == [*manifest.SCHEMA.names, "given_kv", "given_scanner", "given_contrast"]
    assert rows(found, "image_id", "given_scanner", "given_contrast") == [
        ("1.png", "a", "true"), ("2.png", "b", "false"), ("3.png", "a", "true"),
    ]  # fmt: skip
    assert found.table["given_kv"].null_count == 1


def test_groups_of_images_in_a_manifest_of_tlray_are_no_further_columns(tmp_path):
    ids = ["1.png", "2.png", "3.png"]
    own = {"pixels": ids, "picture": ["1.png", "1.png", "3.png"], "series": ["1.png", "1.png", "3.png"]}
    for columns, expected in ((own, []), ({"series": own["series"]}, ["given_series"])):
        pq.write_table(pa.table({"uri": ids, "label": ["a", "b", "a"], **columns}), tmp_path / "list.parquet")
        found = listing.list_images(str(tmp_path / "list.parquet")).table
        assert found.column_names == [*manifest.SCHEMA.names, *expected]


def test_csv_may_point_into_a_zip(tmp_path):
    make_zip(tmp_path / "scans.zip", "a/1.png")
    (tmp_path / "list.csv").write_text("uri\nscans.zip!/a/1.png\n")
    ((uri,),) = rows(listing.list_images(str(tmp_path / "list.csv")), "uri")
    assert storage.read_bytes(uri) == b"a/1.png"


def test_parquet_manifest_takes_other_types(tmp_path):
    path = tmp_path / "list.parquet"
    table = pa.table(
        {
            "uri": ["1.png", "2.png"],
            "label": pa.array(["a", None]).dictionary_encode(),
            "group_id": pa.array([7, None], pa.int32()),
            "pixels": [[1, 2], [3]],
        }
    )
    pq.write_table(table, path)
    assert rows(listing.list_images(str(path)), "image_id", "uri", "label", "group_id") == [
        ("1.png", f"{tmp_path}/1.png", "a", "7"),
        ("2.png", f"{tmp_path}/2.png", None, "2.png"),
    ]


def test_written_manifest_is_a_source(tmp_path):
    make_files(tmp_path, "train/a/1.png", "test/b/2.png")
    table = listing.list_images(str(tmp_path)).table
    manifest.write_manifest(table, str(tmp_path / "m.parquet"))
    assert listing.list_images(str(tmp_path / "m.parquet")).table.equals(table)


@pytest.mark.parametrize(
    "data",
    [
        b"uri,label\na/1.png,x\n2.png,01\n",
        b"uri;label\r\na/1.png;x\r\n2.png;01\r\n",
        b'"uri";"label"\n"a/1.png";"x"\n"2.png";"01"\n',
        b"uri\tlabel\na/1.png\tx\n2.png\t01\n",
        # Excel's "Unicode text", and the same in the other byte order.
        "\ufeffuri\tlabel\r\na/1.png\tx\r\n2.png\t01\r\n".encode("utf-16-le"),
        "\ufeffuri,label\na/1.png,x\n2.png,01\n".encode("utf-16-be"),
        # Columns and rows that were once used in a spreadsheet.
        b"uri,label,,\na/1.png,x,,\n2.png,01,,\n,,,\n",
        b"uri;label;;\na/1.png;x\n2.png;01;\n;;;;;\n",
        b"uri,label\na/1.png,x,,\n2.png,01\n",
        b",,\nuri,,label\na/1.png,,x\n2.png, ,01\n",
        # The index that pandas writes.
        b",uri,label\n0,a/1.png,x\n1,2.png,01\n",
        # Paths of Windows.
        b"uri,label\na\\1.png,x\n.\\2.png,01\n",
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_csv_of_every_spreadsheet(tmp_path, data, suffix):
    (tmp_path / f"list.{suffix}").write_bytes(data)
    found = listing.list_images(str(tmp_path / f"list.{suffix}"))
    assert rows(found, "image_id", "uri", "label") == [
        ("2.png", f"{tmp_path}/2.png", "01"),
        ("a/1.png", f"{tmp_path}/a/1.png", "x"),
    ]


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_an_apostrophe_against_formulas_is_no_part_of_a_value(tmp_path, suffix):
    """Tables that tlray writes for people have it; a file may have such a name, and Parquet needs none."""
    values = ["'-1.png", "'=a", "'-12", "'@1"]
    lines = ["path,label,group_id,image_id", ",".join(values), "'b.png,'b,''-12,b"]
    (tmp_path / f"list.{suffix}").write_text("\n".join(lines).replace(",", "," if suffix == "csv" else "\t"))
    found = listing.list_images(str(tmp_path / f"list.{suffix}"), columns={"uri": "path"})
    assert rows(found, "uri", "label", "group_id", "image_id") == [
        (f"{tmp_path}/'-1.png", "=a", "-12", "@1"),
        (f"{tmp_path}/'b.png", "'b", "'-12", "b"),
    ]
    names = ["uri", "label", "group_id", "image_id"]
    pq.write_table(pa.table({name: [value] for name, value in zip(names, values, strict=True)}), tmp_path / "l.parquet")
    assert rows(listing.list_images(str(tmp_path / "l.parquet")), *names) == [(f"{tmp_path}/'-1.png", *values[1:])]


def test_backslashes_in_file_names_of_linux_stay(tmp_path):
    make_files(tmp_path, "a\\1.png", "a\\2.png")
    (tmp_path / "list.csv").write_text("uri\na\\1.png\na\\2.png\n")
    found = listing.list_images(str(tmp_path / "list.csv"))
    assert [storage.read_bytes(uri) for (uri,) in rows(found, "uri")] == [b"a\\1.png", b"a\\2.png"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("set.npz", r"'set\.npz' is a \.npz file, which tlray cannot read\. Save its images as PNG or TIFF"),
        ("scan.nii.gz", r"is a \.nii\.gz file.* Save its images as PNG"),
        ("SET.TAR.GZ", r"is a \.gz file.* Unpack it and give the folder, or pack it as \.zip"),
        ("labels.xlsx", r"is a \.xlsx file.* Save the table as CSV \(UTF-8\)"),
        ("scan.dcm", "Save its images as PNG"),
        ("set.7z", "Unpack it"),
    ],
)
def test_files_that_are_no_image_and_no_manifest_are_refused(tmp_path, name, message):
    make_files(tmp_path, name)
    for labels_needed in (True, False):
        with pytest.raises(DataError, match=message):
            listing.list_images(str(tmp_path / name), labels_needed=labels_needed)
    # In a folder, every file is a row.
    assert rows(listing.list_images(str(tmp_path)), "image_id") == [(name,)]


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("uri,label,\n1, 2.png,a\n", {}, "value 'a' in row 1 .* in column 3, which has no name"),
        ("uri;label\n1; 2.png;a\n", {}, "3 values in row 1.* but 2 columns"),
        ("uri,label\n1.png\n", {}, "1 values in row 1.* but 2 columns"),
        ("u\0r\0i\0\n\0", {}, "not a CSV file: it has null bytes"),
        ("uri\n1.png\n", {"label": "dx"}, r"no column 'dx'\. Its columns: 'uri'"),
        ("uri\n1.png\n", {"patient": "uri"}, r"--columns cannot rename 'patient'.*'group_id'"),
        ("path,dx\n1.png,a\n", {}, r"no column 'uri'\. Rename one \(--columns uri=NAME\) of: 'dx', 'path'"),
        ("uri,label\n1.png,a\n,b\n", {}, "no uri in row 2"),
        ("uri,split\n1.png,fold1\n", {}, "split 'fold1' in row 1. Use train, valid or test"),
        ("uri\n1.png\n./1.png\n2.png\n", {}, r"1 occur more than once: '.*/1\.png'"),
        ("uri,image_id\n1.png,x\n2.png,x\n", {}, r"image_id must be unique; 1 occur more than once: 'x'"),
        ("uri,uri\n1.png,2.png\n", {}, "more than once: 'uri'"),
        ("uri,label\n1, 2.png,a\n", {}, "3 values in row 1.* but 2 columns"),
        ('uri\n"1.png\n', {}, "not a CSV file"),
        ("uri,label\n", {}, "has no images"),
        ("", {}, "is empty. A manifest needs a column 'uri'"),
    ],
)
def test_csv_errors(tmp_path, text, columns, message):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        listing.list_images(str(tmp_path / "list.csv"), columns=columns)


def test_csv_that_is_not_utf8(tmp_path):
    (tmp_path / "list.csv").write_bytes(b"uri\n\xff.png\n")
    with pytest.raises(DataError, match=r"not a CSV file.*UTF-8"):
        listing.list_images(str(tmp_path / "list.csv"))


def test_parquet_errors(tmp_path):
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="not a Parquet manifest"):
        listing.list_images(str(tmp_path / "broken.parquet"))
    pq.write_table(pa.table({"uri": ["1.png"], "label": [["a", "b"]]}), tmp_path / "lists.parquet")
    with pytest.raises(DataError, match=r"not a Parquet manifest.*text columns"):
        listing.list_images(str(tmp_path / "lists.parquet"))


# Sources that hold nothing


def test_missing_and_empty_sources(tmp_path):
    (tmp_path / "empty/.cache").mkdir(parents=True)
    (tmp_path / "empty/.cache/x").touch()
    with pytest.raises(DataError, match=r"There is no file or folder '.*nowhere'\. Give a folder"):
        listing.list_images(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"has no images \(skipped as hidden or loose: 1\)\. Give a folder"):
        listing.list_images(str(tmp_path / "empty"))
    for pattern in ("empty/*.png", "nowhere/*.png"):
        with pytest.raises(DataError, match="has no images"):
            listing.list_images(f"{tmp_path}/{pattern}")
    with pytest.raises(DataError, match="has no images"):
        listing.list_images(make_zip(tmp_path / "hollow.zip", "folder/"))
    with pytest.raises(DataError, match=r"empty\.zip"):
        listing.list_images(make_zip(tmp_path / "empty.zip"))


def test_columns_without_a_manifest_are_refused(tmp_path):
    make_files(tmp_path, "1.png")
    with pytest.raises(DataError, match=r"--columns works with a \.csv, \.tsv or \.parquet manifest only"):
        listing.list_images(str(tmp_path), columns={"uri": "path"})


def test_unknown_scheme():
    with pytest.raises(ConfigError, match="nope://"):
        listing.list_images("nope://bucket/scans")


def test_folder_that_cannot_be_read(tmp_path, monkeypatch):
    make_files(tmp_path, "a/1.png")

    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)  # a mode of 0 does not stop root
    with pytest.raises(DataError, match=r"Cannot read .*Permission denied.*that you may read it"):
        listing.list_images(str(tmp_path))


# Classes


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("map.json", '{"luad": "adeno", "lusc": "squamous"}'),
        ("map.csv", "name,class\nluad,adeno\nlusc,squamous\n"),
    ],
)
def test_read_class_map(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert labels.read_class_map(str(tmp_path / name)) == {"luad": "adeno", "lusc": "squamous"}


def test_a_class_map_is_read_without_the_apostrophes_of_a_spreadsheet(tmp_path):
    """As tables are: labels that were copied from one that tlray has written fit those that it reads."""
    (tmp_path / "map.csv").write_text("name,class\n'+,covid\n-,'=none\n")
    assert labels.read_class_map(str(tmp_path / "map.csv")) == {"+": "covid", "-": "=none"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("map.json", "{", "neither .csv nor JSON"),
        ("map.json", '["a"]', r"must be a JSON object.*it has 'a'"),
        ("map.json", '"a"', r"must be a JSON object"),
        ("map.json", "{}", "it has no labels"),
        ("map.json", '{"a": 1}', r"it has \('a', 1\)"),
        ("map.json", '{"a": "x", "a": "y"}', "more than once: 'a'"),
        ("map.csv", "luad,adeno\n", r"must start with the line name,class; it has 'adeno', 'luad'"),
        ("map.csv", "name,class\na,x\na,y\n", "more than once: 'a'"),
        ("map.csv", "name,class\na,\n", r"it has \('a', None\)"),
        ("map.csv", "name,class\n", "it has no labels"),
    ],
)
def test_class_map_errors(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        labels.read_class_map(str(tmp_path / name))


def test_class_map_missing(tmp_path):
    with pytest.raises(DataError, match="Cannot read the class map"):
        labels.read_class_map(str(tmp_path / "map.json"))


def test_equal_class_names_stay():
    table = make_table(("a_1", "train", "1"), ("a_2", "train", "2"), ("a_1", "test", "3"), ("a_2", "test", "4"))
    unified, mapping = labels.unify_classes(table)
    assert mapping == {"a_1": "a_1", "a_2": "a_2"}
    assert unified.equals(table)


def test_different_class_names_are_cut_at_the_underscore():
    table = make_table(
        ("adeno_left_T2", "train", "1"), ("normal", "train", "2"), ("adeno", "test", "3"), (None, "test", "4")
    )
    unified, mapping = labels.unify_classes(table)
    assert mapping == {"adeno": "adeno", "adeno_left_T2": "adeno", "normal": "normal"}
    assert unified["label"].to_pylist() == ["adeno", "normal", "adeno", None]
    assert unified.schema == manifest.SCHEMA


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_may_lack_a_class(split):
    other = "test" if split == "train" else "train"
    names = ["lung_aca", "lung_n", "lung_scc"]
    table = make_table(*((name, split, name) for name in names), ("lung_aca", other, "4"), ("lung_n", "valid", "5"))
    unified, mapping = labels.unify_classes(table)
    assert mapping == {name: name for name in names}
    assert unified.equals(table)


def test_classes_are_not_renamed_where_a_split_lacks_one():
    table = make_table(("covid_19", "train", "1"), ("normal_x", "train", "2"), ("covid_19", "test", "3"))
    assert labels.unify_classes(table)[0].equals(table)


def test_classes_are_not_renamed_where_that_does_not_help():
    names = [("a_1", "train"), ("b_2", "train"), ("c_3", "train"), ("a_1", "test"), ("d_4", "test")]
    table = make_table(*((name, split, str(number)) for number, (name, split) in enumerate(names)))
    assert labels.unify_classes(table)[0].equals(table)
    # Cut at the underscore, a split may lack a class too.
    names[3:] = [("a", "test"), ("b", "test")]
    table = make_table(*((name, split, str(number)) for number, (name, split) in enumerate(names)))
    assert labels.unify_classes(table)[0]["label"].to_pylist() == ["a", "b", "c", "a", "b"]


def test_null_split_counts_as_train():
    table = make_table(("a_1", None, "1"), ("b", "train", "2"), ("a", "test", "3"), ("b", "test", "4"))
    assert labels.unify_classes(table)[0]["label"].to_pylist() == ["a", "b", "a", "b"]


def test_ambiguous_prefix_is_refused():
    table = make_table(("a_1", "train", "1"), ("a_2", "train", "2"), ("a", "test", "3"))
    message = r"have the same part before.*\(test: 'a'; train: 'a_1', 'a_2'\)\. Rename.*--class-map"
    with pytest.raises(DataError, match=message):
        labels.unify_classes(table)


def test_class_map_overrides_and_may_merge():
    table = make_table(("a_1", "train", "1"), ("a_2", "train", "2"), ("a", "test", "3"))
    unified, mapping = labels.unify_classes(table, {"a_1": "x", "a_2": "x", "a": "y", "unused": "z"})
    assert unified["label"].to_pylist() == ["x", "x", "y"]
    assert mapping == {"a": "y", "a_1": "x", "a_2": "x"}
    with pytest.raises(DataError, match=r"lacks the labels 'a_2'; it has 'a', 'a_1'"):
        labels.unify_classes(table, {"a_1": "x", "a": "x"})


def test_unlabelled_table_has_no_classes():
    table = make_table((None, None, "1"))
    assert labels.unify_classes(table) == (table, {})


def test_short_names_are_unique():
    names = ["adenocarcinoma_left.lower.lobe_T2", "normal", "stage_1", "stage_2", "_odd"]
    assert labels.short_names([*names, "normal"]) == {
        "adenocarcinoma_left.lower.lobe_T2": "adenocarcinoma",
        "normal": "normal",
        "stage_1": "stage_1",
        "stage_2": "stage_2",
        "_odd": "_odd",
    }
    assert labels.short_names(["a", "a_b"]) == {"a": "a", "a_b": "a_b"}


def test_match_classes():
    table = make_table(("adeno_left", "train", "1"), ("adeno", "test", "2"), ("normal", "test", "3"), (None, None, "4"))
    matched, class_of = labels.match_classes(table, ["adeno", "normal"])
    assert matched["label"].to_pylist() == ["adeno", "adeno", "normal", None]
    assert class_of == {"adeno": "adeno", "adeno_left": "adeno", "normal": "normal"}
    assert labels.renamed(class_of) == {"adeno_left": "adeno"}
    # The model's names may be the longer ones.
    matched, class_of = labels.match_classes(table.slice(1), ["adeno_left.lobe", "normal"])
    assert matched["label"].to_pylist() == ["adeno_left.lobe", "normal", None]
    assert labels.renamed(class_of) == {"adeno": "adeno_left.lobe"}
    # Equal names are equal, whatever their beginnings.
    table = make_table(("lung_left", None, "1"), ("lung_right", None, "2"))
    matched, class_of = labels.match_classes(table, ["lung_left", "lung_right"])
    assert matched.equals(table)
    assert labels.renamed(class_of) == {}


def test_match_classes_with_a_map():
    table = make_table(("luad", None, "1"), ("none_negative", None, "2"))
    mapped, class_of = labels.match_classes(table, ["adeno"], {"luad": "adeno", "none_negative": "adeno"})
    assert mapped["label"].to_pylist() == ["adeno", "adeno"]
    assert class_of == {"luad": "adeno", "none_negative": "adeno"}
    table = table.slice(0, 1)
    with pytest.raises(DataError, match="The labels 'luad' match none"):
        labels.match_classes(table, ["adeno"], {"luad": "other"})
    with pytest.raises(DataError, match="lacks the labels 'luad'"):
        labels.match_classes(table, ["adeno"], {})


@pytest.mark.parametrize(
    ("names", "classes", "message"),
    [
        (["x", "normal"], ["adeno", "normal"], r"The labels 'x' match none.*'adeno', 'normal'.*--class-map"),
        (["lung"], ["lung_left", "lung_right"], r"The labels 'lung' match none, or more than one"),
        (["covid_mild", "covid_grave"], ["covid"], r"classes are 'covid'; .*train: 'covid_grave', 'covid_mild'"),
        (["covid_pos", "covid_neg"], ["covid"], r"The labels 'covid_neg' match none"),
    ],
)
def test_match_classes_errors(names, classes, message):
    with pytest.raises(DataError, match=message):
        labels.match_classes(make_table(*((name, None, name) for name in names)), classes)


NEGATED = [
    "covid_negative", "covid_Neg", "covid_not.found", "covid_not-found", "covid_x_no_finding", "covid_non covid",
    "covid_nonsevere", "covid_neg1",
    "covid_without.signs", "covid_symptom-free", "covid_absent", "covid_(none)",
]  # fmt: skip


@pytest.mark.parametrize("name", NEGATED)
def test_a_label_with_a_negation_is_no_other_class_and_a_class_with_one_no_other_label(name):
    for label, other in ((name, "covid"), ("covid", name), (name, "covid_left"), (f"{name}_left", name)):
        table = make_table((label, "test", "1"), ("normal", "test", "2"))
        with pytest.raises(DataError, match=r"match none, or more than one, of .*'normal'\. Give a class map"):
            labels.match_classes(table, [other, "normal"])
    same = make_table((name, "test", "1"), ("normal_left", "test", "2"))
    assert labels.match_classes(same, [name, "normal"])[0]["label"].to_pylist() == [name, "normal"]


def test_a_negation_alone_is_no_beginning_of_a_class():
    table = make_table(("no_covid", "test", "1"))
    with pytest.raises(DataError, match="The labels 'no_covid' match none"):
        labels.match_classes(table, ["no_finding", "covid"])
    assert labels.short_names(["no_finding", "covid_negative", "covid19_x"]) == {
        "no_finding": "no_finding", "covid_negative": "covid_negative", "covid19_x": "covid19",
    }  # fmt: skip


@pytest.mark.parametrize(
    "name", ["covid_node", "covid_Northern.lobe", "covid_freeze", "negative_left", "free.air_left"]
)
def test_words_that_only_look_like_a_negation_are_none(name):
    table = make_table((name, "test", "1"))
    short = name.partition("_")[0]
    assert labels.match_classes(table, [short, "b"])[0]["label"].to_pylist() == [short]


PUBLIC = {
    "adenocarcinoma_left.lower.lobe_T2_N0_M0_Ib": "adenocarcinoma",
    "large.cell.carcinoma_left.hilum_T2_N2_M0_IIIa": "large.cell.carcinoma",
    "squamous.cell.carcinoma_left.hilum_T1_N2_M0_IIIa": "squamous.cell.carcinoma",
    "normal": "normal",
}
"""Folders of the public set, in train and in test."""


def test_the_folders_of_the_public_set_are_four_classes():
    rows = [*((name, "train", name) for name in PUBLIC), *((name, "test", name) for name in PUBLIC.values())]
    table = make_table(*rows)
    unified, mapping = labels.unify_classes(table)
    assert labels.renamed(mapping) == {long: short for long, short in PUBLIC.items() if long != short}
    assert unified["label"].to_pylist() == [*PUBLIC.values()] * 2
    for classes in (list(PUBLIC), list(PUBLIC.values())):
        for part, names in ((table.slice(0, 4), PUBLIC.keys()), (table.slice(4), PUBLIC.values())):
            matched, class_of = labels.match_classes(part, classes)
            assert matched["label"].to_pylist() == classes
            assert class_of == dict(zip(names, classes, strict=True))


@pytest.mark.parametrize("name", NEGATED)
@pytest.mark.parametrize("other", ["covid", "covid_left", "covid_negative_left"])
def test_splits_are_not_unified_over_a_negation(name, other):
    for train, test in ((name, other), (other, name)):
        table = make_table(
            (train, "train", "1"), ("normal_x", "train", "2"), (test, "test", "3"), ("normal", "test", "4")
        )
        with pytest.raises(DataError, match=r"a negation is never taken for another\. .*\(--class-map\)") as caught:
            labels.unify_classes(table)
        assert f"'{name}'" in str(caught.value)
        assert f"'{other}'" in str(caught.value)
        assert labels.unify_classes(table, {train: "x", test: "y", "normal_x": "n", "normal": "n"})[1][train] == "x"


def test_a_label_with_a_negation_keeps_it_where_others_are_shortened():
    rows = [
        ("covid_negative", "train", "1"),
        ("flu_x", "train", "2"),
        ("covid_negative", "test", "3"),
        ("flu", "test", "4"),
    ]
    unified, mapping = labels.unify_classes(make_table(*rows))
    assert mapping == {"covid_negative": "covid_negative", "flu": "flu", "flu_x": "flu"}
    assert unified["label"].to_pylist() == ["covid_negative", "flu"] * 2


def test_the_class_of_each_label_is_told_if_a_name_differs(capsys):
    labels.tell({"b": "b", "a_1": "a"}, quiet=False)
    assert capsys.readouterr().out == "Classes: a_1 -> a, b -> b\n"
    labels.tell({"b": "b", "a_1": "a"}, quiet=True)
    labels.tell({"b": "b"}, quiet=False)
    assert capsys.readouterr().out == ""


# Splits


def test_both_splits_are_cut_from_unsplit_data():
    groups = [f"g{index}" for index in range(20)]
    table = assign_splits(make_table(*(("a", None, group) for group in groups)), seed=3)
    ordered = by_hash(3, groups)  # 15 % of 20 images: 3 to test, then 3 to valid
    expected = dict.fromkeys(ordered[:3], "test") | dict.fromkeys(ordered[3:6], "valid")
    assert splits_of_groups(table) == {group: expected.get(group, "train") for group in groups}
    assert table.schema == manifest.SCHEMA


def test_whole_groups_are_cut_until_there_are_enough():
    groups = [f"g{index}" for index in range(10)]
    images = [("a", "train", group) for group in groups for _ in range(2)]
    ordered = by_hash(0, groups)  # 3 of 20 images wanted: two groups of two
    found = splits_of_groups(assign_splits(make_table(*images), seed=0))
    assert [found[group] for group in ordered] == ["test", "test", "valid", "valid"] + ["train"] * 6


@pytest.mark.parametrize("num_images", [20, 340, 1000])
def test_the_share_is_not_exceeded_by_rounding(num_images):
    table = make_table(*(("a", None, f"g{index}") for index in range(num_images)))
    splits = assign_splits(table, seed=0)["split"].to_pylist()
    assert [splits.count(split) for split in ("test", "valid")] == [num_images * 15 // 100] * 2


@pytest.mark.parametrize(
    ("given", "num_groups", "expected"),
    [
        (None, 1, {"train": 1}),
        (None, 2, {"train": 1, "valid": 1}),
        (None, 3, {"train": 1, "valid": 1, "test": 1}),
        (None, 4, {"train": 2, "valid": 1, "test": 1}),
        ("test", 1, {"train": 1, "test": 1}),
        ("test", 2, {"train": 1, "valid": 1, "test": 1}),
        ("valid", 1, {"train": 1, "valid": 1}),
        ("valid", 2, {"train": 1, "valid": 1, "test": 1}),
    ],
)
def test_few_groups(given, num_groups, expected):
    images = [("a", "train", f"g{index}") for index in range(num_groups)]
    if given:
        images.append(("a", given, "given"))
    splits = assign_splits(make_table(*images), seed=0)["split"].to_pylist()
    assert {split: splits.count(split) for split in sorted(set(splits))} == dict(sorted(expected.items()))


def test_big_first_group_leaves_train_and_valid_theirs():
    ordered = by_hash(0, ["g1", "g2", "g3"])
    images = [("a", None, ordered[0])] + [("a", None, group) for group in ordered[1:] for _ in range(50)]
    found = splits_of_groups(assign_splits(make_table(*images), seed=0))
    assert [found[group] for group in ordered] == ["test", "valid", "train"]


def test_given_splits_are_kept():
    table = make_table(("a", "train", "1"), ("a", "valid", "1"), ("a", "test", "2"), ("a", None, "3"))
    # Group 1 is in two splits because the data says so: the audit reports it.
    assert assign_splits(table, seed=0)["split"].to_pylist() == ["train", "valid", "test", "train"]


@pytest.mark.parametrize("seed", range(8))
def test_group_in_a_given_split_is_never_cut(seed):
    table = make_table(
        ("a", "train", "shared"), ("a", "train", "g1"), ("a", "train", "g2"), ("a", "test", "shared"), ("a", None, "g1")
    )
    splits = assign_splits(table, seed=seed)["split"].to_pylist()
    chosen = by_hash(seed, ["g1", "g2"])[0]
    assert splits == [
        "train",
        "valid" if chosen == "g1" else "train",
        "valid" if chosen == "g2" else "train",
        "test",
        "valid" if chosen == "g1" else "train",
    ]


def test_group_with_several_labels_goes_with_its_commonest():
    # `mixed` goes with `b` (two of three images), `tied` with `a` (the first by name): each is the second group.
    table = make_table(
        ("a", "train", "mixed"), ("b", "train", "mixed"), ("b", "train", "mixed"), ("b", "train", "b1"),
        ("b", "train", "tied"), ("a", "train", "tied"), ("a", "train", "a1"), ("b", "test", "given"),
    )  # fmt: skip
    found = splits_of_groups(assign_splits(table, seed=1))
    expected = {"given": "test"}
    for groups in (["tied", "a1"], ["mixed", "b1"]):
        first, second = by_hash(1, groups)
        expected |= {first: "valid", second: "train"}
    assert found == expected


@pytest.mark.parametrize("seed", range(8))
def test_rare_label_in_a_mixed_group_stays_in_train(seed):
    images = [("a", None, f"g{index}") for index in range(4)] + [("a", None, "m"), ("a", None, "m"), ("b", None, "m")]
    assert splits_of_groups(assign_splits(make_table(*images), seed=seed))["m"] == "train"


@pytest.mark.parametrize("seed", range(4))
def test_split_ignores_the_order_of_rows(seed):
    images = [(f"l{index % 3}", None, f"g{index % 17}") for index in range(100)]
    table = make_table(*images)
    backwards = table.take(list(range(99, -1, -1)))
    assigned = assign_splits(table, seed=seed)
    assert assign_splits(backwards, seed=seed).sort_by("image_id").equals(assigned.combine_chunks())
    splits_of_groups(assigned)


def test_seeds_differ():
    table = make_table(*(("a", None, f"g{index}") for index in range(50)))
    assert assign_splits(table, seed=0)["split"] != assign_splits(table, seed=1)["split"]


def test_unlabelled_rows():
    table = make_table(
        (None, None, "1"), (None, "test", "2"), ("a", "train", "3"), ("a", None, "4"), ("a", None, "5"),
        (None, "train", "3"), (None, "train", "4"), (None, "train", "5"),
    )  # fmt: skip
    assigned = assign_splits(table, seed=0)
    found = splits_of_groups(assigned)
    # An unlabelled test split cannot measure anything, so a labelled one is cut as well.
    assert found["1"] is None
    assert found["2"] == "test"
    assert [found[group] for group in by_hash(0, ["3", "4", "5"])] == ["test", "valid", "train"]
    assert assign_splits(table.slice(0, 2), seed=0).equals(table.slice(0, 2))


# Checks


def test_check_trainable():
    table = make_table(("b", "train", "1"), ("a", "train", "2"), ("a", "valid", "3"), (None, "test", "4"))
    assert check_trainable(table) == ["a", "b"]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([(None, "train", "1")], "at least two classes; the readable images have no labels"),
        ([("a", "train", "1"), ("a", "valid", "2")], "at least two classes; the readable images have 'a'"),
        (
            [("a", "train", "1"), ("a", "valid", "2"), ("b", "valid", "3"), ("b", "test", "4")],
            r"no readable training image of 'b' \(in valid, test\)",
        ),
        ([("a", "valid", "1"), ("b", "train", "2")], r"no readable training image of 'a' \(in valid\)"),
        ([("a", "train", "1"), ("b", "train", "2"), ("b", "test", "3")], "no readable, labelled validation image"),
    ],
)
def test_check_trainable_errors(images, message):
    with pytest.raises(DataError, match=message):
        check_trainable(make_table(*images))


# Fingerprints and files


def test_fingerprints():
    table = make_table(("a", "train", "1"), (None, None, "2"))
    expected = hashlib.sha256(b'["00000", null, "a"]\n["00001", null, null]').hexdigest()
    assert manifest.fingerprint(table) == expected
    assert manifest.fingerprint(table.take([1, 0])) == expected
    expected = hashlib.sha256(b'["00000", "train"]\n["00001", null]').hexdigest()
    assert manifest.split_fingerprint(table) == expected
    other = make_table(("b", "train", "1"), (None, None, "2"))
    assert manifest.fingerprint(other) != manifest.fingerprint(table)
    assert manifest.split_fingerprint(other) == expected
    expected = hashlib.sha256(b'["00000"]\n["00001"]').hexdigest()
    read = manifest.with_column(manifest.with_column(table, "sha256", ["s", "t"]), "split", ["train", "valid"])
    for same in (table, table.take([1, 0]), other, read):
        assert manifest.id_fingerprint(same) == expected
    assert manifest.id_fingerprint(table.slice(1)) != expected


def test_manifest_survives_writing(tmp_path):
    table = make_table(("a", "train", "1")).append_column("width_px", pa.array([224], pa.int32()))
    manifest.write_manifest(table, f"{tmp_path}/run/manifest.parquet")
    assert manifest.read_manifest(f"{tmp_path}/run/manifest.parquet").equals(table)
    assert os.listdir(tmp_path / "run") == ["manifest.parquet"]


def test_read_manifest_errors(tmp_path):
    with pytest.raises(DataError, match=r"Cannot read the manifest '.*none\.parquet'"):
        manifest.read_manifest(str(tmp_path / "none.parquet"))
    (tmp_path / "broken.parquet").write_text(json.dumps({}))
    with pytest.raises(DataError, match=r"Cannot read the manifest '.*broken\.parquet'"):
        manifest.read_manifest(str(tmp_path / "broken.parquet"))
    pq.write_table(pa.table({"uri": ["x"]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match="lacks the columns 'group_id', 'image_id', 'label', 'sha256', 'split'"):
        manifest.read_manifest(str(tmp_path / "other.parquet"))
