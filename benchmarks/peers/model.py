"""The model and the decoding, the same in every peer, so that only the servers differ.

The SavedModel is loaded as `tlray.inference.predictor` does it, with its variables turned into constants, which is
faster than `tf.saved_model.load` alone; files are decoded by `tlray.data.decoding`, which
needs numpy and Pillow only.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from tlray.data import decoding as images

BUNDLE = Path(os.environ["BENCHMARK_BUNDLE"])
PORT = int(os.environ["BENCHMARK_PORT"])
MAX_BATCH_SIZE = 32  # tlray's own

_SPEC = json.loads((BUNDLE / "bundle.json").read_text())


class Model:
    """The SavedModel, warmed up. May be called by several threads."""

    def __init__(self) -> None:
        import tensorflow as tf  # noqa: PLC0415 (only where a model is)
        from tensorflow.python.framework.convert_to_constants import (  # noqa: PLC0415
            convert_variables_to_constants_v2,
        )

        loaded = tf.saved_model.load(str(BUNDLE / "saved_model"))
        self._constant = tf.constant
        frozen = convert_variables_to_constants_v2(loaded.signatures["serving_default"])
        shape = (None, _SPEC["image_size_px"], _SPEC["image_size_px"], 3)
        self._predict = tf.function(
            lambda images: frozen(images)[0], input_signature=[tf.TensorSpec(shape, tf.uint8)], autograph=False
        ).get_concrete_function()
        for size in (1, MAX_BATCH_SIZE):
            self.predict(np.zeros((size, _SPEC["image_size_px"], _SPEC["image_size_px"], 3), np.uint8))

    def predict(self, images_BHWC: np.ndarray) -> np.ndarray:
        """Returns the probabilities, float32 [images, classes], of uint8 [images, size, size, 3]."""
        return self._predict(self._constant(images_BHWC)).numpy()


def decode(content: bytes) -> np.ndarray:
    """Returns an image file's pixels, uint8 [size, size, 3]."""
    return images.to_array(images.decode(content, size_px=_SPEC["image_size_px"]))


def answer(probs_K: np.ndarray) -> dict[str, Any]:
    """Returns what a client is told of an image."""
    best = int(probs_K.argmax())
    row = {
        "label": _SPEC["classes"][best],
        "confidence": float(probs_K[best]),
        "probabilities": dict(zip(_SPEC["classes"], probs_K.tolist(), strict=True)),
    }
    return {"predictions": [row]}
