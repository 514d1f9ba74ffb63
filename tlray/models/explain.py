"""Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391): where in an image the evidence for a class lies."""

import io
import os
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from matplotlib import colormaps
from PIL import Image

from tlray.bundle.store import Bundle
from tlray.errors import BundleError, ConfigError
from tlray.models import graph
from tlray.models.files import load_keras_file
from tlray.models.graph import Call

OPACITY = 0.5
"""Opacity of an overlay where the heatmap is 1: half of the contrast of the anatomy below stays visible."""

_PROBABILITIES = (keras.activations.softmax, keras.activations.sigmoid)
_GIVE_PROBABILITIES = ("Softmax", "Sigmoid")
_PASSED = ("Rescaling", "Identity", "Cast")
_COLOURS = colormaps["inferno"]  # its lightness rises evenly, also for people with colour-blindness


class Explainer:
    """Computes Grad-CAM heatmaps of the deployed model of a bundle, which it splits at its last feature maps.

    The maps A_1, A_2, ... are the last tensors with height and width > 1 on every path from the image to the logits z,
    in any backbone, nested models too. Usually there is one; a linear head on global averages of several depths has one
    at each depth. The head, all layers after the maps, is treated as a function of these maps alone, and the evidence
    for class c at position (i, j) is

        E_c[i, j] = sum over d of E_cd[i, j],    E_cd[i, j] = sum over k of a_cdk * A_dk[i, j],
        a_cdk = sum over (i, j) of dz_c / dA_dk[i, j]

    with the coarser E_cd enlarged (bilinear) to the finest one's grid. For one depth, max(E_c, 0) is the paper's
    Grad-CAM up to a factor: a_ck is its alpha times the number of positions, which makes E a density, so that depths
    with grids of different size are added by what they contribute to the logit. For a linear head on global averages,
    with frozen standardisation or without, this is the exact class activation map (Zhou et al. 2016, arXiv:1512.04150):
    the averages of E_cd over their grids sum to z_c, except for the terms that belong to no position, the bias and the
    means of the standardisation. Gradients are those of the logits. Those of the probabilities, after temperature and
    softmax, would depend on the other classes and vanish where the model is certain.

    The first heatmap takes a second longer than the others, because TensorFlow traces the model.

    Args:
        bundle: Its `model.keras` is loaded once, on the devices that the process sees.

    Raises:
        BundleError: The model cannot be loaded, or has no feature map.
    """

    def __init__(self, bundle: Bundle) -> None:
        try:
            model = load_keras_file(os.fspath(bundle.model_path))
        except ConfigError as error:
            raise BundleError(f"The bundle's model cannot be explained: {error}") from error
        self._size_px = bundle.spec.image_size_px
        self._num_classes = len(bundle.spec.classes)
        image: Any = keras.Input((*model.inputs[0].shape[1:],), dtype=model.inputs[0].dtype)
        traced = graph.trace(model, [image], with_nested=True)
        logits = _before_softmax(traced.calls, traced.output)
        maps = _last_maps(traced.calls, logits)
        if not maps or any("float" not in each.dtype for each in maps):
            raise BundleError(
                "The bundle's model cannot be explained: it has no layer with a feature map [batch, height, width, "
                "channels]. Use it without explanations."
            )
        body = graph.between(traced.calls, [image], maps)
        head = graph.between(traced.calls, maps, [logits])

        def evidence(images: tf.Tensor, class_index: tf.Tensor) -> list[tf.Tensor]:
            values = graph.run(body, {id(image): images})
            found = [values[id(each)] for each in maps]
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(found)
                scores = graph.run(head, {id(each): value for each, value in zip(maps, found, strict=True)})[id(logits)]
                if scores.shape[-1] == 1:  # one sigmoid for two classes
                    scores = tf.concat([-scores, scores], axis=-1)
                score = scores[0, class_index]
            slopes: Any = tape.gradient(score, found, unconnected_gradients=tf.UnconnectedGradients.ZERO)
            found, slopes = ([tf.cast(each[0], tf.float32) for each in tensors] for tensors in (found, slopes))
            return [
                tf.tensordot(value, tf.reduce_sum(slope, axis=(0, 1)), axes=1)
                for value, slope in zip(found, slopes, strict=True)
            ]

        signature = [tf.TensorSpec((1, *image.shape[1:]), tf.uint8), tf.TensorSpec((), tf.int32)]
        self._evidence = tf.function(evidence, input_signature=signature, autograph=False)

    def heatmap(self, image_HWC: np.ndarray, class_index: int) -> np.ndarray:
        """Computes the heatmap of the evidence for a class in an image.

        Args:
            image_HWC: uint8 [size, size, 3], RGB, at the bundle's `image_size_px`.
            class_index: Index into the bundle's `classes`.

        Returns:
            float32 [size, size]: max(E_c, 0) enlarged (bilinear), divided by its maximum, in [0, 1]. All zero where
            nothing speaks for the class, or where the evidence is not finite.

        Raises:
            ValueError: The image has another dtype or shape, or there is no such class.
        """
        shape = (self._size_px, self._size_px, 3)
        if image_HWC.dtype != np.uint8 or image_HWC.shape != shape:
            raise ValueError(
                f"The model takes a uint8 image {list(shape)}. Received: {image_HWC.dtype} {list(image_HWC.shape)}"
            )
        if not 0 <= class_index < self._num_classes:
            raise ValueError(f"The classes are 0 to {self._num_classes - 1}. Received: {class_index}")
        tensors = self._evidence(tf.constant(image_HWC[np.newaxis]), tf.constant(class_index, tf.int32))
        depths = [tensor.numpy() for tensor in tensors]
        height, width = (max(sizes) for sizes in zip(*(depth.shape for depth in depths), strict=True))
        with np.errstate(over="ignore", invalid="ignore"):
            evidence = np.sum([_enlarge(depth, height, width) for depth in depths], axis=0)
        if not np.isfinite(evidence).all():
            return np.zeros(shape[:2], dtype=np.float32)
        heat = _enlarge(np.maximum(evidence, 0), *shape[:2])
        return heat / heat.max() if heat.any() else heat


def overlay(image_HWC: np.ndarray, heatmap_HW: np.ndarray) -> Image.Image:
    """Lays a heatmap over an image in grey: the hotter, the more opaque.

    Args:
        image_HWC: uint8 [height, width, 3], RGB.
        heatmap_HW: float32 in [0, 1], of any size: it is fitted to the image's.

    Returns:
        An RGB image of the image's size.
    """
    height, width = image_HWC.shape[:2]
    grey_HW1 = np.asarray(Image.fromarray(image_HWC).convert("L"), dtype=np.float32)[..., np.newaxis]
    heat_HW = _enlarge(heatmap_HW, height, width)
    opacity_HW1 = OPACITY * heat_HW[..., np.newaxis]
    colours_HWC = 255 * _COLOURS(heat_HW)[..., :3]
    mixed_HWC = (1 - opacity_HW1) * grey_HW1 + opacity_HW1 * colours_HWC
    return Image.fromarray(np.rint(mixed_HWC).astype(np.uint8))


def to_png(image: Image.Image) -> bytes:
    """Encodes an image as PNG, without metadata: the same bytes for the same pixels."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _enlarge(values_HW: np.ndarray, height: int, width: int) -> np.ndarray:
    image = Image.fromarray(values_HW.astype(np.float32, copy=False))
    return np.array(image.resize((width, height), Image.Resampling.BILINEAR))


def _before_softmax(calls: list[Call], tensor: Any) -> Any:
    """Returns the logits behind probabilities; removes a softmax or sigmoid that is part of another layer from it.

    Between the two are softmax and temperature (`classifier.with_probabilities`). For a user's own model that ended in
    probabilities p, log(max(p, tiny)) is between them too, perhaps of one sigmoid's [1 - p, p]
    (`classifier.from_trained`). Where that model computed p in a way that is not known here, log p is returned; its
    gradient, unlike that of p, does not vanish for improbable classes.
    """
    makers = {id(given): call for call in calls for given in call.given}
    logits, is_logarithm = tensor, False
    while id(tensor) in makers:
        call = makers[id(tensor)]
        kind, activation = type(call.layer).__name__, getattr(call.layer, "activation", None)
        if activation in _PROBABILITIES and kind != "Activation":
            call.layer.activation = keras.activations.linear
            return tensor
        *others, before = call.taken
        gives_probabilities = activation in _PROBABILITIES or kind in _GIVE_PROBABILITIES
        is_linear = (
            kind in _PASSED
            or call.layer is graph.same
            or (kind == "Activation" and activation is keras.activations.linear)
        )
        is_pair = kind == "Concatenate" and [makers[id(other)].taken for other in others] == [[before]]
        is_passed = gives_probabilities or is_linear or kind == "Log" or (kind == "Maximum" and is_logarithm)
        if not (is_pair or (is_passed and not others)):
            break
        is_logarithm = (is_logarithm or kind == "Log") and not gives_probabilities
        tensor = before
        if not is_logarithm:
            logits = tensor
    return logits


def _last_maps(calls: list[Call], logits: Any) -> list[Any]:
    """Returns the last tensors with height and width > 1 on every path to the logits."""
    maps: dict[int, Any] = {}
    flat = {id(logits)}
    for call in reversed(calls):
        if flat.isdisjoint(map(id, call.given)):
            continue
        for tensor in call.taken:
            if len(tensor.shape) == 4 and 1 not in tensor.shape[1:3]:
                maps[id(tensor)] = tensor
            else:
                flat.add(id(tensor))
    return list(maps.values())
