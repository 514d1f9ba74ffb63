"""Decides whether two CT pictures are the same pixels, copies, neighbouring slices of a series, or neither.

The pictures are compared as small grey thumbnails, see `tlray.data.looks`. A pair is registered (mirror, scale and
shift of each axis) and compared tile by tile: a copy that was re-encoded, resized, re-windowed, cropped, mirrored or
scribbled on agrees in nearly all tiles, another slice does not.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from tlray.data.looks import THUMBNAIL_PX
from tlray.trust.registration import blur, correlation, register, register_both_ways, shrink, warp

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

_COARSE_PX, _FINE_PX = THUMBNAIL_PX // 4, THUMBNAIL_PX // 2
_CHUNK_PAIRS = 128  # pairs that are compared at once; memory: some 100 MB
_FINE_ITERATIONS = 3
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
    params, is_mirrored, is_alike = register_both_ways(coarse_first, coarse_second)
    turned = np.where(is_mirrored[:, None, None], coarse_second[:, :, ::-1], coarse_second)
    scores = np.zeros(len(first), np.float32)
    rows = np.flatnonzero(is_alike)
    rows = rows[_coarse_agreement(coarse_first[rows], turned[rows], params[rows]) >= MIN_COARSE_AGREEMENT]
    if len(rows):
        first = first[rows]
        second = np.where(is_mirrored[rows, None, None], second[rows, :, ::-1], second[rows])
        fine, _ = register(shrink(first, _FINE_PX), shrink(second, _FINE_PX), params[rows], _FINE_ITERATIONS)
        scores[rows] = _detail_agreement(first, second, fine)
    return scores, is_mirrored


def _coarse_agreement(first: np.ndarray, second: np.ndarray, params: np.ndarray) -> np.ndarray:
    """Returns the correlation of the registered pictures without their coarsest parts, [pairs]."""
    down, across, mask = warp(params, first.shape[1])
    coarse = blur(first.shape[1], _DETAIL_PX)
    first, second = (each - coarse @ each @ coarse.T for each in (first, down @ second @ across))
    return correlation(first, second, mask)


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
    down, across, mask = warp(params, first.shape[1])
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
    fine = blur(pictures.shape[1], _SMOOTHING_PX)
    coarse = fine @ blur(pictures.shape[1], _DETAIL_PX)
    return fine @ pictures @ fine.T - coarse @ pictures @ coarse.T
