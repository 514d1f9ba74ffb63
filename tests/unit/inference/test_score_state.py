"""The private state of a scoring: its progress, what it is of, and the stamps of the files it read."""

import json
from types import SimpleNamespace

import pyarrow as pa
import pytest

from tlray.inference import score_state


def predictions(*error_codes):
    return pa.table({"error_code": pa.array(error_codes, pa.string())})


def read(out):
    progress = json.loads((out / "_state/progress.json").read_text())
    assert progress.pop("job") is None  # not within a Ray job
    return progress


def test_progress_is_written_as_images_are_done(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(score_state.time, "monotonic", lambda: clock.now)
    tables = iter([predictions(None, "empty"), predictions(None), predictions("empty", "empty")])
    rows = score_state.write_progress(tables, str(tmp_path), job=None, num_images=9, num_done=4, num_failed=1)
    assert next(rows).num_rows == 2
    assert read(tmp_path) == {"done": 6, "failed": 2, "total": 9, "waiting": False}
    clock.now = score_state.PROGRESS_INTERVAL_S / 2
    next(rows)
    assert read(tmp_path)["done"] == 6  # too soon
    clock.now = score_state.PROGRESS_INTERVAL_S
    next(rows)
    assert read(tmp_path) == {"done": 9, "failed": 4, "total": 9, "waiting": False}
    assert list(rows) == []


def test_the_last_progress_is_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(score_state.time, "monotonic", lambda: 0.0)
    tables = iter([predictions(None), predictions(None), predictions("empty")])
    assert (
        sum(table.num_rows for table in score_state.write_progress(tables, str(tmp_path), job=None, num_images=3)) == 3
    )
    assert read(tmp_path) == {"done": 3, "failed": 1, "total": 3, "waiting": False}


def test_progress_says_that_the_first_images_are_waited_for(tmp_path):
    def wait():
        assert read(tmp_path) == {"done": 4, "failed": 1, "total": 9, "waiting": True}
        yield predictions(None)

    next(score_state.write_progress(wait(), str(tmp_path), job=None, num_images=9, num_done=4, num_failed=1))
    assert read(tmp_path)["waiting"] is False


def test_nothing_is_waited_for_where_all_is_done(tmp_path):
    assert list(score_state.write_progress(iter([]), str(tmp_path), job=None, num_images=9, num_done=9)) == []
    assert read(tmp_path) == {"done": 9, "failed": 0, "total": 9, "waiting": False}


def test_progress_is_read_as_it_was_written(tmp_path):
    out = str(tmp_path)
    assert score_state.read_progress(out) is None
    tables = iter([predictions(None, "empty")])
    list(score_state.write_progress(tables, out, job="x" * 100, num_images=10**9, num_done=10**8))
    assert score_state.read_progress(out) == {
        "job": "x" * 100, "done": 100_000_002, "failed": 1, "total": 10**9, "waiting": False,
    }  # fmt: skip


GOOD = '{"job": "j", "done": 1, "failed": 0, "total": 2, "waiting": false}'


@pytest.mark.parametrize(
    "content",
    [
        GOOD + " " * 10**6,  # too large, whatever it says
        "[" * 1024,  # deeper than Python's parser goes
        "[]", "1", "{", "\xff",
        GOOD.replace("1", '"1"'), GOOD.replace("0", "null"), GOOD.replace("2", "1e400"), GOOD.replace("false", "0"),
        GOOD.replace('"total": 2, ', ""),
    ],
)  # fmt: skip
def test_progress_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "_state").mkdir()
    path = tmp_path / "_state/progress.json"
    path.write_text(GOOD)
    assert score_state.read_progress(str(tmp_path)) == json.loads(GOOD)
    path.write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=r".+"):
        score_state.read_progress(str(tmp_path))


def test_of_a_large_progress_nothing_is_read(tmp_path):
    (tmp_path / "_state").mkdir()
    with (tmp_path / "_state/progress.json").open("wb") as file:
        file.truncate(2**40)  # it would not fit into memory
    with pytest.raises(ValueError, match=r"1,099,511,627,776 bytes; the limit is 1,024"):
        score_state.read_progress(str(tmp_path))


def test_stamps_are_kept_by_part(tmp_path):
    out = str(tmp_path)
    score_state.write_stamps(out, "part-00000.parquet", ["10 1", "", "12 3"])
    score_state.write_stamps(out, "part-00001.parquet", ["13 4"])
    assert score_state.read_stamps(out, "part-00000.parquet", num_rows=3) == ["10 1", "", "12 3"]
    assert score_state.read_stamps(out, "part-00001.parquet", num_rows=1) == ["13 4"]


def test_stamps_that_are_missing_or_damaged_are_unknown(tmp_path):
    out = str(tmp_path)
    assert score_state.read_stamps(out, "part-00000.parquet", num_rows=2) == ["", ""]
    score_state.write_stamps(out, "part-00000.parquet", ["10 1"])
    assert score_state.read_stamps(out, "part-00000.parquet", num_rows=2) == ["", ""]  # of another part
    (tmp_path / "_state/stamps/part-00000.parquet").write_bytes(b"PAR1")
    assert score_state.read_stamps(out, "part-00000.parquet", num_rows=1) == [""]


def test_what_a_scoring_is_of(tmp_path):
    assert score_state.read_identity(str(tmp_path / "out")) is None
    score_state.write_identity(str(tmp_path / "out"), {"input": "/i"})
    assert score_state.read_identity(str(tmp_path / "out")) == {"input": "/i"}
