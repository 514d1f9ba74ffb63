"""Makes the int8 version of a model: four times smaller, and faster on CPUs that multiply 8-bit integers (VNNI)."""

import importlib.metadata
import importlib.util
import os
from pathlib import Path

import numpy as np

from tlray.engines import openvino_engine
from tlray.engines.openvino_engine import OpenVinoNetwork
from tlray.errors import ConfigError

MAX_IMAGES = 300
"""Number of training images that the ranges of activations are measured on at most (NNCF's own default)."""


def check_installed(wish: str = "--int8") -> None:
    """Raises a ConfigError if NNCF, which quantizes, is not installed.

    Args:
        wish: The option that asks for it, for the message.
    """
    if importlib.util.find_spec("nncf") is None:
        raise ConfigError(f"{wish} needs NNCF: pip install 'tlray[int8]'.")


def version() -> str:
    """Returns NNCF's version, such as 3.4.0.

    Raises:
        ConfigError: NNCF is not installed.
    """
    check_installed("--precision int8")
    return importlib.metadata.version("nncf")


def quantize(network: OpenVinoNetwork | str, images_BHWC: np.ndarray, target: str) -> None:
    """Quantizes weights and activations of a converted model to 8 bits (post-training quantization by NNCF).

    Args:
        network: The model, or the directory of its files; see `openvino_engine.convert`.
        images_BHWC: uint8 [images, size, size, 3], training images: they decide the ranges of the activations.
        target: Directory for the int8 model's two files; it is made where it is missing.

    Raises:
        ConfigError: NNCF is not installed.
    """
    check_installed()
    import nncf  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

    model = openvino_engine.read_model(network)
    dataset = nncf.Dataset([image_HWC[np.newaxis] for image_HWC in images_BHWC])
    quantized = nncf.quantize(model, dataset, subset_size=len(images_BHWC))
    Path(target).mkdir(parents=True, exist_ok=True)
    openvino_engine.write_model(quantized, os.path.join(target, openvino_engine.STRUCTURE))
