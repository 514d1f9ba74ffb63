"""Loads a bundle's SavedModel for inference in this process: pixels in, probabilities out."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from tlray.bundle import store
from tlray.errors import BundleError
from tlray.models import devices


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


class Predictor:
    """A loaded bundle that predicts class probabilities.

    Args:
        location: The bundle's directory, a path or URI. Its checksums are verified.
        num_threads: Threads of TensorFlow's pool; None: all CPUs. Only the first Predictor of a process sets it.
        use_gpu: Predict on the visible GPU; otherwise no GPU is used.

    Attributes:
        bundle: The verified bundle.

    Raises:
        BundleError: The bundle cannot be used.
    """

    def __init__(self, location: str, *, num_threads: int | None = None, use_gpu: bool = False) -> None:
        self.bundle = store.load(location)
        if use_gpu:
            devices.use_gpus()
        else:
            devices.use_cpus(num_threads)
        try:
            with _without_wildcards(self.bundle.saved_model_path) as path:
                loaded = tf.saved_model.load(os.fspath(path))
            # With constants TensorFlow folds BatchNormalization into the convolutions.
            frozen = convert_variables_to_constants_v2(loaded.signatures["serving_default"])
            # Wrapped: called directly, `frozen` writes the images out as text each time, for an unseen error message.
            shape = (None, self.bundle.spec.image_size_px, self.bundle.spec.image_size_px, 3)
            self._predict = tf.function(
                lambda images: frozen(images)[0], input_signature=[tf.TensorSpec(shape, tf.uint8)], autograph=False
            ).get_concrete_function()
        except (OSError, KeyError, ValueError, tf.errors.OpError) as error:
            raise BundleError(f"The SavedModel of '{location}' cannot be loaded: {error}") from error

    def predict(self, images_BHWC: np.ndarray) -> np.ndarray:
        """Predicts class probabilities.

        Args:
            images_BHWC: uint8 [batch, size, size, 3], RGB, at the bundle's `image_size_px`.

        Returns:
            float32 [batch, classes], in the bundle's class order.

        Raises:
            ValueError: The images have another dtype or shape.
        """
        size_px = self.bundle.spec.image_size_px
        if images_BHWC.dtype != np.uint8 or images_BHWC.shape[1:] != (size_px, size_px, 3):
            raise ValueError(
                f"The model takes uint8 [batch, {size_px}, {size_px}, 3]. "
                f"Received: {images_BHWC.dtype} {list(images_BHWC.shape)}"
            )
        if not len(images_BHWC):
            return np.zeros((0, len(self.bundle.spec.classes)), dtype=np.float32)
        return self._predict(tf.constant(images_BHWC)).numpy()
