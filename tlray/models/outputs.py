"""Tells from a trained Keras model's output values whether they are logits or probabilities; for `tlray export`."""

import numpy as np

from tlray.config.training import Outputs
from tlray.errors import ConfigError

MAX_SUM_ERROR = 0.01
"""Largest deviation from 1 of a row of probabilities: bfloat16 rounds each of them by up to 0.4 %."""

MAX_ROUNDING = 1e-6
"""Largest distance of a probability from [0, 1], as the rounding of 1 - p can make it."""


def trial_images(size_px: int) -> np.ndarray:
    """Returns varied images to try a model on, uint8 [9, size, size, 3]: flat ones, gradients and noise."""
    rng = np.random.default_rng(0)
    shape = (size_px, size_px, 3)
    flat = [np.full(shape, level) for level in (0, 128, 255)]
    ramp = np.linspace(0, 255, size_px)[:, np.newaxis, np.newaxis]
    gradients = [np.broadcast_to(each, shape) for each in (ramp, ramp[::-1], ramp.transpose(1, 0, 2))]
    noise = [rng.integers(low, high, shape) for low, high in ((0, 256), (0, 64), (192, 256))]
    return np.stack([*flat, *gradients, *noise]).astype(np.uint8)


def find_outputs(values_BK: np.ndarray, *, given: Outputs | None, ends_in_sigmoid: bool) -> Outputs:
    """Decides from a model's outputs for some images whether they are logits or probabilities.

    Rows of numbers in [0, 1] that all sum to 1 are probabilities, and numbers outside of [0, 1] are logits. One number
    in [0, 1] for two classes may be either, unless it is known to be a sigmoid's. Several sigmoids are no class
    probabilities, not even where they saturate and their rows sum to 1.

    Args:
        values_BK: Floating point [images, outputs]; rows that are not finite are left out.
        given: What the user says that they are; None: nothing.
        ends_in_sigmoid: Whether the model's last layer is known to be a sigmoid.

    Raises:
        ConfigError: The outputs are neither, are not what the user says, or may be both.
    """
    values_BK = values_BK[np.isfinite(values_BK).all(axis=1)].astype(np.float64)
    if not len(values_BK):
        raise ConfigError("The model gives no finite numbers for any trial image. Check its weights.")
    low, high, sums = values_BK.min(), values_BK.max(), values_BK.sum(axis=1)
    is_single = values_BK.shape[1] == 1
    is_within = low >= -MAX_ROUNDING and high <= 1 + MAX_ROUNDING
    are_shares = is_within and (is_single or np.abs(sums - 1).max() <= MAX_SUM_ERROR)
    seen = f"outputs from {low:.3g} to {high:.3g}" + ("" if is_single else f" in rows that sum to {_span(sums)}")
    if ends_in_sigmoid and not is_single:
        raise ConfigError(
            f"The model ends in {values_BK.shape[1]} independent sigmoids ({seen}), which are not class probabilities. "
            "Give a model that ends in a softmax or in logits."
        )
    if given == "logits" and are_shares and not is_single:
        raise ConfigError(
            f"--outputs logits: for trial images the model gives {seen}, as a softmax does. "
            "Give --outputs probabilities."
        )
    if given == "probabilities" and not are_shares:
        raise ConfigError(f"--outputs probabilities: for trial images the model gives {seen}. Give --outputs logits.")
    if given or not is_within:
        return given or "logits"
    if are_shares and (not is_single or ends_in_sigmoid):
        return "probabilities"
    if is_single:
        raise ConfigError(
            f"For trial images the model gives {seen}, which may be probabilities of the second class or logits. Give "
            "--outputs probabilities or --outputs logits."
        )
    raise ConfigError(
        f"For trial images the model gives {seen}. If these are independent sigmoids, give a model that ends in a "
        "softmax; if they are logits that happen to lie in [0, 1], give --outputs logits."
    )


def _span(values: np.ndarray) -> str:
    return f"{values.min():.3g} to {values.max():.3g}"
