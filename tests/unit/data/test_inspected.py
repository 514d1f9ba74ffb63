"""What reading has found out so far: kept, found again, and told apart from what has changed."""

import os
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest

from tlray.data import decoding, inspected, looks

SCHEMA = pa.schema([("sha256", pa.string()), ("width_px", pa.int32()), ("stamp", pa.string())])
URIS = pa.chunked_array([["a", "b"], ["c", "d"]])


def rows(*values: tuple[str | None, int | None, str | None]) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(SCHEMA.names, each, strict=True)) for each in values], schema=SCHEMA)


@pytest.fixture
def out(tmp_path: Path) -> str:
    return str(tmp_path / "out")


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(inspected, "INTERVAL_S", 0.0)


def test_a_stamp_tells_size_and_time(tmp_path, monkeypatch):
    path = tmp_path / "1.png"
    path.write_bytes(b"12345")
    os.utime(path, ns=(0, 1_700_000_000_123_456_789))
    assert (
        inspected.stamps([str(path), f"file://{path}"])
        == [f"{decoding.DECODING}:{looks.VERSION}:5 1700000000123456789"] * 2
    )
    assert inspected.stamps([f"{tmp_path}/none.png", str(tmp_path), "no-such-scheme://1.png"]) == [""] * 3
    monkeypatch.setattr(decoding, "DECODING", 99)
    assert inspected.stamps([str(path)]) == [f"99:{looks.VERSION}:5 1700000000123456789"]


def test_the_members_of_an_archive_have_its_stamp(tmp_path):
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("1.png", b"1")
    of_member, of_archive, of_none = inspected.stamps([f"{archive}!/1.png", str(archive), f"{archive}!/2.png"])
    assert of_archive == of_none
    assert of_archive
    assert of_member.startswith(f"{of_archive} ")


def test_what_was_read_is_found_again_by_its_uri(out):
    keeper = inspected.Keeper(out, "run", URIS, None)
    keeper.add(rows(("s", 1, "t0"), ("s", None, "t1")))  # of an image that cannot be decoded, too
    keeper.add(rows((None, None, "t2")))  # a file that could not be read
    keeper.add(rows(("s", 4, "")))  # on a storage that tells no time
    assert sorted(os.listdir(out)) == [".tlray", "_inspected"]
    assert Path(out, ".tlray").read_text() == "run"
    known = inspected.known_rows(out, pa.chunked_array([["d", "c", "b", "e", "a"]]), SCHEMA)
    assert known is not None
    nothing = {"sha256": None, "width_px": None, "stamp": None}
    assert known.to_pylist() == [
        nothing,
        nothing,
        {"sha256": "s", "width_px": None, "stamp": "t1"},
        nothing,
        {"sha256": "s", "width_px": 1, "stamp": "t0"},
    ]
    inspected.forget(out)
    assert inspected.known_rows(out, URIS, SCHEMA) is None


def test_what_is_there_is_not_written_again(out):
    inspected.Keeper(out, "run", URIS, None).add(rows(("s", 1, "t0"), ("s", 2, "t1")))
    known = inspected.known_rows(out, URIS, SCHEMA)
    keeper = inspected.Keeper(out, "run", URIS, known)
    keeper.add(rows(("s", 1, "t0"), ("s", 2, "t1")))
    assert os.listdir(f"{out}/_inspected") == ["part-000000.parquet"]
    keeper.add(rows(("s", 3, "t2"), ("s", 4, "t3")))
    assert sorted(os.listdir(f"{out}/_inspected")) == ["part-000000.parquet", "part-000001.parquet"]
    # A file that has changed: its last row counts.
    inspected.Keeper(out, "run", URIS, known).add(rows(("other", 9, "t9")))
    known = inspected.known_rows(out, URIS, SCHEMA)
    assert known is not None
    assert known["width_px"].to_pylist() == [9, 2, 3, 4]


def test_damaged_parts_and_those_of_another_version_do_not_count(out):
    keeper = inspected.Keeper(out, "run", URIS, None)
    for number in range(4):
        keeper.add(rows(("s", number, "t")))
    first, second, *_ = sorted(Path(out, "_inspected").iterdir())
    first.write_bytes(first.read_bytes()[:-9])
    second.rename(second.with_name(".part-000001.parquet.x1"))  # as a killed writer leaves it
    known = inspected.known_rows(out, URIS, SCHEMA)
    assert known is not None
    assert known["width_px"].to_pylist() == [None, None, 2, 3]
    assert inspected.known_rows(out, URIS, pa.schema([*SCHEMA, ("more", pa.string())])) is None


def test_a_short_reading_leaves_nothing(out, monkeypatch):
    monkeypatch.setattr(inspected, "INTERVAL_S", 3600.0)
    inspected.Keeper(out, "run", URIS, None).add(rows(("s", 1, "t0")))
    assert not os.path.exists(out)
