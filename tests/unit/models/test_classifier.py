import json
from typing import Any

import keras
import numpy as np
import pytest

from tlray.config.training import Preprocessing, TrainConfig
from tlray.errors import ConfigError
from tlray.models import classifier as models
from tlray.models.backbone import build_backbone
from tlray.models.files import load_keras_file
from tlray.models.layers import leaf_layers
from tlray.training.own_model import read_classes


def make_config(**changes) -> TrainConfig:
    return TrainConfig(**({"data": "d", "out": "o", "weights": "none", "image_size_px": 75} | changes)).resolved()


def build_classifier(config: TrainConfig, *, preprocessing: Preprocessing, num_classes: int) -> keras.Model:
    backbone = build_backbone(config)
    models.set_trainable(backbone, config)
    return models.build_classifier(backbone, config, preprocessing=preprocessing, num_classes=num_classes)


@pytest.mark.parametrize("backbone", ["MobileNetV2", "EfficientNetB0"])
def test_backbones_give_logits_of_uint8_images(backbone):
    config = make_config(backbone=backbone, hidden_units=(8,))
    classifier = build_classifier(config, preprocessing="symmetric", num_classes=3)
    again = models.from_json(classifier.to_json(), models.get_weights(classifier))
    images = np.random.default_rng(0).integers(0, 256, (2, 75, 75, 3), dtype=np.uint8)
    logits = np.asarray(classifier(images))
    assert logits.shape == (2, 3)
    assert np.array_equal(np.asarray(again(images)), logits)
    probabilities = np.asarray(models.with_probabilities(classifier)(images))
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    assert probabilities == pytest.approx(exponentials / exponentials.sum(axis=1, keepdims=True), abs=1e-6)


def test_a_model_that_normalizes_its_input_is_rebuilt_as_it_was(tmp_path):
    """As EfficientNet does, whose statistics come from its weights file."""
    normalize = keras.layers.Normalization()
    normalize.adapt(np.random.default_rng(0).uniform(50, 90, (20, 75, 75, 3)))
    given = keras.Input((75, 75, 3))
    features = keras.layers.Conv2D(4, 3, activation="relu")(normalize(given))
    keras.Model(given, features).save(tmp_path / "own.keras")
    config = make_config(backbone=str(tmp_path / "own.keras"), weights="imagenet", preprocessing="raw")
    classifier = build_classifier(config, preprocessing="raw", num_classes=3)
    again = models.from_json(classifier.to_json(), models.get_weights(classifier))
    images = np.random.default_rng(1).integers(0, 256, (2, 75, 75, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(again(images)), np.asarray(classifier(images)))


@pytest.fixture(scope="module")
def classifier() -> keras.Model:
    """A classifier of two classes that nothing changes."""
    config = make_config(backbone="MobileNetV2", hidden_units=(4,))
    return build_classifier(config, preprocessing="unit", num_classes=2)


def test_temperature_divides_the_logits(classifier):
    images = np.full((1, 75, 75, 3), 9, dtype=np.uint8)
    logits = np.asarray(classifier(images))[0]
    cold = np.asarray(models.with_probabilities(classifier, temperature=4.0)(images))[0]
    assert np.log(cold[0] / cold[1]) == pytest.approx((logits[0] - logits[1]) / 4, abs=1e-5)


def test_last_fifteen_layers_of_inception_are_trained(tmp_path):
    backbone = keras.applications.InceptionV3(include_top=False, weights=None, input_shape=(75, 75, 3))  # pyright: ignore[reportArgumentType]
    weights = str(tmp_path / "w.weights.h5")
    backbone.save_weights(weights)
    article = make_config(weights=weights, batch_norm="synchronized")
    trained = build_backbone(article)
    models.set_trainable(trained, article)
    assert [layer.trainable for layer in trained.layers] == [False] * 296 + [True] * 15
    norms = [layer for layer in trained.layers[-15:] if isinstance(layer, keras.layers.BatchNormalization)]
    assert norms
    assert all(layer.synchronized for layer in norms)
    models.set_trainable(trained, make_config(weights=weights, batch_norm="frozen"))
    assert {layer.trainable for layer in norms} == {False}
    for mine, theirs in zip(trained.get_weights(), backbone.get_weights(), strict=True):
        assert np.array_equal(mine, theirs)


def test_without_weights_everything_is_trained_with_a_quick_momentum():
    config = make_config(backbone="MobileNetV2")
    backbone = build_backbone(config)
    models.set_trainable(backbone, config)
    assert all(layer.trainable for layer in backbone.layers)
    norms = [layer for layer in backbone.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert {layer.momentum for layer in norms} == {0.9}


def test_trained_models_keep_their_probabilities(own_model):
    path, model = own_model
    wrapped = models.with_probabilities(
        models.from_trained(path, preprocessing="unit", num_classes=3, image_size_px=None)
    )
    images = np.random.default_rng(2).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    expected = np.asarray(model(images.astype(np.float32) / 255))
    assert np.asarray(wrapped(images)) == pytest.approx(expected, abs=1e-6)


def test_sigmoid_of_one_unit_becomes_two_classes(tmp_path):
    images = keras.Input((None, None, 3))
    features = keras.layers.GlobalAveragePooling2D()(images)
    model = keras.Model(images, keras.layers.Dense(1, activation="sigmoid")(features))
    model.save(tmp_path / "binary.keras")
    wrapped = models.with_probabilities(
        models.from_trained(str(tmp_path / "binary.keras"), preprocessing="unit", num_classes=2, image_size_px=8)
    )
    pixels = np.full((1, 8, 8, 3), 51, dtype=np.uint8)
    positive = float(np.asarray(model(pixels.astype(np.float32) / 255))[0, 0])
    assert np.asarray(wrapped(pixels))[0] == pytest.approx([1 - positive, positive], abs=1e-6)


def saved(tmp_path, outputs) -> str:
    """Saves a model of 8 px images whose outputs are made from three logits, which differ by up to 30."""
    keras.utils.set_random_seed(4)
    images = keras.Input((8, 8, 3))
    spread: Any = keras.initializers.RandomNormal(stddev=20.0)
    logits = keras.layers.Dense(3, kernel_initializer=spread)(keras.layers.GlobalAveragePooling2D()(images))
    keras.Model(images, outputs(logits)).save(tmp_path / "own.keras")
    return str(tmp_path / "own.keras")


def probabilities_of(path: str, images: np.ndarray, **settings) -> tuple[np.ndarray, np.ndarray]:
    """Returns what the bundle of a model gives for images, and what the model does."""
    settings = {"preprocessing": "unit", "num_classes": 3, "image_size_px": None} | settings
    wrapped = models.with_probabilities(models.from_trained(path, **settings))
    return np.asarray(wrapped(images)), np.asarray(load_keras_file(path)(images.astype(np.float32) / 255))


def exponentials(logits):
    """A softmax in a way that nothing knows."""
    powers = keras.ops.exp(logits - keras.ops.max(logits, axis=-1, keepdims=True))
    return keras.ops.divide(powers, keras.ops.sum(powers, axis=-1, keepdims=True))


def nested(logits):
    """Builds its layers when it is called, after the test has set the seed."""
    return keras.Sequential([keras.layers.Dense(3), keras.layers.Softmax()])(logits)


@pytest.mark.parametrize(
    "outputs",
    [
        keras.layers.Softmax(),
        keras.ops.softmax,
        exponentials,
        nested,
        lambda logits: keras.layers.Activation("linear", dtype="float32")(keras.layers.Softmax()(logits)),
        lambda logits: keras.layers.Dropout(0.5)(keras.layers.Softmax(dtype="float32")(logits)),
    ],
    ids=["layer", "operation", "own", "nested", "linear", "dropout"],
)
def test_softmax_is_not_applied_twice_however_a_model_ends(tmp_path, outputs):
    keras.utils.set_random_seed(1)
    images = np.random.default_rng(2).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    found, expected = probabilities_of(saved(tmp_path, outputs), images)
    assert expected.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert np.ptp(expected) > 0.9
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("outputs", [lambda logits: logits, keras.ops.log_softmax])
def test_logits_get_a_softmax(tmp_path, outputs):
    images = np.random.default_rng(2).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    found, logits = probabilities_of(saved(tmp_path, outputs), images)
    assert found == pytest.approx(np.asarray(keras.ops.softmax(logits)), abs=1e-6)


def test_probabilities_of_0_and_in_half_precision_stay_as_they_are(tmp_path):
    path = saved(tmp_path, lambda logits: keras.layers.Softmax(dtype="float16")(logits * 1000.0))
    images = np.random.default_rng(2).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    found, expected = probabilities_of(path, images)
    assert expected.dtype == np.float16
    assert sorted(np.unique(expected)) == [0, 1]
    assert found.dtype == np.float32
    assert np.array_equal(found, expected)


def test_independent_sigmoids_are_refused(tmp_path):
    path = saved(tmp_path, keras.layers.Dense(3, activation="sigmoid"))
    with pytest.raises(ConfigError, match=r"ends in 3 independent sigmoids .* a softmax or in logits"):
        models.from_trained(path, preprocessing="unit", num_classes=3, image_size_px=None)
    path = saved(tmp_path, keras.ops.sigmoid)
    with pytest.raises(ConfigError, match=r"If these are independent sigmoids, give a model that ends in a softmax"):
        models.from_trained(path, preprocessing="unit", num_classes=3, image_size_px=None)


@pytest.mark.parametrize(("is_sigmoid", "outputs"), [(True, "probabilities"), (False, None)])
def test_a_single_output_for_two_classes(tmp_path, is_sigmoid, outputs):
    def end(logits):
        single = keras.layers.Dense(1, kernel_initializer="ones")(logits)
        return keras.ops.sigmoid(single) if is_sigmoid else single

    path = saved(tmp_path, end)
    images = np.random.default_rng(2).integers(0, 40, (4, 8, 8, 3), dtype=np.uint8)
    if is_sigmoid:
        with pytest.raises(ConfigError, match="Give --outputs probabilities or --outputs logits"):
            probabilities_of(path, images, num_classes=2)
    found, single = probabilities_of(path, images, num_classes=2, outputs=outputs)
    second = single[:, 0] if is_sigmoid else 1 / (1 + np.exp(-single[:, 0]))
    assert 0.001 < second.min() < second.max() < 0.999
    assert found == pytest.approx(np.stack([1 - second, second], axis=1), abs=1e-6)


def test_trained_model_with_other_classes_is_refused(own_model):
    with pytest.raises(ConfigError, match=r"outputs \(None, 3\), but the list of classes has 4"):
        models.from_trained(own_model[0], preprocessing="unit", num_classes=4, image_size_px=None)


def test_mixed_precision_leaves_the_logits_alone(classifier):
    mixed = models.from_json(models.mixed_bfloat16(classifier.to_json()), models.get_weights(classifier))
    by_name = {layer.name: layer.compute_dtype for layer in leaf_layers(mixed)}
    assert by_name.pop("logits") == "float32"
    del by_name["image"]
    assert mixed.inputs[0].dtype == "uint8"
    assert {dtype for name, dtype in by_name.items() if not name.startswith("input_layer")} == {"bfloat16"}
    assert {str(variable.dtype) for variable in mixed.trainable_variables} == {"float32"}
    assert json.loads(classifier.to_json()) != json.loads(mixed.to_json())


def test_classes_of_an_exported_model_have_the_normal_form_of_labels(tmp_path):
    (tmp_path / "classes.txt").write_text("Pneumoni\u0301a\n\n b \n")
    assert read_classes(str(tmp_path / "classes.txt")) == ("Pneumon\u00eda", "b")
    (tmp_path / "classes.txt").write_text("i\u0301\n\u00ed\n")
    with pytest.raises(ConfigError, match="two different class names"):
        read_classes(str(tmp_path / "classes.txt"))
