"""Files of a run that cannot be used: named if their checksums tell that they were changed, and refused otherwise."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.evaluation.test_evidence import make_run, verify
from tests.unit.evaluation.test_out_of_fold import edit, whole
from tlray import cli
from tlray.errors import BundleError, DataError
from tlray.files import storage

Damage = Callable[[Path], Any]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path, unseen=whole())


def no_content(path: Path) -> None:
    path.write_bytes(b"{")


def first_as(name: str, value: float | str | None) -> Damage:
    """A Parquet file whose first value of a column is another one; the others are texts, too, if that is one."""

    def damage(path: Path) -> None:
        table = pq.read_table(path)
        rest = table[name].to_pylist()[1:]
        values = pa.array([value, *(map(str, rest) if isinstance(value, str) else rest)])
        pq.write_table(table.set_column(table.schema.get_field_index(name), name, values), path)

    return damage


def without(name: str) -> Damage:
    """A Parquet file without a column."""
    return lambda path: pq.write_table(pq.read_table(path).drop_columns([name]), path)


def with_a_bad_page(path: Path) -> None:
    """The table's description can be read, and its values cannot."""
    content = bytearray(path.read_bytes())
    content[4:64] = bytes(60)
    path.write_bytes(content)


def without_key(name: str) -> Damage:
    """A JSON file whose object lacks a name."""

    def damage(path: Path) -> None:
        content = json.loads(path.read_text())
        del content[name]
        path.write_text(json.dumps(content))

    return damage


PREDICTIONS = {
    "no Parquet": no_content,
    "a bad page": with_a_bad_page,
    "not a number": first_as("p_a", float("nan")),
    "null": first_as("p_b", None),
    "text": first_as("p_a", "0.5"),
    "too large": first_as("p_a", 1.5),
    "no id": without("image_id"),
    "a fraction as label": first_as("label", 1.0),
    "no label": without("label"),
    "no class": without("p_b"),
}
DAMAGES = [
    *(("evaluated.parquet", each) for each in PREDICTIONS.items()),
    ("evaluated.parquet", ("no score", without("ood_score"))),
    ("evaluated.parquet", ("a text as score", first_as("ood_score", "0.5"))),
    *(("out_of_fold.parquet", each) for each in PREDICTIONS.items()),
    ("out_of_fold.parquet", ("no kind", without("kind"))),
    ("manifest.parquet", ("no Parquet", no_content)),
    ("manifest.parquet", ("a bad page", with_a_bad_page)),
    *(
        ("manifest.parquet", (f"no {name}", without(name)))
        for name in ("image_id", "label", "split", "group_id", "error_code")
    ),
    ("metrics.json", ("no JSON", no_content)),
    ("metrics.json", ("a list", lambda path: path.write_text("[]"))),
    ("metrics.json", ("no splits", without_key("splits"))),
    ("bundle/bundle.json", ("no JSON", no_content)),
    ("bundle/bundle.json", ("no classes", without_key("classes"))),
]
EACH = pytest.mark.parametrize(
    ("name", "damage"), [pytest.param(name, damage, id=f"{name}: {what}") for name, (what, damage) in DAMAGES]
)


@EACH
def test_a_changed_file_that_cannot_be_used_is_named(run, name, damage):
    before = verify(run)
    damage(run / name)
    found = verify(run)
    assert found.wrong() == [name]
    assert found.checks[0].detail.startswith("The file was changed: its sha256 is ")
    (reason,) = {text for label, text in found.rows() if label == "cannot be used"}
    assert reason.startswith(f"{name}: ")
    assert found.num_figures < before.num_figures


@EACH
def test_a_file_that_cannot_be_used_though_its_checksum_is_right_is_refused(run, name, damage):
    damage(run / name)
    edit(run / "evidence.json", "sha256", name, value=hashlib.sha256((run / name).read_bytes()).hexdigest())
    with pytest.raises((DataError, BundleError)) as caught:
        verify(run)
    assert str(caught.value).startswith(f"{name.rpartition('/')[2]} of '{run}")


@pytest.mark.parametrize("is_changed", [False, True])
@pytest.mark.parametrize(
    "reading",
    [
        *((name, 0) for name in ("evidence.json", "gallery.json", "metrics.json", "bundle/bundle.json")),
        *((name, 1) for name in ("evaluated.parquet", "manifest.parquet", "metrics.json", "bundle/bundle.json")),
    ],
)
def test_a_store_that_does_not_give_a_file_is_neither_a_change_nor_damage(
    run, monkeypatch, capsys, reading, is_changed
):
    """A file is read for its checksum, and then to compute from it."""
    name, num_before = reading
    if is_changed:
        no_content(run / name)
    read, readings = storage.read_bytes, []

    def refuse(location: str, max_bytes: int | None = None) -> bytes:
        if location == f"{run}/{name}":
            readings.append(location)
            if len(readings) > num_before:
                raise PermissionError(f"Access to '{name}' was denied")
        return read(location, max_bytes)

    monkeypatch.setattr(storage, "read_bytes", refuse)
    assert cli.execute("verify", ["--run", str(run)]) == cli.EXIT_FAILURE
    said = f"tlray: Access to '{name}' was denied. Fix the cause. Run the same command again.\n"
    assert capsys.readouterr() == ("", said)


def test_what_can_be_computed_without_the_file_is_compared(run):
    first_as("p_a", float("nan"))(run / "out_of_fold.parquet")
    edit(run / "evidence.json", "figures", "test", "accuracy", value=0.125)
    edit(run / "evidence.json", "figures", "cross_validation", "accuracy", value=0.125)
    found = verify(run)
    assert found.wrong() == ["out_of_fold.parquet", "test.accuracy"]
    assert (found.num_images, found.is_older, found.has_unseen) == (22, False, True)


def test_the_reason_is_told(run):
    first_as("p_a", float("nan"))(run / "out_of_fold.parquet")
    reason = dict(verify(run).rows())["cannot be used"]
    assert reason.startswith(
        "out_of_fold.parquet: Probabilities must be finite, in [0, 1] and not all zero; row 0 is ["
    )
    assert reason.endswith("Leave out images that could not be scored")


def test_a_description_of_the_bundle_that_is_gone_is_named(run):
    (run / "bundle/bundle.json").unlink()
    assert [(check.name, check.detail) for check in verify(run).checks] == [
        ("bundle/bundle.json", "The file is missing."),
    ]


@pytest.mark.parametrize("name", ["evaluated.parquet", "manifest.parquet", "audit.json"])
@pytest.mark.parametrize(("make", "detail"), [(None, "The file is missing."), (Path.mkdir, "It is a directory, not a")])
def test_a_file_that_is_gone_or_a_directory_hides_no_other(run, name, make, detail):
    (run / name).unlink()
    if make:
        make(run / name)
    edit(run / "metrics.json", "accuracy", value=0.9375)
    found = {check.name: check.detail for check in verify(run).checks}
    assert {name, "metrics.json"} <= found.keys()
    assert found[name].startswith(detail)


def test_a_number_that_is_too_large_for_a_figure_is_told(run):
    edit(run / "metrics.json", "splits", "test", "accuracy", value=10**400)
    assert verify(run).wrong() == ["metrics.json", "test.accuracy"]


@pytest.mark.parametrize("name", ["audit.json", "gallery.json"])
def test_files_of_which_nothing_is_computed_are_not_parsed(run, name):
    no_content(run / name)
    found = verify(run)
    assert (found.wrong(), found.unusable) == ([name], ())


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (no_content, "Expecting property name"),
        (lambda path: path.write_text("[]"), "it is no JSON object"),
        (without_key("sha256"), "it has no object 'sha256'"),
        (without_key("figures"), "it has no object 'figures'"),
        (lambda path: edit(path, "origin", value=None), "it has no object 'origin'"),
    ],
)
def test_evidence_that_is_damaged_is_refused_with_its_name(run, damage, reason):
    """It has no checksum."""
    damage(run / "evidence.json")
    with pytest.raises(DataError) as caught:
        verify(run)
    assert str(caught.value).startswith(f"evidence.json of '{run}' cannot be used: {reason}")
    assert str(caught.value).endswith(". Restore the run, or train again.")
