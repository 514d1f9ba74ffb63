"""The model of a run before it is trained."""

import keras
import pytest

from tlray.bundle import store
from tlray.bundle.spec import BundleSpec
from tlray.config.training import TrainConfig
from tlray.models import backbone, devices
from tlray.training import model


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, "unit"), ({"preprocessing": "unit"}, "unit"), ({"weights": "imagenet"}, "symmetric")],
)
def test_the_network_of_a_bundle_gets_the_pixels_that_it_was_trained_on(tmp_path, monkeypatch, settings, expected):
    spec = BundleSpec(classes=("a", "b"), image_size_px=8, preprocessing="unit", backbone="b", weights="w")
    store.seal(str(tmp_path), spec)
    pixels = keras.Input((8, 8, 3))
    monkeypatch.setattr(backbone, "build_backbone", lambda _: keras.Model(pixels, keras.layers.Conv2D(2, 3)(pixels)))
    monkeypatch.setattr(devices, "use_cpus", lambda *_: None)  # this process has chosen already
    given = {"data": "d", "out": "o", "image_size_px": 8, "weights": str(tmp_path)} | settings
    built = model.build(TrainConfig(**given).resolved(), 2)
    assert built.preprocessing == expected
    scale = "0.00392" if expected == "unit" else "0.00784"  # 1 / 255, 2 / 255
    assert f'"scale": {scale}' in built.architecture
