"""Augments training images by random changes, which depend on seed, epoch and image id only."""

import hashlib
import math

import numpy as np
from PIL import Image

from tlray.config.training import Augmentation


def augmentation_rng(*, seed: int, epoch: int, image_id: str) -> np.random.Generator:
    """Returns the random generator for one image in one epoch; it is the same on every worker and after a resume."""
    digest = hashlib.blake2b(image_id.encode(), digest_size=8).digest()
    return np.random.default_rng([seed, epoch, int.from_bytes(digest, "little")])


def augment(image: Image.Image, augmentation: Augmentation, rng: np.random.Generator) -> Image.Image:
    """Returns an image after a random affine map, mirroring, and changes of brightness and contrast.

    Rotation, shear and zoom are those of Keras' ImageDataGenerator (same ranges, independent zoom of height and width,
    pixels outside filled with the nearest), but with bilinear interpolation in one step.

    Args:
        image: An image of mode RGB or L, which is not changed.
        augmentation: The ranges to draw from.
        rng: The source of all randomness. The same numbers are drawn for any ranges.

    Returns:
        An image of the same mode and size.
    """
    angle, shear, zoom_x, zoom_y, shift_x, shift_y, brightness, contrast = rng.uniform(-1, 1, size=8).tolist()
    mirrored = bool(rng.random() < 0.5) and augmentation.horizontal_flip
    matrix = _linear_map(
        rotation_deg=angle * augmentation.rotation_deg,
        shear_deg=shear * augmentation.shear_deg,
        zoom_xy=(1 + zoom_x * augmentation.zoom, 1 + zoom_y * augmentation.zoom),
        mirrored=mirrored,
    )
    return _adjust(
        _warp(image, matrix, (shift_x * augmentation.shift, shift_y * augmentation.shift)),
        brightness=1 + brightness * augmentation.brightness,
        contrast=1 + contrast * augmentation.contrast,
    )


def _linear_map(
    *, rotation_deg: float, shear_deg: float, zoom_xy: tuple[float, float], mirrored: bool
) -> tuple[float, float, float, float]:
    """Returns the map (xx, xy, yx, yy) from output to input coordinates about the image's centre.

    It is the product rotation @ shear @ zoom @ mirroring, written out because NumPy is slower for so few numbers.
    """
    angle, shear = math.radians(rotation_deg), math.radians(shear_deg)
    cos, sin = math.cos(angle), math.sin(angle)
    scale_x = -zoom_xy[0] if mirrored else zoom_xy[0]
    return (
        (cos * math.cos(shear) - sin * math.sin(shear)) * scale_x,
        sin * zoom_xy[1],
        (-sin * math.cos(shear) - cos * math.sin(shear)) * scale_x,
        cos * zoom_xy[1],
    )


def _warp(
    image: Image.Image, linear_map: tuple[float, float, float, float], shift_xy: tuple[float, float]
) -> Image.Image:
    xx, xy, yx, yy = linear_map
    if (xy, yx, yy) == (0, 0, 1) and abs(xx) == 1 and shift_xy == (0, 0):
        return image if xx == 1 else image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    width, height = image.size
    x0 = width / 2 - xx * width / 2 - xy * height / 2 + shift_xy[0] * width
    y0 = height / 2 - yx * width / 2 - yy * height / 2 + shift_xy[1] * height
    reached_x = [x0 + xx * x + xy * y for x in (0, width) for y in (0, height)]
    reached_y = [y0 + yx * x + yy * y for x in (0, width) for y in (0, height)]
    overhang = max(-min(reached_x), max(reached_x) - width, -min(reached_y), max(reached_y) - height)
    # Pillow fills pixels outside the image with black, so pad it with the nearest pixels as far as the map reaches.
    padding = max(0, math.ceil(overhang)) + 1
    return Image.fromarray(_pad(np.asarray(image), padding)).transform(
        (width, height),
        Image.Transform.AFFINE,
        (xx, xy, x0 + padding, yx, yy, y0 + padding),
        Image.Resampling.BILINEAR,
    )


def _pad(image: np.ndarray, padding: int) -> np.ndarray:
    """Does what np.pad(mode="edge") does to height and width, five times as fast; `padding` is at least 1."""
    height, width, *rest = image.shape
    padded = np.empty((height + 2 * padding, width + 2 * padding, *rest), dtype=image.dtype)
    rows = padded[padding:-padding]
    rows[:, padding:-padding] = image
    rows[:, :padding] = image[:, :1]
    rows[:, -padding:] = image[:, -1:]
    padded[:padding] = rows[0]
    padded[-padding:] = rows[-1]
    return padded


def _adjust(image: Image.Image, *, brightness: float, contrast: float) -> Image.Image:
    if brightness == 1 and contrast == 1:
        return image
    mean = float(np.asarray(image).mean())
    table = ((np.arange(256) - mean) * contrast + mean) * brightness
    return image.point(np.rint(np.clip(table, 0, 255)).astype(int).tolist() * len(image.getbands()))
