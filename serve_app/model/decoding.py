"""From what a client sent to what a model takes, for one image."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from tlray.bundle.spec import BundleSpec
from tlray.data import decoding
from tlray.data.drift import grey_statistics
from tlray.errors import ImageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """An image that is ready for a model.

    Attributes:
        pixels: See `classifier.Pixels`.
        grey: See `drift.grey_statistics`; None: the model's bundle has nothing to compare it with.
    """

    pixels: bytes
    grey: tuple[float, float] | None


def decode(file: bytes | np.ndarray, spec: BundleSpec, max_pixels: int | None = None) -> Decoded | ImageError:
    """Decodes an image for a model, or tells what is wrong with it.

    Args:
        file: An image file, or pixels, uint8 [height, width, 3].
        spec: The model's description.
        max_pixels: Of a file; see `images.decode`.
    """
    size = (spec.image_size_px, spec.image_size_px)
    if isinstance(file, np.ndarray):
        image = Image.fromarray(file).resize(size, Image.Resampling.BILINEAR)
    else:
        try:
            image = decoding.decode(
                file, size_px=spec.image_size_px, intensity_range=spec.intensity_range, max_pixels=max_pixels
            )
        except ImageError as error:
            return error
    return Decoded(pixels=image.tobytes(), grey=grey_statistics(image) if spec.training_images else None)
