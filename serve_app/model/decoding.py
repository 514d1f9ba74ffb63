"""Decodes an uploaded image into the pixels that a model takes."""

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
        pixels: The bytes of the image, in the form of `classifier.Pixels.images`.
        grey: Its grey statistics, see `tlray.data.drift`; None: the model's bundle has nothing to compare them with.
    """

    pixels: bytes
    grey: tuple[float, float] | None


def decode(file: bytes | np.ndarray, spec: BundleSpec, max_pixels: int | None = None) -> Decoded | ImageError:
    """Returns an image decoded for a model, or the error if it cannot be decoded.

    Args:
        file: An image file, or pixels, uint8 [height, width, 3].
        spec: Description of the model's bundle.
        max_pixels: Maximum number of pixels of an image file; see `tlray.data.decoding.decode`.
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
