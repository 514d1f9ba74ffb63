"""Whose images are measured: those that a model was trained on, or others; and as which classes. Without Ray."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.unit.bundle.test_spec import SPEC
from tests.unit.cluster.test_plans import make_capacity
from tests.unit.data.test_manifest import make_table
from tests.unit.evaluation.test_compare import make_spec, predict
from tests.unit.evaluation.test_relations import seen_of
from tlray.bundle import store
from tlray.bundle.leaks import PICTURES, LeakSearch
from tlray.cluster import capacity, connection
from tlray.config.prediction import EvaluateConfig
from tlray.config.training import TrainConfig
from tlray.data import dataset, manifest
from tlray.data.dataset import Dataset
from tlray.data.looks import THUMBNAIL_PX
from tlray.engines import choice
from tlray.engines.kinds import EngineKind
from tlray.errors import DataError
from tlray.evaluation import evaluate, image_controls, relations, scope
from tlray.evaluation.scope import Scope
from tlray.inference import score
from tlray.training import finish
from tlray.trust import pictures, pixel_match

# Six patients of each class: a validation and a test split are cut.
CLASSES = [(label, f"{label}{number}") for label in "ab" for number in range(6)]
NOTHING_FOUND = {"across_splits": {"num_groups": 0}}
GIVEN = {"given": ["train", "test"]}
FINDINGS = {"intensity_range": None, "duplicates": NOTHING_FOUND, "groups": NOTHING_FOUND}


@pytest.mark.parametrize("given", [None, "train"])
def test_data_is_known_again_where_splits_were_cut(given):
    """The listing has no split, or lacks some; the run's own manifest has all of them."""
    listed = make_table(*((label, given, patient) for label, patient in CLASSES))
    read = manifest.with_column(listed, "sha256", [f"s{number}" for number in range(12)])
    read = read.append_column("error_code", pa.nulls(12, pa.string()))
    cut = dataset.with_splits(read, seed=0)
    assert set(cut["split"].to_pylist()) == set(manifest.SPLITS)
    config = TrainConfig(data="d", out="o").resolved()
    spec = finish.make_spec(config, Dataset(table=cut, findings=FINDINGS), "symmetric")
    assert scope.is_own(spec, listed)
    assert scope.is_own(spec, cut)
    assert not scope.is_own(spec, listed.slice(1))


def test_a_training_that_cuts_valid_knows_the_splits_and_files_again_that_it_was_given():
    """Two images cannot be read: one of test, and one that has no split."""
    rows = [(label, "test" if patient[1] in "45" else "train", patient) for label, patient in CLASSES]
    listed = make_table(*rows, ("a", "test", "x"), ("b", None, "y"))
    read = manifest.with_column(listed, "sha256", [f"s{number}" for number in range(14)])
    read = read.append_column("error_code", pa.array([None] * 12 + ["empty"] * 2, pa.string()))
    images = Dataset(table=dataset.with_splits(read, seed=0), findings=FINDINGS | {"split_shortcuts": GIVEN})
    assert "valid" in images.table["split"].to_pylist()
    spec = finish.make_spec(TrainConfig(data="d", out="o").resolved(), images, "symmetric")
    for table in (listed, images.table):
        found = scope.choose(spec, table, evaluate.select_split(table, "test"), "test")
        assert (found.knows_splits, found.has_learned) == (True, True)
        assert scope.with_files(found, spec, read, "test").has_own_files is True
    fold = [{"train": "test", "test": "train"}.get(each, each) for each in listed["split"].to_pylist()]
    other = manifest.with_column(listed, "split", fold)
    assert not scope.choose(spec, other, evaluate.select_split(other, "test"), "test").knows_splits
    # A run that an earlier version has begun does not know which splits the data gave.
    begun = dataclasses.replace(images, findings=FINDINGS)
    spec = finish.make_spec(TrainConfig(data="d", out="o").resolved(), begun, "symmetric")
    assert spec.given_split_fingerprint is None
    assert not scope.choose(spec, listed, evaluate.select_split(listed, "test"), "test").knows_splits


def test_a_bundle_of_an_earlier_version_knows_the_splits():
    listed = make_table(("a", "train", "1"), ("b", "test", "2"))
    spec = dataclasses.replace(SPEC, id_fingerprint=None, split_fingerprint=manifest.split_fingerprint(listed))
    assert scope.is_own(spec, listed)
    assert not scope.is_own(spec, make_table(("a", "train", "1"), ("b", "valid", "2")))


def test_a_search_that_is_blind_does_not_tell_that_images_are_new():
    """The bundle keeps 2 of 9 training pictures, and the model was trained on images with these ids."""
    search = LeakSearch(among=PICTURES, num_compared=2, num_pictures=9)
    blind = dataclasses.replace(search, is_own=True)
    values = {"num_images": 9, "num_leaked": 0, "leak_free": None}
    assert evaluate.quoted("all", values, search)["is_leak_free"] is True
    assert evaluate.quoted("all", values, blind) == {
        "num_images": 9,
        "num_leaked": 0,
        "split": "all",
        "is_leak_free": None,
    }
    some = values | {"num_leaked": 2, "leak_free": {"num_images": 7}}
    assert evaluate.quoted("all", some, blind)["is_leak_free"] is None
    assert evaluate.quoted("all", some, blind)["num_images"] == 7
    assert evaluate.quoted("all", values | {"num_leaked": 9}, blind)["is_leak_free"] is False


@pytest.fixture
def covid(monkeypatch) -> None:
    """A bundle of the classes covid and normal that finds covid in every image; all is computed in this process."""
    spec = make_spec("covid", "normal")

    def load(_location: str) -> SimpleNamespace:
        return SimpleNamespace(spec=spec, sha256="5" * 64, lookalikes=lambda: None)

    def score_images(_location: str, _spec: Any, _sha256: str, table: pa.Table, **_: Any) -> Iterator[pa.Table]:
        yield predict(table, spec, ["covid"] * table.num_rows)

    def look(images: Scope, **_: Any) -> pa.Table:
        rng = np.random.default_rng(0)
        shape = (images.table.num_rows, THUMBNAIL_PX, THUMBNAIL_PX)
        return seen_of(images.table, list(rng.integers(0, 256, shape, dtype=np.uint8)))

    monkeypatch.setattr(store, "load", load)
    monkeypatch.setattr(choice, "for_bundle", lambda *_, **__: EngineKind("openvino", "float32"))
    monkeypatch.setattr(score, "predict", score_images)
    monkeypatch.setattr(relations, "look", look)
    monkeypatch.setattr(image_controls, "find", lambda *_, **__: {})
    monkeypatch.setattr(connection, "connect", lambda: None)
    monkeypatch.setattr(capacity, "measure", lambda: make_capacity(4))
    monkeypatch.setattr(pictures, "compare", lambda thumbnails, pairs, **_: pixel_match.compare(thumbnails, pairs))


def settings(directory: Path, *labels: str, quiet: bool = False) -> EvaluateConfig:
    """Settings to evaluate on images of these labels."""
    listed = make_table(*((label, "test", f"p{number}") for number, label in enumerate(labels)))
    manifest.write_manifest(listed, str(directory / "images.parquet"))
    data, out = str(directory / "images.parquet"), str(directory / "out")
    return EvaluateConfig(bundle="b", data=data, out=out, thumbnails=False, quiet=quiet)


@pytest.mark.usefixtures("covid")
def test_negatives_are_not_measured_as_positives(tmp_path):
    with pytest.raises(DataError, match=r"The labels 'covid_negative' match none, .* Give a class map"):
        evaluate.evaluate(settings(tmp_path, "covid_negative", "normal"))


@pytest.mark.usefixtures("covid")
@pytest.mark.parametrize("quiet", [False, True])
def test_labels_with_other_names_than_their_classes_are_told_and_kept(tmp_path, capsys, quiet):
    result = evaluate.evaluate(settings(tmp_path, "covid_left", "normal", quiet=quiet))
    assert result.metrics["accuracy"] == 0.5
    assert ("Classes: covid_left -> covid, normal -> normal\n" in capsys.readouterr().out) != quiet
    assert json.loads((tmp_path / "out/metrics.json").read_text())["renamed_labels"] == {"covid_left": "covid"}
    page = (tmp_path / "out/report.html").read_text()
    assert "class of each renamed label" in page
    assert "covid_left" in page


@pytest.mark.usefixtures("covid")
def test_labels_that_are_classes_are_no_news(tmp_path, capsys):
    evaluate.evaluate(settings(tmp_path, "covid", "normal"))
    assert "Classes:" not in capsys.readouterr().out
    assert json.loads((tmp_path / "out/metrics.json").read_text())["renamed_labels"] == {}
    assert "renamed" not in (tmp_path / "out/report.html").read_text()
