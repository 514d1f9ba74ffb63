"""The Python snippets of README and docs/ are run, on small images and with a small network.

`tests/unit/test_docs.py` parses every command. Each kind of command is run by the test of what it does: `train` by
`test_pipeline.py` (`--weights none`, an earlier bundle), `test_probe.py` (recipes probe and standard, `--resume`,
`--learning-curve`) and `test_jobs.py` (recipe article, a weights file, as a job), `score`, `evaluate` and
`engines` by `test_pipeline.py`, `features` here, `sweep` by `test_sweep_faults.py`, `export` by `test_serving.py`,
`serve` by `test_start.py`, `suggest` by `tests/ray/test_suggest.py`. Not run are benchmarks, and commands of AWS: there
is no account here.
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
from tests.pages import PAGES, blocks, commands, read
from tlray import cli
from tlray.data import phantoms

pytestmark = pytest.mark.usefixtures("local_ray")

SIZE_PX = 32
NETWORK = {"backbone": "own.keras", "preprocessing": "unit", "cut": "features", "image_size_px": SIZE_PX}


@pytest.fixture
def place(phantom_set: Path, tmp_path: Path, monkeypatch) -> Path:
    """A working directory with what a reader has: images in splits, one image, and a model of one's own."""
    for patient in sorted(phantom_set.glob("*/*")):
        number = int(re.sub(r"\D", "", patient.name))
        split = "valid" if number % 4 == 1 else "test" if number % 4 == 2 else "train"
        shutil.copytree(patient, tmp_path / "chest_ct" / split / patient.parent.name / patient.name)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 48), np.uint8)).save(tmp_path / "scan.png")
    keras.utils.set_random_seed(6)
    inputs = keras.Input((SIZE_PX, SIZE_PX, 3))
    x = keras.layers.Conv2D(4, 3, strides=2, activation="relu")(inputs)
    x = keras.layers.Conv2D(6, 3, activation="relu", name="features")(x)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(5, 3, activation="relu")(x))
    keras.Model(inputs, keras.layers.Dense(4, activation="softmax")(x)).save(tmp_path / "own.keras")
    (tmp_path / "classes.txt").write_text("\n".join(phantoms.CLASSES))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_snippet(snippet: str) -> dict[str, Any]:
    """Runs a Python snippet by itself and returns its names."""
    names: dict[str, Any] = {}
    exec(snippet, names)  # noqa: S102
    return names


def shrunk(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Returns a function that takes the config of a snippet, and runs it with the small network."""
    return lambda config: function(dataclasses.replace(config, **NETWORK, quiet=True))


def run_features(page: str) -> None:
    """Runs the first command of a page with the small network."""
    name, *arguments = next(found for block in blocks(page, "bash") for found in commands(block))
    assert name == "features"
    for option, value in NETWORK.items():
        arguments += [f"--{option.replace('_', '-')}", str(value)]
    variables = {"DATA": "chest_ct", "WEIGHTS": "imagenet"}
    filled = [string.Template(argument).substitute(variables) for argument in arguments]
    assert cli.execute(name, [*filled, "--quiet"]) == 0


def test_the_pages_with_snippets_are_those_that_are_run_here():
    assert [page.stem for page in PAGES if blocks(page.read_text(), "python")] == [
        *("bundle", "features", "python", "scoring"),
    ]


def test_the_snippets_run(place, monkeypatch, capsys):
    """Those of python.md make a bundle, scores and features; those of the other pages read them."""
    features = read("docs/features.md")
    run_features(features)
    for name in ("train", "extract_features"):
        monkeypatch.setattr(tlray, name, shrunk(getattr(tlray, name)))
    ran = [run_snippet(snippet) for snippet in blocks(read("docs/python.md"), "python")]
    used = {name for names in ran for name in names if name in tlray.__all__}
    assert used >= {"train", "score", "evaluate", "extract_features", "export", "Predictor", "RECIPES", "ConfigError"}
    assert ran[0]["result"].metrics["valid"]["num_images"] == 16
    assert ran[1]["result"].num_images - ran[1]["result"].num_failed == 16
    predicted = next(names["probs"] for names in ran if "probs" in names)
    assert predicted.shape == (1, 4)
    assert predicted.sum() == pytest.approx(1, abs=1e-5)
    extracted = next(names["result"] for names in ran if "extract_features" in names)
    assert extracted.num_reused == extracted.num_rows == 64  # those of the command
    assert (place / "own-bundle/bundle.json").is_file()
    assert (place / "runs/probe-scores/predictions.csv").is_file()
    assert "--batch-size 32 must be divisible by --num-workers 3, which share it" in capsys.readouterr().out

    (snippet,) = blocks(features, "python")
    names = run_snippet(snippet)
    assert names["X"].shape == (64, 10)
    assert names["X"].dtype == np.float16
    assert sorted(set(names["y"])) == sorted(phantoms.CLASSES)

    (snippet,) = blocks(read("docs/bundle.md"), "python")
    names = run_snippet(snippet)
    assert names["size_px"] == SIZE_PX
    assert np.sum(names["probs"]) == pytest.approx(1, abs=1e-5)
    shown = capsys.readouterr().out
    assert all(name in shown for name in phantoms.CLASSES)

    shutil.copytree(place / "runs/probe-scores", place / "runs/article-scores")  # the page has another name for it
    (snippet,) = blocks(read("docs/scoring.md"), "python")
    table = run_snippet(snippet)["table"]
    assert len(table) == len([path for path in (place / "chest_ct/valid").rglob("*") if path.is_file()])
