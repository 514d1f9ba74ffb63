"""Makes the int8 version of a model: four times smaller, and faster on CPUs that multiply 8-bit integers (VNNI)."""

import importlib.util
import os
from pathlib import Path

import numpy as np

from tlray.engines import openvino_engine
from tlray.errors import ConfigError

MAX_IMAGES = 300
"""Number of training images that the ranges of activations are measured on at most (NNCF's own default)."""


def check_installed() -> None:
    """Raises a ConfigError if NNCF, which quantizes, is not installed."""
    if importlib.util.find_spec("nncf") is None:
        raise ConfigError("--int8 needs NNCF: pip install 'tlray[int8]'.")


def quantize(directory: str, images_BHWC: np.ndarray, target: str) -> None:
    """Quantizes weights and activations of a converted model to 8 bits (post-training quantization by NNCF).

    Args:
        directory: Directory of the model, see `openvino_engine.convert`.
        images_BHWC: uint8 [images, size, size, 3], training images: they decide the ranges of the activations.
        target: Directory for the int8 model's two files; it is made.

    Raises:
        ConfigError: NNCF is not installed.
    """
    check_installed()
    import nncf  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

    model = openvino_engine.read_model(directory)
    dataset = nncf.Dataset([image_HWC[np.newaxis] for image_HWC in images_BHWC])
    quantized = nncf.quantize(model, dataset, subset_size=len(images_BHWC))
    Path(target).mkdir(parents=True)
    openvino_engine.write_model(quantized, os.path.join(target, openvino_engine.STRUCTURE))
