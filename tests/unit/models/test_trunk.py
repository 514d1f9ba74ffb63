import functools

import keras
import numpy as np
import pytest

from tlray.config.training import TrainConfig
from tlray.models import classifier as models
from tlray.models import trunk
from tlray.models.backbone import build_backbone
from tlray.models.layers import leaf_layers

SIZE_PX = 75


@functools.cache
def pretrained(backbone: str, dropout: float) -> tuple[keras.Model, keras.Model]:
    """A classifier whose BatchNormalization has statistics and scales of its own, as a pretrained one; its backbone."""
    keras.utils.set_random_seed(5)
    config = TrainConfig(
        data="d", out="o", weights="none", backbone=backbone, image_size_px=SIZE_PX, hidden_units=(8,), dropout=dropout
    )
    config = config.resolved()
    backbone_model = build_backbone(config)
    classifier = models.build_classifier(backbone_model, config, preprocessing="symmetric", num_classes=3)
    (inner,) = (layer for layer in classifier.layers if isinstance(layer, keras.Model))
    rng = np.random.default_rng(2)
    for layer in leaf_layers(inner):
        if isinstance(layer, keras.layers.BatchNormalization):
            for variable in layer.variables:
                variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return classifier, inner


def build(
    backbone: str, trainable_layers: int | str, batch_norm: str = "frozen", dropout: float = 0.3
) -> tuple[keras.Model, keras.Model]:
    """The pretrained classifier, which tests share, with some layers trainable; and its backbone."""
    classifier, inner = pretrained(backbone, dropout)
    changes = {"weights": "imagenet", "trainable_layers": trainable_layers, "batch_norm": batch_norm}
    models.set_trainable(inner, TrainConfig(data="d", out="o", backbone=backbone, **(changes)).resolved())  # pyright: ignore
    return classifier, inner


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)


def assert_close(mine, theirs) -> None:
    """To 1e-5 of the largest logit."""
    mine, theirs = np.asarray(mine), np.asarray(theirs)
    assert np.ptp(theirs) > 0
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize(
    ("backbone", "trainable_layers", "num_channels", "is_part"),
    [
        # 97,600 values an image at 224 px, where these maps have 5 x 5 pixels.
        ("InceptionV3", 15, [320, 768, 768, 2048], False),
        ("InceptionV3", 40, [2048, 2048], True),
        ("MobileNetV2", 0, [1280], False),
        ("MobileNetV2", "all", [3], False),
        ("MobileNetV2", 15, [160, 960], True),
        ("EfficientNetB0", 15, [1152], False),
    ],
)
def test_trunk_and_tail_compose_to_the_classifier(images, backbone, trainable_layers, num_channels, is_part):
    """A trunk that is a part of another one here is not folded too, which takes seconds."""
    classifier, _ = build(backbone, trainable_layers)
    first, second = trunk.split(classifier)
    assert sorted(output.shape[-1] for output in first.outputs) == num_channels
    assert not first.trainable_variables
    assert {id(each) for each in second.trainable_variables} == {id(each) for each in classifier.trainable_variables}
    expected = classifier(images)
    assert_close(second(first(images)), expected)
    if not is_part:
        constant = trunk.as_constant(first)
        assert_close(second(constant(images)), expected)
        assert_close(second(constant(images[:1])), expected[:1])


@pytest.mark.parametrize(
    ("backbone", "num_values"),
    [
        ("MobileNetV2", 64 + 96 + 96 + 160 + 1280),
        ("VGG16", 256 + 3 * 512 + 512),  # a plain chain of layers
    ],
)
def test_pooled_features_come_from_five_depths(images, backbone, num_values):
    _, network = build(backbone, 1)
    assert not network.trainable_variables
    model, names = trunk.extractor(network, "symmetric", pooled=True, cut=True)
    pooled, *cut = trunk.as_constant(model)(images)
    assert names == ["pooled", *(f"cut_{number}" for number in range(len(cut)))]
    assert pooled.shape == (3, num_values)
    last = np.asarray(network(images / np.float32(127.5) - 1))
    assert_close(np.asarray(pooled)[:, -last.shape[-1] :], last.mean(axis=(1, 2)))


def test_inceptions_depths_are_those_that_were_measured(images):
    _, network = build("InceptionV3", 0)
    wanted = keras.Model(network.inputs[0], [network.get_layer(f"mixed{n}").output for n in (4, 6, 7, 8, 10)])
    maps = wanted(images / np.float32(127.5) - 1)
    model, _ = trunk.extractor(network, "symmetric", pooled=True, cut=False)
    assert_close(
        model(images),
        np.concatenate([np.asarray(each).mean(axis=(1, 2)) for each in maps], axis=1),
    )


def test_training_the_tail_trains_the_classifier(images):
    classifier, _ = build("MobileNetV2", 15, batch_norm="synchronized", dropout=0.0)
    constant = trunk.as_constant(trunk.split(classifier)[0])
    tail = trunk.split(classifier)[1]
    before = models.get_weights(classifier)
    tail.compile(optimizer="sgd", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    tail.fit(constant(images), np.array([0, 1, 2]), epochs=1, verbose=0)  # pyright: ignore[reportArgumentType]
    changed = {
        weight.path
        for weight, old in zip(classifier.weights, before, strict=True)
        if not np.array_equal(np.asarray(weight), old)
    }
    moving = {weight.path for weight in tail.non_trainable_variables if "moving" in weight.path}
    assert len(moving) == 10
    trained = {weight.path for weight in classifier.trainable_variables}
    # A shift that the next BatchNormalization takes out again has no gradient: some betas stay.
    assert {path for path in trained if "kernel" in path} | moving <= changed <= trained | moving
    assert_close(tail(constant(images)), classifier(images))


def test_dropout_of_the_head_stays_and_that_of_the_trunk_is_off(images):
    first, second = trunk.split(build("EfficientNetB0", 1)[0])
    assert any(isinstance(layer, keras.layers.Dropout) for layer in leaf_layers(first))
    constant = trunk.as_constant(first)
    maps = constant(images)
    assert all(np.array_equal(a, b) for a, b in zip(maps, constant(images), strict=True))
    assert not np.array_equal(second(maps, training=True), second(maps, training=False))


def test_a_head_on_five_depths_is_split_where_training_begins(images):
    _, network = build("MobileNetV2", 15, batch_norm="synchronized")
    extractor, _ = trunk.extractor(network, "symmetric", pooled=True, cut=False)
    classifier = models.with_linear_head(extractor, num_classes=3, dropout=0.5)
    first, tail = trunk.split(classifier)
    # Averages from the four depths that are not trained, and the two feature maps that the trained layers take.
    assert sorted(len(tensor.shape) for tensor in first.outputs) == [2, 2, 2, 2, 4, 4]
    features = trunk.as_function(first)(images)
    assert_close(tail(features), classifier(images))
    assert_close(trunk.up_to(tail, models.STANDARDISATION_LAYER)(features), extractor(images))
    assert len(tail.trainable_variables) == len(classifier.trainable_variables)
