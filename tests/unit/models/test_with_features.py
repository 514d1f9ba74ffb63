"""The pooled features of a classifier as its second output."""

import keras
import numpy as np
import pytest
from scipy import special

from tlray.config.training import TrainConfig
from tlray.models import classifier as models
from tlray.models import trunk

SIZE_PX, NUM_CLASSES = 32, 3
LAYERS = ("first", "second", "third")
FROZEN = [(), ("first",), ("first", "second"), LAYERS]


def backbone(frozen: tuple[str, ...] = ()) -> keras.Model:
    """Three convolutions, some of them frozen."""
    keras.utils.set_random_seed(1)
    x = images = keras.Input((SIZE_PX, SIZE_PX, 3))
    for name, num_filters in zip(LAYERS, (4, 6, 8), strict=True):
        x = keras.layers.Conv2D(num_filters, 3, strides=2, activation="relu", name=name)(x)
    network = keras.Model(images, x)
    for name in frozen:
        network.get_layer(name).trainable = False
    return network


def with_one_depth(*, hidden_units: tuple[int, ...] = (), frozen: tuple[str, ...] = ()) -> keras.Model:
    config = TrainConfig(
        data="d", out="o", weights="none", image_size_px=SIZE_PX, hidden_units=hidden_units, dropout=0.5
    )
    return models.build_classifier(backbone(frozen), config.resolved(), preprocessing="unit", num_classes=NUM_CLASSES)


def with_two_depths(frozen: tuple[str, ...] = ()) -> tuple[keras.Model, keras.Model, dict[str, np.ndarray]]:
    """A linear classifier of the averages of two depths, 6 and 8; the model of these, and the head's arrays."""
    extractor, _ = trunk.extractor(backbone(frozen), "unit", pooled=True, cut=False)
    classifier = models.with_linear_head(extractor, num_classes=NUM_CLASSES, dropout=0.5)
    rng = np.random.default_rng(2)
    head = {
        "mean": rng.normal(size=14), "deviation": rng.uniform(0.5, 2, 14),
        "weights": rng.normal(size=(14, NUM_CLASSES)), "bias": rng.normal(size=NUM_CLASSES),
    }  # fmt: skip
    models.set_linear_head(classifier, **head)
    return classifier, extractor, head


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Images of one colour each, with noise."""
    rng = np.random.default_rng(0)
    colours, noise = rng.integers(0, 200, (4, 1, 1, 3)), rng.integers(0, 50, (4, SIZE_PX, SIZE_PX, 3))
    return (colours + noise).astype(np.uint8)


def outputs(model: keras.Model, taken) -> tuple[np.ndarray, np.ndarray]:
    """Runs a model with features on tensors."""
    given, features = trunk.with_features(model)(keras.tree.map_structure(keras.ops.convert_to_tensor, taken))
    return np.asarray(given), np.asarray(features)


def assert_close(mine, theirs) -> None:
    theirs = np.asarray(theirs)
    assert np.ptp(theirs) > 1e-3
    np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize("hidden_units", [(), (5,)])
def test_a_head_on_the_last_feature_map(images, hidden_units):
    classifier = with_one_depth(hidden_units=hidden_units)
    pooled = keras.Model(classifier.input, classifier.get_layer(models.FEATURES_LAYER).output)(images)
    logits_BK, features_BD = outputs(classifier, images)
    assert features_BD.shape == (4, 8)
    assert_close(features_BD, pooled)
    assert_close(logits_BK, classifier(images))
    if not hidden_units:
        weights, bias = classifier.get_layer(models.LOGITS_LAYER).get_weights()
        assert_close(features_BD @ weights + bias, logits_BK)
    again = models.from_json(classifier.to_json(), models.get_weights(classifier))
    assert_close(outputs(again, images)[1], pooled)


def test_a_linear_head_on_two_depths(images):
    classifier, extractor, head = with_two_depths()
    logits_BK, features_BD = outputs(classifier, images)
    assert_close(features_BD, extractor(images))
    expected = (features_BD - head["mean"]) / head["deviation"] @ head["weights"] + head["bias"]
    assert_close(logits_BK, expected)


def test_hidden_layers_beside_the_linear_head_change_no_feature(images):
    classifier, extractor, _ = with_two_depths()
    wider = models.with_hidden_layers(classifier, hidden_units=(5,), dropout=0.5, num_features=8)
    assert_close(outputs(wider, images)[1], extractor(images))


@pytest.mark.parametrize("num_depths", [1, 2])
def test_with_probabilities_on_top(images, num_depths):
    classifier = with_one_depth() if num_depths == 1 else with_two_depths()[0]
    logits_BK, features_BD = outputs(classifier, images)
    probs_BK, same_BD = outputs(models.with_probabilities(classifier, temperature=2.0), images)
    assert_close(probs_BK, special.softmax(logits_BK / 2, axis=1))
    assert_close(same_BD, features_BD)


@pytest.mark.parametrize("frozen", FROZEN, ids=len)
@pytest.mark.parametrize("num_depths", [1, 2])
def test_the_tail_gives_the_same(images, num_depths, frozen):
    """If all layers are frozen, the tail of two depths takes the pooled features themselves."""
    classifier = with_one_depth(frozen=frozen) if num_depths == 1 else with_two_depths(frozen)[0]
    first, tail = trunk.split(classifier)
    found, expected = outputs(tail, first(images)), outputs(classifier, images)
    for mine, theirs in zip(found, expected, strict=True):
        assert_close(mine, theirs)


def test_a_model_with_features_has_the_weights_of_the_model(images):
    classifier = with_one_depth()
    model = trunk.with_features(classifier)
    models.shift_logits(classifier, np.array([0.0, 5.0, 0.0]))
    logits_BK, _ = model(keras.ops.convert_to_tensor(images))
    assert_close(logits_BK, classifier(images))


def test_it_takes_arrays_as_the_classifier_does(images):
    """Without a warning of Keras, which all tests take for an error."""
    for classifier in (with_one_depth(), with_two_depths()[0]):
        assert_close(trunk.with_features(classifier)(images, training=False)[0], classifier(images))


def test_a_model_without_such_layers_stays_as_it_is(own_model):
    path, _ = own_model
    logits_model = models.from_trained(path, preprocessing="unit", num_classes=3, image_size_px=None)
    for model in (logits_model, models.with_probabilities(logits_model)):
        assert trunk.with_features(model) is model
