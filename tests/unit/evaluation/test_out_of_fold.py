"""Figures of cross-validation and calibration, computed again from the predictions that a run keeps."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.unit.evaluation.test_evidence import CLASSES, make_images, make_run, verify, wrong_of
from tlray.data import manifest
from tlray.evaluation import out_of_fold
from tlray.evaluation.out_of_fold import Predicted

LEARNED = [f"{number:02d}.png" for number in range(20)]
"""Ids of the training and validation images of `make_images`; the last two are validation images."""


def predicted(*image_ids: str, changed: dict[str, int] | None = None, seed: int = 0) -> Predicted:
    """Random probabilities for images, with their labels in `make_images` unless others are given."""
    label_of = dict(zip(*manifest.column_lists(make_images().table, "image_id", "label"), strict=True))
    labels = [(changed or {}).get(each, CLASSES.index(label_of[each])) for each in image_ids]
    first = np.random.default_rng(seed).random(len(image_ids))
    return Predicted(image_ids=image_ids, labels=np.array(labels), probs_BK=np.stack([first, 1 - first], axis=1))


def whole() -> dict[str, Predicted]:
    """A cross-validation, and a calibration that was fitted on the same images."""
    kinds = ("cross_validation", "before_calibration", "after_calibration")
    return {kind: predicted(*LEARNED, seed=seed) for seed, kind in enumerate(kinds)}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path, unseen=whole())


def edit(path: Path, *names: str, value: Any) -> None:
    """Replaces a value in a JSON file; the last name is that of the value."""
    content = json.loads(path.read_text())
    place = content
    for name in names[:-1]:
        place = place[name]
    place[names[-1]] = value
    path.write_text(json.dumps(content))


def test_the_figures_are_in_the_evidence_and_computed_again(run, tmp_path):
    (tmp_path / "without").mkdir()
    found, without = verify(run), verify(make_run(tmp_path / "without"))
    assert (found.is_right, found.has_unseen, without.has_unseen) == (True, True, True)
    assert "not compared" not in dict(found.rows())
    assert found.num_files == without.num_files + 1
    assert (found.num_images, without.num_images) == (40, 22)
    assert found.num_figures > without.num_figures + 60
    evidence = json.loads((run / "evidence.json").read_text())
    assert "out_of_fold.parquet" in evidence["sha256"]
    crossed, calibration = evidence["figures"]["cross_validation"], evidence["figures"]["calibration"]
    cross = whole()["cross_validation"]
    assert crossed["accuracy"] == np.mean(cross.probs_BK.argmax(axis=1) == cross.labels)
    assert crossed["log_loss"] == pytest.approx(-np.log(cross.probs_BK[np.arange(20), cross.labels]).mean())
    assert crossed["accuracy_ci95"][0] < crossed["accuracy"] < crossed["accuracy_ci95"][1]
    for name, kind in (("brier", "after_calibration"), ("brier_before", "before_calibration")):
        each = whole()[kind]
        assert calibration[name] == pytest.approx(((np.eye(2)[each.labels] - each.probs_BK) ** 2).sum(axis=1).mean())
        assert len(calibration[f"{name}_ci95"]) == 2
    assert calibration.keys() >= {"ece", "ece_ci95", "ece_before", "ece_before_ci95"}
    assert (calibration["num_images"], calibration["num_groups"]) == (20, 20)


@pytest.mark.parametrize(
    ("figure", "name"), [("cross_validation", "accuracy"), ("cross_validation", "log_loss"), ("calibration", "ece"),
                         ("calibration", "brier_before"), ("calibration", "num_groups")],
)  # fmt: skip
def test_a_figure_in_the_evidence_that_was_changed_is_told(run, figure, name):
    edit(run / "evidence.json", "figures", figure, name, value=0.125)
    ((told, detail),) = wrong_of(run)
    assert told == f"{figure}.{name}"
    assert detail.startswith("evidence.json says 0.125, and it is ")


def test_a_figure_of_the_metrics_and_of_the_bundle_too(run):
    edit(run / "metrics.json", "cross_validation", "accuracy", value=0.99)
    assert ("cross_validation.accuracy", "metrics.json says 0.99") in [
        (name, detail.partition(",")[0]) for name, detail in wrong_of(run)
    ]
    edit(run / "bundle/bundle.json", "trust", "calibration", "ece_before", value=0.5)
    assert ("calibration.ece_before", "bundle.json says 0.5") in [
        (name, detail.partition(",")[0]) for name, detail in wrong_of(run)
    ]


def test_predictions_that_were_changed_are_told(run):
    table = pq.read_table(run / "out_of_fold.parquet")
    cross = table["kind"].to_pylist().index("cross_validation")
    probs = table["p_a"].to_numpy().copy()
    probs[cross] = 1 - probs[cross]
    other = table.set_column(table.schema.get_field_index("p_a"), "p_a", [probs])
    other = other.set_column(table.schema.get_field_index("p_b"), "p_b", [1 - probs])
    pq.write_table(other, run / "out_of_fold.parquet")
    names = verify(run).wrong()
    assert names[0] == "out_of_fold.parquet"
    assert "cross_validation.accuracy" in names
    assert not any(name.startswith("calibration.") for name in names)


@pytest.mark.parametrize("kind", ["cross_validation", "before_calibration", "after_calibration"])
def test_labels_and_images_that_the_manifest_does_not_have_are_told(tmp_path, kind):
    """All figures and checksums were made to fit them."""
    forged = {kind: predicted(*LEARNED[:-1], "30.png", changed={"04.png": 1})}
    assert wrong_of(make_run(tmp_path, unseen=whole() | forged)) == [
        (
            f"images of {kind}",
            "1 measured image that the manifest does not have for these figures: '30.png'. 1 image without a "
            "prediction: '19.png'.",
        ),
        (f"labels of {kind}", "1 image with another label than in the manifest: '04.png (b, not a)'."),
    ]


def test_a_calibration_may_have_only_new_validation_images(tmp_path):
    of_valid = {kind: predicted(*LEARNED[-2:]) for kind in ("before_calibration", "after_calibration")}
    for name, unseen in (("alone", of_valid), ("both", whole() | of_valid)):
        (tmp_path / name).mkdir()
        run = make_run(tmp_path / name, unseen=unseen)
        assert wrong_of(run) == []
        assert json.loads((run / "evidence.json").read_text())["figures"]["calibration"]["num_images"] == 2
    (tmp_path / "less").mkdir()
    less = make_run(tmp_path / "less", unseen=of_valid | {"after_calibration": predicted(LEARNED[-1])})
    assert wrong_of(less) == [("images of after_calibration", "1 image without a prediction: '18.png'.")]


def test_an_image_that_the_model_knows_does_not_calibrate_it_alone():
    images = make_images()
    pictures = ["00.png" if each == "18.png" else each for each in images.table["picture"].to_pylist()]
    place = images.table.schema.get_field_index("picture")
    table = images.table.set_column(place, "picture", [pictures])
    found = out_of_fold.check_images(
        out_of_fold.to_table({"before_calibration": predicted(*LEARNED[-2:])}, CLASSES),
        type(images)(table=table, findings=images.findings),
        CLASSES,
    )
    assert [each.name for each in found if not each.is_right] == ["images of before_calibration"]


def test_a_file_that_is_gone_is_told(run):
    (run / "out_of_fold.parquet").unlink()
    assert wrong_of(run) == [("out_of_fold.parquet", "The file is missing.")]


def test_a_checksum_of_the_file_cannot_be_left_out(run):
    content = json.loads((run / "evidence.json").read_text())
    del content["sha256"]["out_of_fold.parquet"]
    (run / "evidence.json").write_text(json.dumps(content))
    assert wrong_of(run) == [("out_of_fold.parquet", "evidence.json has no checksum of it.")]


def test_a_run_of_an_earlier_version_is_verified_without_the_file(run):
    (run / "out_of_fold.parquet").unlink()
    content = json.loads((run / "evidence.json").read_text())
    del content["sha256"]["out_of_fold.parquet"], content["figures"]["cross_validation"]
    del content["figures"]["calibration"]
    (run / "evidence.json").write_text(json.dumps(content))
    found = verify(run)
    assert (found.is_right, found.has_unseen, found.num_images) == (True, False, 22)
    assert dict(found.rows())["not compared"] == (
        "figures of cross-validation and calibration in evidence.json: an earlier version made the run, and did not "
        "write that"
    )
