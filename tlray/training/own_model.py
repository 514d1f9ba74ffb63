"""Makes a bundle from a Keras model that was trained elsewhere (`tlray export`).

With labelled images that the model was not trained on, it is calibrated as a training calibrates its own model.
"""

import dataclasses
import logging
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tlray.bundle import card, store
from tlray.bundle import spec as bundle
from tlray.bundle.spec import BundleSpec
from tlray.config.export import ExportConfig
from tlray.config.values import parse_intensity_range
from tlray.data.listing import list_images
from tlray.data.manifest import normal_form
from tlray.data.sample import read_some
from tlray.data.stream import Pixels
from tlray.engines import comparison, converted, quantization
from tlray.engines.kinds import REFERENCE, EngineKind, Precision
from tlray.errors import ConfigError, DataError
from tlray.files import storage
from tlray.models import classifier as models
from tlray.models import trunk
from tlray.models.artifact import save_artifact
from tlray.models.outputs import trial_images
from tlray.screen import show_table
from tlray.training import own_judging
from tlray.training.export import compare_engines, engine_warnings
from tlray.training.judgement_fit import REFER_BELOW
from tlray.training.own_judging import Judged
from tlray.trust.paired_models import compare_accuracy

KIND = "bundle"
"""Kind of the output, see `storage.check_output`."""

_LOG = logging.getLogger(__name__)


def export(config: ExportConfig) -> str:
    """Makes a bundle from a trained Keras model.

    Returns:
        The bundle's sha256.

    Raises:
        ConfigError: The model, the list of classes or the output cannot be used.
        DataError: The images of --data, or those for --int8, cannot be used.
    """
    if config.int8:
        quantization.check_installed()
    classes = read_classes(config.classes)
    out = storage.absolute(config.out)
    limits = parse_intensity_range(config.intensity_range)
    if limits is None:
        raise ConfigError("--intensity-range auto needs training images: give LO,HI.")
    storage.check_output(out, kind=KIND, known_names=bundle.NAMES, overwrite=config.overwrite)
    logits_model = models.from_trained(
        storage.absolute(config.model),
        preprocessing=config.preprocessing,
        num_classes=len(classes),
        image_size_px=config.image_size_px,
        outputs=config.outputs,
    )
    # The model is checked first, which takes a moment: reading many images takes minutes.
    labelled = own_judging.choose_images(config, classes) if config.data is not None else None
    pixels = Pixels(size_px=logits_model.input_shape[1], intensity_range=limits)
    judged = None
    if labelled is not None:
        run = trunk.as_function(logits_model)
        judged = own_judging.judge_on(run, labelled, pixels, config, classes=classes)
    images = _calibration_images(config, pixels) if config.int8 else []
    storage.prepare_output(out, kind=KIND, known_names=bundle.NAMES, overwrite=config.overwrite)
    classifier: keras.Model = models.with_probabilities(
        logits_model,
        temperature=judged.judging.temperature if judged else 1.0,
        shift=judged.judging.shift if judged else None,
    )
    spec = BundleSpec(
        classes=classes,
        image_size_px=pixels.size_px,
        preprocessing=config.preprocessing,
        intensity_range=limits,
        thresholds={"refer_below": REFER_BELOW if config.refer_below is None else config.refer_below},
        backbone=os.path.basename(config.model),
        weights=os.path.basename(config.model),
    )
    if judged is not None:
        spec = _with_judging(spec, judged)
    with tempfile.TemporaryDirectory(prefix="tlray-export-") as temporary:
        predict = save_artifact(classifier, Path(temporary))
        directories, warnings = converted.add_to(temporary)
        if config.int8 and directories:
            added, more = converted.try_int8(temporary, images)
            directories, warnings = directories | added, (*warnings, *more)
        if labelled is None:
            failed, compared = _find_failures(directories, predict, spec), {}
        else:
            inexact = _find_failures(directories, predict, spec)
            read = read_some(labelled, pixels, max_images=comparison.MAX_IMAGES)
            compared, failed = compare_engines(directories, predict, read, labelled, foreign=None, limits=spec.limits)
            failed |= inexact
            compared = {kind: each for kind, each in compared.items() if kind == REFERENCE or "float32" not in inexact}
            spec = dataclasses.replace(spec, engines=tuple(each.agreement for each in compared.values()))
        directories, more = converted.keep_working(directories, failed)
        warnings += more
        if judged is not None:
            warnings += (*judged.judging.warnings, *engine_warnings(compared, directories))
        for warning in warnings:
            _LOG.warning("%s", warning)
        storage.copy_tree(temporary, out)
    storage.write_text(storage.join(out, bundle.MODEL_CARD), card.model_card(spec))
    sha256 = store.seal(out, spec)
    if judged is not None and not config.quiet:
        show_table("Calibrated", own_judging.table_rows(judged.judging))
    return sha256


def _with_judging(spec: BundleSpec, judged: Judged) -> BundleSpec:
    """Adds how predictions are calibrated and judged, and what the model predicts for the labelled images."""
    judging = judged.judging
    # The class shares that the probabilities assume are a guess where no class bias was fitted.
    trust = {name: value for name, value in judging.about.items() if name != "prior" or judged.prior is not None}
    return dataclasses.replace(
        spec,
        temperature=judging.temperature,
        thresholds={"refer_below": judging.refer_below},
        set_thresholds=judging.set_thresholds,
        trust=trust,
        prior=judged.prior,
        validation_predictions=judged.predictions,
    )


def _find_failures(directories: dict[Precision, str], predict: Any, spec: BundleSpec) -> dict[Precision, str]:
    """Compares OpenVINO with TensorFlow on trial images, as there are no others."""
    images_BHWC = np.stack(list(trial_images(spec.image_size_px)))
    labels = np.zeros(len(images_BHWC), np.int64)
    compared, failed = comparison.compare(
        directories,
        lambda batch_BHWC: [output.numpy() for output in predict(batch_BHWC)],
        images_BHWC,
        labels,
        compare_accuracy=partial(compare_accuracy, labels=labels, groups=np.arange(len(labels))),
        decide=lambda outputs: outputs[0].max(axis=1) < spec.refer_below,
    )
    exact = compared.get(EngineKind("openvino", "float32"))
    if exact is not None and not exact.agreement.max_difference <= comparison.MAX_DIFFERENCE:
        failed["float32"] = f"its probabilities differ by up to {exact.agreement.max_difference:.3g} from TensorFlow's"
    return failed


def _calibration_images(config: ExportConfig, pixels: Pixels) -> list[np.ndarray]:
    listing = list_images(storage.absolute(config.int8_images or ""), labels_needed=False)
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
