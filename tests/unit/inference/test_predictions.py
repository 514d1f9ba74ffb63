"""Predictions on disk: parts, and what lies beside them."""

import pandas
import pyarrow as pa
import pytest

from tlray.errors import DataError
from tlray.inference import predictions, score_state
from tlray.progress import Progress

SCHEMA = pa.schema([("image_id", pa.string()), ("error_code", pa.string())])


def rows(*names: str, **more: list[str]) -> pa.Table:
    return pa.table({"image_id": list(names), "error_code": pa.nulls(len(names), pa.string()), **more})


def write(out, *tables: pa.Table, num_done: int = 0) -> None:
    with Progress("", 0, quiet=True) as progress:
        predictions.write_predictions(iter(tables), str(out), schema=SCHEMA, num_done=num_done, progress=progress)


def test_parts_lie_alone_in_their_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(predictions, "ROWS_PER_PART", 2)
    write(tmp_path, rows("a", stamp=["1"]), rows("b", "c", "d", stamp=["2", "3", "4"]), rows("e", stamp=["5"]))
    assert {path.name for path in tmp_path.iterdir()} == {"predictions", "predictions.csv", "_SUCCESS", "_state"}
    names = [f"part-0000{number}.parquet" for number in range(3)]
    assert sorted(path.name for path in (tmp_path / "predictions").iterdir()) == names
    assert pandas.read_parquet(tmp_path / "predictions")["image_id"].tolist() == list("abcde")
    assert predictions.read_predictions(str(tmp_path)).schema == SCHEMA
    sizes = zip(names, (2, 2, 1), strict=True)
    stamps = [score_state.read_stamps(str(tmp_path), name, num_rows=size) for name, size in sizes]
    assert stamps == [["1", "2"], ["3", "4"], ["5"]]


def test_what_a_killed_writer_has_left_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(predictions, "ROWS_PER_PART", 1)
    write(tmp_path, rows("a"))
    (tmp_path / "_SUCCESS").unlink()
    (tmp_path / "predictions/.part-00001.parquet.x1y2").touch()
    with pytest.raises(DataError, match="has no _SUCCESS: the scoring did not finish"):
        predictions.read_predictions(str(tmp_path))
    write(tmp_path, rows("b"), num_done=1)
    names = ["part-00000.parquet", "part-00001.parquet"]
    assert sorted(path.name for path in (tmp_path / "predictions").iterdir()) == names
    assert predictions.read_predictions(str(tmp_path))["image_id"].to_pylist() == ["a", "b"]


def test_nothing_half_written_lies_beside_a_finished_scoring(tmp_path):
    left = (
        *(".predictions.csv.x1y2z3w4", "._SUCCESS.x1y2z3w4", "..tlray.x1y2z3w4"),
        *("_state/.progress.json.x1y2z3w4", "_state/.scoring.json.x1y2z3w4"),
        *("_state/stamps/.part-00000.parquet.x1y2z3w4", "predictions/.part-00000.parquet.x1y2z3w4"),
    )
    others = (".nfs0001", ".predictions", "_state/.nfs0002", "_state/stamps/.nfs0003")
    for name in (*left, *others):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    write(tmp_path, rows("a", stamp=["1"]))
    found = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()]
    ours = ["_SUCCESS", "predictions.csv", "predictions/part-00000.parquet", "_state/stamps/part-00000.parquet"]
    assert sorted(found) == sorted([*ours, *others])


def test_a_damaged_part_is_named(tmp_path):
    write(tmp_path, rows("a"))
    path = tmp_path / "predictions/part-00000.parquet"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"/part-00000\.parquet' is damaged: .*Continue the scoring with --resume, or"):
        predictions.read_predictions(str(tmp_path))
    path.unlink()
    with pytest.raises(FileNotFoundError):  # not damaged: the storage has failed
        predictions.read_part(str(tmp_path), path.name)


def test_the_group_of_an_image_without_a_patient_is_empty(tmp_path):
    """In memory it is the image's own id, by which intervals count the image alone."""
    schema = SCHEMA.append(pa.field("group_id", pa.string()))
    table = rows("a/1.png", "a/2.png", "b/1.png", group_id=["p1", "a/2.png", "a/2.png"])
    with Progress("", 0, quiet=True) as progress:
        predictions.write_predictions(iter([table]), str(tmp_path), schema=schema, progress=progress)
    assert predictions.read_predictions(str(tmp_path))["group_id"].to_pylist() == ["p1", None, "a/2.png"]
    lines = (tmp_path / "predictions.csv").read_text().splitlines()
    assert lines[1:] == ['"a/1.png",,"p1"', '"a/2.png",,', '"b/1.png",,"a/2.png"']
    assert table["group_id"].to_pylist() == ["p1", "a/2.png", "a/2.png"]


def test_no_row_is_an_output_too(tmp_path):
    write(tmp_path)
    assert predictions.read_predictions(str(tmp_path)).equals(SCHEMA.empty_table())
    assert (tmp_path / "predictions.csv").read_text() == '"image_id","error_code"\n'
