"""Many different images of few: copies of real images, each turned, cropped and made brighter by a little."""

import io
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

MAX_TURN_DEGREES = 6.0
MAX_CROP = 0.06  # of each side
MAX_BRIGHTNESS = 0.15


def perturb(path: Path, number: int) -> tuple[bytes, str]:
    """Returns a perturbed copy of an image, the same for the same number, and its suffix; all but JPEG become PNG."""
    rng = np.random.default_rng(number)
    with Image.open(path) as opened:
        suffix = ".jpg" if opened.format == "JPEG" else ".png"
        image = opened.convert("RGB" if suffix == ".jpg" or opened.mode not in ("L", "RGB") else opened.mode)
    left, top, right, bottom = rng.uniform(0, MAX_CROP, 4)
    width, height = image.size
    box = round(left * width), round(top * height), round((1 - right) * width), round((1 - bottom) * height)
    image = image.rotate(rng.uniform(-MAX_TURN_DEGREES, MAX_TURN_DEGREES), Image.Resampling.BILINEAR)
    image = image.crop(box)
    image = ImageEnhance.Brightness(image).enhance(1 + rng.uniform(-MAX_BRIGHTNESS, MAX_BRIGHTNESS))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG" if suffix == ".jpg" else "PNG", **({"quality": 90} if suffix == ".jpg" else {}))
    return buffer.getvalue(), suffix


def _write(path: Path, number: int, stem: Path) -> None:
    content, suffix = perturb(path, number)
    stem.with_suffix(suffix).write_bytes(content)


def write_copies(paths: list[Path], directory: Path, num_images: int) -> None:
    """Fills a flat folder with perturbed copies of images, in turns; the first ones are the same for every number."""
    directory.mkdir(parents=True, exist_ok=True)
    numbers = range(num_images)
    stems = [directory / f"{number:06d}" for number in numbers]
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_write, [paths[number % len(paths)] for number in numbers], numbers, stems, chunksize=64))
