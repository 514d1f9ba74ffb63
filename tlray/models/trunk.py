"""Splits classifiers into trunk (the frozen part before the first trainable layers) and tail, and extracts features.

The trunk's output for an image never changes in a training, so it runs as in inference, with its weights as constants.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from tlray.config.training import Preprocessing
from tlray.models.backbone import preprocess

MIN_BLOCKS = 8
"""Minimum number of branching points; a backbone with fewer is taken as a plain chain of layers."""

NUM_LEVELS = 5
DEEP_PART = 0.45
"""Share of a backbone's blocks, the first ones, that give no pooled features. They come from `NUM_LEVELS` levels of the
other blocks. Of InceptionV3's 12 these are mixed4, 6, 7, 8 and 10, which beat mixed10 alone on chest CT; shallower ones
know edges and textures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Graph:
    """A backbone's graph, called anew on an input of its own.

    Attributes:
        inputs: The input images.
        calls: Each layer with the tensors that it takes and those that it gives, in order of execution.
        outputs: The last feature map.
    """

    inputs: keras.KerasTensor
    calls: list[tuple[Any, list[keras.KerasTensor], list[keras.KerasTensor]]]
    outputs: keras.KerasTensor


def split(classifier: keras.Model) -> tuple[keras.Model, keras.Model]:
    """Splits a classifier where its trained part begins.

    Args:
        classifier: A model from `tlray.models.classifier`, some of its backbone's layers frozen.

    Returns:
        The trunk, from uint8 images to a list of feature maps (the preprocessed images alone where all is trained),
        and the tail, from these to logits. Both have the classifier's own layers: one after the other they compute
        what it does, and training the tail trains the classifier.
    """
    cut: list[keras.KerasTensor] = []

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(layer, keras.Model):
            return layer(*args, **kwargs)
        if not layer.trainable_variables:
            cut.append(layer(*args, **kwargs))
            return cut[0]
        graph = _walk(layer)
        tensors = _cut(graph)
        cut.extend(keras.tree.flatten(keras.Model(graph.inputs, tensors)(*args, **kwargs)))
        return keras.Model(tensors, graph.outputs)(cut)

    same_layers = keras.models.clone_model(classifier, clone_function=lambda layer: layer, call_function=call)
    return keras.Model(same_layers.inputs[0], cut), keras.Model(cut, same_layers.outputs[0])


def up_to(model: keras.Model, layer_name: str) -> keras.Model:
    """Returns the part of a model that computes the input of one of its layers, made of the same layers."""
    taken: list[keras.KerasTensor] = []

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if layer.name == layer_name:
            taken.extend(keras.tree.flatten(args))
        return layer(*args, **kwargs)

    same_layers = keras.models.clone_model(model, clone_function=lambda layer: layer, call_function=call)
    return keras.Model(same_layers.inputs, taken[0])


def level_sizes(backbone: keras.Model) -> list[int]:
    """Returns the number of pooled features from each depth of a backbone, the last depth last."""
    return [int(level.shape[-1]) for level in _levels(_walk(backbone))]


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
    graph = _walk(backbone)
    features: dict[str, keras.KerasTensor] = {}
    if pooled:
        averages = [keras.layers.GlobalAveragePooling2D()(level) for level in _levels(graph)[-depths:]]
        features["pooled"] = keras.layers.Concatenate()(averages) if len(averages) > 1 else averages[0]
    if cut:
        tensors = _cut(graph) if backbone.trainable_variables else [graph.outputs]
        features |= {f"cut_{number}": tensor for number, tensor in enumerate(tensors)}
    images = keras.Input((*graph.inputs.shape[1:],), dtype="uint8", name="image")
    outputs = keras.Model(graph.inputs, list(features.values()))(preprocess(images, preprocessing))
    return keras.Model(images, keras.tree.flatten(outputs)), list(features)


def _walk(backbone: keras.Model) -> _Graph:
    (pixels,) = backbone.inputs
    inputs: Any = keras.Input(batch_shape=pixels.shape, dtype=pixels.dtype)
    calls = []

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        result = layer(*args, **kwargs)
        taken = [each for each in keras.tree.flatten((args, kwargs)) if isinstance(each, keras.KerasTensor)]
        calls.append((layer, taken, keras.tree.flatten(result)))
        return result

    same_layers = keras.models.clone_model(
        backbone, input_tensors=inputs, clone_function=lambda layer: layer, call_function=call
    )
    return _Graph(inputs=inputs, calls=calls, outputs=same_layers.outputs[0])


def _cut(graph: _Graph) -> list[keras.KerasTensor]:
    """Returns the tensors of the trunk that the trained part takes."""
    untouched = {id(graph.inputs)}
    cut: dict[int, keras.KerasTensor] = {}
    for layer, taken, given in graph.calls:
        from_trunk = [tensor for tensor in taken if id(tensor) in untouched]
        if len(from_trunk) == len(taken) and not getattr(layer, "trainable_variables", ()):
            untouched.update(map(id, given))
        else:
            cut.update((id(tensor), tensor) for tensor in from_trunk)
    return list(cut.values())


def _levels(graph: _Graph) -> list[keras.KerasTensor]:
    """Returns feature maps at several depths, the last one among them."""
    num_uses = Counter(id(tensor) for _, taken, _ in graph.calls for tensor in taken)
    num_left = num_uses.copy()
    waiting = {id(graph.inputs)}  # what has been computed and will still be needed
    passed: list[keras.KerasTensor] = []  # what every path through the network goes through
    for _, taken, given in graph.calls:
        num_left.subtract(map(id, taken))
        waiting = {each for each in waiting if num_left[each] > 0} | set(map(id, given))
        if waiting == {id(given[0])} and len(given[0].shape) == 4:
            passed.append(given[0])
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
