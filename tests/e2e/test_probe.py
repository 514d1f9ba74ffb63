"""The recipe `probe`: one pass of a network, a logistic regression, and a bundle like any other."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import special

from tests.reports import shown_text
from tlray import cli
from tlray.bundle.spec import LOOKALIKES, NOVELTY
from tlray.bundle.store import load
from tlray.data import manifest, phantoms
from tlray.features import store
from tlray.inference import predictions
from tlray.inference.predictor import Predictor
from tlray.models.backbone import find_application
from tlray.models.files import load_keras_file
from tlray.training import export, probing

pytestmark = pytest.mark.usefixtures("local_ray")

SIZE_PX = 64


def tlray(*arguments: object) -> int:
    return cli.execute(str(arguments[0]), list(map(str, arguments[1:])))


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """Options that name a small network of one's own: what does not depend on the network is tested with it."""
    keras.utils.set_random_seed(2)
    x = pixels = keras.Input((SIZE_PX, SIZE_PX, 3))
    for num_filters in (8, 12, 16):
        x = keras.layers.Conv2D(num_filters, 3, strides=2, activation="relu")(x)
    path = tmp_path_factory.mktemp("model") / "own.keras"
    keras.Model(pixels, x).save(path)
    return "--backbone", path, "--preprocessing", "symmetric"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Weights of MobileNetV2 whose activations are as large as a pretrained network's."""
    keras.utils.set_random_seed(2)
    network = find_application("MobileNetV2")(include_top=False, weights=None, input_shape=(SIZE_PX, SIZE_PX, 3))
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            gamma, beta, mean, variance = layer.get_weights()
            layer.set_weights([gamma, beta, mean, variance * 0.02])
    network.save_weights(tmp_path / "network.weights.h5")
    return tmp_path / "network.weights.h5"


def train(data: Path, out: Path, *options: object, recipe: str = "probe") -> int:
    # float32, which tests compare with what they compute; in `options` the last one counts.
    common = ("--image-size-px", SIZE_PX, "--quiet", "--inference-precision", "float32")
    return tlray("train", recipe, "--data", data, "--out", out, *common, *options)


@pytest.fixture(scope="module")
def run(local_ray, phantom_set, own, tmp_path_factory) -> Path:  # noqa: ARG001
    out = tmp_path_factory.mktemp("probe") / "run"
    assert train(phantom_set, out, *own, "--learning-curve") == 0
    return out


def uncalibrated(run: Path, split: str = "valid") -> tuple[float, float]:
    """Returns log loss and accuracy on the images of a split before calibration, for classes with equal shares."""
    spec = load(str(run / "bundle")).spec
    rows = pq.read_table(run / "evaluated.parquet", filters=[("split", "=", split)])
    logs_BK = np.log(np.stack([rows[f"p_{name}"].to_numpy() for name in spec.classes], axis=1))
    logits_BK = spec.temperature * (logs_BK - np.array(spec.trust["calibration"]["biases"]))
    labels = rows["label"].to_numpy()
    losses = -special.log_softmax(logits_BK, axis=1)[np.arange(len(labels)), labels]
    return float(losses.mean()), float((logits_BK.argmax(axis=1) == labels).mean())


def test_the_exported_model_is_the_probe(run):
    metrics = json.loads((run / "metrics.json").read_text())
    trials = metrics["probe"]["trials"]
    assert metrics["probe"]["best"] == min(trials, key=lambda trial: trial["valid_loss"])
    assert (metrics["num_epochs"], metrics["best_epoch"]) == (0, 0)
    # The probe saw float16, the exported model computes in float32.
    log_loss, accuracy = uncalibrated(run)
    assert log_loss == pytest.approx(metrics["probe"]["best"]["valid_loss"], rel=5e-3)
    assert accuracy == metrics["probe"]["best"]["valid_accuracy"]
    assert store.read_features(str(run / "features")).num_rows == 64
    few, whole = metrics["learning_curve"]
    assert (few["images_per_class"], few["num_images"], len(few["accuracies"])) == (5, 20, 5)
    assert whole["accuracies"] == [uncalibrated(run, "test")[1]]
    assert 0 <= whole["accuracy_ci95"][0] < whole["accuracies"][0] <= whole["accuracy_ci95"][1] <= 1
    assert (run / "figures/learning_curve.png").exists()
    assert not (run / "figures/history.png").exists()
    report = shown_text(run / "report.html")
    assert "probed on" in report
    assert "stored features of the images as they are, without augmentation" in report
    assert load(str(run / "bundle")).spec.classes == phantoms.CLASSES


def test_cross_validation_and_calibration_are_verified(run, tmp_path, capsys):
    assert tlray("verify", run) == 0
    shown = capsys.readouterr().out
    assert "not compared" not in shown
    figures = json.loads((run / "evidence.json").read_text())["figures"]
    told = json.loads((run / "metrics.json").read_text())["cross_validation"]
    assert figures["cross_validation"] == told
    of_bundle = load(str(run / "bundle")).spec.trust["calibration"]
    for name in ("ece", "ece_before", "brier", "brier_before"):
        assert figures["calibration"][name] == of_bundle[name]
    changed = tmp_path / "run"
    shutil.copytree(run, changed)
    content = json.loads((changed / "evidence.json").read_text())
    content["figures"]["cross_validation"]["accuracy"] = told["accuracy"] / 2
    (changed / "evidence.json").write_text(json.dumps(content))
    assert tlray("verify", changed) == 1
    assert capsys.readouterr().err == f"tlray: '{changed}' is not as it was written: cross_validation.accuracy.\n"


def train_on_two_patients(phantom_set: Path, place: Path, *options: object, recipe: str) -> dict[str, Any]:
    """Trains on two classes that each have one patient to train on and one to validate on; returns the metrics."""
    for label in phantoms.CLASSES[:2]:
        for patient in sorted((phantom_set / label).iterdir())[:2]:
            shutil.copytree(patient, place / "data" / label / patient.name)
    network = ("--backbone", "MobileNetV2", "--learning-curve", "--inference-precision", "auto")
    assert train(place / "data", place / "run", *network, *options, recipe=recipe) == 0
    metrics = json.loads((place / "run/metrics.json").read_text())
    assert (metrics["split"], list(metrics["splits"]), metrics["num_images"]) == ("valid", ["valid"], 4)
    (point,) = metrics["learning_curve"]  # measured on the validation images, four of which are fitted on
    assert (point["images_per_class"], point["num_images"]) == (None, 4)
    assert point["accuracies"] == [metrics["probe"]["best"]["valid_accuracy"]]
    return metrics


def test_two_patients_a_class_leave_no_test_split(phantom_set, weights, tmp_path):
    metrics = train_on_two_patients(phantom_set, tmp_path, "--weights", weights, "--epochs", 1, recipe="standard")
    assert metrics["num_epochs"] == 1


def test_random_weights_are_probed_too(phantom_set, tmp_path):
    """What the demo compares a trained network with."""
    metrics = train_on_two_patients(phantom_set, tmp_path, "--weights", "none", recipe="probe")
    report = shown_text(tmp_path / "run/report.html")
    assert "Trained from random weights" in report
    assert "The probe uses features of random weights (--weights none)" in report
    assert metrics["num_epochs"] == 0


def test_its_bundle_scores_images(run, phantom_set, tmp_path):
    assert tlray("score", "--bundle", run / "bundle", "--input", phantom_set, "--out", tmp_path / "s", "--quiet") == 0
    rows = [row for row in predictions.read_predictions(str(tmp_path / "s")).to_pylist() if not row["error_code"]]
    assert len(rows) == 64
    probs_BK = np.array([[row[f"p_{name}"] for name in phantoms.CLASSES] for row in rows])
    assert probs_BK.sum(axis=1) == pytest.approx(1, abs=1e-5)
    # The run was measured on its features.
    metrics = json.loads((run / "metrics.json").read_text())
    split_of = {
        row["image_id"]: row["split"] for row in manifest.read_manifest(str(run / "manifest.parquet")).to_pylist()
    }
    chosen = [place for place, row in enumerate(rows) if split_of[row["image_id"]] == "test"]
    labels = [phantoms.CLASSES.index(rows[place]["label"]) for place in chosen]
    assert -np.log(probs_BK[chosen, labels]).mean() == pytest.approx(metrics["log_loss"], rel=5e-3)
    predictor = Predictor(str(run / "bundle"))
    assert predictor.bundle.spec.image_size_px == SIZE_PX


def interrupted(run: Path, out: Path, **changes: object) -> Path:
    """As a run that was interrupted before its bundle: its settings name its own place."""
    shutil.copytree(run, out)
    for name in ("metrics.json", "report.html"):
        (out / name).unlink()
    shutil.rmtree(out / "bundle")
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"out": str(out)} | changes))
    return out


def test_an_interrupted_run_goes_on_with_its_features(run, phantom_set, own, tmp_path):
    out = interrupted(run, tmp_path / "run")
    parts = {path.name: path.stat().st_mtime_ns for path in (out / "features").glob("part-*")}
    assert train(phantom_set, out, *own, "--resume") == 0
    assert {path.name: path.stat().st_mtime_ns for path in (out / "features").glob("part-*")} == parts
    before, after = (json.loads((each / "metrics.json").read_text()) for each in (run, out))
    assert after["probe"] == before["probe"]


def test_features_that_do_not_fit_into_memory_are_not_measured_on(run, phantom_set, own, tmp_path, monkeypatch):
    out = interrupted(run, tmp_path / "run")
    monkeypatch.setattr(probing, "MAX_CACHE_PART", 0.0)
    assert train(phantom_set, out, *own, "--resume") == 0
    before, after = (json.loads((each / "metrics.json").read_text()) for each in (run, out))
    assert after["probe"] == before["probe"]
    for split in ("valid", "test"):
        mine, theirs = after["splits"][split], before["splits"][split]
        assert mine["log_loss"] == pytest.approx(theirs["log_loss"], rel=5e-3)
        assert mine["log_loss"] != theirs["log_loss"]  # float32


def test_images_that_have_gone_or_changed_since_their_features_were_computed(run, phantom_set, own, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(phantom_set, data)
    out = interrupted(run, tmp_path / "run", data=str(data), inverse_penalty=0.01)
    table = manifest.read_manifest(str(out / "manifest.parquet"))
    uris = [uri.replace(str(phantom_set), str(data)) for uri in table["uri"].to_pylist()]
    table = table.set_column(table.schema.get_field_index("uri"), "uri", pa.array(uris))
    manifest.write_manifest(table, str(out / "manifest.parquet"))
    rows = [row for row in table.to_pylist() if row["split"] == "valid" and not row["error_code"]]
    for row in rows:
        Path(row["uri"]).unlink()
    assert train(data, out, *own, "--inverse-penalty", 0.01, "--resume") == 0
    gone = json.loads((out / "metrics.json").read_text())
    assert uncalibrated(out)[0] == pytest.approx(gone["probe"]["best"]["valid_loss"], rel=5e-3)
    assert export.NOT_COMPARED[:100] in shown_text(out / "report.html")
    # Other images in their places have no labels: nothing is measured on them.
    white = np.full((SIZE_PX, SIZE_PX, 3), 255, np.uint8)
    for row in rows:
        keras.utils.save_img(row["uri"], white, file_format="png", scale=False)
    (out / "metrics.json").unlink()
    assert train(data, out, *own, "--inverse-penalty", 0.01, "--resume") == 0
    changed = json.loads((out / "metrics.json").read_text())["splits"]
    assert changed["valid"]["log_loss"] == pytest.approx(gone["splits"]["valid"]["log_loss"], rel=1e-6)
    assert export.NOT_COMPARED[:100] in shown_text(out / "report.html")
    # Where the exported model must be measured on them, the run ends.
    (out / "metrics.json").unlink()
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probing, "MAX_CACHE_PART", 0.0)
        assert train(data, out, *own, "--inverse-penalty", 0.01, "--resume") == 2
    assert "Images have changed since the training first read them" in capsys.readouterr().err


def test_the_backbone_of_an_earlier_bundle_is_reused(trained, phantom_set, tmp_path):
    """That of a trained network in a probe, and that of the probe in another one."""
    first, second = tmp_path / "first", tmp_path / "second"
    for out, earlier in ((first, trained), (second, first)):
        assert train(phantom_set, out, "--backbone", "MobileNet", "--weights", earlier / "bundle") == 0
    backbones = []
    for directory in (trained, first, second):
        model = load_keras_file(str(directory / "bundle/model.keras"))
        backbones.append(next(layer for layer in model.layers if isinstance(layer, keras.Model)))
    for weights in zip(*(backbone.get_weights() for backbone in backbones), strict=True):
        assert all(np.array_equal(each, weights[0]) for each in weights)
    pooled = [
        np.stack(store.read_features(str(each / "features")).sort_by("image_id")["pooled"].to_pylist())
        for each in (first, second)
    ]
    assert np.array_equal(pooled[0], pooled[1])
    assert pooled[0].std() > 0.01


def test_shared_images_are_told_before_any_figure(phantom_set, own, tmp_path, capsys):
    """A copy of a training image among the test images: in the terminal, report, model card, metrics and evaluation.

    The images are private, too. The 20 patients to train on are enough for the novelty score, so that only
    `--no-thumbnails` keeps look-alikes out of the bundle.
    """
    for split, patients in (("train", (0, 1, 2, 3, 4)), ("valid", (5,)), ("test", (6, 7))):
        for folder in phantoms.CLASSES:
            found = sorted((phantom_set / folder).glob("*/"))
            for patient in patients:
                shutil.copytree(found[patient], tmp_path / "data" / split / folder / found[patient].name)
    first = min((tmp_path / "data/train").glob("*/*/*.*"))
    copy = tmp_path / "data/test" / first.relative_to(tmp_path / "data/train").parts[0] / "patient_copy" / first.name
    copy.parent.mkdir()
    shutil.copy(first, copy)
    told = "2 images are copies of one another, identical or changed a little, in different splits (groups: 1, for "

    out = tmp_path / "run"
    network = (*own, "--image-size-px", SIZE_PX, "--no-thumbnails")
    assert tlray("train", "probe", "--data", tmp_path / "data", "--out", out, *network) == 0
    shown = capsys.readouterr().out
    audited = shown.partition("Audited")[2].partition("\n! ")[0]  # the audit's table comes before the warnings
    assert re.search(r"copies in several splits\W+2 images in 1 group", audited)
    assert re.search(r"what tells the classes\W+\w.*\n\W+what tells the splits\W+\w", audited)
    notes = [line for line in shown.splitlines() if line.startswith("! ")]
    assert notes[0].startswith(f"! {told}")
    assert len(notes) > 1  # the classes are small, too
    warnings = json.loads((out / "metrics.json").read_text())["warnings"]
    assert [f"! {warning}" for warning in warnings] == notes
    for report in (out / "report.html", out / "bundle/report.html"):
        text = shown_text(report)
        assert text.index(told) < text.index("Research tool, not a medical device") < text.index("Accuracy")
        assert "data:image/jpeg" not in report.read_text()
    assert json.loads((out / "gallery.json").read_text()) == []
    assert {path.name for path in (out / "bundle").iterdir()} & {NOVELTY, LOOKALIKES} == {NOVELTY}
    card = (out / "bundle/model_card.md").read_text().splitlines()
    assert card[2] in [f"> **The metrics of all images {verb} too good.**" for verb in ("are", "may be")]
    assert card[3].startswith(f"> {told}")
    assert load(str(out / "bundle")).spec.leaks == (warnings[0],)
    # A finished run says so again.
    assert tlray("train", "probe", "--data", tmp_path / "data", "--out", out, *network, "--resume") == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("! ")]
    assert notes == [*(f"! {warning}" for warning in warnings), "! The run had already finished: nothing was done."]

    # The same images leak when they are measured again, others do not.
    evaluated = tmp_path / "evaluated"
    bundle = ("--bundle", out / "bundle")
    assert tlray("evaluate", *bundle, "--data", tmp_path / "data", "--out", evaluated) == 0
    assert f"! {told}" in capsys.readouterr().out
    again, before = (json.loads((each / "metrics.json").read_text()) for each in (evaluated, out))
    assert again["warnings"][0] == warnings[0]
    # The bundle keeps no pictures, but the images that it learned from are there: the groups are those of the training.
    counts = ("split", "num_images", "num_groups", "num_leaked", "is_leak_free")
    assert [again[name] for name in counts] == [before[name] for name in counts]
    assert again["all_images"]["num_groups"] == before["all_images"]["num_groups"]
    assert (again["num_leaked"], again["leak_search"]["among"]) == (1, "images")
    assert re.search("Some numbers of this report (are|may be) too good", shown_text(evaluated / "report.html"))
    others = ("--data", tmp_path / "data/test", "--split", "all", "--out", tmp_path / "others", "--quiet")
    assert tlray("evaluate", *bundle, *others) == 0
    report = shown_text(tmp_path / "others/report.html")
    assert "numbers of this report" not in report
    assert (
        "Not known. The bundle keeps no pictures of its training images, so copies of them cannot be found." in report
    )
    found = json.loads((tmp_path / "others/metrics.json").read_text())
    assert found["is_leak_free"] is None
    others = found["warnings"]
    assert others[-1] == f"Among the images that the model was trained and measured on: {warnings[0]}"
    assert warnings[0] not in others
