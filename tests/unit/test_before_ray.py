"""Mistakes that need no Ray are told before one is started, and nothing has been touched then."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.unit.cluster.test_plans import make_capacity
from tlray.bundle import store
from tlray.bundle.spec import BundleSpec
from tlray.cluster import connection
from tlray.config.commands import AuditConfig, FeaturesConfig, SweepConfig
from tlray.config.prediction import EvaluateConfig, ScoreConfig
from tlray.config.recipes import article
from tlray.config.training import TrainConfig, to_json
from tlray.data import dataset, inspection, listing
from tlray.errors import ConfigError, DataError, TlrayError
from tlray.evaluation import data_audit, evaluate
from tlray.features import update
from tlray.files import storage
from tlray.inference import score
from tlray.training import model
from tlray.training import run as training
from tlray.training.prepare import read_and_build
from tlray.tuning import search

RUNS: dict[str, tuple[Callable[[Any], Any], type]] = {
    "train": (training.train, TrainConfig),
    "sweep": (search.sweep, SweepConfig),
    "features": (update.extract_features, FeaturesConfig),
}


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    def connect() -> None:
        pytest.fail("Ray was started.")

    monkeypatch.setattr(connection, "connect", connect)


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
        ({"weights": "DATA/a/1.png"}, "is not a Keras weights file"),
        ({"weights": "DATA/a"}, "is a folder but not a bundle of tlray"),
        ({"data": "DATA/nowhere"}, "There is no file or folder"),
    ],
)
def test_what_is_wrong_with_a_run(given, command, mistake, message):
    run, config = RUNS[command]
    changes = {name: value.replace("DATA", given["data"]) for name, value in mistake.items()}
    with pytest.raises(TlrayError, match=message):
        run(config(**(given | changes)))
    assert not storage.exists(given["out"])


@pytest.mark.parametrize("command", [*RUNS, "audit", "article"])
def test_a_bundle_that_was_trained_on_other_pixels_is_refused(given, tmp_path, command):
    """The recipe article names the pixels by itself."""
    spec = BundleSpec(classes=("a", "b"), image_size_px=8, preprocessing="symmetric", backbone="b", weights="w")
    store.seal(str(tmp_path / "bundle"), spec)
    given |= {"weights": str(tmp_path / "bundle"), "preprocessing": "unit"}
    runs: dict[str, tuple[Callable[[Any], Any], Callable[..., Any]]] = {
        **RUNS,
        "audit": (data_audit.audit_images, AuditConfig),
        "article": (training.train, lambda **settings: dataclasses.replace(article("d", "o"), **settings)),
    }
    run, make_config = runs[command]
    config = make_config(**given)
    with pytest.raises(ConfigError, match=r"unit\. Give --preprocessing symmetric\.$"):
        run(config)
    assert not storage.exists(given["out"])


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_a_run_is_not_resumed_with_other_settings(given, command):
    run, kind = RUNS[command]
    config = kind(**given)
    begun = config.resolved() if isinstance(config, TrainConfig) else config
    storage.write_text(f"{config.out}/config.json", to_json(begun))
    kind = "sweep" if command == "sweep" else "training"
    with pytest.raises(ConfigError, match=f"--resume needs the settings that the {kind} in .* was started with"):
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


@pytest.mark.parametrize(("out", "message"), [("DATA", "is not empty"), ("DATA/../new", "is not a bundle")])
def test_what_is_wrong_with_a_bundle_or_its_output(given, out, message):
    out = out.replace("DATA", given["data"])
    with pytest.raises(TlrayError, match=message):
        evaluate.evaluate(EvaluateConfig(bundle=given["data"], data=given["data"], out=out))
    with pytest.raises(TlrayError, match="is not a bundle"):
        score.score(ScoreConfig(bundle=given["data"], input=given["data"], out=out))


def test_what_fails_beside_the_reading_ends_it(monkeypatch, tmp_path):
    read = []

    def inspect(table: pa.Table, *, known: pa.Table | None, task_cpus: float) -> Any:
        assert known is None
        for number in range(table.num_rows):
            read.append((number, task_cpus))
            yield pa.Table.from_pylist([{}], schema=inspection.INSPECTED_SCHEMA)

    def fail_later() -> None:
        if len(read) == 2:
            raise ConfigError("The weights do not fit.")

    monkeypatch.setattr(inspection, "inspect_images", inspect)
    with pytest.raises(ConfigError, match="do not fit"):
        dataset.read_images(
            pa.table({"uri": ["a"] * 5}),
            out=str(tmp_path / "out"), kind="run", task_cpus=0.65, meanwhile=fail_later, quiet=True,
        )  # fmt: skip
    assert read == [(0, 0.65), (1, 0.65)]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("command", "names", "message"),
    [
        ("train", ["a/1.png", "a/2.png"], r"needs at least two classes; .* have 'a'"),
        ("train", ["train/a/1.png", "test/b/1.png"], "no readable training image of 'b'"),
        ("train", ["a/1.png", "b/1.png"], "no readable, labelled validation image"),
        (
            "sweep",
            ["a/1.png", "a/2.png", "b/1.png", "b/2.png"],
            r"of only 2 patients .* too few for --num-folds 3",
        ),
        # Of three patients one is for testing.
        ("sweep", [f"{c}/{c}{p}/{n}.png" for c in "ab" for p in (1, 2, 3) for n in range(9)], "of only 2 patients"),
    ],
)
def test_what_the_listing_shows_is_not_looked_for_in_the_images(given, tmp_path, command, names, message):
    data = tmp_path / "other"
    for name in names:
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).touch()
    run, config = RUNS[command]
    with pytest.raises(DataError, match=message):
        run(config(**(given | {"data": str(data)})))
    assert not storage.exists(given["out"])


@pytest.fixture
def listed(tmp_path) -> listing.Listing:
    """8 training and 2 validation images, a broken one among the first, each with a file beside it that is none."""
    for split, count in (("train", 4), ("valid", 1)):
        for label in "ab":
            folder = tmp_path / "listed" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number}.png").touch()
                (folder / f"{number}.json").touch()
    return listing.list_images(str(tmp_path / "listed"))


@pytest.mark.parametrize(("built_after", "num_read"), [(0, 1), (3, 4)])
def test_what_does_not_fit_is_refused_before_all_images_are_read(monkeypatch, listed, tmp_path, built_after, num_read):
    """10 of 20 files are named like images, and one of each class is cut for testing. The model takes a while."""
    config = TrainConfig(data="d", out=str(tmp_path / "out"), quiet=True)
    prepared = model.Untrained(architecture="", weights=[], preprocessing="")
    read, asked = [], []

    def inspect(table: pa.Table, **_: Any) -> Any:
        for row in table.to_pylist():
            read.append(row)
            yield pa.Table.from_pylist([{}], schema=inspection.INSPECTED_SCHEMA)

    def refuse(images: dataset.Dataset, model: model.Untrained) -> None:
        assert model is prepared
        asked.append((images.split("train").num_rows, images.split("valid").num_rows, images.classes))
        raise ConfigError("Too large.")

    monkeypatch.setattr(connection, "start_here", lambda *_: "reference")
    monkeypatch.setattr(connection, "is_done", lambda _: len(read) > built_after)
    monkeypatch.setattr(connection, "get", lambda _: prepared)
    monkeypatch.setattr(inspection, "inspect_images", inspect)
    with pytest.raises(ConfigError, match="Too large"):
        read_and_build(config, listed, make_capacity(), kind="run", refuse=refuse)
    assert (len(read), asked) == (num_read, [(8 - 2, 2, ("a", "b"))])


def test_images_are_counted_by_their_names_only_where_they_have_such(listed):
    config = TrainConfig(data="d", out="o")
    names = listed.table["uri"].to_pylist()
    bare = listed.table.set_column(1, "uri", pa.array([name.removesuffix(".png") for name in names]))
    assert dataset.as_listed(config, listing.Listing(table=bare, num_skipped=0)) is None
    found = dataset.as_listed(config, listed)
    assert found is not None
    assert found.readable.num_rows == 10
