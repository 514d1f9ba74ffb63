"""Writes the model files of a bundle: `model.keras` and `saved_model/`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from tlray.bundle import spec
from tlray.models import trunk
from tlray.models.files import save_function


def save_artifact(classifier: keras.Model, directory: Path) -> Callable[[Any], Any]:
    """Writes `model.keras` and `saved_model/` (signature `serving_default`) of a model with probabilities.

    The signature also gives the features of `trunk.with_features`, where the model has them, as its second output.

    Returns:
        The signature's function, from uint8 images to a list of its outputs.
    """
    directory.mkdir(parents=True, exist_ok=True)
    classifier.save(directory / spec.MODEL_FILE)
    serve = save_function(trunk.with_features(classifier), str(directory / spec.SAVED_MODEL_DIR))
    return lambda images: keras.tree.flatten(serve(images))
