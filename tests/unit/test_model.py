import json

import keras
import numpy as np
import pytest

from tlray import model as models
from tlray.config import Preprocessing, TrainConfig
from tlray.errors import ConfigError


def make_config(**changes) -> TrainConfig:
    return TrainConfig(**({"data": "d", "out": "o", "weights": "none", "image_size_px": 75} | changes)).resolved()


@pytest.fixture
def own_model(tmp_path):
    """A small model of one's own, 32 px, with BatchNormalization; its path and itself."""
    keras.utils.set_random_seed(3)
    images = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(4, 3, use_bias=False, name="first")(images)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Conv2D(6, 3, name="second")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(images, keras.layers.Dense(3, activation="softmax")(x))
    path = str(tmp_path / "own.keras")
    model.save(path)
    return path, model


@pytest.mark.parametrize(
    ("backbone", "mode"),
    [
        ("InceptionV3", "symmetric"),
        ("MobileNetV2", "symmetric"),
        ("EfficientNetB0", "raw"),
        ("ResNet50", "caffe"),
        ("DenseNet121", "imagenet"),
    ],
)
def test_preprocessing_is_that_of_keras_applications(backbone, mode):
    assert models.application_preprocessing(backbone) == mode


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("unit", [0.0, 0.2, 1.0]),  # x / 255
        ("symmetric", [-1.0, -0.6, 1.0]),  # x / 127.5 - 1
        ("imagenet", [-2.117904, -1.142857, 2.64]),  # (x / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
        ("caffe", [151.061, -65.779, -123.68]),  # blue 255 - 103.939, green 51 - 116.779, red 0 - 123.68
        ("raw", [0.0, 51.0, 255.0]),
    ],
)
def test_preprocess_by_hand(mode, expected):
    pixel = np.array([[[[0, 51, 255]]]], dtype=np.uint8)
    assert np.asarray(models.preprocess(pixel, mode))[0, 0, 0] == pytest.approx(expected, abs=1e-4)


def build_classifier(config: TrainConfig, *, preprocessing: Preprocessing, num_classes: int) -> keras.Model:
    backbone = models.build_backbone(config)
    models.set_trainable(backbone, config)
    return models.build_classifier(backbone, config, preprocessing=preprocessing, num_classes=num_classes)


@pytest.mark.parametrize("backbone", ["InceptionV3", "MobileNetV2", "EfficientNetB0"])
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


def test_temperature_divides_the_logits():
    classifier = build_classifier(make_config(), preprocessing="unit", num_classes=2)
    images = np.full((1, 75, 75, 3), 9, dtype=np.uint8)
    logits = np.asarray(classifier(images))[0]
    cold = np.asarray(models.with_probabilities(classifier, temperature=4.0)(images))[0]
    assert np.log(cold[0] / cold[1]) == pytest.approx((logits[0] - logits[1]) / 4, abs=1e-5)


def test_last_fifteen_layers_of_inception_are_trained(tmp_path):
    backbone = keras.applications.InceptionV3(include_top=False, weights=None, input_shape=(75, 75, 3))  # pyright: ignore[reportArgumentType]
    weights = str(tmp_path / "w.weights.h5")
    backbone.save_weights(weights)
    article = make_config(weights=weights, batch_norm="synchronized")
    trained = models.build_backbone(article)
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
    backbone = models.build_backbone(make_config())
    models.set_trainable(backbone, make_config())
    assert all(layer.trainable for layer in backbone.layers)
    norms = [layer for layer in backbone.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert {layer.momentum for layer in norms} == {0.9}


def test_own_model_is_cut_at_its_last_feature_map(own_model):
    path, model = own_model
    config = make_config(backbone=path, weights="imagenet", preprocessing="unit", image_size_px=32)
    backbone = models.build_backbone(config)
    images = np.random.default_rng(1).random((1, 32, 32, 3), dtype=np.float32)
    expected = np.asarray(keras.Model(model.input, model.get_layer("second").output)(images))
    assert np.asarray(backbone(images)) == pytest.approx(expected, abs=1e-6)
    earlier = models.build_backbone(
        make_config(backbone=path, weights="imagenet", preprocessing="unit", image_size_px=32, cut="first")
    )
    assert earlier.output_shape == (None, 30, 30, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "Inception"}, "neither a .keras file nor a model of keras.applications.*MobileNetV2"),
        ({"image_size_px": 32}, "InceptionV3 cannot be built for --image-size-px 32"),
        ({"weights": "nowhere.h5"}, "no weights at 'nowhere.h5'"),
    ],
)
def test_backbones_that_cannot_be_built(changes, message):
    with pytest.raises(ConfigError, match=message):
        models.build_backbone(make_config(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cut": "third"}, "--cut 'third' is no layer.*first, norm, second"),
        ({"image_size_px": 64}, "32 x 32 px images.*Give --image-size-px 32"),
    ],
)
def test_own_models_that_do_not_fit(own_model, changes, message):
    config = {"backbone": own_model[0], "weights": "imagenet", "preprocessing": "unit", "image_size_px": 32} | changes
    with pytest.raises(ConfigError, match=message):
        models.build_backbone(make_config(**config))


def test_weights_of_another_model_are_refused(tmp_path):
    keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(75, 75, 3)).save_weights(  # pyright: ignore[reportArgumentType]
        tmp_path / "other.weights.h5"
    )
    with pytest.raises(ConfigError, match=r"does not fit the backbone InceptionV3.*Name the --backbone"):
        models.build_backbone(make_config(weights=str(tmp_path / "other.weights.h5")))


def test_failed_download_names_the_remedy(monkeypatch):
    def fail(*args, **kwargs):  # noqa: ARG001
        raise Exception("URL fetch failure: timed out")

    monkeypatch.setattr("keras.src.applications.inception_v3.file_utils.get_file", fail)
    with pytest.raises(ConfigError, match=r"could not be downloaded \(URL fetch failure: timed out\).*--weights PATH"):
        models.build_backbone(make_config(weights="imagenet"))


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


def test_trained_model_with_other_classes_is_refused(own_model):
    with pytest.raises(ConfigError, match=r"outputs \(None, 3\), the list of classes has 4"):
        models.from_trained(own_model[0], preprocessing="unit", num_classes=4, image_size_px=None)


def test_code_in_a_model_file_is_not_run(tmp_path):
    images = keras.Input((8, 8, 3))
    keras.Model(images, keras.layers.Lambda(lambda x: x * 2)(images)).save(tmp_path / "code.keras")
    with pytest.raises(ConfigError, match="no Keras model that can be loaded safely"):
        models.load_keras_file(str(tmp_path / "code.keras"))


def test_mixed_precision_leaves_the_logits_alone():
    classifier = build_classifier(make_config(hidden_units=(4,)), preprocessing="unit", num_classes=2)
    mixed = models.from_json(models.mixed_bfloat16(classifier.to_json()), models.get_weights(classifier))
    by_name = {layer.name: layer.compute_dtype for layer in models.leaf_layers(mixed)}
    assert by_name.pop("logits") == "float32"
    del by_name["image"]
    assert mixed.inputs[0].dtype == "uint8"
    assert {dtype for name, dtype in by_name.items() if not name.startswith("input_layer")} == {"bfloat16"}
    assert {str(variable.dtype) for variable in mixed.trainable_variables} == {"float32"}
    assert json.loads(classifier.to_json()) != json.loads(mixed.to_json())


def test_saved_artifacts_agree(tmp_path):
    import tensorflow as tf

    classifier = models.with_probabilities(build_classifier(make_config(), preprocessing="symmetric", num_classes=3))
    models.save_artifact(classifier, tmp_path)
    images = np.random.default_rng(4).integers(0, 256, (3, 75, 75, 3), dtype=np.uint8)
    expected = np.asarray(classifier(images))
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert np.asarray(loaded(images)) == pytest.approx(expected, abs=1e-5)  # pyright: ignore
    signature = tf.saved_model.load(str(tmp_path / "saved_model")).signatures["serving_default"]
    (arguments, keywords), _ = signature.structured_input_signature, None
    assert arguments == ()
    (spec,) = keywords.values()
    assert (spec.dtype, spec.shape.as_list()) == (tf.uint8, [None, 75, 75, 3])
    (served,) = signature(tf.constant(images)).values()
    assert served.numpy() == pytest.approx(expected, abs=1e-5)
