import keras
import numpy as np
import pytest
import tensorflow as tf

from tlray.config.training import TrainConfig
from tlray.errors import ConfigError
from tlray.models import classifier as models
from tlray.models.artifact import save_artifact
from tlray.models.backbone import build_backbone
from tlray.models.files import load_keras_file


def test_code_in_a_model_file_is_not_run(tmp_path):
    images = keras.Input((8, 8, 3))
    keras.Model(images, keras.layers.Lambda(lambda x: x * 2)(images)).save(tmp_path / "code.keras")
    with pytest.raises(ConfigError, match="not a Keras model that can be loaded safely"):
        load_keras_file(str(tmp_path / "code.keras"))


def test_saved_artifacts_agree(tmp_path, own_model):
    config = TrainConfig(data="d", out="o", backbone=own_model[0], preprocessing="symmetric", image_size_px=32)
    config = config.resolved()
    classifier = models.with_probabilities(
        models.build_classifier(build_backbone(config), config, preprocessing="symmetric", num_classes=3)
    )
    save_artifact(classifier, tmp_path)
    images = np.random.default_rng(4).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    expected = np.asarray(classifier(images))
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert np.asarray(loaded(images)) == pytest.approx(expected, abs=1e-5)  # pyright: ignore
    signature = tf.saved_model.load(str(tmp_path / "saved_model")).signatures["serving_default"]
    (arguments, keywords), _ = signature.structured_input_signature, None
    assert arguments == ()
    (spec,) = keywords.values()
    assert (spec.dtype, spec.shape.as_list()) == (tf.uint8, [None, 32, 32, 3])
    served = signature(tf.constant(images))
    assert served["output_0"].numpy() == pytest.approx(expected, abs=1e-5)
    assert served["output_1"].shape[0] == 3  # the features
