"""Draws slices of other parts of the body than the chest: heads and abdomens. Like the phantoms, they are caricatures.

`tlray.data.phantom_drawing` draws chests only. These have a window, noise and a size like slices of a CT.
"""

import numpy as np
from scipy import ndimage


def head(rng: np.random.Generator, size_px: int) -> np.ndarray:
    """Returns a slice of a head: skin, skull, brain with folds, ventricles and falx; uint8 [size_px, size_px]."""
    x, y = _grid(rng, size_px)
    half_width, half_height = rng.uniform(0.6, 0.72), rng.uniform(0.75, 0.88)
    bone, skin = rng.uniform(0.05, 0.09), rng.uniform(0.02, 0.06)
    picture = np.zeros((size_px, size_px))
    picture[_ellipse(x, y, half=(half_width + skin, half_height + skin))] = rng.uniform(55, 80)
    picture[_ellipse(x, y, half=(half_width, half_height))] = 245
    brain = _ellipse(x, y, half=(half_width - bone, half_height - bone))
    folds = rng.uniform(6, 16) * np.tanh(2 * _smooth(rng, size_px, size_px * rng.uniform(0.012, 0.025)))
    level = rng.uniform(100, 130)
    picture[brain] = (level + folds)[brain]
    picture[brain & (np.abs(x) < rng.uniform(0.006, 0.014))] = level + 40
    dark, spread = level - rng.uniform(45, 70), rng.uniform(0.1, 0.16)
    for side in (-1, 1):
        for place, half in (((side * spread, -0.12), (0.05, 0.2)), ((side * spread * 1.4, 0.2), (0.05, 0.14))):
            half = tuple(each * rng.uniform(0.7, 1.3) for each in half)  # noqa: PLW2901
            picture[brain & _ellipse(x, y, centre=place, half=(half[0], half[1]), turn_deg=-12 * side)] = dark
    if rng.random() < 0.5:  # a bleeding
        place = (rng.uniform(-0.35, 0.35), rng.uniform(-0.45, 0.45))
        picture[brain & _ellipse(x, y, centre=place, half=(rng.uniform(0.05, 0.15), rng.uniform(0.05, 0.15)))] = 190
    return _scanned(picture, rng)


def abdomen(rng: np.random.Generator, size_px: int) -> np.ndarray:
    """Returns a slice of an abdomen: fat, muscles, liver, spleen, kidneys, bowel, spine; uint8 [size_px, size_px]."""
    x, y = _grid(rng, size_px)
    half_width = rng.uniform(0.8, 0.92)
    half_height = half_width * rng.uniform(0.65, 0.8)
    fat = rng.uniform(0.05, 0.16)
    picture = np.zeros((size_px, size_px))
    picture[_ellipse(x, y, half=(half_width, half_height))] = 75
    picture[_ellipse(x, y, half=(half_width - fat, half_height - fat))] = 130
    inside = _ellipse(x, y, half=(half_width - fat - 0.06, half_height - fat - 0.06))
    picture[inside] = 85
    organs = [  # centre, half axes, turn, grey level
        ((-0.38, -0.08), (0.36, 0.4), 20, 150),
        ((0.52, 0.08), (0.14, 0.25), -15, 160),
        ((-0.34, 0.33), (0.11, 0.17), 20, 175),
        ((0.34, 0.33), (0.11, 0.17), -20, 175),
        ((0.06, 0.18), (0.06, 0.06), 0, 190),
        ((-0.08, 0.18), (0.07, 0.05), 0, 165),
    ]
    for (centre_x, centre_y), (half_x, half_y), turn_deg, level in organs:
        place = (centre_x + rng.normal(0, 0.03), centre_y + rng.normal(0, 0.03))
        half = (half_x * rng.uniform(0.8, 1.15), half_y * rng.uniform(0.8, 1.15))
        organ = _ellipse(x, y, centre=place, half=half, turn_deg=turn_deg + rng.normal(0, 8))
        picture[inside & organ] = level + rng.normal(0, 6)
    for _ in range(int(rng.integers(6, 12))):  # loops of the bowel, some with air
        place, radius = (rng.uniform(-0.1, 0.5), rng.uniform(-0.4, 0.1)), rng.uniform(0.05, 0.1)
        half = (radius, radius * rng.uniform(0.7, 1.4))
        picture[inside & _ellipse(x, y, centre=place, half=half)] = 140
        if rng.random() < 0.5:
            picture[inside & _ellipse(x, y, centre=place, half=(0.7 * half[0], 0.7 * half[1]))] = 5
    for centre, half, level in (((0.0, 0.4), (0.14, 0.11), 235), ((0.0, 0.4), (0.1, 0.08), 195)):
        picture[_ellipse(x, y, centre=centre, half=half)] = level
    picture[_ellipse(x, y, centre=(0.0, 0.56), half=(0.03, 0.1))] = 230
    return _scanned(picture, rng)


def _grid(rng: np.random.Generator, size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns coordinates x and y in [-1, 1], a little turned and shifted, float64 [size_px, size_px] each."""
    y, x = np.mgrid[-1 : 1 : size_px * 1j, -1 : 1 : size_px * 1j]
    turn = np.deg2rad(rng.uniform(-8, 8))
    x, y = x - rng.uniform(-0.05, 0.05), y - rng.uniform(-0.05, 0.05)
    return x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)


def _ellipse(
    x: np.ndarray,
    y: np.ndarray,
    *,
    centre: tuple[float, float] = (0.0, 0.0),
    half: tuple[float, float],
    turn_deg: float = 0.0,
) -> np.ndarray:
    """Tells which points lie in an ellipse, bool of their shape."""
    turn = np.deg2rad(turn_deg)
    across, down = x - centre[0], y - centre[1]
    along = across * np.cos(turn) + down * np.sin(turn)
    beside = down * np.cos(turn) - across * np.sin(turn)
    return (along / half[0]) ** 2 + (beside / half[1]) ** 2 <= 1


def _smooth(rng: np.random.Generator, size_px: int, sigma_px: float) -> np.ndarray:
    """Returns low-pass noise with the standard deviation 1, float64 [size_px, size_px]."""
    found = ndimage.gaussian_filter(rng.normal(size=(size_px, size_px)), sigma_px)
    return found / found.std()


def _scanned(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Smooths edges, adds noise and changes the window a little; uint8."""
    blurred = ndimage.gaussian_filter(picture, len(picture) / 256 * rng.uniform(0.5, 1.0))
    noisy = blurred * rng.uniform(0.85, 1.1) + rng.normal(0, rng.uniform(2, 8), picture.shape)
    return np.rint(np.clip(noisy, 0, 255)).astype(np.uint8)
