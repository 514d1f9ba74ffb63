"""Reads Keras files, and writes SavedModels."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tlray.errors import ConfigError
from tlray.files import storage


def load_keras_file(location: str) -> keras.Model:
    """Loads a .keras file, without running code from it.

    Raises:
        ConfigError: The file does not exist, is no Keras model with one input, or needs code of its own.
    """
    if not storage.exists(location):
        raise ConfigError(f"There is no model file at '{location}'. Check the path.")
    with storage.local_copy(location) as path:
        try:
            model = keras.models.load_model(path, compile=False, safe_mode=True)
        except Exception as error:  # h5py, zipfile, Keras and user layers each raise their own
            raise ConfigError(f"'{location}' is not a Keras model that can be loaded safely: {error}") from error
    if not isinstance(model, keras.Model) or len(model.inputs) != 1:
        raise ConfigError(f"'{location}' must be a Keras model with one input, an image.")
    return (
        keras.Model(model.inputs[0], model.outputs[0], name=model.name)
        if isinstance(model, keras.Sequential)
        else model
    )


def save_function(model: keras.Model, directory: str) -> Callable[[Any], Any]:
    """Writes a SavedModel of a model's inference (signature `serving_default`), and returns its function of images."""
    signature = tf.TensorSpec((None, *model.input_shape[1:]), tf.uint8, name="image")

    def predict(image: Any) -> Any:
        return model(image, training=False)

    serve = tf.function(predict, input_signature=[signature], autograph=False)
    # Keras' own `export` writes every weight twice and takes twice the time.
    module: Any = tf.Module()
    module.weights = [variable.value for variable in model.variables]
    tf.saved_model.save(module, directory, signatures=serve)
    return serve
