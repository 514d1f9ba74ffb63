"""What README and docs/ show: their commands and Python snippets are run, on small images and with the least training.

`tests/unit/test_docs.py` parses every command; here each kind is run once. Not run are commands that repeat another one
with an option that `test_pipeline.py` and others cover (`--resume`, `--learning-curve`, GPUs), `tlray serve`
(`test_start.py`), jobs of a cluster (`test_jobs.py`; there is no AWS account here), and benchmarks.
"""

import dataclasses
import re
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

import tlray
from tests.pages import PAGES, blocks, commands, read, three_ways
from tlray import cli
from tlray.data import phantoms
from tlray.models.backbone import find_application

pytestmark = pytest.mark.usefixtures("local_ray")

README, TRAINING, FEATURES = read("README.md"), read("docs/training.md"), read("docs/features.md")
SIZE_PX = 32
SMALL = {
    "train": ["--backbone", "MobileNetV2", "--image-size-px", "32", "--epochs", "1", "--max-failures", "0", "--quiet"],
    "evaluate": ["--quiet"],
    "score": ["--quiet"],
    "features": ["--backbone", "MobileNetV2", "--image-size-px", "32", "--quiet"],
    "sweep": [
        *("--backbone", "MobileNetV2", "--image-size-px", "32", "--num-trials", "2", "--num-folds", "2"),
        *("--epochs", "1", "--quiet"),
    ],
    "export": ["--quiet"],
}


def run(command: list[str], variables: dict[str, str]) -> None:
    """Runs a command of tlray with the least that it needs."""
    arguments = [string.Template(argument).substitute(variables) for argument in command]
    small = SMALL[arguments[0]]
    if "--backbone" in arguments:  # the page's own choice stays
        small = small[2:]
    with pytest.raises(SystemExit) as exit_info:
        cli.main([*arguments, *small])
    assert exit_info.value.code == 0, arguments


def run_first_block(text: str, names: list[str]) -> None:
    """Runs the commands of the first block that has commands of tlray."""
    shown = next(found for block in blocks(text, "bash") if (found := commands(block)))
    assert [command[0] for command in shown] == names
    for command in shown:
        run(command, {"DATA": "chest_ct", "WEIGHTS": "MobileNetV2.weights.h5"})


def run_snippet(snippet: str) -> dict[str, Any]:
    """Runs a Python snippet by itself and returns its names."""
    names: dict[str, Any] = {}
    exec(snippet, names)  # noqa: S102
    return names


@pytest.fixture(scope="module")
def given(phantom_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a reader has: images in splits, one image, weights, and a model of one's own."""
    root = tmp_path_factory.mktemp("docs")
    for patient in sorted(phantom_set.glob("*/*")):
        number = int(re.sub(r"\D", "", patient.name))
        split = "valid" if number % 4 == 1 else "test" if number % 4 == 2 else "train"
        shutil.copytree(patient, root / "chest_ct" / split / patient.parent.name / patient.name)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 48), np.uint8)).save(root / "scan.png")
    inputs = keras.Input((SIZE_PX, SIZE_PX, 3))
    features = keras.layers.Conv2D(4, 3, activation="relu", name="features")(inputs)
    outputs = keras.layers.Dense(4, activation="softmax")(keras.layers.GlobalAveragePooling2D()(features))
    keras.Model(inputs, outputs).save(root / "own.keras")
    # Weights files keep the trunk frozen: less to trace than --weights none.
    for name in ("MobileNetV2", "EfficientNetB0"):
        network = find_application(name)(include_top=False, weights=None, input_shape=(SIZE_PX, SIZE_PX, 3))
        network.save_weights(root / f"{name}.weights.h5")
    (root / "classes.txt").write_text("\n".join(phantoms.CLASSES))
    return root


@pytest.fixture
def place(given: Path, tmp_path: Path, monkeypatch) -> Path:
    """A working directory of a test's own, with what a reader has."""
    shutil.copytree(given, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_pages_with_snippets_are_those_that_are_run_here():
    assert [page.stem for page in PAGES if blocks(page.read_text(), "python")] == [
        *("bundle", "features", "python", "scoring"),
    ]


def test_training_and_scoring(place):
    """The commands of training.md in order, then those of scoring.md on what they made."""
    run_first_block(TRAINING, ["train", "train"])
    ways = three_ways(TRAINING)
    assert len(ways) == 3
    for number, way in enumerate(ways):
        command = ["features" if argument == "LAYER" else argument for argument in way]
        options = ["--data", "$DATA", "--out", f"runs/table-{number}"]
        if "--weights" not in command and "own.keras" not in command:
            options += ["--weights", "EfficientNetB0.weights.h5"]
        run([*command, *options, "--method", "probe"], {"DATA": "chest_ct"})  # the ways differ before any learning
    (export,) = [command for block in blocks(TRAINING, "bash") for command in commands(block) if command[0] == "export"]
    run(export, {})
    assert (place / "bundle/bundle.json").is_file()
    scoring = read("docs/scoring.md")
    run_first_block(scoring, ["score", "evaluate"])
    assert (place / "runs/article-valid/report.html").is_file()
    (snippet,) = blocks(scoring, "python")
    table = run_snippet(snippet)["table"]
    assert len(table) == len([path for path in (place / "chest_ct/valid").rglob("*") if path.is_file()])


def test_features_a_sweep_and_the_lines_that_read_them(place):
    shown = [command for block in blocks(FEATURES, "bash") for command in commands(block)]
    assert [command[0] for command in shown] == ["features", "sweep", "sweep"]
    assert shown[2] == [*shown[1], "--resume"]
    for command in shown[:2]:
        run(command, {"DATA": "chest_ct", "WEIGHTS": "MobileNetV2.weights.h5"})
    assert (place / "sweep/best/bundle/bundle.json").is_file()
    (snippet,) = blocks(FEATURES, "python")
    names = run_snippet(snippet)
    assert names["X"].shape == (64, 1696)
    assert names["X"].dtype == np.float16
    assert sorted(set(names["y"])) == sorted(phantoms.CLASSES)


def test_the_first_run_of_the_readme_and_its_bundle_without_tlray(place, capsys):
    run_first_block(README, ["train", "score"])
    assert (place / "runs/probe-scores/predictions.csv").is_file()
    capsys.readouterr()
    (snippet,) = blocks(read("docs/bundle.md"), "python")
    names = run_snippet(snippet)
    assert names["size_px"] == SIZE_PX
    assert np.sum(names["probs"]) == pytest.approx(1, abs=1e-5)
    shown = capsys.readouterr().out
    assert all(name in shown for name in phantoms.CLASSES)


def shrunk(function: Callable[[Any], Any], **small: Any) -> Callable[[Any], Any]:
    """Returns a function that takes the config of a snippet, and runs it with other settings."""
    return lambda config: function(dataclasses.replace(config, **small))


def test_python(place, monkeypatch, capsys):
    network = {"backbone": "MobileNetV2", "image_size_px": SIZE_PX, "weights": str(place / "MobileNetV2.weights.h5")}
    for name in ("train", "extract_features"):
        monkeypatch.setattr(tlray, name, shrunk(getattr(tlray, name), **network, quiet=True))
    snippets = blocks(read("docs/python.md"), "python")
    ran = [run_snippet(snippet) for snippet in snippets]
    used = {name for names in ran for name in names if name in tlray.__all__}
    assert used >= {"train", "score", "evaluate", "extract_features", "export", "Predictor", "RECIPES", "ConfigError"}
    assert ran[0]["result"].metrics["valid"]["num_images"] == 16
    assert ran[1]["result"].num_images - ran[1]["result"].num_failed == 16
    predicted = next(names["probs"] for names in ran if "probs" in names)
    assert predicted.shape == (1, 4)
    assert predicted.sum() == pytest.approx(1, abs=1e-5)
    assert (place / "own-bundle/bundle.json").is_file()
    assert "--batch-size 32 must be divisible by --num-workers 3, which share it" in capsys.readouterr().out
