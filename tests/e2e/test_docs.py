"""What README.md shows: every command of tlray there is run, on small images and with the least training."""

import ast
import importlib
import re
import shlex
import shutil
import string
import subprocess
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas
import pytest

from serve_app.options import Options
from tlray import cli
from tlray.config.commands import ServeConfig
from tlray.config.training import TrainConfig
from tlray.data import phantoms
from tlray.models.backbone import find_application
from tlray.training import run as training

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
AWS_BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "docs/aws.md").read_text(), re.DOTALL)

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


def commands(text: str) -> list[list[str]]:
    """The commands of tlray in a text, comments left out."""
    lines = [line.strip() for line in text.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("tlray ")]


def run(command: list[str], variables: dict[str, str]) -> None:
    arguments = [string.Template(argument).substitute(variables) for argument in command]
    small = SMALL[arguments[0]]
    if "--backbone" in arguments:  # the README's own choice stays
        small = small[2:]
    with pytest.raises(SystemExit) as exit_info:
        cli.main([*arguments, *small])
    assert exit_info.value.code == 0, arguments


@pytest.fixture(scope="module")
def place(phantom_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a reader of the README has: images in splits, and a model of one's own."""
    root = tmp_path_factory.mktemp("readme")
    for patient in sorted(phantom_set.glob("*/*")):
        number = int(re.sub(r"\D", "", patient.name))
        split = "valid" if number % 4 == 1 else "test" if number % 4 == 2 else "train"
        shutil.copytree(patient, root / "chest_ct" / split / patient.parent.name / patient.name)
    inputs = keras.Input((32, 32, 3))
    features = keras.layers.Conv2D(4, 3, activation="relu", name="features")(inputs)
    outputs = keras.layers.Dense(4, activation="softmax")(keras.layers.GlobalAveragePooling2D()(features))
    keras.Model(inputs, outputs).save(root / "own.keras")
    # Weights files keep the trunk frozen: less to trace than --weights none.
    for name in ("MobileNetV2", "EfficientNetB0"):
        network = find_application(name)(include_top=False, weights=None, input_shape=(32, 32, 3))
        network.save_weights(root / f"{name}.weights.h5")
    (root / "classes.txt").write_text("\n".join(phantoms.CLASSES))
    return root


@pytest.mark.usefixtures("local_ray")
def test_the_commands_in_order(place, monkeypatch):
    monkeypatch.chdir(place)
    (block,) = [block for block in BLOCKS if "tlray train article" in block]
    variables = {"DATA": str(place / "chest_ct"), "WEIGHTS": str(place / "MobileNetV2.weights.h5")}
    shown = commands(block)
    assert [command[0] for command in shown] == ["train", "train", "evaluate", "score"]
    for command in shown:
        run(command, variables)
    table = re.findall(r"\| `tlray (train .*?) \.\.\.` \|", README)
    assert len(table) == 3
    for number, text in enumerate(table):
        given = shlex.split(text.replace("[", "").replace("]", "").replace("LAYER", "features"))
        options = ["--data", "$DATA", "--out", f"runs/table-{number}"]
        if "--weights" not in given and "own.keras" not in given:
            options += ["--weights", "EfficientNetB0.weights.h5"]
        run([*given, *options], variables)
    (export,) = re.findall(r"`tlray (export .*?)`", README)
    run(shlex.split(export), variables)


@pytest.mark.usefixtures("local_ray")
def test_features_and_the_lines_that_read_them(place, monkeypatch):
    monkeypatch.chdir(place)
    find_application("MobileNetV2")(include_top=False, weights=None, input_shape=(32, 32, 3)).save_weights(
        "of.weights.h5"
    )
    (block,) = [block for block in BLOCKS if "tlray features" in block]
    for command in commands(block):
        run(command, {"DATA": str(place / "chest_ct"), "WEIGHTS": "MobileNetV2.weights.h5"})
    (block,) = [block for block in BLOCKS if "tlray sweep" in block]
    for command in commands(block):
        run(command, {"DATA": str(place / "chest_ct"), "WEIGHTS": "MobileNetV2.weights.h5"})
    assert (place / "sweep/best/bundle/bundle.json").is_file()
    (lines,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, Any] = {"pandas": pandas, "numpy": np}
    exec(lines, names)  # noqa: S102
    assert names["X"].shape == (64, 1696)
    assert names["X"].dtype == np.float16
    assert sorted(set(names["y"])) == sorted(phantoms.CLASSES)


def test_the_jobs_of_the_cluster(monkeypatch, capsys):
    """Their options are understood; there is no bucket here to run them on."""
    shown = re.findall(r"ray job submit .* -- python jobs/(\w+)\.py (.*)", README)
    assert [name for name, _ in shown] == ["train", "score"]
    configs: list[TrainConfig] = []

    def stop(config: TrainConfig) -> None:
        configs.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", stop)
    monkeypatch.setattr("tlray.inference.score.score", stop)
    for name, arguments in shown:
        assert (ROOT / "jobs" / f"{name}.py").is_file()
        assert cli.execute(name, shlex.split(arguments)) == cli.EXIT_INTERRUPTED
    assert configs[0].num_workers == 4
    assert configs[0].use_gpu
    assert "interrupted" in capsys.readouterr().err


def test_the_endpoint_is_started_as_shown(monkeypatch):
    """`test_start.py` runs it; here its options are understood, and its application is where it is said to be."""
    (block,) = [block for block in BLOCKS if "tlray serve" in block]
    ((_, *arguments),) = commands(block)
    configs: list[ServeConfig] = []

    def stop(config: ServeConfig) -> None:
        configs.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr("serve_app.foreground.started", stop)
    assert cli.execute("serve", arguments) == cli.EXIT_INTERRUPTED
    assert (configs[0].bundle, configs[0].port) == ("runs/standard/bundle", 8000)
    (application, variables) = re.findall(r"`serve run (\S+) (\S+)`", README)[0]
    module, name = application.split(":")
    options = Options.model_validate(dict([variables.split("=")]))
    assert getattr(importlib.import_module(module), name)(options)._bound_deployment.name == "Ingress"


@pytest.mark.parametrize("block", [*BLOCKS, *AWS_BLOCKS])
def test_every_block_is_shell(block):
    subprocess.run(["bash", "-n"], input=block, text=True, check=True)


def test_every_make_target_is_there():
    text = README + (ROOT / "CONTRIBUTING.md").read_text()
    targets = set(re.findall(r"(?:`|^ *)make (\w+)", text, re.MULTILINE))
    assert targets >= {"demo", "test", "bench", "lock"}
    for target in targets:
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def test_the_tree_names_every_package_and_what_passes_through_it():
    (tree,) = re.findall(r"```text\n(.*?)```", README, re.DOTALL)
    packages = [path.parent for name in ("tlray", "serve_app") for path in (ROOT / name).glob("*/__init__.py")]
    assert {path.name for path in packages if not re.search(rf"^  {path.name}/ ", tree, re.MULTILINE)} == set()
    assert len(packages) == len(re.findall(r"^  \w+/", tree, re.MULTILINE))
    assert {
        path.name for path in packages if not ast.get_docstring(ast.parse((path / "__init__.py").read_text()))
    } == set()
    assert len(README.splitlines()) < 250
