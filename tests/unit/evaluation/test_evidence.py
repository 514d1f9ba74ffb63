"""A run's figures, computed again from its files; and what was changed is told."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tlray.bundle import store
from tlray.bundle.judgement import Limits
from tlray.bundle.spec import BundleSpec
from tlray.config.commands import VerifyConfig
from tlray.data import dataset, inspection, manifest, splits
from tlray.data.dataset import Dataset
from tlray.errors import DataError
from tlray.evaluation import evidence
from tlray.evaluation.measurement import headline, measure_probabilities, with_leak_free

CLASSES = ("a", "b")


def make_images() -> Dataset:
    """18 training, 2 validation and 20 test images of two classes; a test image is a copy of a training image."""
    num_images = 40
    names = [f"{number:02d}.png" for number in range(num_images)]
    columns = {
        "image_id": names,
        "uri": [f"/data/{name}" for name in names],
        "label": [CLASSES[number % 2] for number in range(num_images)],
        "split": ["train"] * 18 + ["valid"] * 2 + ["test"] * 20,
        "group_id": names,
        "sha256": [f"{number:064x}" for number in range(num_images)],
    }
    table = pa.table(columns, schema=manifest.SCHEMA)
    for name in inspection.INSPECTION_COLUMNS:
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(num_images, inspection.INSPECTED_SCHEMA.field(name).type))
    pictures = [names[0] if number == 20 else name for number, name in enumerate(names)]
    return Dataset(table=table.append_column(splits.PICTURE, pa.array(pictures)), findings={"intensity_range": None})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The directory of a finished run, without what is of no matter here."""
    images = make_images()
    rows = images.split("test")
    ids = rows["image_id"].to_pylist()
    limits = Limits(refer_below=0.7, max_ood_score=0.5, set_thresholds=(0.6, 0.6))
    rng = np.random.default_rng(0)
    light = rng.random(20).astype(np.float32)
    evaluation = measure_probabilities(
        rows["class_index"].to_numpy(),
        np.stack([light, 1 - light], axis=1),
        CLASSES,
        groups=np.array([images.group_of[image_id] for image_id in ids]),
        image_ids=np.array(ids),
        ood_scores=rng.random(20).astype(np.float32),
        limits=limits,
    )
    evaluations = {"test": with_leak_free(evaluation, images.leaked)}
    assert evaluations["test"].metrics["num_leaked"] == 1
    bundle = tmp_path / "bundle"
    (bundle / "saved_model").mkdir(parents=True)
    (bundle / "model.keras").touch()
    (bundle / "saved_model/saved_model.pb").touch()
    spec = BundleSpec(
        classes=CLASSES,
        image_size_px=8,
        preprocessing="unit",
        backbone="b",
        weights="w",
        thresholds={"refer_below": 0.7, "max_ood_score": 0.5},
        set_thresholds=(0.6, 0.6),
        metrics={split: each.metrics for split, each in evaluations.items()},
    )
    store.seal(str(bundle), spec)
    dataset.write_dataset(images, str(tmp_path))
    evidence.write(str(tmp_path), evaluations)
    (tmp_path / "metrics.json").write_text(json.dumps({**headline(spec.metrics), "splits": spec.metrics}))
    return tmp_path


def verify(run: Path) -> evidence.VerifyResult:
    return evidence.verify(VerifyConfig(run=str(run)))


def test_an_untouched_run_is_right(run):
    found = verify(run)
    assert found.is_right
    assert found.num_figures > 50
    assert found.num_files == 3 + 2  # those of the bundle, too
    assert [name for name, _ in found.rows()] == ["files", "figures computed again", "the run"]


@pytest.mark.parametrize("name", ["accuracy", "num_referred", "set_coverage"])
def test_a_figure_that_was_changed_is_told(run, name):
    content = json.loads((run / "metrics.json").read_text())
    content["splits"]["test"][name] += 1
    (run / "metrics.json").write_text(json.dumps(content))
    (wrong,) = [check for check in verify(run).checks if not check.is_right]
    assert wrong.name == f"test.{name}"
    assert wrong.detail.startswith("metrics.json says ")


def test_the_figures_that_people_quote_and_added_ones_are_compared_too(run):
    content = json.loads((run / "metrics.json").read_text())
    content["accuracy"] = 0.99
    content["splits"]["test"]["per_class"]["c"] = {"recall": 1.0}
    (run / "metrics.json").write_text(json.dumps(content))
    wrong = {check.name: check.detail for check in verify(run).checks}
    assert wrong["accuracy"].startswith("metrics.json says 0.99, and it is 0.")
    assert wrong["test.per_class.c.recall"] == "metrics.json says 1.0, and it is not known."


def test_a_file_of_the_bundle_that_was_changed_is_told_beside_the_rest(run):
    (run / "bundle/model.keras").write_bytes(b"other")
    (run / "bundle/saved_model/saved_model.pb").unlink()
    wrong = {check.name: check.detail for check in verify(run).checks}
    assert wrong["bundle/model.keras"].startswith("The file was changed")
    assert wrong["bundle/saved_model/saved_model.pb"] == "The file is missing."


def test_a_figure_of_the_new_images_too(run):
    content = json.loads((run / "evidence.json").read_text())
    content["figures"]["test"]["leak_free"]["accuracy"] = 1.0
    (run / "evidence.json").write_text(json.dumps(content))
    assert [check.name for check in verify(run).checks if not check.is_right] == ["test.leak_free.accuracy"]


def test_a_file_that_was_changed_is_told(run):
    table = manifest.read_manifest(str(run / "manifest.parquet"))
    manifest.write_manifest(
        manifest.with_column(table, "group_id", ["one"] * table.num_rows), f"{run}/manifest.parquet"
    )
    wrong = {check.name: check.detail for check in verify(run).checks if not check.is_right}
    assert wrong["manifest.parquet"].startswith("The file was changed: its sha256 is ")
    assert any(name.startswith("test.") for name in wrong)  # all images are of one patient then


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"cannot be verified: it has no evidence\.json"):
        verify(tmp_path)
