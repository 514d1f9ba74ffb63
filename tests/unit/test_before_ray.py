"""Mistakes that need no Ray are told before one is started, and nothing has been touched then."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tlray import cluster, dataset, evaluation, features, scoring, storage, streams, sweep, training
from tlray.config import TrainConfig, to_json
from tlray.errors import ConfigError, TlrayError
from tlray.jobconfig import EvaluateConfig, FeaturesConfig, ScoreConfig, SweepConfig

RUNS: dict[str, tuple[Callable[[Any], Any], type]] = {
    "train": (training.train, TrainConfig),
    "sweep": (sweep.sweep, SweepConfig),
    "features": (features.extract, FeaturesConfig),
}


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    def connect() -> None:
        pytest.fail("Ray was started.")

    monkeypatch.setattr(cluster, "connect", connect)


@pytest.fixture
def given(tmp_path: Path) -> dict[str, str]:
    """What would do: two classes of images, of which listing needs the names alone, and a weights file."""
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "1.png").touch()
    (tmp_path / "w.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    return {"data": str(tmp_path / "data"), "out": str(tmp_path / "out"), "weights": str(tmp_path / "w.h5")}


@pytest.mark.parametrize("command", RUNS)
@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ({"out": "DATA"}, "is not empty"),
        ({"weights": "DATA/nothing.h5"}, "There are no weights at"),
        ({"weights": "DATA/a/1.png"}, "is no Keras weights file"),
        ({"weights": "DATA/a"}, "is a folder and no bundle of tlray"),
        ({"data": "DATA/nowhere"}, "There is no file or folder"),
    ],
)
def test_what_is_wrong_with_a_run(given, command, mistake, message):
    run, config = RUNS[command]
    changes = {name: value.replace("DATA", given["data"]) for name, value in mistake.items()}
    with pytest.raises(TlrayError, match=message):
        run(config(**(given | changes)))
    assert not storage.exists(given["out"])


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_a_run_is_not_resumed_with_other_settings(given, command):
    run, kind = RUNS[command]
    config = kind(**given)
    begun = config.resolved() if isinstance(config, TrainConfig) else config
    storage.write_text(f"{config.out}/config.json", to_json(begun))
    with pytest.raises(ConfigError, match=f"continues the {run.__name__ if command == 'sweep' else 'training'} in"):
        run(dataclasses.replace(config, resume=True, seed=7))


def test_a_finished_run_is_told_without_a_ray(given):
    config = TrainConfig(**given, epochs=3)
    storage.write_text(f"{config.out}/config.json", to_json(config.resolved()))
    content = '{"epochs": 3, "num_epochs": 2, "best_epoch": 1, "splits": {}}'
    storage.write_text(f"{config.out}/metrics.json", content)
    result = training.train(dataclasses.replace(config, resume=True))
    assert (result.num_epochs, result.best_epoch) == (2, 1)
    assert result.warnings == ("The run had already finished: nothing was done.",)
    storage.write_text(f"{config.out}/metrics.json", content.replace("{", '{"warnings": ["Look out."], ', 1))
    result = training.train(dataclasses.replace(config, resume=True))
    assert result.warnings == ("Look out.", "The run had already finished: nothing was done.")


@pytest.mark.parametrize(("out", "message"), [("DATA", "is not empty"), ("DATA/../new", "is no bundle")])
def test_what_is_wrong_with_a_bundle_or_its_output(given, out, message):
    out = out.replace("DATA", given["data"])
    with pytest.raises(TlrayError, match=message):
        evaluation.evaluate(EvaluateConfig(bundle=given["data"], data=given["data"], out=out))
    with pytest.raises(TlrayError, match="is no bundle"):
        scoring.score(ScoreConfig(bundle=given["data"], input=given["data"], out=out))


def test_what_fails_beside_the_reading_ends_it(monkeypatch):
    read = []

    def inspect(table: pa.Table, *, task_cpus: float) -> Any:
        for number in range(table.num_rows):
            read.append((number, task_cpus))
            yield table.slice(number, 1)

    def fail_later() -> None:
        if len(read) == 2:
            raise ConfigError("The weights do not fit.")

    monkeypatch.setattr(streams, "inspect_images", inspect)
    with pytest.raises(ConfigError, match="do not fit"):
        dataset.read_images(pa.table({"uri": ["a"] * 5}), task_cpus=0.65, meanwhile=fail_later, quiet=True)
    assert read == [(0, 0.65), (1, 0.65)]
