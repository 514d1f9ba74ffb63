"""A run's figures, computed again from its files, and its files beside their checksums; what was changed is told."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tlray.bundle import store
from tlray.bundle.judgement import Limits
from tlray.bundle.spec import BundleSpec
from tlray.config.commands import VerifyConfig
from tlray.data import dataset, fingerprints, inspection, manifest, splits
from tlray.data.dataset import Dataset
from tlray.errors import DataError
from tlray.evaluation import checks, evidence, out_of_fold, verification
from tlray.evaluation.measurement import headline, measure_probabilities, with_leak_free, with_subgroups
from tlray.evaluation.metrics import evaluate_predictions
from tlray.evaluation.out_of_fold import Predicted
from tlray.files import storage

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
    scanners = ["old" if number % 4 < 2 else "new" for number in range(num_images)]
    table = table.append_column("given_scanner", pa.array(scanners))
    pictures = [names[0] if number == 20 else name for number, name in enumerate(names)]
    return Dataset(table=table.append_column(splits.PICTURE, pa.array(pictures)), findings={"intensity_range": None})


def without_later(values: Any) -> Any:
    """Returns figures as an earlier version has computed them."""
    if not isinstance(values, dict):
        return values
    return {name: without_later(value) for name, value in values.items() if name not in checks.LATER}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path)


def make_run(
    tmp_path: Path,
    *,
    is_older: bool = False,
    measured: Dataset | None = None,
    stored: Dataset | None = None,
    num_failed: int = 0,
    unseen: Mapping[str, Predicted] | None = None,
    cut: Sequence[str] | None = None,
) -> Path:
    """Makes the directory of a finished run, without what is of no matter here.

    All its figures and checksums fit its files, also if these are not those of the images that it was trained on.

    Args:
        tmp_path: An empty directory.
        is_older: The run has the figures of an earlier version.
        measured: The images of `evaluated.parquet`; None: those that the run was trained on.
        stored: The images of `manifest.parquet`; None: those that the run was trained on.
        num_failed: Number of test images that the run says it could not score.
        unseen: Predictions of cross-validation and calibration; None: the run has none.
        cut: The splits that tlray has cut; None: the bundle has no fingerprints of given splits and of files, as those
            of earlier versions.
    """
    images = make_images()
    measured, stored = measured or images, stored or images
    limits = Limits(refer_below=0.7, max_ood_score=0.5, set_thresholds=(0.6, 0.6))
    rng = np.random.default_rng(0)
    names = images.table["image_id"].to_pylist()
    light_of = dict(zip(names, rng.random(len(names)).astype(np.float32), strict=True))
    score_of = dict(zip(names, rng.random(len(names)).astype(np.float32), strict=True))
    evaluations = {}
    for split in ("valid", "test"):
        rows = measured.readable.filter(pc.field("split") == split)
        if not rows.num_rows:
            continue
        ids, labels = manifest.column_lists(rows, "image_id", "label")
        light = np.array([light_of[image_id] for image_id in ids])
        evaluation = measure_probabilities(
            np.array([CLASSES.index(label) for label in labels], np.int32),
            np.stack([light, 1 - light], axis=1),
            CLASSES,
            groups=np.array([stored.group_of[image_id] for image_id in ids]),
            image_ids=np.array(ids),
            ood_scores=np.array([score_of[image_id] for image_id in ids]),
            limits=limits,
            num_failed=num_failed if split == "test" else 0,
        )
        evaluation = with_subgroups(with_leak_free(evaluation, stored.leaked), stored.table)
        if is_older:
            evaluation = dataclasses.replace(evaluation, metrics=without_later(evaluation.metrics))
        evaluations[split] = evaluation
    assert evaluations["test"].metrics["num_leaked"] == 1
    of_unseen = out_of_fold.measure(out_of_fold.to_table(unseen, CLASSES), stored, CLASSES) if unseen else {}
    errors = of_unseen.get("calibration", {})
    bundle = tmp_path / "run/bundle"
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
        data_fingerprint=manifest.fingerprint(images.table),
        split_fingerprint=manifest.split_fingerprint(images.table),
        id_fingerprint=manifest.id_fingerprint(images.table),
        trust={**errors, "calibration": {"temperature": 1.5, **errors}} if errors else {},
    )
    if cut is not None:
        spec = dataclasses.replace(
            spec,
            given_split_fingerprint=fingerprints.of_given_splits(images.table, cut),
            file_fingerprints=fingerprints.of_files(images.table),
            trust={**spec.trust, "data": {"cut_splits": list(cut)}},
        )
    store.seal(str(bundle), spec)
    out = tmp_path / "run"
    dataset.write_dataset(stored, str(out))
    storage.mark_output(str(out), kind="training")
    (out / "report.html").write_text("<p>Accuracy 0.5")
    (out / "figures").mkdir()
    (out / "figures/roc_test.png").write_bytes(b"PNG")
    told = {"num_suspect_labels": 3, "splits": spec.metrics, "cross_validation": of_unseen.get("cross_validation")}
    metrics_json = json.dumps({**headline(spec.metrics), **told})
    shown = ("report.html", "audit.json", "gallery.json", "history.csv")  # the last one is not there
    evidence.write(str(out), evaluations, metrics_json=metrics_json, shown=shown, unseen=unseen or {})
    (out / "metrics.json").write_text(metrics_json)
    return out


def verify(run: Path) -> verification.VerifyResult:
    return verification.verify(VerifyConfig(run=str(run)))


def test_an_untouched_run_is_right(run):
    found = verify(run)
    assert found.is_right
    assert found.num_figures > 50
    # Behind the figures, shown by the run (with metrics.json), of the bundle.
    assert found.num_files == 3 + 5 + 2
    assert dict(found.rows()) == {
        "files": "10",
        "images compared with the manifest": "22",
        "figures computed again": str(found.num_figures),
        "the run": "as it says",
        "sha256 of evidence.json": hashlib.sha256((run / "evidence.json").read_bytes()).hexdigest(),
    }


def test_a_run_of_an_earlier_version_is_compared_without_the_figures_that_it_lacks(tmp_path):
    new, old = verify(make_run(tmp_path / "new")), verify(make_run(tmp_path / "old", is_older=True))
    assert (old.is_right, old.is_older, new.is_older) == (True, True, False)
    assert 50 < old.num_figures < new.num_figures
    assert dict(old.rows())["not compared"] == (
        "intervals in evidence.json: an earlier version made the run, and did not write that"
    )
    content = json.loads((tmp_path / "old/run/evidence.json").read_text())
    content["figures"]["test"]["accuracy"] = 1.0
    (tmp_path / "old/run/evidence.json").write_text(json.dumps(content))
    assert verify(tmp_path / "old/run").wrong() == ["test.accuracy"]


def test_an_interval_that_only_earlier_versions_gave_is_not_told():
    """They gave one for the specificity of a class without images, though they gave no specificity."""
    labels, probs_BK = np.arange(20) % 2, np.full((20, 3), [0.5, 0.3, 0.2])
    found = evaluate_predictions(labels, probs_BK, ("a", "b", "c"))
    told = without_later(found)
    assert told["per_class"]["c"]["specificity_ci95"] == [None, None]
    told["per_class"]["c"] = told["per_class"]["c"] | {"specificity_ci95": [0.82, 1.0]}
    wrong = {
        is_older: [
            each.name
            for each in checks.check_values(found, told, "metrics.json", is_older=is_older)
            if not each.is_right
        ]
        for is_older in (True, False)
    }
    assert wrong[True] == []
    assert "per_class.c.specificity_ci95.0" in wrong[False]


def test_a_new_figure_cannot_be_left_out(run):
    content = json.loads((run / "evidence.json").read_text())
    del content["figures"]["test"]["ece_ci95"]
    (run / "evidence.json").write_text(json.dumps(content))
    assert verify(run).wrong() == ["test.ece_ci95.0", "test.ece_ci95.1"]


@pytest.mark.parametrize(
    "name",
    ["referred_share", "ece_ci95", "brier_ci95", "mean_set_size_ci95", "precision_ci95", "f1_ci95", "roc_auc_ci95"],
)
def test_a_new_figure_that_was_changed_is_told(run, name):
    content = json.loads((run / "evidence.json").read_text())
    figures = content["figures"]["test"]
    of_class = "" if name in figures else "per_class.a."
    values = figures if name in figures else figures["per_class"]["a"]
    changed = f"test.{of_class}{name}"
    if isinstance(values[name], list):
        values[name][1] += 0.01
        changed += ".1"
    else:
        values[name] += 0.01
    (run / "evidence.json").write_text(json.dumps(content))
    assert verify(run).wrong() == [changed]


@pytest.mark.parametrize("name", ["accuracy", "num_referred", "set_coverage"])
def test_a_figure_that_was_changed_is_told(run, name):
    content = json.loads((run / "metrics.json").read_text())
    content["splits"]["test"][name] += 1
    (run / "metrics.json").write_text(json.dumps(content))
    wrong = {check.name: check.detail for check in verify(run).checks}
    assert list(wrong) == ["metrics.json", f"test.{name}"]
    assert wrong[f"test.{name}"].startswith("metrics.json says ")


@pytest.mark.parametrize("name", ["report.html", "figures/roc_test.png", "audit.json", "gallery.json"])
def test_what_the_run_shows_is_covered(run, name):
    with (run / name).open("ab") as file:
        file.write(b" ")
    (wrong,) = verify(run).checks
    assert (wrong.name, wrong.is_right) == (name, False)
    assert wrong.detail.startswith("The file was changed: its sha256 is ")


def test_a_figure_that_is_gone_is_told(run):
    (run / "figures/roc_test.png").unlink()
    assert [(check.name, check.detail) for check in verify(run).checks] == [
        ("figures/roc_test.png", "The file is missing."),
    ]


def test_what_is_in_metrics_beside_the_splits_is_covered(run):
    content = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(content | {"num_suspect_labels": 0}))
    assert verify(run).wrong() == ["metrics.json"]


@pytest.mark.parametrize("name", ["report.html", "metrics.json", "evaluated.parquet"])
def test_a_checksum_cannot_be_left_out(run, name):
    content = json.loads((run / "evidence.json").read_text())
    del content["sha256"][name]
    (run / "evidence.json").write_text(json.dumps(content))
    assert [(check.name, check.detail) for check in verify(run).checks] == [
        (name, "evidence.json has no checksum of it."),
    ]


def test_the_figures_that_people_quote_and_added_ones_are_compared_too(run):
    content = json.loads((run / "metrics.json").read_text())
    content["accuracy"] = 0.99
    content["splits"]["test"]["per_class"]["c"] = {"recall": 1.0}
    (run / "metrics.json").write_text(json.dumps(content))
    wrong = {check.name: check.detail for check in verify(run).checks}
    assert wrong["quoted.accuracy"].startswith("metrics.json says 0.99, and it is 0.")
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


def test_a_figure_of_a_subgroup_too(run):
    content = json.loads((run / "metrics.json").read_text())
    found = content["splits"]["test"]["subgroups"]
    # Of the images 20 to 39 the first, a copy, is left out; it is of the old scanner, which has fewer than ten then.
    assert (found["num_looked_at"], found["lowest"][0]["value"]) == (1, "new")
    assert content["subgroups"] == found
    assert "subgroups" not in content["all_images"]
    found["lowest"][0]["accuracy"] = 1.5
    (run / "metrics.json").write_text(json.dumps(content))
    assert verify(run).wrong() == ["metrics.json", "test.subgroups.lowest.0.accuracy"]


def test_a_run_of_an_earlier_version_does_not_count_the_subgroups_that_are_worse():
    now = {"test": {"subgroups": {"num_looked_at": 3, "num_worse": 1}}}
    before = {"test": {"subgroups": {"num_looked_at": 3}}}
    assert [check.name for check in checks.check_values(now, before, "f")] == ["test.subgroups.num_looked_at"]
    wrong = {"test": {"subgroups": {"num_looked_at": 3, "num_worse": 2}}}
    assert [check.is_right for check in checks.check_values(now, wrong, "f")] == [True, False]


def test_a_file_that_was_changed_is_told(run):
    table = manifest.read_manifest(str(run / "manifest.parquet"))
    manifest.write_manifest(
        manifest.with_column(table, "group_id", ["one"] * table.num_rows), f"{run}/manifest.parquet"
    )
    wrong = {check.name: check.detail for check in verify(run).checks if not check.is_right}
    assert wrong["manifest.parquet"].startswith("The file was changed: its sha256 is ")
    assert any(name.startswith("test.") for name in wrong)  # all images are of one patient then


def edited(name: str, values: dict[str, str]) -> Dataset:
    """Returns the images of `make_images` with other values of a column: id of an image to its value."""
    images = make_images()
    ids, before = manifest.column_lists(images.table, "image_id", name)
    after = [values.get(image_id, value) for image_id, value in zip(ids, before, strict=True)]
    return dataclasses.replace(images, table=manifest.with_column(images.table, name, after))


def without(condition: pc.Expression) -> Dataset:
    images = make_images()
    return dataclasses.replace(images, table=images.table.filter(~condition))


def wrong_of(run: Path) -> list[tuple[str, str]]:
    return [(check.name, check.detail) for check in verify(run).checks if not check.is_right]


def test_a_label_of_the_predictions_alone_is_told(tmp_path):
    """All figures and checksums were made to fit it."""
    run = make_run(tmp_path, measured=edited("label", {"38.png": "b", "39.png": "a"}))
    assert wrong_of(run) == [
        (
            "labels of test",
            "2 images with another label than in the manifest: '38.png (b, not a)', '39.png (a, not b)'.",
        )
    ]


def test_a_split_of_the_predictions_alone_is_told(tmp_path):
    found = wrong_of(make_run(tmp_path, measured=edited("split", {"38.png": "valid"})))
    assert found[0] == (
        "images of valid", "1 measured image that the manifest does not have in this split: '38.png'."
    )  # fmt: skip
    # The split that lacks it does not say that an image of it could not be scored.
    assert ("test.num_failed", "metrics.json says 0, and it is 1.") in found
    assert {name.rpartition(".")[2] for name, _ in found[1:]} == {"num_failed"}


def test_training_images_among_the_predictions_are_told(tmp_path):
    found = wrong_of(make_run(tmp_path, measured=edited("split", {"00.png": "test", "02.png": "valid"})))
    assert found == [
        ("images of valid", "1 measured image that the manifest does not have in this split: '02.png'."),
        ("images of test", "1 measured image that the manifest does not have in this split: '00.png'."),
    ]


def fingerprint_details(name: str, run: Path) -> list[tuple[str, str]]:
    """Returns what is told of a manifest whose fingerprint is not that of the run's bundle."""
    of_run = {
        "data_fingerprint": manifest.fingerprint(make_images().table),
        "split_fingerprint": manifest.split_fingerprint(make_images().table),
    }
    table = manifest.read_manifest(str(run / "manifest.parquet"))
    found = {"data_fingerprint": manifest.fingerprint, "split_fingerprint": manifest.split_fingerprint}[name](table)
    says = f"says {of_run[name][:12]}…, and it is {found[:12]}…."
    return [(name, f"bundle.json {says}"), (name, f"evidence.json {says}")]


@pytest.mark.parametrize("image_id", ["00.png", "38.png"])
def test_a_label_of_the_manifest_is_told(tmp_path, image_id):
    """It is one of training and test; the predictions, figures and checksums were made to fit it."""
    forged = edited("label", {image_id: "b"})
    run = make_run(tmp_path, measured=forged, stored=forged)
    assert wrong_of(run) == fingerprint_details("data_fingerprint", run)


def test_a_label_of_the_manifest_alone_is_told_for_its_split_too(tmp_path):
    run = make_run(tmp_path, stored=edited("label", {"38.png": "b"}))
    assert wrong_of(run) == [
        *fingerprint_details("data_fingerprint", run),
        ("labels of test", "1 image with another label than in the manifest: '38.png (a, not b)'."),
    ]


def test_a_split_of_the_manifest_is_told(tmp_path):
    """A test image has become one of training, and is not measured any more."""
    forged = edited("split", {"38.png": "train"})
    run = make_run(tmp_path, measured=forged, stored=forged)
    assert wrong_of(run) == fingerprint_details("split_fingerprint", run)


def test_a_split_of_the_manifest_alone_is_told_for_the_predictions_too(tmp_path):
    run = make_run(tmp_path, stored=edited("split", {"38.png": "train"}))
    assert wrong_of(run) == [
        *fingerprint_details("split_fingerprint", run),
        ("images of test", "1 measured image that the manifest does not have in this split: '38.png'."),
    ]


@pytest.mark.parametrize("cut", [(), ("valid",)])
def test_fingerprints_by_which_an_evaluation_knows_the_images_again_are_checked(tmp_path, cut):
    """A validation image has become one of training. Where tlray cut valid from train, it was given as one of train."""
    assert verify(make_run(tmp_path / "right", cut=cut)).is_right
    forged = edited("split", {"18.png": "train"})
    wrong = verify(make_run(tmp_path / "split", measured=forged, stored=forged, cut=cut)).wrong()
    assert wrong == [
        *["split_fingerprint"] * 2,
        *([] if cut else ["given_split_fingerprint"]),
        "file_fingerprints.train",
        "file_fingerprints.valid",
    ]
    run = make_run(tmp_path / "file", stored=edited("sha256", {"00.png": "f" * 64}), cut=cut)
    assert verify(run).wrong() == [*["data_fingerprint"] * 2, "file_fingerprints.train", "file_fingerprints.all"]


def test_an_image_that_was_left_out_is_told(tmp_path):
    found = wrong_of(make_run(tmp_path, measured=without(pc.field("image_id") == "38.png")))
    assert {name.rpartition(".")[2] for name, _ in found} == {"num_failed"}
    assert ("test.num_failed", "evidence.json says 0, and it is 1.") in found


def test_an_image_that_could_not_be_scored_is_counted(tmp_path):
    run = make_run(tmp_path, measured=without(pc.field("image_id") == "38.png"), num_failed=1)
    assert wrong_of(run) == []
    assert verify(run).num_images == 21


def test_a_split_that_was_left_out_is_told(tmp_path):
    run = make_run(tmp_path, measured=without(pc.field("split") == "valid"))
    assert wrong_of(run) == [
        ("images of valid", "The manifest has 2 images in this split, none of which was measured."),
    ]


def edit_evaluated(run: Path, edit: Callable[[pa.Table], pa.Table]) -> dict[str, str]:
    """Replaces the predictions of a run, and returns what is told of their images and labels."""
    pq.write_table(edit(pq.read_table(run / "evaluated.parquet")), run / "evaluated.parquet")
    return {name: detail for name, detail in wrong_of(run) if name.startswith(("images of", "labels of"))}


def test_an_image_that_is_there_twice_is_told(run):
    assert edit_evaluated(run, lambda table: pa.concat_tables([table, table.slice(5, 1)])) == {
        "images of test": "1 image measured more than once: '23.png'."
    }


def test_images_and_labels_that_nobody_knows_are_told_and_do_not_end_the_check(run):
    def edit(table: pa.Table) -> pa.Table:
        ids, labels, splits = manifest.column_lists(table, "image_id", "label", "split")
        ids[2], labels[3], splits[4] = "gone.png", 7, None
        for name, values in (("image_id", ids), ("label", labels), ("split", splits)):
            field = table.schema.field(name)
            table = table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))
        return table

    assert edit_evaluated(run, edit) == {
        "images of test": "1 measured image that the manifest does not have in this split: 'gone.png'.",
        "labels of test": "1 image with another label than in the manifest: '21.png (no class, not b)'.",
        "images of None": "1 measured image that the manifest does not have in this split: '22.png'.",
    }
    assert edit_evaluated(run, lambda table: table.slice(0, 0)).keys() == {"images of valid", "images of test"}


def test_evidence_says_what_the_figures_came_from(run):
    table = make_images().table
    assert json.loads((run / "evidence.json").read_text())["origin"] == {
        "data_fingerprint": manifest.fingerprint(table),
        "split_fingerprint": manifest.split_fingerprint(table),
        "id_fingerprint": manifest.id_fingerprint(table),
        "weights": "w",
        "model_sha256": hashlib.sha256((run / "bundle/model.keras").read_bytes()).hexdigest(),
        "bundle_sha256": hashlib.sha256((run / "bundle/bundle.json").read_bytes()).hexdigest(),
    }


@pytest.mark.parametrize(
    "name", ["data_fingerprint", "split_fingerprint", "id_fingerprint", "weights", "model_sha256", "bundle_sha256"]
)
def test_another_origin_is_told(run, name):
    content = json.loads((run / "evidence.json").read_text())
    before = content["origin"][name]
    content["origin"][name] = "other"
    (run / "evidence.json").write_text(json.dumps(content))
    is_really = "w" if name == "weights" else f"{before[:12]}…"
    assert wrong_of(run) == [(name, f"evidence.json says other, and it is {is_really}.")]
    del content["origin"][name]
    (run / "evidence.json").write_text(json.dumps(content))
    assert wrong_of(run) == [(name, f"evidence.json says nothing, and it is {is_really}.")]


def test_a_run_without_origin_is_compared_with_its_bundle(tmp_path):
    """An earlier version made it."""

    def make_old(where: Path, stored: Dataset | None = None) -> verification.VerifyResult:
        run = make_run(where, stored=stored)
        content = json.loads((run / "evidence.json").read_text())
        del content["origin"]
        (run / "evidence.json").write_text(json.dumps(content))
        return verify(run)

    right = make_old(tmp_path / "right")
    assert (right.is_right, right.has_origin) == (True, False)
    assert dict(right.rows())["not compared"] == (
        "an origin in evidence.json: an earlier version made the run, and did not write that"
    )
    assert make_old(tmp_path / "wrong", edited("label", {"00.png": "b"})).wrong() == ["data_fingerprint"]


@pytest.mark.parametrize(
    ("kind", "deleted", "message"),
    [
        ("training", ["metrics.json"], "The training run 'RUN' is not finished: it has no metrics.json. Continue it"),
        ("training", ["evidence.json", "evaluated.parquet"],
         "The training run 'RUN' lacks evidence.json, evaluated.parquet: an earlier version of tlray made it, or"),
        ("sweep", ["metrics.json"], "'RUN' is a sweep. Give the directory of its best training: 'RUN/best'."),
        ("scoring", ["metrics.json"], "'RUN' is no training run: it is an output of another kind (scoring)."),
        (None, ["evidence.json"], "'RUN' is no training run: it lacks evidence.json. Give the directory of a finished"),
    ],
)  # fmt: skip
def test_what_is_no_finished_run_is_refused_with_the_remedy(run, kind, deleted, message):
    (run / ".tlray").unlink()
    if kind:
        storage.mark_output(str(run), kind=kind)
    for name in deleted:
        (run / name).unlink()
    with pytest.raises(DataError, match=f"^{re.escape(message.replace('RUN', str(run)))}"):
        verify(run)


def test_a_bundle_a_file_and_nothing_are_no_run(run):
    for name, message in (
        ("bundle", "'{}' is a bundle. Give the directory of the training run that made it."),
        ("metrics.json", "'{}' is not a directory. Give the directory of a finished training run."),
        ("gone", "There is no directory '{}'. Give the directory of a finished training run."),
    ):
        with pytest.raises(DataError) as caught:
            verify(run / name)
        assert str(caught.value) == message.format(run / name)
