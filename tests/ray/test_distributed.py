"""Distributed equals local: the same global batches give the same numbers, whatever the number of workers."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from tlray.bundle import store
from tlray.config.training import Augmentation, TrainConfig
from tlray.data import phantom_files
from tlray.models.files import load_keras_file
from tlray.timing import Timing
from tlray.training import checkpoint, probing, run
from tlray.training.begin import resume_or_begin
from tlray.training.checkpoint import RunState
from tlray.training.learn import learn
from tlray.training.prepare import prepare
from tlray.training.stages import Begun

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 training images after the cut of validation and test: 5 steps of 8 an epoch."""
    root = tmp_path_factory.mktemp("images")
    for split, num_patients in (("train", 10), ("valid", 3), ("test", 1)):
        phantom_files.write_data_set(
            str(root / split),
            num_patients_per_class=num_patients,
            num_slices_per_patient=1,
            size_px=32,
            seed=num_patients,
            num_unreadable=0,
        )
    return root


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small network of one's own with two BatchNormalization layers; its statistics are not those of the images."""
    keras.utils.set_random_seed(11)
    pixels = keras.Input((32, 32, 3))
    x = pixels
    for num_filters in (8, 12):
        x = keras.layers.Conv2D(num_filters, 3, strides=2, use_bias=False)(x)
        x = keras.layers.BatchNormalization(momentum=0.8)(x)
        x = keras.layers.ReLU()(x)
    path = str(tmp_path_factory.mktemp("model") / "own.keras")
    keras.Model(pixels, x).save(path)
    return path


def make_config(images: Path, backbone: str, out: Path, **changes: Any) -> TrainConfig:
    settings = {
        "data": str(images),
        "out": str(out),
        "backbone": backbone,
        "preprocessing": "symmetric",
        "image_size_px": 32,
        "trainable_layers": "all",
        "dropout": 0.0,
        "epochs": 2,
        "batch_size": 8,
        "learning_rate": 1e-3,
        "augmentation": Augmentation(zoom=0.1, rotation_deg=5, horizontal_flip=True),
        "class_weights": True,
        "max_failures": 0,
        "inference_precision": "float32",
        "quiet": True,
    }
    return TrainConfig(**(settings | changes))


def train(images: Path, backbone: str, out: Path, *, is_finished: bool = True, **changes: Any) -> RunState:
    """Trains and returns the last checkpoint; without an export if the run is not to be finished."""
    config = make_config(images, backbone, out, **changes)
    if is_finished:
        run.train(config)
    else:
        begun = resume_or_begin(config)
        assert isinstance(begun, Begun)
        timing = Timing()
        learn(prepare(begun, timing), timing)
    (saved,) = (out / "checkpoints").glob("checkpoint_2*")
    return checkpoint.load(saved)


@pytest.mark.parametrize("batch_norm", ["frozen", "synchronized"])
def test_two_workers_equal_one_after_ten_steps(images, backbone, tmp_path, batch_norm):
    is_trained = batch_norm == "synchronized"
    one = train(images, backbone, tmp_path / "one", is_finished=False, num_workers=1, batch_norm=batch_norm)
    two = train(images, backbone, tmp_path / "two", is_finished=is_trained, num_workers=2, batch_norm=batch_norm)
    assert len(one.history) == 2
    if is_trained:  # the validation in training, and the scoring of the exported model
        metrics = json.loads((tmp_path / "two/metrics.json").read_text())["splits"]["valid"]
        assert metrics["log_loss"] == pytest.approx(min(row["valid_loss"] for row in two.history), abs=1e-5)
    for mine, theirs in zip(two.history, one.history, strict=True):
        for name in ("loss", "accuracy", "valid_loss", "valid_accuracy"):
            assert mine[name] == pytest.approx(theirs[name], abs=1e-5), name
    start = load_keras_file(backbone).get_weights()
    for index, (mine, theirs) in enumerate(zip(two.weights, one.weights, strict=True)):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5, err_msg=str(index))
    # The backbone's weights come first in the model: [kernel, gamma, beta, mean, variance] twice, then the head.
    changed = [not np.array_equal(mine, theirs) for mine, theirs in zip(two.weights, start, strict=False)]
    assert changed == [True, is_trained, is_trained, is_trained, is_trained] * 2


LP_FT: dict[str, Any] = {
    "method": "lp-ft",
    "trainable_layers": 3,
    "hidden_units": (4,),
    "augmentation": Augmentation(),
    "learning_rate": None,
}


def probe_then_fine_tune(images: Path, backbone: str, out: Path, **changes: Any) -> RunState:
    return train(images, backbone, out, **(LP_FT | changes))


def test_training_on_features_equals_training_on_images(images, backbone, tmp_path, monkeypatch):
    # If the probe is exported, the validation images judge it, too. They are too few to calibrate, so that the log loss
    # of the exported model is that of training.
    monkeypatch.setattr(probing, "ENOUGH_VALIDATION_PATIENTS", 1)
    streamed = probe_then_fine_tune(images, backbone, tmp_path / "streamed", cache="off").history
    cached = probe_then_fine_tune(images, backbone, tmp_path / "cached", num_workers=2).history
    assert [row["epoch"] for row in cached] == [0, 1, 2]  # epoch 0 is the probe
    assert cached[2]["loss"] < cached[1]["loss"] - 1e-3
    for mine, theirs in zip(cached, streamed, strict=True):
        for name in ("loss", "accuracy", "valid_loss", "valid_accuracy"):
            assert mine[name] == pytest.approx(theirs[name], abs=1e-4), name
    models = [load_keras_file(str(tmp_path / name / "bundle/model.keras")) for name in ("cached", "streamed")]
    for mine, theirs in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-4)
    # Through scoring, and on the features.
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text())["splits"] for name in ("cached", "streamed")]
    for split in ("valid", "test"):
        assert metrics[0][split]["log_loss"] == pytest.approx(metrics[1][split]["log_loss"], abs=1e-4)
    for splits, history in zip(metrics, (cached, streamed), strict=True):
        assert splits["valid"]["log_loss"] == pytest.approx(min(row["valid_loss"] for row in history), abs=1e-5)


def test_a_probe_that_no_epoch_improves_is_judged_as_by_the_recipe_probe(images, backbone, tmp_path):
    """Steps of 10 spoil all weights. Two workers train on features, one goes on; and one trains on images."""
    as_probe: dict[str, Any] = {"method": "probe", "inverse_penalty": 1e-2, "hidden_units": (), "dropout": 0.3}
    run.train(make_config(images, backbone, tmp_path / "probe", **(LP_FT | as_probe)))
    expected, _ = store.read_spec(str(tmp_path / "probe/bundle"))
    assert (expected.trust["num_images"], expected.temperature != 1) == (52, True)
    settings: dict[str, Any] = {"learning_rate": 10.0, "inverse_penalty": 1e-2}
    for name, changes in (
        ("features", {"epochs": 1, "num_workers": 2}),
        ("features", {"epochs": 2, "resume": True}),
        ("images", {"epochs": 1, "cache": "off"}),
    ):
        out = tmp_path / name
        probe_then_fine_tune(images, backbone, out, **settings, **changes)
        metrics = json.loads((out / "metrics.json").read_text())
        assert (metrics["best_epoch"], metrics["num_epochs"]) == (0, changes["epochs"])
        found, _ = store.read_spec(str(out / "bundle"))
        for field in ("num_images", "num_groups", "origin"):
            assert found.trust[field] == expected.trust[field]
        assert found.temperature == pytest.approx(expected.temperature, abs=1e-3)
        calibrations = [spec.trust["calibration"] for spec in (found, expected)]
        assert calibrations[0]["biases"] == pytest.approx(calibrations[1]["biases"], abs=1e-3)
        assert calibrations[0]["note"] == calibrations[1]["note"]
        log_losses = [spec.metrics["valid"]["log_loss"] for spec in (found, expected)]
        assert log_losses[0] == pytest.approx(log_losses[1], abs=1e-3)
        assert "52 training and validation images, each predicted by a probe" in (out / "report.html").read_text()


def test_a_finished_run_goes_on_for_more_epochs(images, backbone, tmp_path):
    """Its epochs change next to nothing, so that their loss is that of the probe, of classes of different size too."""
    handler = signal.getsignal(signal.SIGINT)
    shutil.copytree(images, tmp_path / "images")
    for path in sorted((tmp_path / "images/train").glob("normal/*"))[:7]:
        shutil.rmtree(path)
    out = tmp_path / "run"
    # The second view is computed by itself, but so little brighter that its pixels are the same.
    settings: dict[str, Any] = {"views": 2, "augmentation": Augmentation(brightness=1e-6)}
    settings |= {"learning_rate": 1e-7, "inverse_penalty": 1e-3}
    first = probe_then_fine_tune(tmp_path / "images", backbone, out, epochs=1, **settings)
    assert signal.getsignal(signal.SIGINT) is handler  # Ray Train leaves one of its own, which ends nothing
    probe, epoch = first.history
    for name in ("loss", "accuracy", "valid_loss", "valid_accuracy"):
        assert epoch[name] == pytest.approx(probe[name], abs=1e-4), name
    parts = {path.name: path.stat().st_mtime_ns for path in (out / "features").glob("part-*")}
    continued = probe_then_fine_tune(tmp_path / "images", backbone, out, resume=True, **settings)
    assert {path.name: path.stat().st_mtime_ns for path in (out / "features").glob("part-*")} == parts
    assert len(continued.history) == 3
    assert continued.history[:2] == first.history
    # Adam counts its steps first.
    steps = [int(state.optimizer[0]) for state in (first, continued)]
    assert steps[1] == 2 * steps[0] > 0
    assert any(not np.array_equal(*weights) for weights in zip(first.weights, continued.weights, strict=True))
    metrics = out / "metrics.json"
    assert json.loads(metrics.read_text())["num_epochs"] == 2
    # Nothing is left to do: the files stay as they are.
    before = metrics.stat().st_mtime_ns
    probe_then_fine_tune(tmp_path / "images", backbone, out, resume=True, **settings)
    assert metrics.stat().st_mtime_ns == before
