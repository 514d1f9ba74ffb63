from typing import Any

import keras
import numpy as np
import pytest

from tlray.config.commands import ExportConfig
from tlray.errors import ConfigError
from tlray.inference.predictor import Predictor
from tlray.training.own_model import export


def test_a_bundle_gives_what_its_model_gives_as_the_user_says(tmp_path):
    """One sigmoid in a nested head, which no value tells from a logit."""
    keras.utils.set_random_seed(1)
    pixels = keras.Input((16, 16, 3))
    head = keras.Sequential([keras.layers.Dense(1), keras.layers.Activation("sigmoid")], name="head")
    model = keras.Model(pixels, head(keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(pixels))))
    model.save(tmp_path / "own.keras")
    (tmp_path / "classes.txt").write_text("normal\nill\n")
    settings: dict[str, Any] = {"model": str(tmp_path / "own.keras"), "classes": str(tmp_path / "classes.txt")}
    settings |= {"out": str(tmp_path / "bundle"), "preprocessing": "unit", "quiet": True}
    with pytest.raises(ConfigError, match="Give --outputs probabilities or --outputs logits"):
        export(ExportConfig(**settings))
    assert not (tmp_path / "bundle").exists()
    export(ExportConfig(**settings, outputs="probabilities"))
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    ill = np.asarray(model(images / np.float32(255)))[:, 0]
    found = Predictor(str(tmp_path / "bundle"), num_threads=1)
    assert found.predict(images) == pytest.approx(np.stack([1 - ill, ill], axis=1), abs=1e-6)
    spec = found.bundle.spec
    assert (spec.prior, spec.training_images, spec.validation_predictions) == (None, None, None)
