"""Builds classifiers, a backbone and a head in one Keras model, and selects which of their layers are trained.

A classifier is `uint8 [batch, height, width, 3] -> preprocessing -> backbone -> global average -> head -> logits`.
Its architecture travels between processes as JSON and its weights as a list of arrays.
"""

import json
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tlray.config.training import Outputs, Preprocessing, TrainConfig
from tlray.errors import ConfigError
from tlray.models.backbone import preprocess
from tlray.models.files import load_keras_file
from tlray.models.layers import leaf_layers, set_weights
from tlray.models.outputs import find_outputs, trial_images

TEMPERATURE_LAYER = "temperature"
LOGITS_LAYER = "logits"
HIDDEN_LOGITS_LAYER = "hidden_logits"
SUM_LAYER = "sum_of_logits"
STANDARDISATION_LAYER = "standardisation"
FEATURES_LAYER = "features"
HEAD_DROPOUT_LAYER = "head_dropout"
MIN_PROBABILITY = float(np.finfo(np.float32).tiny)
"""Smallest probability of which a logarithm is taken, in place of 0: the smallest normal float32."""

_FLOAT32_LAYERS = (STANDARDISATION_LAYER, LOGITS_LAYER, HIDDEN_LOGITS_LAYER, SUM_LAYER)


def trained_layers(backbone: keras.Model, config: TrainConfig) -> list[keras.Layer]:
    """Returns a backbone's last layers, as many as a resolved config trains, in order."""
    layers = leaf_layers(backbone)
    if config.trainable_layers == "all":
        return layers
    return layers[len(layers) - min(len(layers), config.trainable_layers or 0) :]


def set_trainable(backbone: keras.Model, config: TrainConfig) -> None:
    """Freezes the trunk, and sets how BatchNormalization layers of the tail behave in training.

    A frozen BatchNormalization layer uses its stored statistics, also in training. A synchronized one uses those of the
    global batch. A local one uses those of its worker's batch, and the training loop has to average the moving
    statistics, which Keras leaves different on each worker.

    Args:
        backbone: The backbone, which is changed in place.
        config: A resolved config.
    """
    trained = set(map(id, trained_layers(backbone, config)))
    for layer in leaf_layers(backbone):
        layer.trainable = id(layer) in trained
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable:
            layer.trainable = config.batch_norm != "frozen"
            layer.synchronized = config.batch_norm == "synchronized"
            if config.batch_norm_momentum is not None:
                layer.momentum = config.batch_norm_momentum


def build_classifier(
    backbone: keras.Model, config: TrainConfig, *, preprocessing: Preprocessing, num_classes: int
) -> keras.Model:
    """Builds the whole model: uint8 [batch, size, size, 3] in, float32 logits [batch, num_classes] out.

    Args:
        backbone: The backbone, see `tlray.models.backbone.build_backbone` and `set_trainable`.
        config: A resolved config.
        preprocessing: The pixel preprocessing that the backbone expects.
        num_classes: At least 2.
    """
    images = keras.Input((config.image_size_px, config.image_size_px, 3), dtype="uint8", name="image")
    maps = backbone(preprocess(images, preprocessing))
    features = keras.layers.GlobalAveragePooling2D(name=FEATURES_LAYER)(maps)
    for num_units in config.hidden_units:
        features = keras.layers.Dense(num_units, activation="relu")(features)
        features = keras.layers.Dropout(config.dropout)(features)
    if not config.hidden_units:
        features = keras.layers.Dropout(config.dropout)(features)
    logits = keras.layers.Dense(num_classes, dtype="float32", name=LOGITS_LAYER)(features)
    return keras.Model(images, logits)


def with_linear_head(extractor: keras.Model, *, num_classes: int, dropout: float) -> keras.Model:
    """Appends a linear classifier of standardised features, whose weights `set_linear_head` sets.

    Args:
        extractor: A model from uint8 [batch, height, width, 3] to features [batch, n].
        num_classes: At least 2.
        dropout: Dropout rate between standardisation and classifier.

    Returns:
        A model with the same layers, to float32 logits [batch, num_classes].
    """
    # Not keras.layers.Normalization, whose statistics Keras' `set_weights` leaves as they were when it was built.
    standardise = keras.layers.BatchNormalization(
        center=False,
        scale=False,
        epsilon=1e-20,  # far below the square of the least deviation, `regression.MIN_DEVIATION`
        trainable=False,
        dtype="float32",
        name=STANDARDISATION_LAYER,
    )
    features = standardise(extractor.outputs[0])
    features = keras.layers.Dropout(dropout, name=HEAD_DROPOUT_LAYER)(features) if dropout else features
    return keras.Model(
        extractor.inputs[0], keras.layers.Dense(num_classes, dtype="float32", name=LOGITS_LAYER)(features)
    )


def set_linear_head(
    classifier: keras.Model, *, mean: np.ndarray, deviation: np.ndarray, weights: np.ndarray, bias: np.ndarray
) -> None:
    """Makes the head of `with_linear_head` compute (features - mean) / deviation @ weights + bias.

    Args:
        classifier: A model from `with_linear_head`, or its tail.
        mean: Mean of each feature, [n].
        deviation: Standard deviation of each feature, [n].
        weights: Weights of the linear layer, [n, classes].
        bias: Bias of the linear layer, [classes].
    """
    classifier.get_layer(STANDARDISATION_LAYER).set_weights([mean, np.square(deviation)])
    classifier.get_layer(LOGITS_LAYER).set_weights([weights, bias])


def shift_logits(classifier: keras.Model, shift: np.ndarray) -> None:
    """Adds constants to a classifier's logits, through the bias of its head.

    Args:
        classifier: A model from `build_classifier`, `with_linear_head` or `with_hidden_layers`.
        shift: The constants, [classes].
    """
    head = classifier.get_layer(LOGITS_LAYER)
    weights, bias = head.get_weights()
    head.set_weights([weights, bias + shift])


def with_hidden_layers(
    classifier: keras.Model, *, hidden_units: Sequence[int], dropout: float, num_features: int | None = None
) -> keras.Model:
    """Adds hidden layers to the head of `with_linear_head`: their logits are added to the linear ones.

    The last weights of the hidden branch begin at 0, so that training begins from the linear head, as residual branches
    begin from the identity (Goyal et al. 2017, arXiv:1706.02677, section 5.1).

    Args:
        classifier: A model from `with_linear_head`, or its tail from JSON.
        hidden_units: Width of each hidden layer (relu); if empty, the classifier is returned as it is.
        dropout: Dropout rate after each hidden layer.
        num_features: The hidden layers take this many of the features, the last ones; None: all.

    Returns:
        A model with the same layers and inputs, to float32 logits [batch, num_classes].
    """
    if not hidden_units:
        return classifier
    features = classifier.get_layer(STANDARDISATION_LAYER).output
    if num_features is not None:
        features = features[:, -num_features:]
    for num_units in hidden_units:
        features = keras.layers.Dense(num_units, activation="relu")(features)
        features = keras.layers.Dropout(dropout)(features)
    (linear,) = classifier.outputs
    hidden = keras.layers.Dense(
        linear.shape[-1], use_bias=False, kernel_initializer="zeros", dtype="float32", name=HIDDEN_LOGITS_LAYER
    )(features)
    logits = keras.layers.Add(dtype="float32", name=SUM_LAYER)([linear, hidden])
    # The name stays: Keras numbers models, and the numbers are in the fingerprint of the features' network.
    return keras.Model(classifier.input, logits, name=classifier.name)


def with_probabilities(
    logits_model: keras.Model, *, temperature: float = 1.0, shift: np.ndarray | None = None
) -> keras.Model:
    """Appends the calibrating temperature (Guo et al. 2017, arXiv:1706.04599) and a softmax as layers.

    Args:
        logits_model: uint8 [batch, height, width, 3] in, float32 logits [batch, classes] out.
        temperature: Divides the logits.
        shift: Constants to add to the logits before that, [classes], for a model without the head that `shift_logits`
            changes; None: nothing is added.

    Returns:
        A model with the same layers: uint8 [batch, height, width, 3] in, float32 probabilities [batch, classes] out.
    """
    offset = 0.0 if shift is None else (shift / temperature).tolist()
    scale = keras.layers.Rescaling(1 / temperature, offset, dtype="float32", name=TEMPERATURE_LAYER)
    scaled = scale(logits_model.output)
    probabilities = keras.layers.Softmax(dtype="float32", name="probabilities")(scaled)
    return keras.Model(logits_model.input, probabilities)


def from_trained(
    location: str,
    *,
    preprocessing: Preprocessing,
    num_classes: int,
    image_size_px: int | None,
    outputs: Outputs | None = None,
) -> keras.Model:
    """Wraps a user's own trained model as a classifier: uint8 images in, float32 logits out.

    If the model gives probabilities, the logits are their logarithm, whose softmax gives the probabilities back.

    Args:
        location: A .keras file of a model with one output per class, or a single output for the second of two classes.
        preprocessing: The pixel preprocessing that the model was trained with.
        num_classes: Number of classes that the model's outputs must fit.
        image_size_px: Height and width for a model that leaves them open.
        outputs: What the model gives; None: decided by its values for some images, see `outputs.find_outputs`.

    Raises:
        ConfigError: The model does not fit, or its outputs are neither logits nor probabilities, or may be both.
    """
    model = load_keras_file(location)
    height, width, num_channels = model.input_shape[1:4] if len(model.input_shape) == 4 else (None, None, None)
    size_px = height or image_size_px
    if num_channels != 3 or size_px is None or (width or size_px) != size_px:
        raise ConfigError(
            f"'{location}' has the input {model.input_shape}, but tlray needs square RGB images [batch, size, size, "
            "3]. If the model accepts any size, give --image-size-px."
        )
    is_single = model.output_shape[-1] == 1
    if len(model.output_shape) != 2 or (2 if is_single else model.output_shape[-1]) != num_classes:
        raise ConfigError(
            f"'{location}' has the outputs {model.output_shape}, but the list of classes has {num_classes} names. "
            "Correct the list."
        )
    images = keras.Input((size_px, size_px, 3), dtype="uint8", name="image")
    values = model(preprocess(images, preprocessing))
    kind = find_outputs(
        _try(keras.Model(images, values)),
        given=outputs,
        ends_in_sigmoid=getattr(model.layers[-1], "activation", None) is keras.activations.sigmoid,
    )
    if values.dtype != "float32":  # `MIN_PROBABILITY` is 0 in float16
        values = keras.ops.cast(values, "float32")
    if kind == "logits":
        logits = keras.ops.concatenate([keras.ops.zeros_like(values), values], axis=-1) if is_single else values
    else:
        probabilities = (
            keras.ops.concatenate([keras.ops.subtract(1.0, values), values], axis=-1) if is_single else values
        )
        logits = keras.ops.log(keras.ops.maximum(probabilities, MIN_PROBABILITY))
    return keras.Model(images, logits)


def _try(model: keras.Model) -> np.ndarray:
    """Runs a model on the trial images, one by one as they may be large; returns float32 [images, outputs]."""
    images = trial_images(model.input_shape[1])
    outputs = [keras.ops.cast(model(image[np.newaxis], training=False), "float32") for image in images]
    return np.concatenate([np.asarray(each) for each in outputs])


def get_weights(model: keras.Model) -> list[np.ndarray]:
    """Returns all weights, float32, in the model's order (without the seed states of dropout)."""
    return list(model.get_weights())


def from_json(architecture: str, weights: Sequence[np.ndarray] | None = None) -> keras.Model:
    """Builds a model from its architecture, and sets its weights if given."""
    model = keras.models.model_from_json(architecture)
    if weights is not None:
        set_weights(model, weights)
    return model


def mixed_bfloat16(architecture: str) -> str:
    """Returns an architecture (JSON) that computes in bfloat16 with float32 weights, except in `_FLOAT32_LAYERS`."""

    def convert(node: Any) -> Any:
        if isinstance(node, list):
            return [convert(item) for item in node]
        if not isinstance(node, dict) or node.get("name") in _FLOAT32_LAYERS:
            return node
        if node.get("class_name") == "DTypePolicy" and node["config"]["name"] == "float32":
            return {**node, "config": {"name": "mixed_bfloat16"}}
        return {key: convert(value) for key, value in node.items()}

    return json.dumps(convert(json.loads(architecture)))
