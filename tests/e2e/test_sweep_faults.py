"""A sweep that is interrupted with Ctrl-C ends at once, with its Ray, and is continued with what it had."""

import csv
import os
import re
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import keras
import pytest

from tests.processes import output_at_end, processes_with, wait_until
from tlray import cli
from tlray.config.commands import SweepConfig
from tlray.tuning import trial_table

NUM_TRIALS = 12  # so many that a sweep cannot end before it is interrupted


@pytest.fixture
def config(phantom_set: Path, tmp_path: Path) -> SweepConfig:
    keras.utils.set_random_seed(1)
    x = pixels = keras.Input((64, 64, 3))
    for num_filters in (8, 12):
        x = keras.layers.Conv2D(num_filters, 3, strides=2, activation="relu")(x)
    keras.Model(pixels, x).save(tmp_path / "own.keras")
    return SweepConfig(
        data=str(phantom_set),
        out=str(tmp_path / "out"),
        backbone=str(tmp_path / "own.keras"),
        preprocessing="symmetric",
        image_size_px=64,
        trainable_layers=1,
        num_trials=NUM_TRIALS,
        num_folds=2,
        epochs=2,
        quiet=True,
    )


def read_trials(config: SweepConfig) -> list[dict[str, str]]:
    path = Path(config.out, "trials.csv")
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


def written_at(config: SweepConfig) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in Path(config.out, "features").glob("part-*")}


def test_an_interrupted_sweep_is_continued(config, request):
    mark = uuid.uuid4().hex
    arguments = [
        *("--data", config.data, "--out", config.out, "--backbone", config.backbone, "--preprocessing", "symmetric"),
        *("--image-size-px", 64, "--trainable-layers", 1, "--num-trials", NUM_TRIALS, "--num-folds", 2),
        *("--epochs", 2, "--quiet"),
    ]
    driver = subprocess.Popen(
        [sys.executable, "-m", "tlray", "sweep", *map(str, arguments)],
        env=os.environ | {"RAY_ADDRESS": "local", "TLRAY_TEST": mark, "PYTHONFAULTHANDLER": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # Ctrl-C reaches the processes of a terminal, Ray's too
    )
    assert wait_until(lambda: len(read_trials(config)) >= 2 or driver.poll() is not None)
    os.kill(driver.pid, signal.SIGSTOP)  # no trial ends while the processes are looked for
    started = processes_with(mark).values()
    os.killpg(driver.pid, signal.SIGINT)
    os.kill(driver.pid, signal.SIGCONT)
    assert any("raylet" in command for command in started)
    output = output_at_end(driver, timeout_s=60)
    assert driver.returncode == 130, output
    assert output.endswith("tlray: interrupted. Continue with the same command and --resume (not --overwrite).\n")
    assert "Traceback" not in output
    assert wait_until(lambda: not processes_with(mark)), processes_with(mark)
    features = written_at(config)
    assert features
    table = Path(config.out, "trials.csv")
    assert 2 <= len(read_trials(config)) < NUM_TRIALS
    # A trial that is run again gets its own accuracy back.
    table.write_text(
        "\n".join(re.sub(r",[^,]+(,\d,\d,[^,]+,)$", r",0.0625\1", line) for line in table.read_text().splitlines())
    )
    before = read_trials(config)
    assert {row["best_accuracy"] for row in before} == {"0.0625"}

    request.getfixturevalue("local_ray")  # only now: the first process shall have a Ray of its own
    assert cli.execute("sweep", [*map(str, arguments), "--resume"]) == 0
    after = read_trials(config)
    assert len(trial_table.read_trials(config.out)[0]) == len(after) == NUM_TRIALS
    # The trial that the others are compared with may be a later one.
    for row in (*before, *after):
        del row["difference_error"]
    assert all(row in after for row in before)
    assert written_at(config) == features
    assert Path(config.out, "best/bundle/bundle.json").is_file()
