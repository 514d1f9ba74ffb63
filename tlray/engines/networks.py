"""Packs networks that compute features for the processes that run them."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tlray.engines import cache, comparison, openvino_engine, quantization
from tlray.engines.kinds import REFERENCE, Engine, EngineKind
from tlray.engines.openvino_engine import OpenVinoNetwork
from tlray.errors import ConfigError

FOLDER, INT8_FOLDER = "networks", "networks-int8"
"""The cache's folders for networks that compute features, and for those that are quantized."""

MAX_INT8 = 4
"""Number of quantized networks that the cache keeps: each set of training images gives another one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KerasNetwork:
    """A network for TensorFlow, as data that any process can load.

    Attributes:
        architecture: A model from uint8 images to a list of features, as JSON.
        weights: The model's weights.
    """

    architecture: str
    weights: list[np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A network, and the engine and precision that it is packed for.

    Attributes:
        network: The network.
        kind: Its engine and precision.
        why_not: Why OpenVINO cannot convert the network, though it was wanted; empty: it can, or it was not wanted.
    """

    network: KerasNetwork | OpenVinoNetwork
    kind: EngineKind
    why_not: str = ""

    @property
    def note(self) -> str:
        """A warning to the user about engine and precision; empty: none."""
        if not self.why_not:
            return ""
        return "OpenVINO cannot convert the network, so TensorFlow computes its features, more slowly: " + self.why_not


def pack(model: Any, kind: EngineKind, *, fingerprint: str) -> Packed:
    """Packs a Keras model; in a process with TensorFlow.

    Args:
        model: From uint8 images to a list of features.
        kind: The wanted engine and precision. A model that OpenVINO does not know, or with which it computes other
            features than TensorFlow in float32, is packed for TensorFlow.
        fingerprint: Tells this model from all others. What it is converted into is kept in the cache by this name.
    """
    why_not = ""
    if kind.engine == "openvino":
        try:
            return Packed(network=_converted(model, fingerprint), kind=kind)
        except openvino_engine.ConversionError as error:
            why_not = str(error)
    from tlray.models import classifier as models  # noqa: PLC0415

    network = KerasNetwork(architecture=model.to_json(), weights=models.get_weights(model))
    return Packed(network=network, kind=REFERENCE, why_not=why_not)


def _converted(model: Any, fingerprint: str) -> OpenVinoNetwork:
    def convert(directory: str) -> None:
        import keras  # noqa: PLC0415

        from tlray.models import files  # noqa: PLC0415

        with tempfile.TemporaryDirectory(prefix="tlray-network-") as temporary:
            saved_model = os.path.join(temporary, "saved_model")
            run = files.save_function(model, saved_model)
            openvino_engine.convert(saved_model, directory)
        images_BHWC = comparison.trial_images(model.input_shape[1])
        expected = [np.asarray(output, np.float32) for output in keras.tree.flatten(run(images_BHWC))]
        comparison.check(directory, images_BHWC, expected)

    return _read(lambda: cache.kept(FOLDER, fingerprint, convert))


def _read(kept: Callable[[], str]) -> OpenVinoNetwork:
    """Reads the network of the directory that a function returns, once more if another process has just removed it."""
    try:
        return openvino_engine.read(kept())
    except OSError:
        return openvino_engine.read(kept())


def kept(fingerprint: str, kind: EngineKind) -> Packed | None:
    """Returns a network that `pack` has converted in an earlier run; None if it has not, or not for this engine."""
    directory = cache.find(FOLDER, fingerprint) if kind.engine == "openvino" else None
    if directory is None:
        return None
    try:
        return Packed(network=openvino_engine.read(directory), kind=kind)
    except OSError:  # another process has just removed it
        return None


def quantized(network: OpenVinoNetwork, images_BHWC: np.ndarray, *, fingerprint: str) -> OpenVinoNetwork:
    """Returns the int8 version of a network for OpenVINO; see `quantization.quantize`.

    Args:
        network: The network, in float32.
        images_BHWC: uint8 [images, size, size, 3], which decide the ranges of the activations.
        fingerprint: Tells the result from all other networks. It is kept in the cache by this name.

    Raises:
        ConfigError: NNCF is not installed, or cannot quantize the network.
    """

    def quantize(directory: str) -> None:
        try:
            quantization.quantize(network, images_BHWC, directory)
        except (ConfigError, OSError):
            raise
        except Exception as error:  # NNCF raises errors of many kinds
            raise ConfigError(
                f"--precision int8: NNCF cannot quantize this network: {error}. Give --precision auto."
            ) from error

    return _read(lambda: cache.kept(INT8_FOLDER, fingerprint, quantize, max_entries=MAX_INT8))


def load(packed: Packed, *, num_threads: int | None, use_gpu: bool, is_long: bool, batch_size: int = 1) -> Engine:
    """Loads a packed network.

    Args:
        packed: The network.
        num_threads: Threads to compute with; None: all CPUs.
        use_gpu: Compute on the visible GPU.
        is_long: It will run on so many images that preparing it for speed is worth some seconds.
        batch_size: Number of images in most calls; see `openvino_engine.OpenVinoEngine`.

    Raises:
        ConfigError: This node's CPU does not have the precision.
    """
    if isinstance(packed.network, OpenVinoNetwork):
        try:
            return openvino_engine.OpenVinoEngine(
                packed.network, precision=packed.kind.precision, num_threads=num_threads, batch_size=batch_size
            )
        except openvino_engine.ConversionError as error:
            remedy = "Give --precision float32 (train and sweep: --inference-precision float32)."
            raise ConfigError(f"{error} {remedy}") from error
    from tlray.engines import tensorflow_engine  # noqa: PLC0415 (TensorFlow only where it computes)

    found = packed.network
    return tensorflow_engine.load_keras(
        found.architecture, found.weights, num_threads=num_threads, use_gpu=use_gpu, is_long=is_long
    )
