"""Makes a bundle from a Keras model that was trained elsewhere (`tlray export`)."""

import os
import tempfile
from pathlib import Path

import keras

from tlray.bundle import card, store
from tlray.bundle import spec as bundle
from tlray.bundle.spec import BundleSpec
from tlray.config.commands import ExportConfig
from tlray.config.training import parse_intensity_range
from tlray.data.manifest import normal_form
from tlray.errors import ConfigError
from tlray.files import storage
from tlray.models import classifier as models
from tlray.models.files import save_artifact


def export(config: ExportConfig) -> str:
    """Makes a bundle from a trained Keras model.

    Returns:
        The bundle's sha256.

    Raises:
        ConfigError: The model, the list of classes or the output cannot be used.
    """
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
        save_artifact(classifier, Path(temporary))
        storage.copy_tree(temporary, out)
    storage.write_text(storage.join(out, bundle.MODEL_CARD), card.model_card(spec))
    return store.seal(out, spec)


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
