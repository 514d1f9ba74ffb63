"""What scoring does before and beside Ray: progress, roots, the bundle that was asked for."""

import json
from types import SimpleNamespace

import pyarrow as pa
import pytest

from tests.unit.test_plans import make_capacity
from tlray import scoring
from tlray.bundle import BundleSpec
from tlray.errors import BundleError, ConfigError, DataError
from tlray.jobconfig import ScoreConfig

SPEC = BundleSpec(classes=("a", "b"), image_size_px=8, preprocessing="unit", backbone="b", weights="w")


def predictions(*error_codes):
    return pa.table({"error_code": pa.array(error_codes, pa.string())})


def read(out):
    progress = json.loads((out / "progress.json").read_text())
    assert progress.pop("job") is None  # not within a Ray job
    return progress


def test_progress_is_written_as_images_are_done(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(scoring.time, "monotonic", lambda: clock.now)
    tables = iter([predictions(None, "empty"), predictions(None), predictions("empty", "empty")])
    rows = scoring.write_progress(tables, str(tmp_path), num_images=9, num_done=4, num_failed=1)
    assert next(rows).num_rows == 2
    assert read(tmp_path) == {"done": 6, "failed": 2, "total": 9, "waiting": False}
    clock.now = scoring.PROGRESS_INTERVAL_S / 2
    next(rows)
    assert read(tmp_path)["done"] == 6  # too soon
    clock.now = scoring.PROGRESS_INTERVAL_S
    next(rows)
    assert read(tmp_path) == {"done": 9, "failed": 4, "total": 9, "waiting": False}
    assert list(rows) == []


def test_the_last_progress_is_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(scoring.time, "monotonic", lambda: 0.0)
    tables = iter([predictions(None), predictions(None), predictions("empty")])
    assert sum(table.num_rows for table in scoring.write_progress(tables, str(tmp_path), num_images=3)) == 3
    assert read(tmp_path) == {"done": 3, "failed": 1, "total": 3, "waiting": False}


def test_progress_says_that_the_first_images_are_waited_for(tmp_path):
    def wait():
        assert read(tmp_path) == {"done": 4, "failed": 1, "total": 9, "waiting": True}
        yield predictions(None)

    next(scoring.write_progress(wait(), str(tmp_path), num_images=9, num_done=4, num_failed=1))
    assert read(tmp_path)["waiting"] is False


def test_nothing_is_waited_for_where_all_is_done(tmp_path):
    assert list(scoring.write_progress(iter([]), str(tmp_path), num_images=9, num_done=9)) == []
    assert read(tmp_path) == {"done": 9, "failed": 0, "total": 9, "waiting": False}


@pytest.fixture
def score(tmp_path, monkeypatch):
    """Scores with a bundle of sha256 "aaa" as far as to where Ray would begin."""

    def begin(*_, **__):
        raise StopIteration

    monkeypatch.setattr(scoring.cluster, "connect", lambda: None)
    monkeypatch.setattr(scoring.cluster, "capacity", make_capacity)
    monkeypatch.setattr(scoring.bundle_module, "read_spec", lambda _: (SPEC, "aaa"))
    monkeypatch.setattr(scoring.bundle_module, "load", lambda _: None)
    monkeypatch.setattr(scoring, "predict", begin)

    def run(source, **options):
        try:
            scoring.score(ScoreConfig(bundle="/b", input=str(source), out=str(tmp_path / "out"), quiet=True, **options))
        except StopIteration:
            return (tmp_path / "out/scoring.json").exists()

    return run


def test_another_bundle_is_refused(score, tmp_path):
    (tmp_path / "a.png").touch()
    assert score(tmp_path / "a.png", bundle_sha256="aaa")
    with pytest.raises(BundleError, match="The bundle '/b' is aaa…, not bbb…: another one took its place"):
        score(tmp_path / "a.png", bundle_sha256="bbb")


def test_only_what_lies_below_the_roots_is_scored(score, tmp_path):
    root, secret = tmp_path / "root", tmp_path / "secret.png"
    root.mkdir()
    secret.touch()
    (root / "a.png").touch()
    assert score(root, roots=(str(root),))
    (tmp_path / "out/scoring.json").unlink()
    (root / "link.png").symlink_to(secret)
    with pytest.raises(DataError, match=rf"Not below the roots, by a manifest or a symbolic link: '{root}/link.png'"):
        score(root, roots=(str(root),))
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
        scoring.pq.write_table(pa.table({"uri": uris}), root / name)
    with pytest.raises(DataError, match="Not below the roots"):
        score(root / name, roots=(str(root),))
    assert not (tmp_path / "out").exists()


def test_a_manifest_elsewhere_is_not_opened(score, tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root/link.csv").symlink_to("/etc/passwd")
    with pytest.raises(DataError, match=r"Not below the roots, .*: '.*/root/link.csv'"):
        score(tmp_path / "root/link.csv", roots=(str(tmp_path / "root"),))


@pytest.mark.parametrize(
    ("now", "left"),
    [
        ("ab?de", (3, 5, 1)),
        ("ab?dX", (2, 4, 1)),
        ("ab?Xe", (1, 2, 0)),  # and what comes behind it
        ("abcde", (1, 2, 0)),  # it can be read now
        ("?b?de", (0, 0, 0)),  # it is gone
    ],
)
def test_images_that_have_changed_are_scored_again(tmp_path, monkeypatch, capsys, now, left):
    out = str(tmp_path)
    kept, num_done, num_failed = left
    for number, part in enumerate(("ab", "?d", "e")):
        table = {
            "sha256": pa.array([None if each == "?" else each for each in part], pa.string()),
            "error_code": pa.array(["not_found" if each == "?" else None for each in part], pa.string()),
        }
        scoring._write_part(out, number, pa.table(table))
    (tmp_path / "_SUCCESS").touch()
    table = pa.table({"uri": [f"/{number}" for number in range(7)]})
    asked = []

    def digests(uris):
        asked.extend(uris.to_pylist())
        yield ["" if each == "?" else each for each in now[:3]]
        yield list(now[3:])

    monkeypatch.setattr(scoring.streams, "digests", digests)
    assert scoring._keep_unchanged(out, table, quiet=False) == (num_done, num_failed)
    assert asked == table["uri"].to_pylist()[:5]
    assert scoring.part_names(out) == [f"part-{number:05d}.parquet" for number in range(kept)]
    assert (tmp_path / "_SUCCESS").exists() == (kept == 3)
    line = f"Changed since it was scored: 1 of 5 images. Scoring goes on behind image {num_done} of 7.\n"
    assert capsys.readouterr().out == ("" if kept == 3 else line)


def test_nothing_is_read_where_nothing_was_scored(tmp_path, monkeypatch):
    monkeypatch.setattr(scoring.streams, "digests", None)
    assert scoring._keep_unchanged(str(tmp_path), pa.table({"uri": ["/a"]}), quiet=True) == (0, 0)


def test_a_scoring_that_finds_nothing_to_resume_says_so(tmp_path, capsys):
    out = str(tmp_path / "out")
    config = ScoreConfig(bundle="/b", input="/i", out=out, resume=True)
    assert not scoring._check_output(out, {"input": "/i"}, config)
    assert capsys.readouterr().out == f"There is no scoring to resume in '{out}': it begins anew.\n"
    (tmp_path / "out").mkdir()
    (tmp_path / "out/scoring.json").write_text('{"input": "/i"}')
    assert scoring._check_output(out, {"input": "/i"}, config)
    with pytest.raises(ConfigError, match="was made with another bundle or other images"):
        scoring._check_output(out, {"input": "/other"}, config)
    assert capsys.readouterr().out == ""
