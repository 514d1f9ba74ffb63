"""A run that loses a worker, then its driver, and is interrupted gives what an uninterrupted one gives."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import ray

from tests.processes import output_at_end, wait_until
from tlray.config.training import Augmentation, TrainConfig
from tlray.timing import Timing
from tlray.training import checkpoint, run
from tlray.training.begin import resume_or_begin
from tlray.training.checkpoint import RunState
from tlray.training.fit import SNAPSHOT
from tlray.training.learn import learn
from tlray.training.prepare import prepare
from tlray.training.stages import Begun

pytestmark = pytest.mark.usefixtures("local_ray")

NUM_EPOCHS = 12  # so many that a run cannot end before it is interrupted


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    keras.utils.set_random_seed(1)
    pixels = keras.Input((64, 64, 3))
    x = keras.layers.Conv2D(12, 3, strides=2, use_bias=False)(pixels)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.8)(x))
    path = str(tmp_path_factory.mktemp("model") / "own.keras")
    keras.Model(pixels, x).save(path)
    return path


@pytest.fixture(scope="module")
def config(phantom_set: Path, backbone: str) -> TrainConfig:
    """Dropout on, so that the seeds must be restored too. 32 images in batches of 2: 16 steps an epoch."""
    return TrainConfig(
        data=str(phantom_set),
        out="",
        backbone=backbone,
        preprocessing="symmetric",
        image_size_px=64,
        trainable_layers="all",
        batch_norm="synchronized",
        hidden_units=(16,),
        dropout=0.3,
        epochs=NUM_EPOCHS,
        batch_size=2,
        reduce_lr_patience=1,
        augmentation=Augmentation(zoom=0.1, horizontal_flip=True),
        num_workers=2,
        quiet=True,
    )


def with_out(config: TrainConfig, out: Path, **changes: Any) -> TrainConfig:
    return dataclasses.replace(config, out=str(out), **changes)


@pytest.fixture(scope="module")
def uninterrupted(local_ray: str, config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> RunState:  # noqa: ARG001
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    begun = resume_or_begin(with_out(config, out, max_failures=0))
    assert isinstance(begun, Begun)
    timing = Timing()
    learn(prepare(begun, timing), timing)
    return load_state(out)


def load_state(out: Path) -> RunState:
    # One: also what a worker that was killed while it handed in its part has left behind is gone.
    (last,) = (out / "checkpoints").glob("checkpoint_2*")
    return checkpoint.load(last)


def assert_equal(mine: RunState, theirs: RunState) -> None:
    assert len(mine.history) == len(theirs.history) == NUM_EPOCHS
    for row, expected in zip(mine.history, theirs.history, strict=True):
        for name in ("epoch", "loss", "accuracy", "valid_loss", "valid_accuracy", "learning_rate"):
            assert row[name] == pytest.approx(expected[name], abs=1e-5), (row["epoch"], name)
    for weights, expected in zip(mine.weights, theirs.weights, strict=True):
        np.testing.assert_allclose(weights, expected, rtol=0, atol=1e-5)


def num_epochs_done(out: Path) -> int:
    path = out / "history.csv"
    return len(path.read_text().splitlines()) - 1 if path.exists() else 0


def raylet_pid() -> str:
    """The process that starts all workers of this Ray."""

    def parent() -> int:
        return os.getppid()

    return str(ray.get(ray.remote(parent).options(num_cpus=0).remote()))


def kill_one_worker(raylet: str) -> None:
    # Of this Ray alone: others may train on this machine, too.
    found = subprocess.run(["pgrep", "-P", raylet, "-f", "^ray::RayTrainWorker"], capture_output=True, check=True)
    os.kill(int(found.stdout.split()[-1]), signal.SIGKILL)


def trains(raylet: str) -> bool:
    found = subprocess.run(["pgrep", "-P", raylet, "-f", "^ray::(RayTrainWorker|TrainController)"], check=False)
    return found.returncode == 0


def test_a_run_that_is_killed_and_interrupted_is_continued(config, uninterrupted, local_ray, tmp_path):
    out = tmp_path / "run"
    arguments = [
        *("--data", config.data, "--out", out, "--backbone", config.backbone, "--preprocessing", "symmetric"),
        *("--image-size-px", 64, "--trainable-layers", "all", "--batch-norm", "synchronized", "--hidden-units", 16),
        *("--dropout", 0.3, "--epochs", NUM_EPOCHS, "--batch-size", 2, "--reduce-lr-patience", 1),
        *("--method", "fine-tune", "--learning-rate", 0.001, "--max-failures", 1),
        *("--early-stopping-patience", "None", "--no-class-weights", "--num-workers", 2, "--quiet"),
        *("--augmentation.rotation-deg", 0, "--augmentation.zoom", 0.1, "--augmentation.shift", 0),
        *("--augmentation.brightness", 0, "--augmentation.contrast", 0, "--augmentation.horizontal-flip"),
    ]

    def start(*more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "tlray", "train", *map(str, arguments), *more],
            env={**os.environ, "RAY_ADDRESS": local_ray, "PYTHONFAULTHANDLER": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_for_epochs(driver: subprocess.Popen[str], num_epochs: int) -> None:
        assert wait_until(lambda: num_epochs_done(out) >= num_epochs or driver.poll() is not None)

    def end(driver: subprocess.Popen[str], signal_number: int) -> str:
        """Sends a signal to a run that has not ended; returns what it has said."""
        driver.send_signal(signal_number)
        output = output_at_end(driver, timeout_s=60)
        assert num_epochs_done(out) < NUM_EPOCHS, output
        assert not (out / "metrics.json").exists()
        return output

    raylet = raylet_pid()
    driver = start()
    wait_for_epochs(driver, 2)
    kill_one_worker(raylet)
    # One more epoch may be written by the worker that is left: the second one is that of its successor.
    goal = num_epochs_done(out) + 2
    wait_for_epochs(driver, goal)
    output = end(driver, signal.SIGKILL)
    assert (driver.returncode, num_epochs_done(out) >= goal) == (-signal.SIGKILL, True), output

    driver, goal = start("--resume"), num_epochs_done(out) + 1
    wait_for_epochs(driver, goal)
    output = end(driver, signal.SIGINT)
    assert (driver.returncode, num_epochs_done(out) >= goal) == (130, True), output
    assert "interrupted. Continue with the same command and --resume" in output

    # Ray Train overwrites its list of checkpoints in place: killed in that moment, it leaves an empty one.
    assert wait_until(lambda: not trains(raylet))
    snapshot = out / "checkpoints" / SNAPSHOT
    assert json.loads(snapshot.read_text())
    snapshot.write_text("")

    run.train(with_out(config, out, resume=True))
    assert_equal(load_state(out), uninterrupted)
