"""A bundle that is replaced while an evaluation or a comparison runs; without Ray."""

import dataclasses
from pathlib import Path

import pyarrow as pa
import pytest

from tests.unit.cluster.test_plans import make_capacity
from tests.unit.inference.test_score import SPEC, StoppedError, write_bundle
from tlray.cluster import capacity, connection
from tlray.config.prediction import CompareConfig, EvaluateConfig
from tlray.engines.kinds import REFERENCE
from tlray.evaluation import compare, evaluate, overlay_check, relations
from tlray.inference import pool

OTHER = dataclasses.replace(SPEC, temperature=2.0)


@pytest.fixture
def asked(tmp_path, monkeypatch) -> list[tuple[float, str]]:
    """Temperature and sha256 of the bundles that the pool is asked for. The bundle is replaced when Ray starts."""
    for name in ("data/test/a/1.png", "data/test/b/2.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    asked = []

    def batches(_, spec, sha256, *__, **___):
        asked.append((spec.temperature, sha256))
        raise StoppedError

    monkeypatch.setattr(connection, "connect", lambda: write_bundle(tmp_path / "bundle", OTHER))
    monkeypatch.setattr(capacity, "measure", make_capacity)
    monkeypatch.setattr(relations, "look", lambda *_, **__: None)
    monkeypatch.setattr(pool, "score_batches", batches)
    return asked


def test_an_evaluation_is_of_the_bundle_that_was_opened(tmp_path, asked):
    sha256 = write_bundle(tmp_path / "bundle")
    config = EvaluateConfig(
        bundle=str(tmp_path / "bundle"), data=str(tmp_path / "data"), out=str(tmp_path / "out"), engine="tensorflow",
        quiet=True,
    )  # fmt: skip
    with pytest.raises(StoppedError):
        evaluate.evaluate(config)
    assert asked == [(1.0, sha256)]


def test_a_comparison_is_of_the_bundles_that_were_opened(tmp_path, asked):
    sha256 = write_bundle(tmp_path / "bundle")
    write_bundle(tmp_path / "reference", dataclasses.replace(SPEC, temperature=3.0))
    config = CompareConfig(
        bundle=str(tmp_path / "bundle"), reference=str(tmp_path / "reference"), data=str(tmp_path / "data"),
        out=str(tmp_path / "out"), engine="tensorflow", quiet=True,
    )  # fmt: skip
    with pytest.raises(StoppedError):
        compare.compare(config)
    assert asked == [(1.0, sha256)]


def test_overlays_of_another_bundle_are_not_checked(tmp_path: Path, monkeypatch):
    sha256 = write_bundle(tmp_path / "bundle")
    other = write_bundle(tmp_path / "bundle", OTHER)
    monkeypatch.setattr(connection, "start_here", lambda function, *arguments: (function, arguments))
    monkeypatch.setattr(connection, "get", lambda started: started[0](*started[1]))
    monkeypatch.setattr(overlay_check, "read_some", lambda *_, **__: {})
    table = pa.table({"uri": ["/1.png"], "sha256": ["1"], "group_id": ["p"], "confidence": [0.5]})
    location = str(tmp_path / "bundle")
    found = overlay_check.check_overlays(location, sha256, table, REFERENCE, num_images=1)
    assert found == (None, (
        f"Overlays were not checked: The bundle '{location}' was replaced: its sha256 is {other[:12]}…, not "
        f"{sha256[:12]}…. Score with the present bundle, or give the location of the other one.",
    ))  # fmt: skip
    found = overlay_check.check_overlays(location, other, table, REFERENCE, num_images=1)
    assert found[1] == ("Overlays were not checked: all images have changed, or cannot be read. Check the storage.",)
