import dataclasses
import json
from typing import Any

import pyarrow as pa
import pytest

from tlray.cluster.capacity import Capacity
from tlray.config import recipes
from tlray.config.training import Augmentation, TrainConfig, to_json
from tlray.data.dataset import Dataset
from tlray.engines.kinds import REFERENCE
from tlray.engines.networks import KerasNetwork, Packed
from tlray.errors import ConfigError
from tlray.features.preparation import Network
from tlray.training import begin, probing, wording
from tlray.training.paths import RunPaths
from tlray.training.stages import Begun

NETWORK = Network(  # 100 bytes an image
    packed=Packed(network=KerasNetwork(architecture="", weights=[]), kind=REFERENCE),
    names=["pooled"],
    shapes=[(50,)],
    fingerprint="",
)


def make_capacity(**changes: Any) -> Capacity:
    settings = {"num_cpus": 2, "num_gpus": 0, "nodes": ((2, 0),), "has_many_nodes": False, "memory_bytes": 1e9}
    settings |= {"object_store_bytes": 1000, "smallest_object_store_bytes": 1000}
    return Capacity(**(settings | changes))


def make_images() -> Dataset:
    """10 images, of which 8 are for training."""
    splits = ["train"] * 8 + ["valid"] * 2
    rows = [{"label": "ab"[place % 2], "split": split, "error_code": None} for place, split in enumerate(splits)]
    return Dataset(table=pa.Table.from_pylist(rows), findings={})


@pytest.mark.parametrize(
    ("method", "epochs", "content", "expected"),
    [
        ("fine-tune", 30, {"epochs": 30, "num_epochs": 30}, True),
        ("fine-tune", 30, {"epochs": 30, "num_epochs": 26}, True),  # early stopping
        ("fine-tune", 31, {"epochs": 30, "num_epochs": 30}, False),
        ("fine-tune", 10, {"epochs": 30, "num_epochs": 26}, True),
        ("probe", 30, {"epochs": 30, "num_epochs": 0}, True),
        ("fine-tune", 30, None, False),
    ],
)
def test_when_a_run_is_finished(tmp_path, method, epochs, content, expected):
    config = TrainConfig(data="d", out=str(tmp_path), method=method, epochs=epochs)
    result = {"num_epochs": 0, "best_epoch": 0, "splits": {}}
    if content is not None:
        (tmp_path / "metrics.json").write_text(json.dumps(result | content))
    assert (begin.finished_result(config, RunPaths(config.out)) is not None) is expected


def test_a_run_begun_by_an_earlier_version_is_continued(tmp_path):
    """Settings that it did not have yet count as the defaults."""
    config = TrainConfig(data="d", out=str(tmp_path), resume=True)
    known = {"data": "d", "out": str(tmp_path), "epochs": 12, "seed": 0}
    (tmp_path / "config.json").write_text(json.dumps(known))
    assert begin.stored_settings(config) == known
    (tmp_path / "config.json").write_text(json.dumps(known | {"seed": 1}))
    with pytest.raises(ValueError, match="seed was 1 and is 0"):
        begin.stored_settings(config)


def test_a_continued_run_may_ask_for_a_learning_curve(tmp_path):
    config = TrainConfig(data="d", out=str(tmp_path), method="lp-ft", resume=True)
    (tmp_path / "config.json").write_text(to_json(config))
    assert begin.stored_settings(dataclasses.replace(config, learning_curve=True))


def test_a_divergence_is_told_by_its_epoch():
    rows = [{"epoch": epoch, "loss": loss, "num_replaced": 0.0} for epoch, loss in ((0, 0.4), (1, float("nan")))]
    assert wording.training_warnings(rows)[0].startswith("Training diverged in epoch 1 (its loss is not a number)")


def test_a_run_whose_features_did_not_fit_goes_on_with_images(tmp_path, monkeypatch):
    monkeypatch.setattr(begin.dataset, "stored_dataset", lambda _: make_images())
    config = TrainConfig(data="d", out=str(tmp_path), weights="none", method="lp-ft", resume=True)
    for cache in ("off", "auto"):
        stored = dataclasses.replace(config.resolved(), data="/d", cache=cache, resume=False)
        (tmp_path / "config.json").write_text(to_json(stored))
        begun = begin.resume_or_begin(dataclasses.replace(config, data="/d"))
        assert isinstance(begun, Begun)
        assert begun.config.cache == cache
    with pytest.raises(ValueError, match="cache was 'auto' and is 'off'"):
        begin.resume_or_begin(dataclasses.replace(config, data="/d", cache="off"))


def test_a_run_with_views_whose_features_did_not_fit_goes_on_with_images(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(begin.dataset, "stored_dataset", lambda _: make_images())
    config = TrainConfig(
        data="/d", out=str(tmp_path), method="lp-ft", views=3, augmentation=Augmentation(zoom=0.1), resume=True
    )
    stored = config.resolved().streamed()
    assert (stored.cache, stored.views) == ("off", 1)
    (tmp_path / "config.json").write_text(to_json(stored))
    begun = begin.resume_or_begin(config)
    assert isinstance(begun, Begun)
    assert (begun.config.cache, begun.config.views) == ("off", 1)
    told = "The run was begun without stored features, so that --views 3 is not used.\n"
    assert capsys.readouterr().out == told
    begin.resume_or_begin(dataclasses.replace(config, quiet=True))
    begin.resume_or_begin(dataclasses.replace(config, views=1))
    assert capsys.readouterr().out == ""
    (tmp_path / "config.json").write_text(to_json(config.resolved()))
    with pytest.raises(ConfigError, match="views was 3 and is 2"):
        begin.resume_or_begin(dataclasses.replace(config, views=2))


def test_settings_that_an_earlier_version_took_and_did_not_use_may_be_left_out(tmp_path):
    config = TrainConfig(data="d", out=str(tmp_path), method="probe", resume=True)
    before = json.loads(to_json(config)) | {"dropout": 0.5, "hidden_units": [8], "views": 2}
    (tmp_path / "config.json").write_text(json.dumps(before))
    assert begin.stored_settings(config) == before
    (tmp_path / "config.json").write_text(json.dumps(before | {"depths": 3}))
    with pytest.raises(ConfigError, match=r"with: depths was 3 and is 5\. Give"):
        begin.stored_settings(config)


@pytest.mark.parametrize(("views", "fits"), [(1, True), (2, False)])
def test_features_that_take_more_than_half_the_memory_of_a_node_are_not_kept(views, fits):
    augmentation = Augmentation(zoom=0.1)
    config = TrainConfig(data="d", out="o", method="lp-ft", trainable_layers=15, views=views, augmentation=augmentation)
    # Two nodes: each gets all of the features.
    capacity = make_capacity(object_store_bytes=5000, smallest_object_store_bytes=2000)
    assert probing.fits_cache(config, capacity, make_images(), NETWORK) is fits
    as_probe = dataclasses.replace(config, method="probe", views=1)
    assert probing.fits_cache(as_probe, capacity, make_images(), NETWORK)


def test_a_probe_that_does_not_fit_into_memory_is_refused():
    """8 training images of 50 features, 32 bytes each with two classes: 12,800 bytes."""
    config = TrainConfig(data="d", out="o", method="probe")
    probing.check_memory(config, make_capacity(memory_bytes=12_800), make_images(), NETWORK)
    network = dataclasses.replace(NETWORK, shapes=[(50_000_000,)])
    message = (
        "A linear probe on 8 training images with 50000000 features each would take 12.8 GB, and this node has 12.7 GB "
        "besides Ray's object store. Give fewer --depths, fewer images or more memory, or --method fine-tune"
    )
    with pytest.raises(ConfigError, match=message):
        probing.check_memory(config, make_capacity(memory_bytes=12.7e9), make_images(), network)


def test_what_becomes_of_features_that_do_not_fit():
    config = TrainConfig(data="d", out="o", method="lp-ft", trainable_layers=15, augmentation=Augmentation(zoom=0.1))
    capacity = make_capacity(object_store_bytes=int(5e9), smallest_object_store_bytes=int(2e9))
    network = dataclasses.replace(NETWORK, shapes=[(5, 10_000_000)])
    assert wording.describe_misfit(config, capacity, make_images(), network) == (
        "The stored features for training would take 1.0 GB, more than half of Ray's object store (2.0 GB on its "
        "smallest node). Training uses images that are read and augmented in every epoch instead."
    )
    several = wording.describe_misfit(dataclasses.replace(config, views=3), capacity, make_images(), network)
    assert several.endswith(" images that are read and augmented in every epoch instead, without --views 3.")


AUGMENTATION = Augmentation(zoom=0.125)
UNUSED = "The augmentation is not used: training is on stored features of the images as they are, without augmentation."


@pytest.mark.parametrize(
    ("name", "changes", "remedy"),
    [
        ("standard", {}, "--views V, or --cache off."),
        ("probe", {}, "--method lp-ft with --views V."),
        ("standard", {"views": 2}, None),
        ("standard", {"cache": "off"}, None),
        ("standard", {"trainable_layers": "all"}, None),
        ("standard", {"weights": "none"}, None),
        ("standard", {"augmentation": recipes.standard("d", "o").augmentation}, None),  # not the users
        ("article", {"method": "probe", "augmentation": recipes.article("d", "o").augmentation}, None),
        ("standard", {"augmentation": Augmentation()}, None),
        ("article", {}, None),
    ],
)
def test_it_is_told_where_an_augmentation_of_the_user_is_not_used(name, changes, remedy):
    config = dataclasses.replace(recipes.RECIPES[name]("d", "o"), **({"augmentation": AUGMENTATION} | changes))
    assert wording.unused_augmentation(config.resolved()) == (f"{UNUSED} Give {remedy}" if remedy else None)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"method": "probe"}, "stored features of the images as they are, without augmentation"),
        ({}, "stored features of the images as they are, without augmentation"),
        ({"views": 3}, "stored features of 3 views of each image: as it is, and augmented"),
        ({"cache": "off"}, "images that are read and augmented in every epoch"),
        ({"trainable_layers": "all"}, "images that are read and augmented in every epoch"),
        ({"method": "fine-tune"}, "images that are read and augmented in every epoch"),
        (
            {"method": "fine-tune", "augmentation": Augmentation()},
            "images that are read in every epoch, without augmentation",
        ),
    ],
)
def test_the_report_says_what_was_trained_on(changes, expected):
    config = dataclasses.replace(recipes.standard("d", "o"), **changes).resolved()
    assert wording.trained_on(config) == expected
