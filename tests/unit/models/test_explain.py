import io
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

from tlray.bundle.spec import MODEL_FILE, BundleSpec
from tlray.bundle.store import Bundle
from tlray.errors import BundleError
from tlray.models import classifier as models
from tlray.models import trunk
from tlray.models.backbone import find_application
from tlray.models.explain import OPACITY, Explainer, overlay, to_png


@pytest.fixture
def explain(tmp_path):
    """Makes an Explainer of a model that gives logits, or of one that gives probabilities already."""

    def make(model: keras.Model, *, num_classes: int = 2, temperature: float | None = 2.0) -> Explainer:
        classifier = model if temperature is None else models.with_probabilities(model, temperature=temperature)
        classifier.save(tmp_path / MODEL_FILE)
        return Explainer(as_bundle(tmp_path, model.input_shape[1], num_classes))

    return make


def as_bundle(directory: Path, size_px: int, num_classes: int = 2) -> Bundle:
    classes = tuple(f"class {number}" for number in range(num_classes))
    spec = BundleSpec(classes=classes, image_size_px=size_px, preprocessing="raw", backbone="b", weights="w")
    return Bundle(spec=spec, directory=directory, sha256="0")


def pixels(size_px: int):
    images = keras.Input((size_px, size_px, 3), dtype="uint8", name="image")
    return images, keras.layers.Rescaling(1.0)(images)


def channels(x, *weights, name=None):
    """A 1 x 1 convolution: one channel for each list of three weights."""
    layer = keras.layers.Conv2D(len(weights), 1, use_bias=False, name=name)
    y = layer(x)
    layer.set_weights([np.array(weights, dtype=np.float32).T[np.newaxis, np.newaxis]])
    return y


def dense(x, weights, bias=None, **options):
    layer = keras.layers.Dense(len(weights[0]), **options)
    y = layer(x)
    layer.set_weights(
        [np.array(weights, dtype=np.float32), np.zeros(len(weights[0])) if bias is None else np.array(bias)]
    )
    return y


def red_against_green(size_px: int = 2, scale: float = 1.0, **options) -> keras.Model:
    """Red speaks for class 0, green with half the weight against it; class 1 is the other way round."""
    images, x = pixels(size_px)
    averages = keras.layers.GlobalAveragePooling2D()(channels(x, [scale, 0, 0], [0, scale, 0]))
    return keras.Model(images, dense(averages, [[2, -2], [-1, 1]], bias=[7.0, -7.0], name="logits", **options))


def image_of(red, green) -> np.ndarray:
    return np.stack([red, green, np.zeros_like(red)], axis=-1).astype(np.uint8)


IMAGE = image_of([[10, 20], [30, 0]], [[0, 20], [80, 40]])
# 2 red - green: [[20, 20], [-20, -40]]
FOR_0 = np.array([[1, 1], [0, 0]], dtype=np.float32)
FOR_1 = np.array([[0, 0], [0.5, 1]], dtype=np.float32)


def test_heat_by_hand(explain):
    explainer = explain(red_against_green())
    image = IMAGE.copy()
    image.flags.writeable = False
    heat = explainer.heatmap(image, 0)
    assert heat.dtype == np.float32
    assert np.array_equal(heat, FOR_0)
    assert np.array_equal(explainer.heatmap(image, np.int64(1)), FOR_1)
    assert np.array_equal(explainer.heatmap(image, 0), heat)


def test_heat_is_enlarged_after_negative_evidence_is_cut(explain):
    """Each cell of the map is a block of 2 x 2 pixels; between two centres, 2 px apart, it is bilinear."""
    images, x = pixels(4)
    x = keras.layers.AveragePooling2D(2)(channels(x, [1, 0, 0], [0, 1, 0]))
    logits = dense(keras.layers.GlobalAveragePooling2D()(x), [[2, -2], [-1, 1]])
    image = np.repeat(np.repeat(image_of([[20, 0], [0, 0]], [[0, 80], [0, 0]]), 2, axis=0), 2, axis=1)
    line = np.array([1, 0.75, 0.25, 0])
    assert explain(keras.Model(images, logits)).heatmap(image, 0) == pytest.approx(np.outer(line, line), abs=1e-6)


@pytest.mark.parametrize("activation", ["linear", "softmax"])
def test_heat_is_of_the_logits_however_certain_the_model_is(explain, tmp_path, activation):
    """A softmax has no gradient where the others are 1e-30, and `log softmax` mixes the classes' gradients."""
    own = str(tmp_path / "own.keras")
    red_against_green(scale=100.0, activation=activation).save(own)
    classifier = models.from_trained(own, preprocessing="raw", num_classes=2, image_size_px=None)
    explainer = explain(classifier)
    assert np.array_equal(explainer.heatmap(IMAGE, 0), FOR_0)
    assert np.array_equal(explainer.heatmap(IMAGE, 1), FOR_1)


@pytest.mark.parametrize(
    "outputs",
    [
        keras.ops.softmax,
        lambda logits: keras.layers.Activation("linear")(keras.layers.Softmax()(logits)),
        keras.Sequential([keras.layers.ReLU(negative_slope=1.0), keras.layers.Softmax()]),
        lambda logits: keras.ops.cast(keras.layers.Softmax(dtype="float16")(logits), "float32"),
    ],
    ids=["operation", "linear", "nested", "cast"],
)
def test_heat_is_of_the_logits_however_a_model_ends(explain, tmp_path, outputs):
    logits_model = red_against_green(scale=100.0)
    own = keras.Model(logits_model.input, outputs(logits_model.output))
    own.save(tmp_path / "own.keras")
    assert np.asarray(own(IMAGE[np.newaxis])).tolist() == [[0, 1]]  # as certain as can be
    classifier = models.from_trained(
        str(tmp_path / "own.keras"), preprocessing="raw", num_classes=2, image_size_px=None
    )
    explainer = explain(classifier)
    assert np.array_equal(explainer.heatmap(IMAGE, 0), FOR_0)
    assert np.array_equal(explainer.heatmap(IMAGE, 1), FOR_1)


def test_heat_of_probabilities_made_in_an_unknown_way_is_that_of_their_logarithm(explain, tmp_path):
    logits_model = red_against_green(scale=0.1)
    powers = keras.ops.exp(logits_model.output)
    own = keras.Model(logits_model.input, keras.ops.divide(powers, keras.ops.sum(powers, axis=-1, keepdims=True)))
    own.save(tmp_path / "own.keras")
    assert np.asarray(own(IMAGE[np.newaxis]))[0, 0] > 0.999
    explainer = explain(
        models.from_trained(str(tmp_path / "own.keras"), preprocessing="raw", num_classes=2, image_size_px=None)
    )
    # Of two classes, log p_c has (1 - p_c) times the slopes of z_c less those of the other, here minus z_c.
    for class_index, expected in enumerate((FOR_0, FOR_1)):
        assert explainer.heatmap(IMAGE, class_index) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("ends_in_logit", [False, True])
@pytest.mark.parametrize("apart", [False, True], ids=["in the layer", "a layer of its own"])
def test_heat_of_one_sigmoid_for_two_classes(explain, tmp_path, apart, ends_in_logit):
    images = keras.Input((2, 2, 3))
    averages = keras.layers.GlobalAveragePooling2D()(channels(images, [100, 0, 0], [0, 100, 0]))
    activation = "linear" if ends_in_logit else "sigmoid"
    outputs = dense(averages, [[-2], [1]], activation="linear" if apart else activation)
    own = keras.Model(images, keras.layers.Activation(activation)(outputs) if apart else outputs)
    own.save(tmp_path / "own.keras")
    classifier = models.from_trained(
        str(tmp_path / "own.keras"), preprocessing="raw", num_classes=2, image_size_px=None
    )
    explainer = explain(classifier)
    assert np.array_equal(explainer.heatmap(IMAGE, 0), FOR_0)
    assert np.array_equal(explainer.heatmap(IMAGE, 1), FOR_1)


def test_probabilities_without_a_temperature(explain):
    explainer = explain(red_against_green(scale=100.0, activation="softmax"), temperature=None)
    assert np.array_equal(explainer.heatmap(IMAGE, 0), FOR_0)


def test_heat_is_in_the_corner_that_drives_the_logit(explain):
    keras.utils.set_random_seed(3)
    images, x = pixels(32)
    for _ in range(2):
        x = keras.layers.Conv2D(4, 3, padding="same", use_bias=False, kernel_initializer="ones", activation="relu")(x)
        x = keras.layers.MaxPooling2D(2)(x)
    logits = dense(keras.layers.Flatten()(x), np.tile([[1, -1]], (8 * 8 * 4, 1)))
    image = np.zeros((32, 32, 3), dtype=np.uint8)
    image[24:, :8] = 200
    explainer = explain(keras.Model(images, logits))
    heat = explainer.heatmap(image, 0)
    assert heat[24:, :8].min() > 0.4
    assert heat.max() == 1
    assert heat[:16].max() == 0
    assert heat[:, 16:].max() == 0
    assert not explainer.heatmap(image, 1).any()


def test_nested_models_with_the_same_names(explain):
    """Three levels, a Sequential among them, each with layers of names that the others have too."""
    shape = (2, 2, 3)
    inner_images = keras.Input(shape, name="image")
    inner = keras.Model(inner_images, channels(inner_images, [1, 0, 0], [0, 1, 0], [0, 0, 1], name="logits"))
    twice = keras.Sequential([keras.Input(shape, name="image"), inner, keras.layers.ReLU(name="temperature")])
    middle_images = keras.Input(shape, name="image")
    features = channels(twice(middle_images), [1, 0, 0], [0, 1, 0], name="scaling")
    middle = keras.Model(middle_images, keras.layers.GlobalAveragePooling2D()(features))
    images, x = pixels(2)
    logits = dense(middle(x), [[2, -2], [-1, 1]], name="logits")
    assert np.array_equal(explain(keras.Model(images, logits)).heatmap(IMAGE, 0), FOR_0)


@pytest.mark.parametrize("is_hidden", [False, True])
def test_depths_are_added_by_what_they_contribute_to_the_logit(explain, is_hidden):
    """A linear head on standardised averages of two depths, one with 2 x 2 positions, one with 4 x 4."""
    images, x = pixels(4)
    fine = channels(x, [1, 0, 0])
    coarse = keras.layers.AveragePooling2D(2)(channels(fine, [-1]))
    averages = [keras.layers.GlobalAveragePooling2D()(each) for each in (fine, coarse)]
    extractor = keras.Model(images, keras.layers.Concatenate()(averages))
    classifier = models.with_linear_head(extractor, num_classes=2, dropout=0.5)
    models.set_linear_head(
        classifier,
        mean=np.array([5.0, -1.0], dtype=np.float32),
        deviation=np.array([2.0, 4.0], dtype=np.float32),
        weights=np.array([[2.0 if is_hidden else 6.0, 0.0], [8.0, -8.0]], dtype=np.float32),
        bias=np.array([1.0, 2.0], dtype=np.float32),
    )
    if is_hidden:  # the other 4 of the 6 come through a hidden layer
        classifier = models.with_hidden_layers(classifier, hidden_units=(1,), dropout=0.5)
        (hidden,) = (layer for layer in classifier.layers if getattr(layer, "units", None) == 1)
        hidden.set_weights([np.array([[2.0], [0.0]]), np.array([10.0])])
        classifier.get_layer(models.HIDDEN_LOGITS_LAYER).set_weights([np.array([[2.0, 0.0]])])
    red = np.zeros((4, 4))
    red[0] = [16, 8, 0, 4]
    explainer = explain(classifier)
    # Class 0: 3 times the fine map and 2 times the coarse one, [[-6, -1], [0, 0]]. The latter, enlarged, is -6, -4.75,
    # -2.25, -1 in the first row, and 0.75, 0.25 and 0 of that in the next ones.
    enlarged = np.outer([1, 0.75, 0.25, 0], [-6, -4.75, -2.25, -1])
    evidence = 3 * red + 2 * enlarged
    assert evidence[0].tolist() == [36, 14.5, -4.5, 10]
    assert explainer.heatmap(image_of(red, red), 0) == pytest.approx(np.maximum(evidence, 0) / 36, abs=1e-6)
    # Class 1: -2 times the coarse one alone.
    assert explainer.heatmap(image_of(red, red), 1) == pytest.approx(enlarged / -6, abs=1e-6)


def paper(model: keras.Model, layer: keras.Layer, images: np.ndarray, class_index: int) -> np.ndarray:
    """Grad-CAM as arXiv:1610.02391 has it, equations 1 and 2; the slopes by differences, as the head is linear."""
    tail = keras.Model(layer.output, model.output)
    maps = np.asarray(keras.Model(model.input, layer.output)(images))
    step = 100 * np.abs(maps).max()
    moved = np.repeat(maps, maps.shape[-1], axis=0)
    for number in range(maps.shape[-1]):
        moved[number, ..., number] += step
    slopes = (np.asarray(tail(moved)) - np.asarray(tail(maps)))[:, class_index] / step
    return np.maximum(maps[0] @ (slopes / maps[0, ..., 0].size), 0)


def small(application: str, constructor: str, *sizes: Any) -> keras.Model:
    """A network of the kind of a keras.applications model, with as many blocks and channels as `sizes` say."""
    module = sys.modules[find_application(application).__module__]
    return getattr(module, constructor)(*sizes, include_top=False, weights=None, input_shape=(96, 96, 3))


@pytest.mark.parametrize(
    ("kind", "last"),
    [
        (("MobileNetV2", "MobileNetV2"), "out_relu"),
        # Width 1, depth 0.1: one block at each of its seven levels. The size matters for the top alone.
        (("EfficientNetB0", "EfficientNet", 1.0, 0.1, 224), "top_activation"),
        (("DenseNet121", "DenseNet", [2, 2, 2, 2]), "relu"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else value,
)
def test_heat_is_that_of_the_paper(explain, kind, last):
    """EfficientNet takes averages of maps inside its blocks too, which are no last maps."""
    keras.utils.set_random_seed(1)
    network = small(*kind)
    images, x = pixels(96)
    averages = keras.layers.GlobalAveragePooling2D()(network(x))
    classifier = keras.Model(images, keras.layers.Dense(3, name="logits")(averages))
    image = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    flat = keras.Model(
        network.input, classifier.get_layer("logits")(keras.layers.GlobalAveragePooling2D()(network.output))
    )
    explainer = explain(classifier, num_classes=3)
    for class_index in range(3):
        coarse = paper(flat, network.get_layer(last), image[np.newaxis].astype(np.float32), class_index)
        wanted = np.asarray(Image.fromarray(coarse).resize((96, 96), Image.Resampling.BILINEAR))
        heat = explainer.heatmap(image, class_index)
        assert heat == pytest.approx(wanted / (wanted.max() or 1), abs=1e-4)


def test_the_exported_kind_of_model_with_five_depths(explain):
    """The averages of the evidence over the depths' grids sum to the logit less bias and means: none is left out."""
    keras.utils.set_random_seed(1)
    network = find_application("MobileNetV2")(include_top=False, weights=None, input_shape=(96, 96, 3))
    extractor, _ = trunk.extractor(network, "symmetric", pooled=True, cut=False)
    classifier = models.with_linear_head(extractor, num_classes=2, dropout=0.0)
    image = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    features = np.asarray(extractor(image[np.newaxis]))[0]
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(len(features), 2)).astype(np.float32)
    deviation = rng.uniform(0.5, 2, len(features)).astype(np.float32)
    models.set_linear_head(classifier, mean=features, deviation=deviation, weights=weights, bias=np.zeros(2))
    explainer = explain(classifier)
    depths = [np.asarray(each) for each in explainer._evidence(image[np.newaxis], np.int32(1))]
    assert sorted(each.shape for each in depths) == [(3, 3), (3, 3), (6, 6), (6, 6), (6, 6)]
    assert sum(each.mean() for each in depths) == pytest.approx(features / deviation @ weights[:, 1], rel=1e-4)
    heat = explainer.heatmap(image, 1)
    assert heat.shape == (96, 96)
    assert 0 <= heat.min() < heat.max() == 1


def test_maps_of_one_position_show_nothing_so_the_ones_before_are_taken(explain):
    images, x = pixels(2)
    fine = channels(x, [1, 0, 0], [0, 1, 0])
    single = channels(keras.layers.AveragePooling2D(2)(fine), [1, 0], [0, 1])
    logits = dense(keras.layers.Flatten()(single), [[2, -2], [-1, 1]])
    assert np.array_equal(explain(keras.Model(images, logits)).heatmap(IMAGE, 0), FOR_0)


@pytest.mark.parametrize("weight", [0.0, np.nan, np.inf])
def test_no_evidence_and_numbers_that_are_none_give_no_heat(explain, weight):
    images, x = pixels(2)
    averages = keras.layers.GlobalAveragePooling2D()(channels(x, [1, 0, 0]))
    explainer = explain(keras.Model(images, dense(averages, [[weight, 1.0]])))
    heat = explainer.heatmap(IMAGE, 0)
    assert (heat.dtype, heat.shape) == (np.float32, (2, 2))
    assert np.array_equal(heat, np.zeros((2, 2)))


def test_what_the_model_does_not_take(explain):
    explainer = explain(red_against_green())
    with pytest.raises(ValueError, match=r"uint8 image \[2, 2, 3\]. Received: float32"):
        explainer.heatmap(IMAGE.astype(np.float32), 0)
    with pytest.raises(ValueError, match=r"Received: uint8 \[1, 2, 3\]"):
        explainer.heatmap(IMAGE[:1], 0)
    for class_index in (-1, 2):
        with pytest.raises(ValueError, match=f"The classes are 0 to 1. Received: {class_index}"):
            explainer.heatmap(IMAGE, class_index)


def test_models_that_cannot_be_explained(explain, tmp_path):
    features = keras.Input((2, 2, 3), dtype="uint8")
    averages = keras.layers.Flatten()(features)
    with pytest.raises(BundleError, match="no layer with a feature map"):
        explain(keras.Model(features, dense(averages, np.ones((12, 2)))))
    (tmp_path / MODEL_FILE).write_bytes(b"no model")
    with pytest.raises(BundleError, match=r"cannot be explained: .*not a Keras model"):
        Explainer(as_bundle(tmp_path, 2))


def test_overlay_by_hand():
    image = np.array([[[100, 100, 100], [200, 200, 200]]], dtype=np.uint8)
    image.flags.writeable = False
    heat = np.array([[0.0, 1.0]], dtype=np.float32)
    heat.flags.writeable = False
    laid = overlay(image, heat)
    assert (laid.mode, laid.size) == ("RGB", (2, 1))
    hottest = np.array([252, 255, 164])  # the end of matplotlib's inferno
    expected = (1 - OPACITY) * 200 + OPACITY * hottest
    assert np.asarray(laid)[0, 0].tolist() == [100, 100, 100]
    assert np.asarray(laid)[0, 1] == pytest.approx(expected, abs=1)


def test_half_of_the_anatomys_contrast_stays_where_it_is_hottest():
    image = np.array([[[60, 60, 60], [160, 160, 160]]], dtype=np.uint8)
    laid = np.asarray(overlay(image, np.ones((1, 2), dtype=np.float32))).astype(int)
    assert (laid[0, 1] - laid[0, 0]).tolist() == [50, 50, 50]


def test_overlay_is_grey_and_of_the_images_size():
    image = np.zeros((6, 10, 3), dtype=np.uint8)
    image[..., 0] = 100
    laid = overlay(image, np.zeros((2, 2), dtype=np.float32))
    assert laid.size == (10, 6)
    assert set(np.asarray(laid).ravel()) == {30}  # Rec. 601: 0.299 of red
    corner = np.array([[1, 0], [0, 0]], dtype=np.float32)
    changed = np.asarray(overlay(image, corner)) != 30
    assert changed[0, 0].all()
    assert not changed[-1, -1].any()


def test_png_has_the_overlays_pixels():
    laid = overlay(np.full((3, 4, 3), 50, dtype=np.uint8), np.full((3, 4), 0.5, dtype=np.float32))
    data = to_png(laid)
    assert data == to_png(laid)
    with Image.open(io.BytesIO(data)) as back:
        assert back.format == "PNG"
        assert np.array_equal(np.asarray(back), np.asarray(laid))
