"""Splits classifiers into trunk (the frozen part before the first trainable layers) and tail, and extracts features.

The trunk's output for an image never changes in a training, so it runs as in inference, with its weights as constants.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from tlray.config.training import Preprocessing
from tlray.models import graph
from tlray.models.backbone import preprocess
from tlray.models.classifier import FEATURES_LAYER, STANDARDISATION_LAYER
from tlray.models.graph import Graph

MIN_BLOCKS = 8
"""Minimum number of branching points; a backbone with fewer is taken as a plain chain of layers."""

NUM_LEVELS = 5
DEEP_PART = 0.45
"""Share of a backbone's blocks, the first ones, that give no pooled features. They come from `NUM_LEVELS` levels of the
other blocks. Of InceptionV3's 12 these are mixed4, 6, 7, 8 and 10, which beat mixed10 alone on chest CT; shallower ones
know edges and textures."""


def split(classifier: keras.Model) -> tuple[keras.Model, keras.Model]:
    """Splits a classifier where its trained part begins.

    Args:
        classifier: A model from `tlray.models.classifier`, some of its backbone's layers frozen.

    Returns:
        The trunk, from uint8 images to a list of feature maps (the preprocessed images alone where all is trained),
        and the tail, from these to logits. Both have the classifier's own layers: one after the other they compute
        what it does, and training the tail trains the classifier.
    """
    traced = graph.trace(classifier)
    (place,) = (place for place, call in enumerate(traced.calls) if isinstance(call.layer, keras.Model))
    backbone = traced.calls[place]
    if not backbone.layer.trainable_variables:
        return keras.Model(traced.input, backbone.given), keras.Model(backbone.given, traced.output)
    inner = graph.trace(backbone.layer)
    tensors = _cut(inner)
    cut = keras.tree.flatten(keras.Model(inner.input, tensors)(*backbone.taken))
    features = keras.Model(tensors, inner.output)(cut)
    after = graph.run(traced.calls[place + 1 :], {id(backbone.given[0]): features})
    return keras.Model(traced.input, cut), keras.Model(cut, after[id(traced.output)])


def up_to(model: keras.Model, layer_name: str) -> keras.Model:
    """Returns the part of a model that computes the input of one of its layers, made of the same layers."""
    traced = graph.trace(model)
    (tensor,) = next(call.taken for call in traced.calls if call.layer.name == layer_name)
    return keras.Model(_as_in(model, traced), tensor)


def with_features(model: keras.Model) -> keras.Model:
    """Adds the pooled features that a classifier's head takes as a second output.

    Args:
        model: A classifier from `tlray.models.classifier`, its tail, or either of them with probabilities.

    Returns:
        A model with the same layers and inputs, to the model's output and the features [batch, n]; `model` itself where
        its features are not known, as those of a user's own model.
    """
    traced = graph.trace(model)
    features = _features(traced)
    return keras.Model(_as_in(model, traced), [traced.output, features[0]]) if features else model


def _features(traced: Graph) -> list[keras.KerasTensor]:
    """Returns the pooled features of a classifier's graph; none where it has no such layer."""
    pooling = keras.layers.GlobalAveragePooling2D
    kinds = {STANDARDISATION_LAYER: keras.layers.BatchNormalization, FEATURES_LAYER: pooling}
    for call in traced.calls:
        if isinstance(call.layer, kinds.get(call.layer.name, ())):
            return call.taken if call.layer.name == STANDARDISATION_LAYER else call.given
    return []


def _as_in(model: keras.Model, traced: Graph) -> Any:
    """Returns a graph's inputs in the structure in which its model takes them: Keras warns of any other."""
    return keras.tree.pack_sequence_as(model.input, traced.inputs)


def level_sizes(backbone: keras.Model) -> list[int]:
    """Returns the number of pooled features from each depth of a backbone, the last depth last."""
    return [int(level.shape[-1]) for level in _levels(graph.trace(backbone))]


def extractor(
    backbone: keras.Model, preprocessing: Preprocessing, *, pooled: bool, cut: bool, depths: int = NUM_LEVELS
) -> tuple[keras.Model, list[str]]:
    """Builds a model that computes a backbone's features in one pass.

    Args:
        backbone: Floating-point images in, a feature map out; its trainable layers decide the cut.
        preprocessing: The pixel preprocessing that the backbone expects.
        pooled: Give `pooled`, the global averages of the feature maps at several depths, [batch, channels of all].
        cut: Give `cut_0`, `cut_1`, ...: the feature maps that the trained part is made from (the last feature map
            where nothing is trained).
        depths: How many of the five depths to pool, counted from the last one.

    Returns:
        A model from uint8 images to a list of features, and their names.
    """
    traced = graph.trace(backbone)
    features: dict[str, keras.KerasTensor] = {}
    if pooled:
        averages = [keras.layers.GlobalAveragePooling2D()(level) for level in _levels(traced)[-depths:]]
        features["pooled"] = keras.layers.Concatenate()(averages) if len(averages) > 1 else averages[0]
    if cut:
        tensors = _cut(traced) if backbone.trainable_variables else [traced.output]
        features |= {f"cut_{number}": tensor for number, tensor in enumerate(tensors)}
    images = keras.Input((*traced.input.shape[1:],), dtype="uint8", name="image")
    outputs = keras.Model(traced.input, list(features.values()))(preprocess(images, preprocessing))
    return keras.Model(images, keras.tree.flatten(outputs)), list(features)


def _cut(traced: Graph) -> list[keras.KerasTensor]:
    """Returns the tensors of the trunk that the trained part takes."""
    untouched = {id(traced.input)}
    cut: dict[int, keras.KerasTensor] = {}
    for call in traced.calls:
        from_trunk = [tensor for tensor in call.taken if id(tensor) in untouched]
        if len(from_trunk) == len(call.taken) and not getattr(call.layer, "trainable_variables", ()):
            untouched.update(map(id, call.given))
        else:
            cut.update((id(tensor), tensor) for tensor in from_trunk)
    return list(cut.values())


def _levels(traced: Graph) -> list[keras.KerasTensor]:
    """Returns feature maps at several depths, the last one among them."""
    num_uses = Counter(id(tensor) for call in traced.calls for tensor in call.taken)
    num_left = num_uses.copy()
    waiting = {id(traced.input)}  # what has been computed and will still be needed
    passed: list[keras.KerasTensor] = []  # what every path through the network goes through
    for call in traced.calls:
        num_left.subtract(map(id, call.taken))
        waiting = {each for each in waiting if num_left[each] > 0} | set(map(id, call.given))
        if waiting == {id(call.given[0])} and len(call.given[0].shape) == 4:
            passed.append(call.given[0])
    # Where several layers take the same map a block ends and the next one begins.
    blocks = [tensor for tensor in passed if num_uses[id(tensor)] > 1 or tensor is passed[-1]]
    if len(blocks) < MIN_BLOCKS:
        blocks = passed
    deep = blocks[int(len(blocks) * DEEP_PART) :]
    places = np.rint(np.linspace(0, len(deep) - 1, NUM_LEVELS)).astype(int)
    return [deep[place] for place in np.unique(places)]


def as_function(model: keras.Model) -> Callable[[Any], list[Any]]:
    """Converts a model into a TensorFlow function of images, in inference mode, for batches of any size."""
    run = tf.function(partial(model, training=False), input_signature=[_signature(model)], autograph=False)
    return lambda images: keras.tree.flatten(run(tf.convert_to_tensor(images)))


def as_constant(model: keras.Model) -> Callable[[Any], list[Any]]:
    """Converts a model into a function as `as_function` does, but with its weights as constants.

    With constants TensorFlow folds BatchNormalization into the convolutions. For InceptionV3 this is 5 % faster on
    CPUs, but takes four seconds once, and twice the memory.
    """
    run = tf.function(partial(model, training=False), autograph=False)
    constant = convert_variables_to_constants_v2(run.get_concrete_function(_signature(model)))
    return lambda images: list(constant(tf.convert_to_tensor(images)))


def _signature(model: keras.Model) -> tf.TensorSpec:
    (pixels,) = model.inputs
    return tf.TensorSpec((None, *pixels.shape[1:]), tf.as_dtype(pixels.dtype))
