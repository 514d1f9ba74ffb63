"""Finds the files of a bundle's model in OpenVINO's format; converts bundles of earlier versions once, into a cache."""

import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from tlray.bundle import spec
from tlray.bundle.store import Bundle
from tlray.engines import cache, comparison, openvino_engine, quantization
from tlray.engines.kinds import Precision
from tlray.engines.openvino_engine import ConversionError, OpenVinoEngine

_LOG = logging.getLogger(__name__)

CANNOT = "OpenVINO cannot convert the model, so TensorFlow will predict, more slowly: {}"


def add_to(artifact: str) -> tuple[dict[Precision, str], tuple[str, ...]]:
    """Converts the SavedModel of an exported model for OpenVINO.

    Args:
        artifact: Directory on this node with `saved_model/`; `openvino/` is written beside it.

    Returns:
        By precision, the directory of its files, see `comparison.compare`; and a warning where there are none.
    """
    target = os.path.join(artifact, spec.OPENVINO_DIR)
    try:
        openvino_engine.convert(os.path.join(artifact, spec.SAVED_MODEL_DIR), target)
    except ConversionError as error:
        return {}, (CANNOT.format(error),)
    return {"float32": target, "bfloat16": target}, ()


def try_int8(artifact: str, images: Sequence[np.ndarray]) -> tuple[dict[Precision, str], tuple[str, ...]]:
    """Adds the int8 version of a model beside its `openvino/`; see `quantization.quantize`.

    Args:
        artifact: See `add_to`.
        images: uint8 [size, size, 3] each, training images.

    Returns:
        Its directory, as `add_to` does; or a warning why there is none, as a finished training must not fail then.
    """
    target = os.path.join(artifact, spec.INT8_DIR)
    if not images:
        return {}, ("There is no int8 model: all training images have changed or can no longer be read.",)
    try:
        quantization.quantize(os.path.join(artifact, spec.OPENVINO_DIR), np.stack(images), target)
    except Exception as error:  # NNCF raises errors of many kinds
        shutil.rmtree(target, ignore_errors=True)
        return {}, (f"There is no int8 model, as NNCF cannot quantize this one: {error}",)
    return {"int8": target}, ()


def keep_working(
    directories: Mapping[Precision, str], failed: Mapping[Precision, str]
) -> tuple[dict[Precision, str], tuple[str, ...]]:
    """Deletes converted models that do not run.

    Args:
        directories: See `add_to`.
        failed: By precision, why it does not run; see `comparison.compare`.

    Returns:
        The directories that are left, and warnings.
    """
    left: dict[Precision, str] = {precision: path for precision, path in directories.items() if precision not in failed}
    if "float32" in failed:
        left = {}  # bfloat16 has the same files, and int8 was made of them
    for path in set(directories.values()) - set(left.values()):
        shutil.rmtree(path, ignore_errors=True)
    return left, tuple(f"OpenVINO cannot run the model in {precision}: {why}" for precision, why in failed.items())


def ensure(bundle: Bundle) -> tuple[Collection[Precision], str]:
    """Converts a bundle of schema version 1, if that was not done before.

    What OpenVINO computes with it is compared with TensorFlow then, see `comparison.check`.

    Returns:
        The precisions in which OpenVINO has the bundle's model; and why there are none, empty where there are some.
    """
    if not _has(bundle, spec.OPENVINO_DIR):
        if bundle.spec.schema_version > 1:
            return (), "it has no files for OpenVINO, which could not convert or run the model when it was exported"
        try:
            _cached(bundle)
        except ConversionError as error:
            return (), f"OpenVINO cannot convert the model ({error})"
    return (("float32", "bfloat16", "int8") if _has(bundle, spec.INT8_DIR) else ("float32", "bfloat16")), ""


def directory(bundle: Bundle, precision: Precision) -> str:
    """Returns the directory of a bundle's files for OpenVINO, see `ensure`."""
    if precision == "int8":
        return os.fspath(bundle.directory / spec.INT8_DIR)
    if _has(bundle, spec.OPENVINO_DIR):
        return os.fspath(bundle.directory / spec.OPENVINO_DIR)
    return _cached(bundle)


def load(
    bundle: Bundle, precision: Precision, *, num_threads: int | None = None, batch_size: int = 1
) -> OpenVinoEngine:
    """Loads a bundle's model with OpenVINO, see `ensure`.

    Args:
        bundle: The bundle.
        precision: One that the bundle has.
        num_threads: See `OpenVinoEngine`.
        batch_size: See `OpenVinoEngine`.

    Raises:
        ConversionError: OpenVINO cannot convert or load the model.
    """
    start = partial(OpenVinoEngine, precision=precision, num_threads=num_threads, batch_size=batch_size)
    files = directory(bundle, precision)
    try:
        return start(files)
    except ConversionError:
        if os.path.isdir(files):
            raise
        return start(directory(bundle, precision))  # another process has removed it from the cache


def _has(bundle: Bundle, folder: str) -> bool:
    return f"{folder}/{openvino_engine.STRUCTURE}" in bundle.spec.files


def _cached(bundle: Bundle) -> str:
    """Returns the directory of a converted bundle of an earlier version; converts it where that was not done.

    Raises:
        ConversionError: OpenVINO cannot convert the model, or does not compute what TensorFlow does.
    """

    def convert(directory: str) -> None:
        _LOG.warning("Converting the bundle %s, of an earlier version, for OpenVINO: only once", bundle.sha256[:12])
        openvino_engine.convert(os.fspath(bundle.saved_model_path), directory)
        images_BHWC = comparison.trial_images(bundle.spec.image_size_px)
        comparison.check(directory, images_BHWC, _reference_outputs(bundle.saved_model_path, images_BHWC))

    return cache.kept("bundles", bundle.sha256, convert)


def _reference_outputs(saved_model: Path, images_BHWC: np.ndarray) -> list[np.ndarray]:
    """Returns TensorFlow's outputs for images; it runs in a process of its own, see `tlray.engines.reference_run`.

    Raises:
        ConversionError: TensorFlow cannot run the model.
    """
    with tempfile.TemporaryDirectory(prefix="tlray-reference-") as directory:
        images, outputs = (os.path.join(directory, name) for name in ("images.npy", "outputs.npz"))
        np.save(images, images_BHWC)
        module = "tlray.engines.reference_run"
        done = subprocess.run(  # noqa: S603 (this Python runs a module of this package)
            [sys.executable, "-P", "-m", module, os.fspath(saved_model), images, outputs],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            check=False,
        )
        if done.returncode:
            last_line = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            raise ConversionError(f"TensorFlow cannot run it to compare the two: {last_line or done.returncode}")
        with np.load(outputs) as arrays:
            return list(arrays.values())
