"""Runs networks with TensorFlow: on GPUs, and on CPUs as the reference for OpenVINO."""

import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from tlray.models import classifier as models
from tlray.models import devices, trunk


@contextmanager
def _without_wildcards(path: Path) -> Iterator[Path]:
    """Yields a path without wildcards, which TensorFlow would take for a pattern: a link where there are some."""
    if not re.search(r"[*?\[\]\\]", os.fspath(path)):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="tlray-") as directory:
        link = Path(directory) / "saved_model"
        link.symlink_to(path.resolve(), target_is_directory=True)
        yield link


class TensorFlowEngine:
    """Runs a function of TensorFlow, see `kinds.Engine`.

    Args:
        function: From a uint8 tensor [batch, height, width, 3] to a list of tensors.
        outputs: Tensors of the shapes that the function gives, in this order.
    """

    def __init__(self, function: Callable[[Any], list[Any]], outputs: Sequence[Any]) -> None:
        self._function = function
        shapes = [tf.TensorShape(each.shape) for each in outputs]
        self.output_shapes = [() if shape.rank is None else tuple(shape.as_list()[1:]) for shape in shapes]

    def run(self, images_BHWC: np.ndarray) -> list[np.ndarray]:
        """Runs the network, see `kinds.Engine.run`."""
        return [output.numpy().astype(np.float32, copy=False) for output in self._function(tf.constant(images_BHWC))]


def set_up(*, num_threads: int | None, use_gpu: bool) -> None:
    """Chooses TensorFlow's devices and threads; the first call in a process decides.

    Args:
        num_threads: Threads of TensorFlow's pool; None: all CPUs.
        use_gpu: Compute on the visible GPU; otherwise no GPU is used.
    """
    if use_gpu:
        devices.use_gpus()
    else:
        devices.use_cpus(num_threads)


def load_keras(
    architecture: str,
    weights: list[np.ndarray],
    *,
    num_threads: int | None = None,
    use_gpu: bool = False,
    is_long: bool = False,
) -> TensorFlowEngine:
    """Loads a Keras model from uint8 images to a list of features.

    Args:
        architecture: The model as JSON.
        weights: Its weights.
        num_threads: See `set_up`.
        use_gpu: See `set_up`.
        is_long: Make the weights constants, see `trunk.as_constant`.
    """
    set_up(num_threads=num_threads, use_gpu=use_gpu)
    model = models.from_json(architecture, weights)
    return TensorFlowEngine(trunk.as_constant(model) if is_long else trunk.as_function(model), model.outputs)


def load_saved_model(path: Path, *, num_threads: int | None = None, use_gpu: bool = False) -> TensorFlowEngine:
    """Loads a SavedModel, with its weights as constants.

    Raises:
        ValueError: It cannot be loaded.
    """
    set_up(num_threads=num_threads, use_gpu=use_gpu)
    try:
        with _without_wildcards(path) as plain:
            loaded = tf.saved_model.load(os.fspath(plain))
        # With constants TensorFlow folds BatchNormalization into the convolutions.
        frozen = convert_variables_to_constants_v2(loaded.signatures["serving_default"])
    except (OSError, KeyError, tf.errors.OpError) as error:
        raise ValueError(str(error)) from error
    (signature,) = (tf.TensorSpec(each.shape, each.dtype) for each in frozen.inputs)
    # Wrapped: called directly, `frozen` writes the images out as text each time, for an unseen error message.
    predict = tf.function(
        lambda images: [*frozen(images)], input_signature=[signature], autograph=False
    ).get_concrete_function()
    return TensorFlowEngine(predict, frozen.outputs)
