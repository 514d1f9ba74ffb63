"""What a spreadsheet takes for a formula, and what it does not."""

import csv
import io
import math

import numpy as np
import pandas
import pyarrow as pa
import pytest

from tlray.bundle.spec import BundleSpec
from tlray.data.manifest import SCHEMA
from tlray.files import spreadsheet
from tlray.inference import predictions
from tlray.progress import Progress
from tlray.tuning import trial_table

FORMULAS = ['=HYPERLINK("http://evil.example","click").png', "@SUM(1).png", "+1+1.png", "-2+3|cmd.png", "\t=1", "\r=1"]
FORMULAS += ["\n=1", "\ttab", "  =1", "\ufeff=1", "\u00a0+1", "\uff1d1+1", "\uff0b1", "\uff0d1", "\uff201"]
FORMULAS += ["'=1", "''-1"]  # otherwise they would be read as =1 and '-1
PLAIN = ["", "1.png", "a=b", "a-1.png", "'a'", "'", "''a", "ä @ b", "s3://b/-1.png", "/x/=1.png", "_=1", " a"]


@pytest.mark.parametrize("text", FORMULAS)
def test_formulas_get_an_apostrophe(text):
    assert spreadsheet.as_text(text) == f"'{text}"


@pytest.mark.parametrize("text", PLAIN)
def test_other_text_stays_as_it_is(text):
    assert spreadsheet.as_text(text) == text


@pytest.mark.parametrize("text", [*FORMULAS, *PLAIN])
def test_a_text_is_read_as_it_was_written(text):
    assert spreadsheet.from_text(spreadsheet.as_text(text)) == text


def test_an_apostrophe_that_nothing_needs_stays():
    assert [spreadsheet.from_text(cell) for cell in ("'a", "''a", "'=1", "=1", "''=1")] == [
        *("'a", "''a", "=1", "=1", "'=1"),
    ]


CLASSES = ('=1+1,"x"', "-b")


@pytest.fixture
def scored(tmp_path):
    """Predictions of files, groups and classes whose names are formulas, as they are written and read."""
    names = [*FORMULAS, *PLAIN[1:]]
    columns = dict.fromkeys(SCHEMA.names, names) | {"group_id": names[::-1]}  # an image's own id would be left out
    rows = pa.table(columns, schema=SCHEMA)
    spec = BundleSpec(classes=CLASSES, image_size_px=8, preprocessing="unit", backbone="b", weights="w")
    empty = [""] * len(names)
    batch = {"probabilities": [[0.25, 0.75]] * len(names), "sha256": empty, "error_code": empty, "error": empty}
    batch["ood_score"] = [math.nan] * len(names)
    batch["error"] = ["=cmd()", *empty[1:]]
    table = predictions.prediction_table(rows, batch, spec, "-bundle")
    with Progress("", len(names), quiet=True) as progress:
        predictions.write_predictions(iter([table]), str(tmp_path), schema=table.schema, progress=progress)
    return tmp_path, table


def test_no_cell_of_the_predictions_is_a_formula(scored):
    out, table = scored
    header, *rows = csv.reader(io.StringIO((out / "predictions.csv").read_bytes().decode(), newline=""))
    assert header == table.column_names
    assert header[12:14] == ['p_=1+1,"x"', "p_-b"]
    expected = [f"'{name}" for name in FORMULAS] + PLAIN[1:]
    for column in ("image_id", "uri", "label"):
        assert [row[header.index(column)] for row in rows] == expected
    assert [row[header.index("group_id")] for row in rows] == expected[::-1]
    first = dict(zip(header, rows[0], strict=True))
    assert (first["predicted_label"], first["error"], first["bundle_sha256"]) == ("'-b", "'=cmd()", "'-bundle")
    assert (first["confidence"], first["p_-b"], first["refer"]) == ("0.75", "0.75", "false")


def test_numbers_stay_numbers_and_parquet_is_exact(scored):
    out, table = scored
    frame = pandas.read_csv(out / "predictions.csv")
    assert frame["confidence"].dtype == "float64"
    assert frame["p_-b"].tolist() == [0.75] * table.num_rows
    assert predictions.read_predictions(str(out)).equals(table)


def test_no_cell_of_a_sweeps_table_is_a_formula(tmp_path):
    settings = dict.fromkeys(trial_table.SETTINGS, 1) | {"learning_rate": -0.5}
    trials = [settings | {"error": "=1+1"}, settings | {"error": "-x, @y"}]
    trial_table.write_trials(str(tmp_path), trials, {}, np.ones(1))
    rows = list(csv.DictReader(io.StringIO((tmp_path / "trials.csv").read_text())))
    assert [row["error"] for row in rows] == ["'=1+1", "'-x, @y"]
    assert rows[0]["learning_rate"] == "-0.5"
