import dataclasses
import json
from types import SimpleNamespace

import pyarrow as pa
import pytest

from tlray import training
from tlray.config import Augmentation, TrainConfig, to_json


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
    if content is not None:
        (tmp_path / "metrics.json").write_text(json.dumps(content))
    config = TrainConfig(data="d", out=str(tmp_path), method=method, epochs=epochs)
    assert training._is_finished(config) is expected


def test_a_run_begun_by_an_earlier_version_is_continued(tmp_path):
    """Settings that it did not have yet count as the defaults."""
    config = TrainConfig(data="d", out=str(tmp_path), resume=True)
    known = {"data": "d", "out": str(tmp_path), "epochs": 12, "seed": 0}
    (tmp_path / "config.json").write_text(json.dumps(known))
    assert training._check_output(config)
    (tmp_path / "config.json").write_text(json.dumps(known | {"seed": 1}))
    with pytest.raises(ValueError, match="seed was 1 and is 0"):
        training._check_output(config)


def test_a_continued_run_may_ask_for_a_learning_curve(tmp_path):
    config = TrainConfig(data="d", out=str(tmp_path), method="lp-ft", resume=True)
    (tmp_path / "config.json").write_text(to_json(config))
    assert training._check_output(dataclasses.replace(config, learning_curve=True))


def test_a_divergence_is_told_by_its_epoch():
    rows = [{"epoch": epoch, "loss": loss, "num_replaced": 0.0} for epoch, loss in ((0, 0.4), (1, float("nan")))]
    assert training._training_warnings(rows)[0].startswith("Training diverged in epoch 1: ")


def test_a_run_whose_features_did_not_fit_goes_on_with_images(tmp_path):
    config = TrainConfig(data="d", out=str(tmp_path), method="lp-ft", resume=True)
    (tmp_path / "config.json").write_text(to_json(dataclasses.replace(config, cache="off", resume=False)))
    assert training._check_output(config)
    assert not training._was_cached(config)
    (tmp_path / "config.json").write_text(to_json(dataclasses.replace(config, resume=False)))
    assert training._was_cached(config)
    with pytest.raises(ValueError, match="cache was 'auto' and is 'off'"):
        training._check_output(dataclasses.replace(config, cache="off"))


@pytest.mark.parametrize(("views", "fits"), [(1, True), (2, False)])
def test_features_that_take_more_than_half_the_memory_are_not_kept(capsys, views, fits):
    augmentation = Augmentation(zoom=0.1)
    config = TrainConfig(data="d", out="o", method="lp-ft", trainable_layers=15, views=views, augmentation=augmentation)
    images = SimpleNamespace(readable=pa.table({"a": [0] * 10}), split=lambda _name: pa.table({"a": [0] * 8}))
    network = SimpleNamespace(bytes_per_row=100)  # 1,000 bytes in all; 800 for each further view
    capacity = SimpleNamespace(object_store_bytes=2000)
    assert training._fits(config, capacity, images, network) is fits  # pyright: ignore[reportArgumentType]
    assert ("images are read in every epoch instead" in capsys.readouterr().out) is not fits
    streamed = dataclasses.replace(config, cache="off")
    assert training._fits(streamed, capacity, images, network)  # pyright: ignore[reportArgumentType]
