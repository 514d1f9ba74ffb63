"""Writes the sample images that come with scikit-image itself, without a download, as PNG files into a folder.

It runs in an environment of its own, made from `scikit_image.txt`: `python scikit_image_samples.py FOLDER`.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data  # pyright: ignore[reportMissingImports]

NAMES = (
    "astronaut", "brick", "camera", "cell", "chelsea", "clock", "coffee", "coins", "colorwheel", "grass", "gravel",
    "horse", "hubble_deep_field", "immunohistochemistry", "logo", "microaneurysms", "moon", "page", "retina", "rocket",
    "shepp_logan_phantom", "stereo_motorcycle", "text",
)  # fmt: skip
"""Functions of `skimage.data` whose files are in the package."""


def main() -> None:
    """Writes NAME.png for each of `NAMES`."""
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        found = getattr(data, name)()
        pixels = np.asarray(found[0] if isinstance(found, tuple) else found)  # a stereo pair: the left image
        if pixels.dtype == bool or np.issubdtype(pixels.dtype, np.floating):
            pixels = np.rint(255 * np.clip(pixels, 0, 1)).astype(np.uint8)
        Image.fromarray(pixels[..., :3] if pixels.ndim == 3 else pixels).save(out / f"{name}.png")


if __name__ == "__main__":
    main()
