"""The model and the decoding, the same in every peer, so that only the servers differ.

With BENCHMARK_ENGINE=tensorflow the SavedModel is loaded as `tlray.engines.tensorflow_engine` does it, with its
variables turned into constants, which is faster than `tf.saved_model.load` alone. With openvino the bundle's files for
OpenVINO are loaded, in the precision BENCHMARK_PRECISION. Files are decoded by `tlray.data.decoding`, which needs numpy
and Pillow only.
"""

import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np

from tlray.data import decoding as images

BUNDLE = Path(os.environ["BENCHMARK_BUNDLE"])
PORT = int(os.environ["BENCHMARK_PORT"])
PRECISION: Any = os.environ["BENCHMARK_PRECISION"]
MAX_BATCH_SIZE = 32  # tlray's own

_SPEC = json.loads((BUNDLE / "bundle.json").read_text())


def load_openvino() -> Callable[[np.ndarray], np.ndarray]:
    """Returns the model on OpenVINO, for one call at a time."""
    sys.modules.setdefault("openvino_telemetry", cast("Any", None))  # which would report to OpenVINO's makers
    import openvino as ov  # noqa: PLC0415 (only where a model is)  # pyright: ignore[reportMissingImports]

    hint = {"float32": "f32", "bfloat16": "bf16"}[PRECISION]
    options = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
    request = ov.Core().compile_model(str(BUNDLE / "openvino/model.xml"), "CPU", options).create_infer_request()
    lock = threading.Lock()

    def predict(images_BHWC: np.ndarray) -> np.ndarray:
        with lock:
            return request.infer({0: images_BHWC}, share_inputs=True)["output_0"]

    return predict


def load_tensorflow() -> Callable[[np.ndarray], np.ndarray]:
    """Returns the model on TensorFlow. May be called by several threads."""
    import tensorflow as tf  # noqa: PLC0415 (only where a model is)
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2  # noqa: PLC0415

    loaded = tf.saved_model.load(str(BUNDLE / "saved_model"))
    frozen = convert_variables_to_constants_v2(loaded.signatures["serving_default"])
    shape = (None, _SPEC["image_size_px"], _SPEC["image_size_px"], 3)
    run = tf.function(
        lambda images: frozen(images)[0], input_signature=[tf.TensorSpec(shape, tf.uint8)], autograph=False
    ).get_concrete_function()
    return lambda images_BHWC: run(tf.constant(images_BHWC)).numpy()


class Model:
    """The model, warmed up."""

    def __init__(self) -> None:
        self._predict = load_openvino() if os.environ["BENCHMARK_ENGINE"] == "openvino" else load_tensorflow()
        for size in (1, MAX_BATCH_SIZE):
            self.predict(np.zeros((size, _SPEC["image_size_px"], _SPEC["image_size_px"], 3), np.uint8))

    def predict(self, images_BHWC: np.ndarray) -> np.ndarray:
        """Returns the probabilities, float32 [images, classes], of uint8 [images, size, size, 3]."""
        return self._predict(images_BHWC)


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
