"""Lists the layers of Keras models, and sets their weights."""

from collections.abc import Sequence

import keras
import numpy as np


def leaf_layers(model: keras.Model) -> list[keras.Layer]:
    """Returns a model's layers in order, with the layers of a nested model in place of that model."""
    leaves: list[keras.Layer] = []
    for layer in model.layers:
        leaves += leaf_layers(layer) if isinstance(layer, keras.Model) else [layer]
    return leaves


def set_weights(model: keras.Model, weights: Sequence[np.ndarray]) -> None:
    """Sets all weights of a model, in the order of its `get_weights`.

    `keras.Model.set_weights` alone would leave Normalization layers, such as that of EfficientNet, as they were: they
    compute with copies of their weights, which only `finalize_state` makes anew.

    Raises:
        ValueError: The number or a shape of the weights is another one.
    """
    model.set_weights(list(weights))
    for layer in leaf_layers(model):
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()
