"""What may be continued, and with which settings."""

import dataclasses
import json
from typing import Any

import pytest

from tests.unit.tuning.test_trial_table import FAILED, GOOD, LOSSES, NUM_IMAGES_G
from tlray.config.commands import SweepConfig
from tlray.config.training import TrainConfig, to_json
from tlray.errors import ConfigError
from tlray.files import storage
from tlray.training import paths, run
from tlray.training import resume as continuation
from tlray.tuning import search, trial_table


def check(config: TrainConfig | SweepConfig, free: frozenset[str] = frozenset()) -> dict[str, Any] | None:
    """The settings with which the run was begun; None: there is none to continue."""
    kind, names = (search.KIND, search.NAMES) if isinstance(config, SweepConfig) else (paths.KIND, paths.NAMES)
    return continuation.stored_settings(config, kind=kind, known_names=names, free=free)


@pytest.fixture(params=[TrainConfig, SweepConfig])
def config(request, tmp_path):
    """Of a run that is to be continued; its directory is not there."""
    return request.param(data="d", out=str(tmp_path / "out"), resume=True)


def begin(config: TrainConfig | SweepConfig) -> None:
    storage.write_text(f"{config.out}/config.json", to_json(dataclasses.replace(config, resume=False)))


def test_a_run_is_continued_with_its_own_settings(config, capsys):
    begin(config)
    assert check(config)
    assert check(dataclasses.replace(config, quiet=True))
    message = r"--resume needs the settings that the (training|sweep) in '.*/out' was started with: "
    with pytest.raises(ConfigError, match=message):
        check(dataclasses.replace(config, seed=5))
    assert check(dataclasses.replace(config, seed=5), free=frozenset({"seed"}))
    with pytest.raises(ConfigError, match=r"epochs was (30|4) and is 9; seed was 0 and is 5\. Give those, or another"):
        check(dataclasses.replace(config, seed=5, epochs=9))
    assert capsys.readouterr().out == ""


def test_settings_of_other_versions(config):
    """What is new counts as unchanged; what is gone was another run."""
    begin(config)
    path = f"{config.out}/config.json"
    settings = json.loads(storage.read_bytes(path))
    storage.write_text(path, json.dumps({name: settings[name] for name in ("data", "out", "epochs")}))
    assert check(config)
    storage.write_text(path, json.dumps(settings | {"folding": "old"}))
    with pytest.raises(ConfigError, match="folding was 'old' and is None"):
        check(config)


def test_where_there_is_nothing_to_resume_it_is_told(config, capsys):
    assert not check(config)
    kind = "sweep" if isinstance(config, SweepConfig) else "training"
    assert (
        capsys.readouterr().out == f"There is no {kind} to resume in '{config.out}', so it starts from the beginning.\n"
    )
    assert not check(dataclasses.replace(config, quiet=True))
    assert not check(dataclasses.replace(config, resume=False))
    assert capsys.readouterr().out == ""


def test_files_that_are_no_run_are_not_touched(config):
    storage.write_text(f"{config.out}/thesis.doc", "")
    for resume in (True, False):
        with pytest.raises(ConfigError, match="is not empty"):
            check(dataclasses.replace(config, resume=resume))
    begin(config)
    with pytest.raises(ConfigError, match="is not empty"):
        check(dataclasses.replace(config, resume=False))


def begin_before_priors(config: TrainConfig | SweepConfig) -> None:
    """Begins a run as a version of tlray did that had no --prior."""
    begin(config)
    path = f"{config.out}/config.json"
    settings = json.loads(storage.read_bytes(path))
    del settings["prior"]
    storage.write_text(path, json.dumps(settings))


@pytest.mark.parametrize(
    ("class_weights", "checkpoint", "begin_run", "message"),
    [
        (True, "checkpoint_2026-11-28_10-00-00", begin_before_priors, "validation losses with class weights cannot be"),
        (False, "checkpoint_2026-11-28_10-00-00", begin_before_priors, "There are no weights at"),
        (True, "checkpoint_manager_snapshot.json", begin_before_priors, "There are no weights at"),
        (True, "checkpoint_2026-11-28_10-00-00", begin, "There are no weights at"),
    ],
)
def test_a_training_with_losses_of_another_kind_is_not_continued(
    tmp_path, class_weights, checkpoint, begin_run, message
):
    """Others come as far as the next check: the weights, which are not there."""
    settings: dict[str, Any] = {"data": str(tmp_path), "out": str(tmp_path / "out"), "weights": str(tmp_path / "w.h5")}
    config = TrainConfig(**settings, class_weights=class_weights, resume=True)
    begin_run(config.resolved())
    storage.write_text(f"{config.out}/checkpoints/{checkpoint}/state.npz", "")
    with pytest.raises(ConfigError, match=message):
        run.train(config)


@pytest.mark.parametrize(
    ("trials", "begin_run", "message"),
    [
        ([GOOD], begin_before_priors, "validation losses with class weights cannot be"),
        ([FAILED], begin_before_priors, "There are no weights at"),
        ([GOOD], begin, "There are no weights at"),
    ],
)
def test_a_sweep_with_losses_of_another_kind_is_not_continued(tmp_path, trials, begin_run, message):
    settings: dict[str, Any] = {"data": str(tmp_path), "out": str(tmp_path / "out"), "weights": str(tmp_path / "w.h5")}
    config = SweepConfig(**settings, resume=True)
    begin_run(config)
    trial_table.write_trials(config.out, trials, LOSSES, NUM_IMAGES_G)
    with pytest.raises(ConfigError, match=message):
        search.sweep(config)


def test_a_sweep_in_int8_without_nncf_is_refused_before_its_trials(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"--int8 needs NNCF: pip install 'tlray\[int8\]'\."):
        search.sweep(SweepConfig(data=str(tmp_path), out=str(tmp_path / "out"), int8=True))
    assert not (tmp_path / "out").exists()


def test_a_sweep_is_continued_with_an_int8_model_and_the_times(tmp_path):
    """It comes as far as the next check: the weights, which are not there."""
    settings: dict[str, Any] = {"data": str(tmp_path), "out": str(tmp_path / "out"), "weights": str(tmp_path / "w.h5")}
    config = SweepConfig(**settings)
    begin(config)
    with pytest.raises(ConfigError, match="There are no weights at"):
        search.sweep(dataclasses.replace(config, resume=True, int8=True, timing=True))


def test_a_continued_run_keeps_the_settings_that_are_new(config):
    """Those of the first continuation hold for the next ones."""
    begin_before_priors(config)
    before = check(dataclasses.replace(config, prior="uniform"))
    assert before is not None
    location = f"{config.out}/config.json"
    continuation.keep_new_settings(dataclasses.replace(config, prior="uniform"), before, location)
    assert json.loads(storage.read_bytes(location))["prior"] == "uniform"
    with pytest.raises(ConfigError, match="prior was 'uniform' and is 'train'"):
        check(config)


def test_a_continued_run_keeps_the_settings_that_may_differ(config):
    begin(config)
    changed = dataclasses.replace(config, epochs=40, max_error=0.02, quiet=True)
    before = check(changed, free=frozenset({"epochs", "max_error"}))
    assert before is not None
    location = f"{config.out}/config.json"
    continuation.keep_new_settings(changed, before, location)
    # How the command was called is no setting of the run.
    assert json.loads(storage.read_bytes(location)) == before | {"epochs": 40, "max_error": 0.02}
    assert check(changed)
