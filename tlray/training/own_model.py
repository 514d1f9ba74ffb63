"""Makes a bundle from a Keras model that was trained elsewhere (`tlray export`)."""

import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tlray.bundle import card, store
from tlray.bundle import spec as bundle
from tlray.bundle.spec import BundleSpec
from tlray.config.commands import ExportConfig
from tlray.config.values import parse_intensity_range
from tlray.data.listing import list_images
from tlray.data.manifest import normal_form
from tlray.data.sample import read_some
from tlray.data.stream import Pixels
from tlray.engines import comparison, converted, quantization
from tlray.engines.kinds import EngineKind, Precision
from tlray.errors import ConfigError, DataError
from tlray.files import storage
from tlray.models import classifier as models
from tlray.models.artifact import save_artifact
from tlray.models.outputs import trial_images

MAX_DIFFERENCE = 1e-3
"""Largest difference of a probability with which OpenVINO may replace TensorFlow in float32."""

_LOG = logging.getLogger(__name__)


def export(config: ExportConfig) -> str:
    """Makes a bundle from a trained Keras model.

    Returns:
        The bundle's sha256.

    Raises:
        ConfigError: The model, the list of classes or the output cannot be used.
        DataError: The images for --int8 cannot be used.
    """
    if config.int8:
        quantization.check_installed()
    classes = read_classes(config.classes)
    out = storage.absolute(config.out)
    limits = parse_intensity_range(config.intensity_range)
    if limits is None:
        raise ConfigError("--intensity-range auto needs training images: give LO,HI.")
    logits_model = models.from_trained(
        storage.absolute(config.model),
        preprocessing=config.preprocessing,
        num_classes=len(classes),
        image_size_px=config.image_size_px,
        outputs=config.outputs,
    )
    images = _calibration_images(config, logits_model.input_shape[1], limits) if config.int8 else []
    storage.prepare_output(out, kind="bundle", known_names=bundle.NAMES, overwrite=config.overwrite)
    classifier: keras.Model = models.with_probabilities(logits_model)
    spec = BundleSpec(
        classes=classes,
        image_size_px=logits_model.input_shape[1],
        preprocessing=config.preprocessing,
        intensity_range=limits,
        thresholds={"refer_below": config.refer_below},
        backbone=os.path.basename(config.model),
        weights=os.path.basename(config.model),
    )
    with tempfile.TemporaryDirectory(prefix="tlray-export-") as temporary:
        predict = save_artifact(classifier, Path(temporary))
        directories, warnings = converted.add_to(temporary)
        if config.int8 and directories:
            added, more = converted.try_int8(temporary, images)
            directories, warnings = directories | added, (*warnings, *more)
        directories, more = converted.keep_working(directories, _find_failures(directories, predict, spec))
        warnings += more
        for warning in warnings:
            _LOG.warning("%s", warning)
        storage.copy_tree(temporary, out)
    storage.write_text(storage.join(out, bundle.MODEL_CARD), card.model_card(spec))
    return store.seal(out, spec)


def _find_failures(directories: dict[Precision, str], predict: Any, spec: BundleSpec) -> dict[Precision, str]:
    """Compares OpenVINO with TensorFlow on trial images, as there are no others."""
    images_BHWC = np.stack(list(trial_images(spec.image_size_px)))
    labels = np.zeros(len(images_BHWC), np.int64)
    compared, failed = comparison.compare(
        directories,
        lambda batch_BHWC: [output.numpy() for output in predict(batch_BHWC)],
        images_BHWC,
        labels,
        decide=lambda outputs: outputs[0].max(axis=1) < spec.refer_below,
    )
    exact = compared.get(EngineKind("openvino", "float32"))
    if exact is not None and not exact.agreement.max_difference <= MAX_DIFFERENCE:
        failed["float32"] = f"its probabilities differ by up to {exact.agreement.max_difference:.3g} from TensorFlow's"
    return failed


def _calibration_images(config: ExportConfig, size_px: int, intensity_range: tuple[float, float]) -> list[np.ndarray]:
    listing = list_images(storage.absolute(config.int8_images or ""), labels_needed=False)
    pixels = Pixels(size_px=size_px, intensity_range=intensity_range)
    images = read_some(listing.table, pixels, max_images=quantization.MAX_IMAGES)
    if not images:
        raise DataError(f"None of the images of '{config.int8_images}' can be read. Give others for --int8-images.")
    return list(images.values())


def read_classes(location: str) -> tuple[str, ...]:
    """Reads class names from a text file, one per line.

    Raises:
        ConfigError: The file cannot be read, has fewer than two names, or has a name twice.
    """
    try:
        lines = storage.read_bytes(location).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"Cannot read the classes in '{location}': {error}. Give a text file with one name per line."
        ) from error
    names = tuple(normal_form(line.strip()) for line in lines if line.strip())
    if len(names) < 2 or len(set(names)) < len(names):
        raise ConfigError(f"'{location}' must list at least two different class names, one per line. It has: {names}")
    return names
