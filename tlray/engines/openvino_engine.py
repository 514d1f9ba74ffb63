"""Runs networks with OpenVINO, which starts in a tenth of TensorFlow's time and memory. The only user of OpenVINO."""

import contextlib
import functools
import importlib.metadata
import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from tlray.engines.kinds import Precision

# OpenVINO reports each import to its makers unless this package is missing. A tool for medical images sends nothing.
# `None` makes an import fail: https://docs.python.org/3/reference/import.html#the-module-cache
sys.modules.setdefault("openvino_telemetry", cast("Any", None))

import openvino as ov  # noqa: E402

STRUCTURE, WEIGHTS = "model.xml", "model.bin"
"""Names of the two files of a network in OpenVINO's format."""

_HINTS: dict[Precision, str] = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}
"""OpenVINO's names of the precisions. An int8 network has int8 operations of its own; the others run in float32."""


IMAGES_PER_THREAD = 4
"""Images that OpenVINO gets at once for each of its threads; larger batches are cut. InceptionV3 in bfloat16 on 2 cores
of an AMD EPYC, 2026-11-29, in turns: 152 to 154 images/s in eights and 156 to 159 in batches of 32; while another
process decodes images, 121 and 102 to 109. Two parts of four side by side take 39 CPU-seconds in place of 43 to score
3,000 images, beside the processes that decode them."""


class ConversionError(Exception):
    """OpenVINO cannot convert or run a network."""


@dataclass(frozen=True, slots=True)
class OpenVinoNetwork:
    """A network in OpenVINO's format, as data that any process can load.

    Attributes:
        structure: Content of the .xml file.
        weights: Content of the .bin file, uint8.
    """

    structure: bytes
    weights: np.ndarray


def convert(saved_model: str, directory: str) -> None:
    """Converts a SavedModel into OpenVINO's format; writes `STRUCTURE` and `WEIGHTS`.

    Args:
        saved_model: Directory of the SavedModel. Its signature `serving_default` has one input, images.
        directory: Directory for the two files; it is made where it is missing.

    Raises:
        ConversionError: The network has an operation that OpenVINO does not know.
        OSError: The files cannot be written.
    """
    try:
        # Not `ov.convert_model`, which reports conversions to OpenVINO's makers.
        model = ov.Core().read_model(saved_model)
    except RuntimeError as error:
        raise ConversionError(str(error)) from error
    Path(directory).mkdir(parents=True, exist_ok=True)
    write_model(model, os.path.join(directory, STRUCTURE))


def read(directory: str) -> OpenVinoNetwork:
    """Reads a network from a directory with `STRUCTURE` and `WEIGHTS`."""
    return OpenVinoNetwork(Path(directory, STRUCTURE).read_bytes(), np.fromfile(Path(directory, WEIGHTS), np.uint8))


def version() -> str:
    """Returns OpenVINO's version, such as 2026.4.1."""
    return importlib.metadata.version("openvino")


def read_model(network: OpenVinoNetwork | str) -> Any:
    """Returns OpenVINO's model of a network, or of a directory with `STRUCTURE` and `WEIGHTS`."""
    if isinstance(network, str):
        return ov.Core().read_model(os.path.join(network, STRUCTURE))
    return ov.Core().read_model(network.structure, ov.Tensor(network.weights))


def write_model(model: Any, path: str) -> None:
    """Writes OpenVINO's model as an .xml file and the .bin file beside it.

    Raises:
        OSError: The files cannot be written.
    """
    try:
        ov.serialize(model, path)
    except RuntimeError as error:
        raise OSError(f"The files of a network cannot be written: {error}") from error


_CPU_INFO = Path("/proc/cpuinfo")
_INT8_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"})
"""Linux' names of the instructions that multiply int8 numbers and add them up, of x86 and ARM."""


@functools.cache
def cpu_precisions() -> frozenset[Precision]:
    """Returns the precisions for which this machine's CPU has instructions, float32 among them."""
    found = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    names: dict[str, Precision] = {"BF16": "bfloat16", "INT8": "int8"}
    named: set[Precision] = {names[name] for name in names if name in found}
    return frozenset({"float32", *(named if _multiplies_int8() else named - {"int8"})})


def _multiplies_int8() -> bool:
    """Tells whether the CPU has one of `_INT8_FLAGS`: OpenVINO names int8 on every CPU. True where Linux is not."""
    try:
        return bool(_INT8_FLAGS & set(_CPU_INFO.read_text().split()))
    except OSError:
        return True


@functools.cache
def cpu_name() -> str:
    """Returns the name of this machine's CPU."""
    return str(ov.Core().get_property("CPU", "FULL_DEVICE_NAME")).strip()


class OpenVinoEngine:
    """Runs a network with OpenVINO on the CPU, see `kinds.Engine`.

    Args:
        network: The network, or the directory of its files. Processes that load the same files share their memory.
        precision: See `kinds.EngineKind`.
        num_threads: Threads to compute with; None: OpenVINO decides, the cores of one socket.
        batch_size: Number of images in most calls. From twice `IMAGES_PER_THREAD` on, a batch is computed in parts
            side by side, so that threads need not wait for one another after each layer. 1: all threads compute one
            part, so that a few images take the least time.

    Raises:
        ConversionError: The network cannot be loaded.
    """

    def __init__(
        self,
        network: OpenVinoNetwork | str,
        *,
        precision: Precision,
        num_threads: int | None = None,
        batch_size: int = 1,
    ) -> None:
        if precision not in cpu_precisions():
            raise ConversionError(f"This node's CPU ({cpu_name()}) cannot compute in {precision}.")
        core = ov.Core()
        num_parallel = max(1, min(num_threads or os.cpu_count() or 1, batch_size // IMAGES_PER_THREAD))
        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": _HINTS[precision], "NUM_STREAMS": num_parallel}
        if num_threads is not None:
            # Pinned, the threads of all processes of a node would share its first cores.
            options |= {"INFERENCE_NUM_THREADS": num_threads, "ENABLE_CPU_PINNING": False}
        try:
            compiled = core.compile_model(read_model(network), "CPU", options)
        except RuntimeError as error:
            raise ConversionError(str(error)) from error
        self._compiled, self._outputs = compiled, _ordered(compiled.outputs)
        self.output_shapes = [_shape(output) for output in self._outputs]
        self._requests: list[Any] = []
        self._max_images = IMAGES_PER_THREAD * max(1, compiled.get_property("INFERENCE_NUM_THREADS") // num_parallel)
        self._lock = threading.Lock()  # a request runs one call at a time

    def run(self, images_BHWC: np.ndarray) -> list[np.ndarray]:
        """Runs the network, see `kinds.Engine.run`."""
        images_BHWC = np.ascontiguousarray(images_BHWC)
        starts = range(0, max(1, len(images_BHWC)), self._max_images)
        try:
            with self._lock:
                parts = self._infer([images_BHWC[start : start + self._max_images] for start in starts])
        except RuntimeError as error:
            raise ConversionError(str(error)) from error
        return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)] if len(parts) > 1 else parts[0]

    def _infer(self, parts: list[np.ndarray]) -> list[list[np.ndarray]]:
        """Returns the outputs of each part.

        OpenVINO queues all parts at once: between two of them no thread waits for Python, which may be busy elsewhere.
        """
        while len(self._requests) < len(parts):
            self._requests.append(self._compiled.create_infer_request())
        requests = self._requests[: len(parts)]
        started = []
        try:
            for request, images_BHWC in zip(requests, parts, strict=True):
                request.start_async({0: images_BHWC}, share_inputs=True)
                started.append(request)
            for request in requests:
                request.wait()
        except BaseException:  # also Ctrl-C: what has started still reads the images, and the next call needs requests
            for request in started:
                with contextlib.suppress(RuntimeError):
                    request.wait()
            raise
        return [[request.get_tensor(output).data.copy() for output in self._outputs] for request in requests]


def _shape(output: Any) -> tuple[int | None, ...]:
    """Returns the shape of an output as `kinds.Engine.output_shapes` has it."""
    shape = output.get_partial_shape()
    return () if shape.rank.is_dynamic else tuple(None if size.is_dynamic else size.get_length() for size in shape)[1:]


def _ordered(outputs: list[Any]) -> list[Any]:
    """Returns the outputs of a converted SavedModel in the order of the function: they are named output_0, output_1."""
    return sorted(outputs, key=lambda output: int(output.get_any_name().rpartition("_")[2]))
