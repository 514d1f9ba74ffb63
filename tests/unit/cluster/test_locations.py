"""What is said of locations in a Ray job and on several nodes: no Ray runs here."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.cluster.test_plans import make_capacity
from tlray.bundle.spec import BundleSpec
from tlray.cluster import capacity, connection, locations, plans
from tlray.config.commands import FeaturesConfig, SweepConfig
from tlray.config.prediction import EvaluateConfig, ScoreConfig
from tlray.config.training import TrainConfig, to_json
from tlray.data import dataset, listing
from tlray.errors import ConfigError
from tlray.evaluation import evaluate
from tlray.features import update
from tlray.files import storage
from tlray.inference import score
from tlray.training import run as training
from tlray.tuning import search

SPEC = BundleSpec(classes=("a", "b"), image_size_px=8, preprocessing="unit", backbone="b", weights="w")


@pytest.fixture
def in_job(monkeypatch):
    """The environment of a Ray job's entry point."""
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")


@pytest.mark.parametrize("location", ["runs/a", "./a", "a"])
@pytest.mark.usefixtures("in_job")
def test_relative_output_in_a_job_is_refused(location):
    assert connection.in_job()
    with pytest.raises(
        ConfigError, match=f"--out {location} is relative: in a Ray job .* an absolute path .* or a URI"
    ):
        locations.output_location(location)


@pytest.mark.parametrize("location", ["/shared/a", "s3://bucket/a", "file:///shared/a"])
@pytest.mark.usefixtures("in_job")
def test_absolute_output_in_a_job(location):
    assert locations.output_location(location) == location
    assert locations.output_location(f"{location}/") == location


@pytest.mark.usefixtures("in_job")
def test_home_in_a_job(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert locations.output_location("~/a") == "/home/me/a"


def test_relative_output_outside_of_a_job(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.chdir(tmp_path)
    assert not connection.in_job()
    assert locations.output_location("runs/a") == os.path.join(tmp_path, "runs/a")


@pytest.mark.usefixtures("in_job")
def test_relative_input_is_seen_from_the_working_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert locations.input_location("data") == os.path.join(tmp_path, "data")
    assert locations.input_location("gs://bucket/data") == "gs://bucket/data"


@pytest.mark.parametrize("option", ["--out", "--bundle"])
def test_path_of_one_node_is_refused_on_several(option):
    many = make_capacity(has_many_nodes=True)
    with pytest.raises(ConfigError) as caught:
        locations.check_shared("/a b", many, option=option)
    assert str(caught.value) == (
        f"{option} /a b is a path on this node, and the cluster has others. Give a URI (s3://, gs://), or "
        "file:///a%20b if all nodes mount that path."
    )


@pytest.mark.parametrize(
    ("location", "many"), [("/a", False), ("s3://bucket/a", True), ("file:///a", True), ("file:///a", False)]
)
def test_shared_locations(location, many):
    locations.check_shared(location, make_capacity(has_many_nodes=many))
    locations.check_shared_images(location, None, make_capacity(has_many_nodes=many))


@pytest.mark.parametrize(
    ("uris", "by_path", "by_uri"),
    [
        (["s3://b/1.png", "file:///x/2.png"], None, None),
        (["s3://b/1.png", "2.png"], "{path}", None),
        (["s3://b/1.png", "/x/2.png", "/x/3.png"], "/x/2.png", "/x/2.png"),
        (["s3://b/1.png", "/x/a.zip!/2.png"], "/x/a.zip!/2.png", "/x/a.zip!/2.png"),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_of_a_manifest_what_it_lists_counts(tmp_path, suffix, uris, by_path, by_uri):
    path = str(tmp_path / f"list.{suffix}")
    if suffix != "parquet":
        lines = ["place,label", *(f"{uri},a" for uri in uris)]
        Path(path).write_text("\n".join(lines).replace(",", "\t" if suffix == "tsv" else ","))
    else:
        pq.write_table(pa.table({"place": uris}), path)
    many = make_capacity(has_many_nodes=True)
    for source, expected in ((path, by_path), (f"file://{path}", by_uri)):
        if expected is None:
            locations.check_shared_images(source, "uri=place", many)
            continue
        with pytest.raises(ConfigError) as caught:
            locations.check_shared_images(source, "uri=place", many)
        assert str(caught.value).startswith(f"--data {expected.format(path=path)} is a path on this node")


RUNS: dict[str, tuple[Callable[[Any], Any], type]] = {
    "train": (training.train, TrainConfig),
    "sweep": (search.sweep, SweepConfig),
    "features": (update.extract_features, FeaturesConfig),
    "score": (score.score, ScoreConfig),
    "evaluate": (evaluate.evaluate, EvaluateConfig),
}


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, str]]:
    """What each command is given, all of it as `file://` URIs, on a cluster of several nodes."""

    class Bundle:
        spec = SPEC
        sha256 = "aaa"

    for folder in (tmp_path / split / name for split in ("train", "valid", "test") for name in ("a", "b")):
        folder.mkdir(parents=True)
        for number in range(9):
            (folder / f"{number}.png").touch()
    monkeypatch.setattr(connection, "connect", lambda: None)
    monkeypatch.setattr(capacity, "measure", lambda: make_capacity(has_many_nodes=True))
    for module in (score.store, evaluate.store):
        monkeypatch.setattr(module, "read_spec", lambda _: (SPEC, "aaa"))
        monkeypatch.setattr(module, "load", lambda _: Bundle)
    data, out, bundle = (f"file://{tmp_path}/{name}" for name in ("", "out", "bundle"))
    training_locations = {"data": data, "out": out, "weights": "imagenet"}
    return {
        **dict.fromkeys(("train", "sweep", "features"), training_locations),
        "score": {"input": data, "out": out, "bundle": bundle},
        "evaluate": {"data": data, "out": out, "bundle": bundle},
    }


@pytest.mark.parametrize(
    ("command", "option"),
    [
        *((command, option) for command in ("train", "sweep", "features") for option in ("data", "out")),
        *(("score", option) for option in ("input", "out", "bundle")),
        *(("evaluate", option) for option in ("data", "out", "bundle")),
    ],
)
def test_every_command_refuses_a_path_of_one_node(given, tmp_path, command, option):
    run, config = RUNS[command]
    path = storage.absolute(given[command][option].removeprefix("file://"))
    with pytest.raises(ConfigError, match=f"--{option} {path} is a path on this node, and the cluster has others"):
        run(config(**(given[command] | {option: path})))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", RUNS)
def test_what_all_nodes_see_is_taken(given, monkeypatch, command):
    class ReachedError(Exception):
        """The command has come to where it plans its work."""

    def plan(*_: Any, **__: Any) -> None:
        raise ReachedError

    for name in ("plan_training", "plan_scoring"):
        monkeypatch.setattr(plans, name, plan)
    monkeypatch.setattr(search, "_try_settings", plan)
    run, config = RUNS[command]
    with pytest.raises(ReachedError):
        run(config(**given[command]))


def test_what_the_driver_alone_reads_may_be_its_own(given, monkeypatch, tmp_path):
    """Weights, a class map, and a manifest of URIs: the driver hands on what is in them."""

    class ReachedError(Exception):
        """The training has come to where it plans its work."""

    def plan(*_: Any, **__: Any) -> None:
        raise ReachedError

    monkeypatch.setattr(plans, "plan_training", plan)
    (tmp_path / "w.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    (tmp_path / "map.csv").write_text("name,class\nx,a\ny,b\n")
    rows = [f"s3://b/{label}{number}.png,{label}" for label in "xy" for number in range(9)]
    (tmp_path / "list.csv").write_text("\n".join(["uri,label", *rows]))
    changes = {name: str(tmp_path / file) for name, file in (("weights", "w.h5"), ("class_map", "map.csv"))}
    config = TrainConfig(**(given["train"] | changes | {"data": str(tmp_path / "list.csv")}))
    with pytest.raises(ReachedError):
        training.train(dataclasses.replace(config, quiet=True))


def test_a_continued_run_is_checked_by_the_images_that_it_has_stored(tmp_path):
    many, gone = make_capacity(has_many_nodes=True), str(tmp_path / "gone.csv")
    locations.check_shared_images(gone, None, many, stored_uris=["s3://b/1.png", "gs://b/2.png"])
    locations.check_shared_images("file:///images", None, many, stored_uris=["/images/1.png"])
    (tmp_path / "list.csv").write_text("uri\nfile:///images/1.png\n")
    locations.check_shared_images(str(tmp_path / "list.csv"), None, many, stored_uris=["/images/1.png"])
    for source in ("/images", gone):
        with pytest.raises(ConfigError, match=f"--data {source} is a path on this node"):
            locations.check_shared_images(source, None, many, stored_uris=["s3://b/1.png", "/images/1.png"])


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_a_run_is_continued_without_the_table_that_it_was_begun_with(given, monkeypatch, tmp_path, command):
    class ReachedError(Exception):
        """The run has come to where it plans its work."""

    def plan(*_: Any, **__: Any) -> None:
        raise ReachedError

    monkeypatch.setattr(plans, "plan_training", plan)
    monkeypatch.setattr(search, "_try_settings", plan)
    (tmp_path / "w.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    table = tmp_path / "list.csv"
    table.write_text(
        "\n".join(["uri,label", *(f"s3://b/{label}{number}.png,{label}" for label in "xy" for number in "12")])
    )
    run, make = RUNS[command]
    config = make(**(given[command] | {"data": str(table), "weights": str(tmp_path / "w.h5")}), quiet=True)
    listed = listing.list_images(config.data).table
    codes = pa.nulls(listed.num_rows, pa.string())
    dataset.write_dataset(dataset.Dataset(table=listed.append_column("error_code", codes), findings={}), config.out)
    absolute = {name: storage.absolute(getattr(config, name)) for name in ("data", "out", "weights")}
    begun = dataclasses.replace(config, **absolute)
    storage.write_text(f"{config.out}/config.json", to_json(begun.resolved() if command == "train" else begun))
    table.unlink()
    with pytest.raises(ReachedError):
        run(dataclasses.replace(config, resume=True))
