"""Registers small grey pictures: finds the mirror, scale and shift of each axis that fit one picture to another.

`tlray.trust.pixel_match` registers pairs with it before it compares their details.
"""

import functools

import numpy as np
from scipy import ndimage

MIN_START = 0.55
"""Correlation before registration below which a pair is not registered. It was higher for all copies of the half `tune`
of `benchmarks/planted_copies.py`."""

_SCALES = (0.8, 0.9, 1.0, 1.11, 1.25)  # from which registration starts, for each axis
_SCALE_PENALTY = 0.02  # a start far from scale 1 must be better than one near it
_MIRROR_MARGIN = 0.1  # a way, mirrored or not, is left out if its best start is worse than the other's by more
_MIN_SCALE, _MAX_SCALE, _MAX_SHIFT = 0.6, 1.6, 0.5
_MAX_STEP = 0.15  # of a scale or shift in one iteration
_COARSE_ITERATIONS = 3
_MEDIAN_STEP = 7  # a median is taken of each seventh pixel
_MIN_OVERLAP = 0.5  # share of the first picture that the second one must cover


def register_both_ways(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Registers pairs of coarse thumbnails as they are, and mirrored where that may fit as well.

    Args:
        first: float32 [pairs, size_px, size_px].
        second: As `first`.

    Returns:
        The parameters of `warp`, float32 [pairs, 4]; which of the second pictures are mirrored to fit better, bool
        [pairs]; and which pairs are alike at all (`MIN_START`), the others are not registered, bool [pairs].
    """
    (plain, plain_found), (mirrored, mirrored_found) = _best_scales(first, second)
    params, found = np.zeros((2, len(first), 4), np.float32), np.full((2, len(first)), -1.0)
    is_alike = np.maximum(plain_found, mirrored_found) >= MIN_START
    for way, start, is_likely in (
        (0, plain, plain_found >= mirrored_found - _MIRROR_MARGIN),
        (1, mirrored, mirrored_found > plain_found - _MIRROR_MARGIN),
    ):
        rows = np.flatnonzero(is_likely & is_alike)
        if len(rows):
            turned = second[rows, :, ::-1] if way else second[rows]
            params[way, rows], found[way, rows] = register(first[rows], turned, start[rows], _COARSE_ITERATIONS)
    is_mirrored = found[1] > found[0]
    return np.where(is_mirrored[:, None], params[1], params[0]), is_mirrored, is_alike


def register(
    first: np.ndarray, second: np.ndarray, start: np.ndarray, num_iterations: int
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the scales and shifts that fit the second pictures to the first ones.

    Gauss-Newton on the grey values, with an affine fit of the intensities among the unknowns (Lucas and Kanade 1981;
    Baker and Matthews 2004, IJCV 56:221) and Cauchy weights with their usual width of 2.385 standard deviations
    (Zhang 1997, Image and Vision Computing 15:59), against scribbles.

    Args:
        first: float32 [pairs, size_px, size_px].
        second: As `first`.
        start: Parameters of `warp` to start from, float32 [pairs, 4].
        num_iterations: Number of steps.

    Returns:
        The best parameters of `warp`, float32 [pairs, 4], and their correlation, [pairs].
    """
    num_pairs, size_px, _ = first.shape
    params = start
    best_params, best = params, np.full(num_pairs, -np.inf)
    gradient_y, gradient_x = (np.gradient(second, axis=axis) * (size_px / 2) for axis in (1, 2))
    grid = _grid(size_px)
    for iteration in range(num_iterations + 1):
        down, across, mask = warp(params, size_px)
        warped = down @ second @ across
        found = correlation(first, warped, mask)
        best_params = np.where((found > best)[:, None], params, best_params)
        best = np.maximum(best, found)
        if iteration == num_iterations:
            break
        area = mask.sum(axis=(1, 2), keepdims=True) + 1e-6
        a, b = (pictures - (pictures * mask).sum(axis=(1, 2), keepdims=True) / area for pictures in (first, warped))
        gain = (a * b * mask).sum(axis=(1, 2), keepdims=True) / ((b * b * mask).sum(axis=(1, 2), keepdims=True) + 1e-6)
        residual = a - gain * b
        width = 2.385 * (
            1.4826 * np.median(np.abs(residual.reshape(num_pairs, -1)[:, ::_MEDIAN_STEP]), axis=1)[:, None, None] + 2.0
        )
        weights = (mask / (1 + (residual / width) ** 2)).reshape(num_pairs, 1, -1)
        slope_x, slope_y = (gain * (down @ slope @ across) for slope in (gradient_x, gradient_y))
        columns = (slope_x * grid, slope_x, slope_y * grid[:, None], slope_y, b, np.ones_like(b))
        jacobian = np.stack(columns, axis=1).reshape(num_pairs, 6, -1)
        normal = ((jacobian * weights) @ jacobian.transpose(0, 2, 1)).astype(np.float64)
        damping = 1e-4 * np.trace(normal, axis1=1, axis2=2)[:, None, None] / 6 + 1e-6
        right = (jacobian * weights) @ residual.reshape(num_pairs, -1, 1)
        step = np.linalg.solve(normal + damping * np.eye(6), right.astype(np.float64))[:, :4, 0]
        params = params + np.clip(step, -_MAX_STEP, _MAX_STEP).astype(np.float32)
        params[:, ::2] = np.clip(params[:, ::2], _MIN_SCALE, _MAX_SCALE)
        params[:, 1::2] = np.clip(params[:, 1::2], -_MAX_SHIFT, _MAX_SHIFT)
    return best_params, best


def _best_scales(
    first: np.ndarray, second: np.ndarray
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Finds the best of some scales without shift, for the second pictures as they are, and mirrored.

    Args:
        first: float32 [pairs, size_px, size_px].
        second: As `first`.

    Returns:
        For each of the two ways the parameters of `warp`, float32 [pairs, 4], and their correlation, [pairs], less a
        penalty for scales far from 1.
    """
    size_px, num_scales = first.shape[1], len(_SCALES)
    places = np.array(_SCALES, np.float32)[:, None] * _grid(size_px)
    matrices, is_inside = _interpolation(places, size_px)  # [scales, size_px, size_px] and [scales, size_px]
    matrices = matrices.reshape(-1, size_px).T
    # All scales of one axis in one product. Means are taken out first, as sums of squares would lose digits.
    first, second = (pictures - pictures.mean(axis=(1, 2), keepdims=True) for pictures in (first, second))
    across = (second.reshape(-1, size_px) @ matrices).reshape(-1, size_px, num_scales * size_px)
    down = across.transpose(0, 2, 1).reshape(-1, size_px) @ matrices
    mask_XY = is_inside.reshape(-1, 1) & is_inside.reshape(1, -1)
    # Axes of what is scaled: pairs, scales and places of x, scales and places of y.
    shape = (num_scales, size_px, num_scales, size_px)
    mask = mask_XY.astype(np.float32).reshape(shape)
    scaled = down.reshape(-1, *shape) * mask
    flat_mask = mask.transpose(0, 2, 1, 3).reshape(num_scales**2, -1)
    area = flat_mask.sum(axis=1).reshape(num_scales, num_scales) + 1e-6
    sum_b, sum_bb = scaled.sum(axis=(2, 4)), np.einsum("pixjy,pixjy->pij", scaled, scaled)
    scales = np.abs(np.log(np.array(_SCALES)))
    penalty = _SCALE_PENALTY * (scales[:, None] + scales)
    both = []
    for turned in (first.transpose(0, 2, 1), first[:, :, ::-1].transpose(0, 2, 1)):  # [pairs, x, y]
        rows = turned.reshape(len(turned), -1)
        sum_a, sum_aa = ((each @ flat_mask.T).reshape(sum_b.shape) for each in (rows, rows**2))
        sum_ab = np.einsum("pxy,pixjy->pij", turned, scaled)
        power = (sum_aa - sum_a**2 / area) * (sum_bb - sum_b**2 / area)
        found = (sum_ab - sum_a * sum_b / area) / np.sqrt(np.maximum(power, 0) + 1e-3)
        found = np.where(area >= _MIN_OVERLAP * size_px**2, found, -1.0) - penalty
        best = found.reshape(len(found), -1).argmax(axis=1)
        params = np.zeros((len(found), 4), np.float32)
        params[:, 0], params[:, 2] = (np.array(_SCALES, np.float32)[each] for each in np.divmod(best, num_scales))
        both.append((params, found.reshape(len(found), -1)[np.arange(len(best)), best]))
    return both[0], both[1]


def correlation(first: np.ndarray, second: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns the correlation of pictures under a mask, [pairs]; -1 where the mask covers too little."""
    area = mask.sum(axis=(1, 2)) + 1e-6
    a, b = (
        (pictures - ((pictures * mask).sum(axis=(1, 2)) / area)[:, None, None]) * mask for pictures in (first, second)
    )
    found = (a * b).sum(axis=(1, 2)) / np.sqrt((a * a).sum(axis=(1, 2)) * (b * b).sum(axis=(1, 2)) + 1e-3)
    return np.where(area >= _MIN_OVERLAP * first.shape[1] * first.shape[2], found, -1.0)


def warp(params: np.ndarray, size_px: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the matrices L, R and the mask of a warp: `L @ picture @ R` is scaled and shifted.

    Args:
        params: Scale and shift of x, then of y, float32 [pairs, 4]; the place x is taken from `scale * x + shift`.
        size_px: Height and width of the pictures.
    """
    grid = _grid(size_px)
    across, is_inside_x = _interpolation(params[:, :1] * grid + params[:, 1:2], size_px)
    down, is_inside_y = _interpolation(params[:, 2:3] * grid + params[:, 3:], size_px)
    mask = (is_inside_y[:, :, None] & is_inside_x[:, None, :]).astype(np.float32)
    return down, across.transpose(0, 2, 1), mask


def _grid(size_px: int) -> np.ndarray:
    """Returns the middles of the pixels along an axis from -1 to 1, float32 [size_px]."""
    return (np.arange(size_px, dtype=np.float32) + 0.5) / size_px * 2 - 1


def _interpolation(places: np.ndarray, size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns matrices that interpolate an axis linearly at places in [-1, 1], and which places lie on the axis."""
    place_px = (places + 1) * size_px / 2 - 0.5
    is_inside = (place_px > -0.501) & (place_px < size_px - 0.499)
    distance_px = np.abs(np.clip(place_px, 0, size_px - 1)[..., None] - np.arange(size_px, dtype=np.float32))
    return np.maximum(0, 1 - distance_px).astype(np.float32), is_inside


def shrink(pictures_BHW: np.ndarray, size_px: int) -> np.ndarray:
    """Returns pictures reduced by averaging, float32 [images, size_px, size_px].

    Args:
        pictures_BHW: Square pictures, any number type; their size is a multiple of `size_px`.
        size_px: Height and width of the result.
    """
    pool = averaging(pictures_BHW.shape[1], size_px)
    return resample(pictures_BHW.astype(np.float32, copy=False), pool, pool)


def averaging(size_px: int, small_px: int) -> np.ndarray:
    """Returns the matrix that reduces an axis by averaging, float32 [small_px, size_px]."""
    return np.kron(np.eye(small_px), np.full(size_px // small_px, small_px / size_px)).astype(np.float32)


def resample(pictures_BHW: np.ndarray, down: np.ndarray, across: np.ndarray) -> np.ndarray:
    """Returns `down @ picture @ across.T` of each picture: two large products, much faster than many small ones.

    Args:
        pictures_BHW: float32 [images, height, width].
        down: float32 [new height, height].
        across: float32 [new width, width].
    """
    num_images, height, width = pictures_BHW.shape
    columns = (pictures_BHW.reshape(-1, width) @ across.T).reshape(num_images, height, -1).transpose(0, 2, 1)
    return (columns.reshape(-1, height) @ down.T).reshape(num_images, len(across), -1).transpose(0, 2, 1)


@functools.cache
def blur(size_px: int, sigma_px: float) -> np.ndarray:
    """Returns the matrix B of a Gaussian filter: `B @ picture @ B.T` is blurred, float32 [size_px, size_px]."""
    return ndimage.gaussian_filter1d(np.eye(size_px), sigma_px, axis=0).astype(np.float32)
