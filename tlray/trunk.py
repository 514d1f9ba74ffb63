"""The trunk: what of a classifier no trained weight touches, and the tail that it feeds.

The trunk's output for an image never changes in a training, so it runs as in inference, with its weights as constants.
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2


def split(classifier: keras.Model) -> tuple[keras.Model, keras.Model]:
    """Splits a classifier where its trained part begins.

    Args:
        classifier: Of `tlray.model.build_classifier`, some of its backbone's layers frozen.

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
        trunk, tail = _split_backbone(layer)
        cut.extend(keras.tree.flatten(trunk(*args, **kwargs)))
        return tail(cut)

    same_layers = keras.models.clone_model(classifier, clone_function=lambda layer: layer, call_function=call)
    return keras.Model(same_layers.inputs[0], cut), keras.Model(cut, same_layers.outputs[0])


def _split_backbone(backbone: keras.Model) -> tuple[keras.Model, keras.Model]:
    (pixels,) = backbone.inputs
    inputs = keras.Input(batch_shape=pixels.shape, dtype=pixels.dtype)
    untouched = {id(inputs)}  # tensors of the trunk
    cut: dict[int, keras.KerasTensor] = {}

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        result = layer(*args, **kwargs)
        sources = [each for each in keras.tree.flatten((args, kwargs)) if isinstance(each, keras.KerasTensor)]
        from_trunk = [source for source in sources if id(source) in untouched]
        if len(from_trunk) == len(sources) and not getattr(layer, "trainable_variables", ()):
            untouched.update(map(id, keras.tree.flatten(result)))
        else:
            cut.update((id(source), source) for source in from_trunk)
        return result

    (outputs,) = keras.models.clone_model(
        backbone, input_tensors=inputs, clone_function=lambda layer: layer, call_function=call
    ).outputs
    tensors = list(cut.values())
    return keras.Model(inputs, tensors), keras.Model(tensors, outputs)


def as_constant(trunk: keras.Model) -> Callable[[Any], list[Any]]:
    """Makes a trunk a TensorFlow function of its images, for batches of any size.

    With constants TensorFlow folds BatchNormalization into the convolutions and keeps their kernels as its library
    wants them.
    """
    (pixels,) = trunk.inputs
    signature = tf.TensorSpec((None, *pixels.shape[1:]), tf.as_dtype(pixels.dtype))

    def run(images: Any) -> Any:
        return trunk(images, training=False)

    constant = convert_variables_to_constants_v2(tf.function(run, autograph=False).get_concrete_function(signature))
    return lambda images: list(constant(tf.convert_to_tensor(images)))
