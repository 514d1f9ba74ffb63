"""What scoring does before and beside Ray: roots, the bundle that was asked for, what is kept on resuming."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.cluster.test_plans import make_capacity
from tests.unit.data.test_manifest import make_table
from tlray.bundle import store
from tlray.bundle.spec import BundleSpec
from tlray.bundle.store import Bundle
from tlray.config.prediction import ScoreConfig
from tlray.data import manifest
from tlray.data.listing import list_images
from tlray.errors import BundleError, ConfigError, DataError, TlrayError
from tlray.files import storage
from tlray.inference import pool, predictions, resumed, score_state
from tlray.inference import score as scoring

SPEC = BundleSpec(classes=("a", "b"), image_size_px=8, preprocessing="unit", backbone="b", weights="w")


@pytest.fixture
def score(tmp_path, monkeypatch):
    """Scores with a bundle of sha256 "aaa" as far as to where Ray would begin."""

    def begin(*_, **__):
        raise StopIteration

    monkeypatch.setattr(scoring.connection, "connect", lambda: None)
    monkeypatch.setattr(scoring.capacity, "measure", make_capacity)
    bundle = Bundle(spec=SPEC, directory=tmp_path, sha256="aaa")
    monkeypatch.setattr(scoring.store, "load", lambda _: bundle)
    monkeypatch.setattr(scoring, "predict", begin)

    def run(source, **options):
        try:
            scoring.score(ScoreConfig(bundle="/b", input=str(source), out=str(tmp_path / "out"), quiet=True, **options))
        except StopIteration:
            return (tmp_path / "out/_state/scoring.json").exists()

    return run


def test_another_bundle_is_refused(score, tmp_path):
    (tmp_path / "a.png").touch()
    assert score(tmp_path / "a.png", bundle_sha256="aaa")
    with pytest.raises(BundleError, match="The bundle '/b' was replaced: its sha256 is aaa…, not bbb…"):
        score(tmp_path / "a.png", bundle_sha256="bbb")


def write_bundle(location: Path, spec: BundleSpec = SPEC) -> str:
    """Writes a bundle with empty model files; returns its sha256."""
    for name in ("model.keras", "saved_model/saved_model.pb"):
        (location / name).parent.mkdir(parents=True, exist_ok=True)
        (location / name).touch()
    return store.seal(str(location), spec)


class StoppedError(Exception):
    """Scoring has come as far as to where Ray would begin."""


def test_a_bundle_that_is_replaced_while_ray_starts_is_not_scored_with(tmp_path, monkeypatch):
    """The pool is asked for the bundle that was checked, and refuses the other one."""
    sha256 = write_bundle(tmp_path / "bundle")
    (tmp_path / "a.png").touch()
    asked = []

    def batches(_, spec, sha256, *__, **___):
        asked.append((spec.temperature, sha256))
        raise StoppedError

    replaced = dataclasses.replace(SPEC, temperature=2.0)
    monkeypatch.setattr(scoring.connection, "connect", lambda: write_bundle(tmp_path / "bundle", replaced))
    monkeypatch.setattr(scoring.connection, "job_name", lambda: None)
    monkeypatch.setattr(scoring.capacity, "measure", make_capacity)
    monkeypatch.setattr(pool, "score_batches", batches)
    config = ScoreConfig(
        bundle=str(tmp_path / "bundle"), input=str(tmp_path / "a.png"), out=str(tmp_path / "out"), quiet=True,
        engine="tensorflow", bundle_sha256=sha256,
    )  # fmt: skip
    with pytest.raises(StoppedError):
        scoring.score(config)
    assert asked == [(1.0, sha256)]
    found = score_state.read_identity(str(tmp_path / "out"))
    assert found is not None
    assert found["bundle_sha256"] == sha256


def test_only_what_lies_below_the_roots_is_scored(score, tmp_path, caplog):
    root, secret = tmp_path / "root", tmp_path / "secret.png"
    root.mkdir()
    secret.touch()
    (root / "a.png").touch()
    assert score(root, roots=(str(root),))
    (tmp_path / "out/_state/scoring.json").unlink()
    (tmp_path / "out/_state").rmdir()
    (root / "link.png").symlink_to(secret)
    message = (
        rf"1 of the 2 images of '{root}' do not lie below the allowed roots: a manifest or a symbolic link leads "
        r"elsewhere\. Leave them out\.$"
    )
    with pytest.raises(DataError, match=message):
        score(root, roots=(str(root),))
    assert f"Refused, because they do not lie below the allowed roots: '{root}/link.png'" in caplog.text
    assert score(root, roots=(str(root), str(tmp_path)), overwrite=True)


@pytest.mark.parametrize(
    "uri", ["{secret}", "file://{secret}", "../secret.png", "a/../../secret.png", "s3://b/x.png", "{secret}.zip!/a.png"]
)
@pytest.mark.parametrize("name", ["list.csv", "list.parquet"])
def test_a_manifest_may_not_lead_elsewhere(score, tmp_path, uri, name):
    root, secret = tmp_path / "root", tmp_path / "secret.png"
    root.mkdir()
    uris = ["a.png", uri.format(secret=secret)]
    if name.endswith("csv"):
        (root / name).write_text("\n".join(["uri", *uris]))
    else:
        pq.write_table(pa.table({"uri": uris}), root / name)
    with pytest.raises(DataError, match=r"1 of the 2 images of .* do not lie below the allowed roots") as caught:
        score(root / name, roots=(str(root),))
    assert "secret" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_manifest_elsewhere_is_not_opened(score, tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root/link.csv").symlink_to("/etc/passwd")
    with pytest.raises(DataError, match=r"'.*/root/link.csv' does not lie below the allowed roots"):
        score(tmp_path / "root/link.csv", roots=(str(tmp_path / "root"),))


@pytest.mark.parametrize(
    ("now", "touched", "expected"),
    [
        ("ab?de", "", ("2", (3, 5, 1))),  # what could not be read is tried again
        ("ab?de", "03", ("023", (3, 5, 1))),  # the same content with another time
        ("ab?dX", "4", ("24", (2, 4, 1))),
        ("ab?Xe", "3", ("23", (1, 2, 0))),  # and what comes behind it
        ("abcde", "", ("2", (1, 2, 0))),  # it can be read now
        ("?b?de", "0", ("02", (0, 0, 0))),  # it is gone
        ("ab?dX", "", ("2", (3, 5, 1))),  # nothing tells it but its content
    ],
)
def test_images_that_have_changed_are_scored_again(stored, capsys, now, touched, expected):
    read, (kept, num_done, num_failed) = expected
    assert stored.keep(now, touched) == (num_done, num_failed)
    assert stored.read == read
    assert predictions.part_names(stored.out) == [f"part-{number:05d}.parquet" for number in range(kept)]
    assert storage.exists(f"{stored.out}/_SUCCESS") == (kept == 3)
    line = f"1 of the 5 scored images have changed. Scoring continues after image {num_done} of 7.\n"
    assert capsys.readouterr().out == ("5 of 7 images were scored before.\n" if kept == 3 else line)
    if kept == 3:  # what was touched is not read again the next time
        assert stored.keep(now, touched) == (5, 1)
        assert stored.read == read + "2"


def test_where_it_is_wanted_every_image_is_read(stored):
    assert stored.keep("ab?dX", "", verify=True) == (4, 1)
    assert stored.read == "01234"


def test_where_no_stamps_are_left_images_are_read(stored):
    storage.delete(f"{stored.out}/_state/stamps/part-00000.parquet")
    assert stored.keep("ab?de", "") == (5, 1)
    assert stored.read == "012"
    assert stored.keep("ab?de", "") == (5, 1)
    assert stored.read == "0122"


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """An output of five images in three parts, of which the third image was not found, and a storage."""

    table = make_table(*(("a", "test", str(number)) for number in range(7)))
    table = manifest.with_column(table, "uri", [f"/{number}" for number in range(7)])
    ids = table["image_id"].to_pylist()
    table = manifest.with_column(table, "group_id", ["patient", *ids[1:]])

    class Stored:
        out = str(tmp_path)
        rows = table
        read = ""

        def keep(self, now, touched, verify=False, rows=None):
            self.now, self.touched = now, touched
            return resumed.keep_unchanged(self.out, self.rows if rows is None else rows, verify=verify, quiet=False)

        def stamps(self, uris):
            places = [int(uri[1:]) for uri in uris.to_pylist()]
            assert places == list(range(len(places)))
            found = ["" if self.now[place] == "?" else f"stamp {place}" for place in places]
            found = [stamp + "'" * (str(place) in self.touched) for place, stamp in enumerate(found)]
            yield found[:2]
            yield found[2:]

        def digests(self, uris):
            places = [int(uri[1:]) for uri in uris.to_pylist()]
            self.read += "".join(map(str, places))
            found = ["" if self.now[place] == "?" else self.now[place] for place in places]
            yield found[:1]
            yield found[1:]

    first = 0
    for number, part in enumerate(("ab", "?d", "e")):
        rows = predictions.without_own_groups(table.slice(first, len(part)))
        assert rows["group_id"].to_pylist() == [None if first else "patient", None][: len(part)]
        columns = {
            **{name: rows[name].to_pylist() for name in ("uri", "split", "group_id")},
            "sha256": [None if each == "?" else each for each in part],
            "error_code": ["not_found" if each == "?" else None for each in part],
            "stamp": ["" if each == "?" else f"stamp {first + place}" for place, each in enumerate(part)],
        }
        arrays = {name: pa.array(values, pa.string()) for name, values in columns.items()}
        predictions.write_part(str(tmp_path), number, pa.table(arrays))
        first += len(part)
    (tmp_path / "_SUCCESS").touch()
    names = predictions.read_part(str(tmp_path), "part-00000.parquet").column_names
    assert names == ["uri", "split", "group_id", "sha256", "error_code"]
    stored = Stored()
    monkeypatch.setattr(resumed.inspection, "stamps", stored.stamps)
    monkeypatch.setattr(resumed.inspection, "digests", stored.digests)
    return stored


@pytest.mark.parametrize(
    ("name", "place", "value", "expected"),
    [
        ("split", 0, "valid", (0, 0, 0)),
        ("split", 1, None, (0, 0, 0)),
        ("group_id", 0, "another", (0, 0, 0)),
        ("group_id", 3, "patient", (1, 2, 0)),  # it was not known
        ("group_id", 0, "00000", (0, 0, 0)),  # it is no longer known
        ("uri", 4, "/04", (2, 4, 1)),
        ("split", 5, "valid", (3, 5, 1)),  # of an image that was not scored yet
    ],
)
def test_images_of_which_the_table_says_something_else_are_scored_again(stored, name, place, value, expected):
    """The predictions repeat what the table says. No file has changed, so none that was read is read again."""
    kept, num_done, num_failed = expected
    values = stored.rows[name].to_pylist()
    assert values[place] != value
    values[place] = value
    assert stored.keep("ab?de", "", rows=manifest.with_column(stored.rows, name, values)) == (num_done, num_failed)
    assert stored.read == "2"
    assert len(predictions.part_names(stored.out)) == kept
    assert storage.exists(f"{stored.out}/_SUCCESS") == (kept == 3)


@pytest.mark.parametrize(("number", "expected"), [(0, (0, 0)), (1, (2, 0)), (2, (4, 1))])
@pytest.mark.parametrize("num_bytes", [0, 100, -1])
def test_a_damaged_part_and_those_after_it_are_scored_again(stored, capsys, number, expected, num_bytes):
    path = Path(stored.out) / f"predictions/part-0000{number}.parquet"
    path.write_bytes(path.read_bytes()[:num_bytes])
    assert stored.keep("ab?de"[: expected[0]], "") == expected
    assert len(predictions.part_names(stored.out)) == number
    assert not storage.exists(f"{stored.out}/_SUCCESS")
    assert capsys.readouterr().out == (
        f"part-0000{number}.parquet was damaged. Its images and those after it are scored again.\n"
        f"{expected[0]} of 7 images were scored before.\n"
    )


def test_a_byte_that_has_changed_within_a_part_is_found(stored, capsys):
    path = Path(stored.out) / "predictions/part-00001.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 8] ^= 1  # in a page of data, long before the footer
    path.write_bytes(content)
    assert stored.keep("ab", "") == (2, 0)
    assert "part-00001.parquet was damaged." in capsys.readouterr().out


def test_nothing_is_read_where_nothing_was_scored(tmp_path, monkeypatch, capsys):
    table = make_table(("a", "test", "0"))
    monkeypatch.setattr(resumed.inspection, "stamps", None)
    monkeypatch.setattr(resumed.inspection, "digests", None)
    assert resumed.keep_unchanged(str(tmp_path), table, verify=True, quiet=True) == (0, 0)
    assert capsys.readouterr().out == ""
    assert resumed.keep_unchanged(str(tmp_path), table, verify=True, quiet=False) == (0, 0)
    assert "0 of 1 images were scored before.\n" in capsys.readouterr().out


@pytest.mark.parametrize(("num_missing", "num_images"), [(0, 0), (0, 1), (1, 2), (2, 4), (3, 7)])
def test_some_images_that_are_not_found_are_rows(num_missing, num_images):
    scoring.check_found(num_missing, num_images, source="/i", out="/o", remedy="go on")


@pytest.mark.parametrize(("num_missing", "num_images"), [(1, 1), (2, 3), (4, 7)])
def test_most_images_that_are_not_found_are_a_failure(num_missing, num_images):
    with pytest.raises(TlrayError) as caught:
        scoring.check_found(num_missing, num_images, source="/i", out="/o", remedy="go on")
    assert not isinstance(caught.value, ValueError)  # exit code 1
    assert str(caught.value) == (
        f"{num_missing} of {num_images} images of '/i' were not found (the rows are in '/o'). Check that the files are "
        "there and that every node sees them, then go on."
    )


def test_a_folder_behind_a_link_is_not_looked_into(score, tmp_path, caplog):
    """Its names are no client's affair, not even in a message about what is wrong with them."""
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    for folder in (root / "train/a", elsewhere / "secret"):
        folder.mkdir(parents=True)
        (folder / "1.png").touch()
    (root / "link").symlink_to(elsewhere)
    for source in (root, f"{root}/*/*", f"{root}/**/*.png"):
        with pytest.raises(DataError) as caught:
            score(source, roots=(str(root),))
        assert str(caught.value) == (
            f"A symbolic link in '{root}' leads to a folder outside of the allowed roots. Remove the link."
        )
        assert f"Refused, because it does not lie below the allowed roots: '{root}/link'" in caplog.text
        assert "secret" not in caplog.text
    # Without roots any folder is entered.
    assert list_images(str(root), labels_needed=False).table.num_rows == 2
    (root / "link").rename(root / ".link")  # hidden files are no input
    assert score(root, roots=(str(root),))


def test_another_spelling_of_the_input_is_the_same_scoring(score, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").touch()
    assert score(tmp_path / "in")
    assert score(f"file://{tmp_path}/in", resume=True)
    (tmp_path / "in2").mkdir()
    (tmp_path / "in2/a.png").touch()
    with pytest.raises(ConfigError, match="was made with another bundle or other images"):
        score(f"file://{tmp_path}/in2", resume=True)


def test_a_scoring_is_not_continued_with_another_decoding(score, tmp_path, monkeypatch):
    (tmp_path / "a.png").touch()
    assert score(tmp_path / "a.png")
    monkeypatch.setattr(scoring.decoding, "DECODING", scoring.decoding.DECODING + 1)
    with pytest.raises(ConfigError, match="by another version of tlray, with another decoding of images"):
        score(tmp_path / "a.png", resume=True)


def test_a_scoring_that_finds_nothing_to_resume_says_so(tmp_path, capsys):
    out = str(tmp_path / "out")
    config = ScoreConfig(bundle="/b", input="/i", out=out, resume=True)
    assert not scoring._check_output(out, {"input": "/i"}, config)
    assert capsys.readouterr().out == f"There is no scoring to resume in '{out}', so it starts from the beginning.\n"
    score_state.write_identity(out, {"input": "/i"})
    assert scoring._check_output(out, {"input": "/i"}, config)
    with pytest.raises(ConfigError, match="was made with another bundle or other images"):
        scoring._check_output(out, {"input": "/other"}, config)
    assert capsys.readouterr().out == ""


def test_a_scoring_of_an_earlier_version_can_be_replaced(tmp_path):
    """It had its parts and its state at the top. It is not resumed, as its state is not known."""
    out = tmp_path / "out"
    storage.mark_output(str(out), kind=scoring.KIND)
    for name in ("part-00000.parquet", "part-00001.parquet", "predictions.csv", "progress.json", "scoring.json"):
        (out / name).write_bytes(b"{}")
    config = ScoreConfig(bundle="/b", input="/i", out=str(out), resume=True)
    with pytest.raises(ConfigError, match=r"is not empty. Give another one, or --overwrite"):
        scoring._check_output(str(out), {"input": "/i"}, config)
    storage.prepare_output(str(out), kind=scoring.KIND, known_names=scoring.NAMES, overwrite=True)
    assert storage.list_names(str(out)) == [storage.MARK]


@pytest.mark.parametrize("has_places", [True, False])
def test_predictions_have_the_places_of_images_only_if_wanted_and_known(monkeypatch, has_places):
    table = make_table(*(("a", "test", str(number)) for number in range(4)))
    places = np.arange(12, dtype=np.float16).reshape(4, 3)
    asked = []

    def batches(*_, with_places, **__):
        asked.append(with_places)
        for rows in (np.array([0, 1, 2]), np.array([3])):
            texts = {name: np.array([""] * len(rows)) for name in ("sha256", "error_code", "error")}
            found = {"row": rows, "probabilities": np.full((len(rows), 2), 0.5, np.float32), **texts}
            found["ood_score"] = np.zeros(len(rows), np.float32)
            yield found | ({pool.PLACES: places[rows]} if has_places and with_places else {})

    monkeypatch.setattr(pool, "score_batches", batches)
    arguments = {"plan": None, "kind": None, "batch_size": 3}
    plain = pa.concat_tables(scoring.predict("/b", SPEC, "aaa", table, **arguments))
    found = pa.concat_tables(scoring.predict("/b", SPEC, "aaa", table, **arguments, with_places=True))
    assert asked == [False, True]
    assert plain.schema.names == predictions.prediction_schema(SPEC.classes).names
    assert found.schema.names == [*plain.schema.names, *([pool.PLACES] if has_places else [])]
    if has_places:
        assert found[pool.PLACES].to_pylist() == places.tolist()
