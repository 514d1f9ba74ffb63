"""Builds the backbone: a pretrained network without its top, its weights, and its pixel preprocessing."""

import contextlib
import inspect
import itertools
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import keras
import numpy as np

from tlray.bundle import store
from tlray.config.training import Preprocessing, TrainConfig
from tlray.errors import ConfigError, TlrayError
from tlray.files import storage
from tlray.models import graph
from tlray.models.files import load_keras_file
from tlray.models.layers import leaf_layers, set_weights
from tlray.models.weights import NAMED, check_weights, has_bundle

DOWNLOAD_TIMEOUT_S = 20.0

# Means and deviations of ImageNet's RGB in [0, 1], and means of its BGR in [0, 255], as keras.applications has them:
# keras.src.applications.imagenet_utils.preprocess_input, modes "torch" and "caffe".
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
_CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)

_RESCALED = frozenset(f"EfficientNetB{number}" for number in range(8))
"""Networks that Keras builds with a Rescaling layer after their Normalization, but for its own weights only."""

_KERAS_RESCALING = 1 / np.sqrt(_IMAGENET_DEVIATION)
"""The factors of that layer: keras.src.applications.efficientnet."""


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
    raise ConfigError(
        f"The preprocessing that keras.applications uses for {name} is none of {', '.join(get_args(Preprocessing))}. "
        "Give --preprocessing."
    )


def build_backbone(config: TrainConfig) -> keras.Model:
    """Builds the backbone with its starting weights: floating-point images in, a feature map out.

    Args:
        config: Names backbone, cut, weights and image size.

    Raises:
        ConfigError: The model or its weights are not available, or do not fit together.
    """
    build = _own_backbone if config.backbone.endswith(".keras") else _application_backbone
    backbone = build(config)
    if config.weights not in NAMED:
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


def _own_backbone(config: TrainConfig) -> keras.Model:
    model = load_keras_file(config.backbone)
    if len(model.input_shape) != 4 or model.input_shape[3] != 3:
        raise ConfigError(
            f"'{config.backbone}' has the input {model.input_shape}, but tlray needs square RGB images [batch, size, "
            "size, 3]. Give another --backbone."
        )
    height, width = model.input_shape[1:3]
    if {height, width} - {None, config.image_size_px}:
        raise ConfigError(
            f"The model {config.backbone} takes {height} x {width} px images, not --image-size-px "
            f"{config.image_size_px}. Give --image-size-px {height}."
        )
    shape = (config.image_size_px, config.image_size_px, *model.input_shape[3:])  # fixed for a model of any size, too
    traced = graph.trace(model, [keras.Input(shape, dtype=model.inputs[0].dtype)])
    maps = [(call.layer.name, call.given) for call in traced.calls]
    outputs = {name: given[0] for name, given in maps if len(given) == 1 and len(given[0].shape) == 4}
    if not outputs:
        raise ConfigError(
            f"The model {config.backbone} has no layer with a feature map [batch, height, width, n]. Give another "
            "--backbone."
        )
    name = config.cut or next(reversed(outputs))
    if name not in outputs:
        raise ConfigError(
            f"--cut '{name}' is not a layer of {config.backbone} with a feature map. Its last layers that have one: "
            f"{', '.join(list(outputs)[-8:])}."
        )
    return keras.Model(traced.input, outputs[name], name="own_backbone")


def _load_weights(backbone: keras.Model, config: TrainConfig) -> None:
    check_weights(config.weights)
    is_bundle = has_bundle(config.weights)
    try:
        with storage.local_copy(config.weights) as path:
            if is_bundle:
                source = _bundle_backbone(path)
                set_weights(backbone, source.get_weights())
                rescaling = _rescaling(source)
            else:
                backbone.load_weights(path)
                rescaling = _KERAS_RESCALING if _has_weights_of_keras(backbone, config) else None
            if rescaling is not None and _rescaling(backbone) is None:
                _rescale(backbone, rescaling)
    except TlrayError:
        raise
    except Exception as error:  # h5py, Keras and NumPy each raise their own error for weights that do not fit
        what = "the bundle" if is_bundle else "the weights file"
        if "truncated" in str(error):
            raise ConfigError(
                f"--weights: {what} '{config.weights}' is damaged or incomplete. Copy or download it again."
            ) from error
        raise ConfigError(
            f"--weights: {what} '{config.weights}' does not fit the backbone {config.backbone} without its top. "
            f"Name the --backbone that it was made for. ({_first_line(error)})"
        ) from error


def _rescaling(backbone: keras.Model) -> np.ndarray | None:
    """Returns the factors of a Rescaling layer that follows a Normalization layer, float64 [3]; None: it has none."""
    layers = leaf_layers(backbone)
    for before, layer in itertools.pairwise(layers):
        if isinstance(before, keras.layers.Normalization) and isinstance(layer, keras.layers.Rescaling):
            return np.asarray(layer.scale, np.float64)
    return None


def _has_weights_of_keras(backbone: keras.Model, config: TrainConfig) -> bool:
    """Tells whether a weights file of a network of `_RESCALED` is that of Keras, or was made from it.

    These have the deviations of ImageNet's pixels where their squares, the variances, should be (TensorFlow issue
    49930), which the Rescaling layer makes up for.
    """
    if config.backbone not in _RESCALED:
        return False
    mean, variance, _ = _normalization(backbone).get_weights()
    return np.allclose(mean, _IMAGENET_MEAN, atol=1e-3) and np.allclose(variance, _IMAGENET_DEVIATION, atol=1e-3)


def _rescale(backbone: keras.Model, factors: np.ndarray) -> None:
    """Makes the Normalization of a backbone also do what a Rescaling layer behind it would do.

    Keras builds the networks of `_RESCALED` with such a layer for its own weights, and without it for others. The layer
    has no weights, so nothing else tells that it is missing.
    """
    layer = _normalization(backbone)
    mean, variance, count = layer.get_weights()
    layer.set_weights([mean, variance / np.square(factors), count])
    layer.finalize_state()


def _normalization(backbone: keras.Model) -> keras.layers.Normalization:
    return next(layer for layer in leaf_layers(backbone) if isinstance(layer, keras.layers.Normalization))


def _first_line(error: Exception) -> str:
    """Returns the first line of an error's text, and the second one where the first ends in a colon."""
    first, *others = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return " ".join([first, *(others[:1] if first.endswith(":") else [])])[:300]


def _bundle_backbone(directory: Path) -> keras.Model:
    model = load_keras_file(str(store.load(str(directory)).model_path))
    backbones = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    if len(backbones) != 1:
        raise ConfigError(
            "--weights: this bundle was exported from your own model and has no backbone to reuse. Give the model's "
            ".keras file as --backbone instead."
        )
    return backbones[0]
