"""Keras models: a pretrained backbone, a new head, and what of both is trained.

A classifier is `uint8 [batch, height, width, 3] -> preprocessing -> backbone -> global average -> head -> logits`.
Its architecture travels between processes as JSON and its weights as a list of arrays.
"""

import contextlib
import inspect
import json
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import keras
import numpy as np
import tensorflow as tf

from tlray import bundle, storage
from tlray.config import Preprocessing, TrainConfig
from tlray.errors import ConfigError, TlrayError

DOWNLOAD_TIMEOUT_S = 20.0

# Means and deviations of ImageNet's RGB in [0, 1], and means of its BGR in [0, 255], as keras.applications has them:
# keras.src.applications.imagenet_utils.preprocess_input, modes "torch" and "caffe".
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
_CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)

TEMPERATURE_LAYER = "temperature"
LOGITS_LAYER = "logits"
STANDARDISATION_LAYER = "standardisation"
HEAD_DROPOUT_LAYER = "head_dropout"


def preprocess(images: Any, mode: Preprocessing) -> Any:
    """Applies a backbone's pixel preprocessing as layers.

    Args:
        images: Keras tensor [batch, height, width, 3], RGB in [0, 255], any dtype.
        mode: `unit` [0, 1], `symmetric` [-1, 1], `imagenet` (deviations from ImageNet's mean), `caffe` (BGR minus
            ImageNet's mean), `raw` [0, 255].

    Returns:
        Keras tensor of the layers' dtype, same shape.
    """
    match mode:
        case "unit":
            return keras.layers.Rescaling(1 / 255)(images)
        case "symmetric":
            return keras.layers.Rescaling(1 / 127.5, offset=-1.0)(images)
        case "imagenet":
            scale = [1 / (255 * deviation) for deviation in _IMAGENET_DEVIATION]
            offset = [-mean / deviation for mean, deviation in zip(_IMAGENET_MEAN, _IMAGENET_DEVIATION, strict=True)]
            return keras.layers.Rescaling(scale, offset=offset)(images)  # pyright: ignore[reportArgumentType]
        case "caffe":
            offset = [-mean for mean in _CAFFE_MEAN_BGR]
            bgr = keras.ops.flip(images, axis=-1)
            return keras.layers.Rescaling(1.0, offset=offset)(bgr)  # pyright: ignore[reportArgumentType]
        case "raw":
            return keras.layers.Rescaling(1.0)(images)


def find_application(name: str) -> Any:
    """Returns the constructor of a keras.applications model.

    Raises:
        ConfigError: There is no such model.
    """
    constructors = dict(inspect.getmembers(keras.applications, inspect.isfunction))
    if name not in constructors:
        raise ConfigError(
            f"--backbone '{name}' is neither a .keras file nor a model of keras.applications. "
            f"These are: {', '.join(sorted(constructors))}."
        )
    return constructors[name]


def application_preprocessing(name: str) -> Preprocessing:
    """Finds how keras.applications preprocesses a backbone's pixels, by trying its function on two pixels."""
    probe = np.array([[[[0.0, 64.0, 128.0], [32.0, 255.0, 7.0]]]], dtype=np.float32)
    module = sys.modules[find_application(name).__module__]
    wanted = module.preprocess_input(probe.copy())
    for mode in get_args(Preprocessing):
        if np.allclose(np.asarray(preprocess(probe, mode)), wanted, atol=1e-4):
            return mode
    raise ConfigError(f"The preprocessing of {name} is none of {get_args(Preprocessing)}: give --preprocessing.")


def build_backbone(config: TrainConfig) -> keras.Model:
    """Builds the backbone with its starting weights: floating-point images in, a feature map out.

    Args:
        config: Names backbone, cut, weights and image size.

    Raises:
        ConfigError: The model or its weights are not to be had, or do not fit together.
    """
    build = _own_backbone if config.backbone.endswith(".keras") else _application_backbone
    backbone = build(config)
    if config.weights not in ("imagenet", "none"):
        _load_weights(backbone, config)
    return backbone


def _application_backbone(config: TrainConfig) -> keras.Model:
    constructor = find_application(config.backbone)
    shape = (config.image_size_px, config.image_size_px, 3)
    try:
        if config.weights != "imagenet":
            return constructor(include_top=False, weights=None, input_shape=shape)
        with _download_timeout():
            return constructor(include_top=False, weights="imagenet", input_shape=shape)
    except ValueError as error:
        raise ConfigError(
            f"{config.backbone} cannot be built for --image-size-px {config.image_size_px}: {error}"
        ) from error
    except Exception as error:  # keras.utils.get_file raises a bare Exception for every failed download
        raise ConfigError(
            f"The ImageNet weights of {config.backbone} could not be downloaded ({error}). Without a network give "
            "--weights PATH (a Keras weights file of the model without its top), or --weights none to start from "
            "random weights."
        ) from error


@contextlib.contextmanager
def _download_timeout() -> Iterator[None]:
    # Keras downloads without a time-out of its own; a socket's default is the only way to set one.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def load_keras_file(location: str) -> keras.Model:
    """Loads a .keras file, without running code from it.

    Raises:
        ConfigError: It is not there, no Keras model, or wants code of its own.
    """
    if not storage.exists(location):
        raise ConfigError(f"There is no model file at '{location}'.")
    with storage.local_copy(location) as path:
        try:
            model = keras.models.load_model(path, compile=False, safe_mode=True)
        except Exception as error:  # h5py, zipfile, Keras and user layers each raise their own
            raise ConfigError(f"'{location}' is no Keras model that can be loaded safely: {error}") from error
    if not isinstance(model, keras.Model) or len(model.inputs) != 1:
        raise ConfigError(f"'{location}' must be a Keras model with one input, an image.")
    return (
        keras.Model(model.inputs[0], model.outputs[0], name=model.name)
        if isinstance(model, keras.Sequential)
        else model
    )


def _own_backbone(config: TrainConfig) -> keras.Model:
    model = load_keras_file(config.backbone)
    height, width = model.input_shape[1:3]
    if {height, width} - {None, config.image_size_px}:
        raise ConfigError(
            f"The model {config.backbone} takes {height} x {width} px images, not --image-size-px "
            f"{config.image_size_px}. Give --image-size-px {height}."
        )
    outputs: dict[str, Any] = {}

    def call_and_keep(layer: Any, *args: Any, **kwargs: Any) -> Any:
        result = layer(*args, **kwargs)
        if len(getattr(result, "shape", ())) == 4 and not isinstance(layer, keras.layers.InputLayer):
            outputs[layer.name] = result
        return result

    same_layers = keras.models.clone_model(model, clone_function=lambda layer: layer, call_function=call_and_keep)
    if not outputs:
        raise ConfigError(f"The model {config.backbone} has no layer with a feature map [batch, height, width, n].")
    name = config.cut or next(reversed(outputs))
    if name not in outputs:
        raise ConfigError(
            f"--cut '{name}' is no layer of {config.backbone} with a feature map. The last ones: "
            f"{', '.join(list(outputs)[-8:])}."
        )
    return keras.Model(same_layers.inputs[0], outputs[name], name="own_backbone")


def _load_weights(backbone: keras.Model, config: TrainConfig) -> None:
    if not storage.exists(config.weights):
        raise ConfigError(
            f"There are no weights at '{config.weights}'. Give 'imagenet', 'none', a Keras weights file, or a bundle."
        )
    is_bundle = storage.exists(storage.join(config.weights, bundle.BUNDLE_JSON))
    try:
        with storage.local_copy(config.weights) as path:
            if is_bundle:
                backbone.set_weights(_bundle_backbone(path).get_weights())
            else:
                backbone.load_weights(path)
    except TlrayError:
        raise
    except Exception as error:  # h5py, Keras and NumPy each have their own for what does not fit
        what = "the bundle" if is_bundle else "the weights file"
        raise ConfigError(
            f"--weights: {what} '{config.weights}' does not fit the backbone {config.backbone} without its top. "
            f"Name the --backbone that it was made for. ({_first_line(error)})"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0][:200]


def _bundle_backbone(directory: Path) -> keras.Model:
    model = load_keras_file(str(bundle.load(str(directory)).model_path))
    backbones = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    if len(backbones) != 1:
        raise ConfigError("--weights: this bundle was exported from a model of your own and has no backbone to reuse.")
    return backbones[0]


def leaf_layers(model: keras.Model) -> list[keras.Layer]:
    """Returns a model's layers in order, those of nested models in their place."""
    leaves: list[keras.Layer] = []
    for layer in model.layers:
        leaves += leaf_layers(layer) if isinstance(layer, keras.Model) else [layer]
    return leaves


def trained_layers(backbone: keras.Model, config: TrainConfig) -> list[keras.Layer]:
    """Returns the last layers, as many as a resolved config trains, in order."""
    layers = leaf_layers(backbone)
    if config.trainable_layers == "all":
        return layers
    return layers[len(layers) - min(len(layers), config.trainable_layers or 0) :]


def set_trainable(backbone: keras.Model, config: TrainConfig) -> None:
    """Freezes the trunk and decides what BatchNormalization does in the tail.

    A frozen BatchNormalization layer runs on its stored statistics, also in training. A synchronized one uses the
    global batch; a local one its worker's, and the training loop has to average the moving statistics, which Keras
    leaves different on each worker.

    Args:
        backbone: Changed in place.
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
        backbone: See `build_backbone` and `set_trainable`.
        config: A resolved config.
        preprocessing: What the backbone wants to see.
        num_classes: At least 2.
    """
    images = keras.Input((config.image_size_px, config.image_size_px, 3), dtype="uint8", name="image")
    features = keras.layers.GlobalAveragePooling2D()(backbone(preprocess(images, preprocessing)))
    for num_units in config.hidden_units:
        features = keras.layers.Dense(num_units, activation="relu")(features)
        features = keras.layers.Dropout(config.dropout)(features)
    if not config.hidden_units:
        features = keras.layers.Dropout(config.dropout)(features)
    logits = keras.layers.Dense(num_classes, dtype="float32", name=LOGITS_LAYER)(features)
    return keras.Model(images, logits)


def with_linear_head(extractor: keras.Model, *, num_classes: int, dropout: float) -> keras.Model:
    """Appends a linear classifier of standardised features, to be set by `set_linear_head`.

    Args:
        extractor: uint8 [batch, height, width, 3] to features [batch, n].
        num_classes: At least 2.
        dropout: Rate between the two.

    Returns:
        A model with the same layers, to float32 logits [batch, num_classes].
    """
    # Not keras.layers.Normalization, whose statistics `set_weights` leaves as they were when it was built.
    standardise = keras.layers.BatchNormalization(
        center=False,
        scale=False,
        epsilon=1e-12,  # far below the square of the least deviation
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
        classifier: Of `with_linear_head`, or its tail.
        mean: Of each feature, [n].
        deviation: Of each feature, [n].
        weights: [n, classes].
        bias: [classes].
    """
    classifier.get_layer(STANDARDISATION_LAYER).set_weights([mean, np.square(deviation)])
    classifier.get_layer(LOGITS_LAYER).set_weights([weights, bias])


def with_probabilities(logits_model: keras.Model, *, temperature: float = 1.0) -> keras.Model:
    """Appends the calibrating temperature (Guo et al. 2017, arXiv:1706.04599) and a softmax as layers.

    Returns:
        A model with the same layers: uint8 [batch, height, width, 3] in, float32 probabilities [batch, classes] out.
    """
    scaled = keras.layers.Rescaling(1 / temperature, dtype="float32", name=TEMPERATURE_LAYER)(logits_model.output)
    probabilities = keras.layers.Softmax(dtype="float32", name="probabilities")(scaled)
    return keras.Model(logits_model.input, probabilities)


def from_trained(
    location: str, *, preprocessing: Preprocessing, num_classes: int, image_size_px: int | None
) -> keras.Model:
    """Wraps a model of one's own as a classifier: uint8 images in, logits out.

    Its last layer may be a softmax, a sigmoid of one unit (two classes), or linear (logits).

    Args:
        location: A .keras file.
        preprocessing: The pixels that it was trained on.
        num_classes: What its outputs must fit.
        image_size_px: Height and width for a model that leaves them open.

    Raises:
        ConfigError: It does not fit.
    """
    model = load_keras_file(location)
    height, width, num_channels = model.input_shape[1:4] if len(model.input_shape) == 4 else (None, None, None)
    size_px = height or image_size_px
    if num_channels != 3 or size_px is None or (width or size_px) != size_px:
        raise ConfigError(
            f"'{location}' takes {model.input_shape}; tlray needs square RGB images [batch, size, size, 3]. "
            "A model that leaves the size open needs --image-size-px."
        )
    num_outputs = model.output_shape[-1]
    activation = getattr(model.layers[-1], "activation", None)
    is_softmax = activation is keras.activations.softmax or isinstance(model.layers[-1], keras.layers.Softmax)
    is_sigmoid = activation is keras.activations.sigmoid and num_outputs == 1
    if (2 if is_sigmoid else num_outputs) != num_classes or len(model.output_shape) != 2:
        raise ConfigError(f"'{location}' has outputs {model.output_shape}, the list of classes has {num_classes}.")
    images = keras.Input((size_px, size_px, 3), dtype="uint8", name="image")
    outputs = model(preprocess(images, preprocessing))
    if is_sigmoid:
        outputs = keras.ops.concatenate([1.0 - outputs, outputs], axis=-1)
    if is_sigmoid or is_softmax:
        # softmax(log p) = p: so that the temperature acts on logits here too.
        outputs = keras.ops.log(keras.ops.maximum(outputs, 1e-30))
    return keras.Model(images, outputs)


def get_weights(model: keras.Model) -> list[np.ndarray]:
    """Returns all weights, float32, in the model's order (without the seed states of dropout)."""
    return list(model.get_weights())


def from_json(architecture: str, weights: Sequence[np.ndarray] | None = None) -> keras.Model:
    """Builds a model from its architecture, and sets its weights if given."""
    model = keras.models.model_from_json(architecture)
    if weights is not None:
        model.set_weights(list(weights))
    return model


def mixed_bfloat16(architecture: str) -> str:
    """Returns an architecture (JSON) that computes in bfloat16 with float32 weights, but for the ends of the head."""

    def convert(node: Any) -> Any:
        if isinstance(node, list):
            return [convert(item) for item in node]
        if not isinstance(node, dict) or node.get("name") in (LOGITS_LAYER, STANDARDISATION_LAYER):
            return node
        if node.get("class_name") == "DTypePolicy" and node["config"]["name"] == "float32":
            return {**node, "config": {"name": "mixed_bfloat16"}}
        return {key: convert(value) for key, value in node.items()}

    return json.dumps(convert(json.loads(architecture)))


def save_artifact(classifier: keras.Model, directory: Path) -> Callable[[Any], Any]:
    """Writes `model.keras` and `saved_model/` (signature `serving_default`) of a model with probabilities.

    Returns:
        The signature's function, from uint8 images to probabilities.
    """
    directory.mkdir(parents=True, exist_ok=True)
    classifier.save(directory / bundle.MODEL_FILE)
    signature = tf.TensorSpec((None, *classifier.input_shape[1:]), tf.uint8, name="image")

    def predict(image: Any) -> Any:
        return classifier(image, training=False)

    serve = tf.function(predict, input_signature=[signature], autograph=False)
    # Keras' own `export` writes every weight twice and takes twice the time.
    module: Any = tf.Module()
    module.weights = [variable.value for variable in classifier.variables]
    tf.saved_model.save(module, str(directory / bundle.SAVED_MODEL_DIR), signatures=serve)
    return serve
