"""Decides whether two CT pictures are the same pixels, copies, neighbouring slices of a series, or neither.

The pictures are compared as small grey thumbnails, see `tlray.data.looks`. A pair is registered (mirror, scale and
shift of each axis) and compared tile by tile: a copy that was re-encoded, resized, re-windowed, cropped, mirrored or
scribbled on agrees in nearly all tiles, another slice does not.
"""

import functools
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy import ndimage

from tlray.data.looks import THUMBNAIL_PX

COPY_SCORE = 0.955
"""Score from which two pictures are copies. It was chosen on the half `tune` of `benchmarks/planted_copies.py`
(2026-11-29) with 312 pairs of different slices, all of one patient and mostly of phantoms, of which the best scored
0.9547, and 549 pairs of copies, of which 99.1 % scored more than this."""

NEIGHBOUR_SCORE = 0.85
"""Score from which two pictures that are no copies are neighbours. Of 90 % of the pairs of slices of one phantom
patient the score was above 0.844 (2026-11-29). No two real pictures of different classes scored above 0.6."""

MIN_COARSE_AGREEMENT = 0.75
"""Agreement of the details at 24 px below which a registered pair is not compared further. It was higher for 1,283 of
1,284 copies and 63 % of the other candidates (`benchmarks/planted_copies.py`, half `tune`, 2026-11-29)."""

_MIN_START = 0.55  # correlation before registration below which a pair is not compared; higher for all those copies
_COARSE_PX, _FINE_PX = THUMBNAIL_PX // 4, THUMBNAIL_PX // 2
_CHUNK_PAIRS = 128  # pairs that are compared at once; memory: some 100 MB
_SCALES = (0.8, 0.9, 1.0, 1.11, 1.25)  # from which registration starts, for each axis
_SCALE_PENALTY = 0.02  # a start far from scale 1 must be better than one near it
_MIRROR_MARGIN = 0.1  # a way, mirrored or not, is left out if its best start is worse than the other's by more
_MIN_SCALE, _MAX_SCALE, _MAX_SHIFT = 0.6, 1.6, 0.5
_MAX_STEP = 0.15  # of a scale or shift in one iteration
_COARSE_ITERATIONS, _FINE_ITERATIONS = 3, 3
_MEDIAN_STEP = 7  # a median is taken of each seventh pixel
_MIN_OVERLAP = 0.5  # share of the first picture that the second one must cover
_TILE_PX = 6
_DETAIL_PX, _SMOOTHING_PX = 2.0, 0.7  # standard deviations of the band-pass filter before tiles are compared
_TEXTURE = 2.0  # contrast, of 255, at which a tile has half the weight of one with a strong contrast
_EXCLUDED, _MAX_SCRIBBLED = 0.02, 0.3  # shares of the tiles, by weight, that are left out: always, and with scribbles
_LOW_CORRELATION, _MUCH_STRONGER = 0.9, 4.0  # what tells a scribbled tile: correlation, and ratio of the powers


class Kind(StrEnum):
    """Relation of two pictures."""

    IDENTICAL = "identical"
    """The same pixels after decoding."""
    COPY = "copy"
    """The same picture, re-encoded, resized, re-windowed, cropped, mirrored, scribbled on or with noise."""
    NEIGHBOUR = "neighbour"
    """Another slice of the same series: similar anatomy, but another picture."""
    OTHER = "other"
    """None of these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Comparison of some pairs of pictures.

    Attributes:
        kinds: Values of `Kind`, str [pairs].
        scores: Agreement of the details after registration, float32 [pairs] in [-1, 1]; 1 is the same picture.
        is_mirrored: Whether one picture was mirrored to fit the other, bool [pairs].
    """

    kinds: np.ndarray
    scores: np.ndarray
    is_mirrored: np.ndarray


def compare(thumbnails_BHW: np.ndarray, pairs: np.ndarray) -> Match:
    """Compares pairs of pictures.

    A pair takes 0.6 ms on one core of an AMD EPYC, on the half `tune` of `benchmarks/planted_copies.py`
    (2026-11-29). Thumbnails without any detail match nothing but the same thumbnail.

    Args:
        thumbnails_BHW: Grey thumbnails, uint8 [images, THUMBNAIL_PX, THUMBNAIL_PX], see `looks.look`.
        pairs: Indices of the images to compare, int [pairs, 2].

    Returns:
        The kind and score of each pair. `identical` here means that the thumbnails are the same.
    """
    scores, is_mirrored = np.zeros(len(pairs), np.float32), np.zeros(len(pairs), bool)
    for start in range(0, len(pairs), _CHUNK_PAIRS):
        chunk = slice(start, start + _CHUNK_PAIRS)
        first, second = (thumbnails_BHW[column].astype(np.float32) for column in pairs[chunk].T)
        scores[chunk], is_mirrored[chunk] = _score(first, second)
    is_same = np.zeros(len(pairs), bool)
    for index in np.flatnonzero(thumbnails_BHW[pairs[:, 0], 0, 0] == thumbnails_BHW[pairs[:, 1], 0, 0]):
        is_same[index] = np.array_equal(*thumbnails_BHW[pairs[index]])
    scores[is_same], is_mirrored[is_same] = 1.0, False
    kinds = np.select(
        [is_same, scores >= COPY_SCORE, scores >= NEIGHBOUR_SCORE],
        [Kind.IDENTICAL.value, Kind.COPY.value, Kind.NEIGHBOUR.value],
        Kind.OTHER.value,
    )
    return Match(kinds=kinds, scores=scores, is_mirrored=is_mirrored)


def _score(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Registers pairs of thumbnails, float32 [pairs, height, width]; returns their scores and what is mirrored."""
    coarse_first, coarse_second = shrink(first, _COARSE_PX), shrink(second, _COARSE_PX)
    params, is_mirrored, is_alike = _register_both_ways(coarse_first, coarse_second)
    turned = np.where(is_mirrored[:, None, None], coarse_second[:, :, ::-1], coarse_second)
    scores = np.zeros(len(first), np.float32)
    rows = np.flatnonzero(is_alike)
    rows = rows[_coarse_agreement(coarse_first[rows], turned[rows], params[rows]) >= MIN_COARSE_AGREEMENT]
    if len(rows):
        first = first[rows]
        second = np.where(is_mirrored[rows, None, None], second[rows, :, ::-1], second[rows])
        fine, _ = _register(shrink(first, _FINE_PX), shrink(second, _FINE_PX), params[rows], _FINE_ITERATIONS)
        scores[rows] = _detail_agreement(first, second, fine)
    return scores, is_mirrored


def _register_both_ways(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Registers pairs of coarse thumbnails as they are, and mirrored where that may fit as well.

    Args:
        first: float32 [pairs, size_px, size_px].
        second: As `first`.

    Returns:
        The parameters of `_warp`, float32 [pairs, 4]; which of the second pictures are mirrored to fit better, bool
        [pairs]; and which pairs are alike at all (`_MIN_START`), the others are not registered, bool [pairs].
    """
    (plain, plain_found), (mirrored, mirrored_found) = _best_scales(first, second)
    params, found = np.zeros((2, len(first), 4), np.float32), np.full((2, len(first)), -1.0)
    is_alike = np.maximum(plain_found, mirrored_found) >= _MIN_START
    for way, start, is_likely in (
        (0, plain, plain_found >= mirrored_found - _MIRROR_MARGIN),
        (1, mirrored, mirrored_found > plain_found - _MIRROR_MARGIN),
    ):
        rows = np.flatnonzero(is_likely & is_alike)
        if len(rows):
            turned = second[rows, :, ::-1] if way else second[rows]
            params[way, rows], found[way, rows] = _register(first[rows], turned, start[rows], _COARSE_ITERATIONS)
    is_mirrored = found[1] > found[0]
    return np.where(is_mirrored[:, None], params[1], params[0]), is_mirrored, is_alike


def _coarse_agreement(first: np.ndarray, second: np.ndarray, params: np.ndarray) -> np.ndarray:
    """Returns the correlation of the registered pictures without their coarsest parts, [pairs]."""
    down, across, mask = _warp(params, first.shape[1])
    coarse = _blur(first.shape[1], _DETAIL_PX)
    first, second = (each - coarse @ each @ coarse.T for each in (first, down @ second @ across))
    return _correlation(first, second, mask)


def shrink(pictures_BHW: np.ndarray, size_px: int) -> np.ndarray:
    """Returns pictures reduced by averaging, float32 [images, size_px, size_px].

    Args:
        pictures_BHW: Square pictures, any number type; their size is a multiple of `size_px`.
        size_px: Height and width of the result.
    """
    pool = np.kron(np.eye(size_px), np.full(pictures_BHW.shape[1] // size_px, size_px / pictures_BHW.shape[1]))
    pool = pool.astype(np.float32)
    return pool @ pictures_BHW.astype(np.float32, copy=False) @ pool.T


@functools.cache
def _blur(size_px: int, sigma_px: float) -> np.ndarray:
    """Returns the matrix B of a Gaussian filter: `B @ picture @ B.T` is blurred, float32 [size_px, size_px]."""
    return ndimage.gaussian_filter1d(np.eye(size_px), sigma_px, axis=0).astype(np.float32)


def _grid(size_px: int) -> np.ndarray:
    """Returns the middles of the pixels along an axis from -1 to 1, float32 [size_px]."""
    return (np.arange(size_px, dtype=np.float32) + 0.5) / size_px * 2 - 1


def _interpolation(places: np.ndarray, size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns matrices that interpolate an axis linearly at places in [-1, 1], and which places lie on the axis."""
    place_px = (places + 1) * size_px / 2 - 0.5
    is_inside = (place_px > -0.501) & (place_px < size_px - 0.499)
    distance_px = np.abs(np.clip(place_px, 0, size_px - 1)[..., None] - np.arange(size_px, dtype=np.float32))
    return np.maximum(0, 1 - distance_px).astype(np.float32), is_inside


def _warp(params: np.ndarray, size_px: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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


def _correlation(first: np.ndarray, second: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns the correlation of pictures under a mask, [pairs]; -1 where the mask covers too little."""
    area = mask.sum(axis=(1, 2)) + 1e-6
    a, b = (
        (pictures - ((pictures * mask).sum(axis=(1, 2)) / area)[:, None, None]) * mask for pictures in (first, second)
    )
    found = (a * b).sum(axis=(1, 2)) / np.sqrt((a * a).sum(axis=(1, 2)) * (b * b).sum(axis=(1, 2)) + 1e-3)
    return np.where(area >= _MIN_OVERLAP * first.shape[1] * first.shape[2], found, -1.0)


def _best_scales(
    first: np.ndarray, second: np.ndarray
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Finds the best of some scales without shift, for the second pictures as they are, and mirrored.

    Args:
        first: float32 [pairs, size_px, size_px].
        second: As `first`.

    Returns:
        For each of the two ways the parameters of `_warp`, float32 [pairs, 4], and their correlation, [pairs], less a
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


def _register(
    first: np.ndarray, second: np.ndarray, start: np.ndarray, num_iterations: int
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the scales and shifts that fit the second pictures to the first ones.

    Gauss-Newton on the grey values, with an affine fit of the intensities among the unknowns (Lucas and Kanade 1981;
    Baker and Matthews 2004, IJCV 56:221) and Cauchy weights with their usual width of 2.385 standard deviations
    (Zhang 1997, Image and Vision Computing 15:59), against scribbles.

    Args:
        first: float32 [pairs, size_px, size_px].
        second: As `first`.
        start: Parameters of `_warp` to start from, float32 [pairs, 4].
        num_iterations: Number of steps.

    Returns:
        The best parameters of `_warp`, float32 [pairs, 4], and their correlation, [pairs].
    """
    num_pairs, size_px, _ = first.shape
    params = start
    best_params, best = params, np.full(num_pairs, -np.inf)
    gradient_y, gradient_x = (np.gradient(second, axis=axis) * (size_px / 2) for axis in (1, 2))
    grid = _grid(size_px)
    for iteration in range(num_iterations + 1):
        down, across, mask = _warp(params, size_px)
        warped = down @ second @ across
        found = _correlation(first, warped, mask)
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


def _tiles(pictures: np.ndarray) -> np.ndarray:
    """Cuts pictures into tiles, [pairs, tiles, pixels]."""
    num_pairs, size_px, _ = pictures.shape
    per_side = size_px // _TILE_PX
    blocks = pictures.reshape(num_pairs, per_side, _TILE_PX, per_side, _TILE_PX)
    return blocks.transpose(0, 1, 3, 2, 4).reshape(num_pairs, per_side**2, -1)


def _detail_agreement(first: np.ndarray, second: np.ndarray, params: np.ndarray) -> np.ndarray:
    """Returns the mean correlation of the tiles' details, without the worst tiles, float [pairs] in [-1, 1].

    Tiles that have details in neither picture, or that lie outside the second one, do not count. The correlation of
    each tile does not depend on the window. A scribble adds details to one picture only, while another slice has
    vessels where the first one has none, and the other way round. So as many of the worst tiles are left out as one
    picture has more tiles with much stronger details than the other has.
    """
    down, across, mask = _warp(params, first.shape[1])
    details_a, details_b = (_details(pictures) * mask for pictures in (first, down @ second @ across))
    gain = (details_a * details_b).sum(axis=(1, 2)) / ((details_b**2).sum(axis=(1, 2)) + 1e-6)
    tiles_a, tiles_b, is_inside = _tiles(details_a), _tiles(details_b), _tiles(mask).mean(axis=2) > 0.95
    power_a, power_b = (tiles_a**2).mean(axis=2), (tiles_b**2).mean(axis=2)  # grey values squared
    found = (tiles_a * tiles_b).mean(axis=2) / np.sqrt(power_a * power_b + 1e-6)
    power_b *= (gain**2)[:, None]
    power = np.maximum(power_a, power_b)
    weights = np.where(is_inside, power / (power + _TEXTURE**2), 0.0)
    weights /= weights.sum(axis=1, keepdims=True) + 1e-9
    is_low = found < _LOW_CORRELATION
    more_a = (weights * (is_low & (power_a > _MUCH_STRONGER * power_b))).sum(axis=1)
    more_b = (weights * (is_low & (power_b > _MUCH_STRONGER * power_a))).sum(axis=1)
    excluded = _EXCLUDED + np.minimum(_MAX_SCRIBBLED, np.abs(more_a - more_b))
    order = np.argsort(found, axis=1)
    found, weights = (np.take_along_axis(values, order, axis=1) for values in (found, weights))
    weights = np.clip(np.cumsum(weights, axis=1) - excluded[:, None], 0.0, weights)
    mean = (found * weights).sum(axis=1) / (weights.sum(axis=1) + 1e-9)
    return np.clip(mean, -1.0, 1.0)  # rounding can exceed 1


def _details(pictures: np.ndarray) -> np.ndarray:
    """Returns pictures without their coarse parts and their finest ones, which are noise."""
    fine = _blur(pictures.shape[1], _SMOOTHING_PX)
    coarse = fine @ _blur(pictures.shape[1], _DETAIL_PX)
    return fine @ pictures @ fine.T - coarse @ pictures @ coarse.T
