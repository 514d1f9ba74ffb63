"""Finds pairs of pictures that may be copies: each image's nearest by a network's features, and by its thumbnail.

Import it to search a data set; `tlray.trust.copies` compares what it finds.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from sklearn.utils.extmath import randomized_svd

from tlray.errors import DataError
from tlray.trust import registration
from tlray.trust.nearest import find_nearest

NUM_NEAREST = 8
"""Number of candidates that each search gives an image. With it, each of 306 planted copies was a candidate with its
original, on the half `tune` of `benchmarks/planted_copies.py` (2026-11-29). The sizes below come from there, too: with
32, 48, 64 and 96 components more and more of the crops were found, with one zoom 95 % of those with a new window."""

_NUM_COMPONENTS = 96  # principal components that a search compares
_NUM_FIT = 4000  # rows at most that they are fitted to
_CHUNK_ROWS = 4096  # images whose features or descriptors are computed at once
_CHUNK_PAIRS = 65536  # pairs whose descriptors are compared at once
_DESCRIPTOR_PX, _DESCRIPTOR_DETAIL_PX = 16, 16 / 6
_MIN_COSINE = 0.5  # of the descriptors of a candidate; of all 1,260 pairs of copies it was above 0.53
_ZOOM = 0.94  # share of the width and height that is compared with whole pictures, for crops
_ZOOM_PLACES = (
    (0.25, 0.25),
    (0.75, 0.75),
)  # of that part in its picture, x and y: 0 is left or top, 1 is right or bottom


def find_candidates(
    features_BD: np.ndarray | None, thumbnails_BHW: np.ndarray, *, num_nearest: int = NUM_NEAREST
) -> tuple[np.ndarray, np.ndarray]:
    """Finds pairs of images that may be copies.

    For each image these are the nearest ones by the network's features, and by the thumbnails at 16 px: as they are,
    mirrored, and zoomed in. Features find crops; thumbnails find noise, scribbles and mirror images, which change
    features more than another slice does. Principal components are searched: time is quadratic in compiled code only,
    and memory is linear.

    Args:
        features_BD: Pooled features, float [images, values], none of them all zero; None: only thumbnails are used.
        thumbnails_BHW: Thumbnails in the same order, uint8 [images, THUMBNAIL_PX, THUMBNAIL_PX].
        num_nearest: Number of nearest images of each search, at least 1.

    Returns:
        Pairs of indices without repetition, the lower one first, sorted, int64 [pairs, 2]; and the best rank of one
        image among the nearest of the other in any search, from 1 for the nearest, int64 [pairs].

    Raises:
        DataError: There are not as many features as thumbnails.
    """
    num_images = len(thumbnails_BHW)
    check_features(features_BD, num_images)
    if num_images < 2:
        return np.empty((0, 2), np.int64), np.empty(0, np.int64)
    searches = [*_search_thumbnails(thumbnails_BHW, num_nearest)]
    if features_BD is not None:
        project = _fit(_unit(_some(features_BD)))
        rows = np.concatenate([project(_unit(chunk)) for chunk in _chunks(features_BD)])
        searches.append(_nearest(rows, rows, num_nearest))
    query, other, ranks = (np.concatenate(arrays) for arrays in zip(*searches, strict=True))
    codes = np.minimum(query, other) * num_images + np.maximum(query, other)
    order = np.argsort(ranks, kind="stable")
    pairs, firsts = np.unique(codes[order], return_index=True)
    return np.stack(np.divmod(pairs, num_images), axis=1), ranks[order][firsts]


def _search_thumbnails(
    thumbnails_BHW: np.ndarray, num_nearest: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields for each view of the thumbnails what `_nearest` does, without pairs that are too unlike."""
    pool = registration.averaging(thumbnails_BHW.shape[1], _DESCRIPTOR_PX)
    whole = _described(thumbnails_BHW, pool, pool)
    project = _fit(_some(whole))
    rows = project(whole)
    views = [(pool, pool), (pool, pool[:, ::-1]), *((_zoomed(pool, y), _zoomed(pool, x)) for x, y in _ZOOM_PLACES)]
    for number, (down, across) in enumerate(views):
        viewed = _described(thumbnails_BHW, down, across) if number else whole
        query, other, ranks = _nearest(project(viewed), rows, num_nearest)
        places = _chunks(np.arange(len(query)), _CHUNK_PAIRS)
        cosines = [np.einsum("pv,pv->p", viewed[query[each]], whole[other[each]]) for each in places]
        is_alike = np.concatenate(cosines) >= _MIN_COSINE
        yield query[is_alike], other[is_alike], ranks[is_alike]


def _chunks(rows: np.ndarray, num_rows: int = _CHUNK_ROWS) -> Iterator[np.ndarray]:
    """Yields some rows after the other."""
    return (rows[start : start + num_rows] for start in range(0, len(rows), num_rows))


def _some(rows: np.ndarray) -> np.ndarray:
    """Returns evenly spaced rows, to which principal components are fitted."""
    return rows[:: -(-len(rows) // _NUM_FIT)]


def _unit(rows: np.ndarray) -> np.ndarray:
    """Returns rows of length 1, float32, so that distances tell cosines; rows of zeros stay zero."""
    rows = rows.astype(np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def _described(thumbnails_BHW: np.ndarray, down: np.ndarray, across: np.ndarray) -> np.ndarray:
    """Returns the descriptors of a view of all thumbnails, float32 [images, 256]; see `_descriptors`."""
    return np.concatenate([_descriptors(chunk, down, across) for chunk in _chunks(thumbnails_BHW)])


def _descriptors(thumbnails_BHW: np.ndarray, down: np.ndarray, across: np.ndarray) -> np.ndarray:
    """Returns the details of thumbnails at 16 px, without brightness and contrast.

    Args:
        thumbnails_BHW: uint8 [images, height, width].
        down: The matrix that reduces a column, float32 [_DESCRIPTOR_PX, height].
        across: The matrix that reduces a row, float32 [_DESCRIPTOR_PX, width].

    Returns:
        float32 [images, 256].
    """
    small = registration.resample(thumbnails_BHW.astype(np.float32), down, across)
    small = small - ndimage.gaussian_filter(small, (0, _DESCRIPTOR_DETAIL_PX, _DESCRIPTOR_DETAIL_PX))
    rows = small.reshape(len(small), -1)
    return _unit(rows - rows.mean(axis=1, keepdims=True))


def _zoomed(pool: np.ndarray, place: float) -> np.ndarray:
    """Returns the matrix that enlarges a part of an axis to the whole and reduces it as `pool` does, of its shape.

    Enlarging repeats the nearest pixel: the details are averaged anyway.

    Args:
        pool: The matrix that reduces the whole axis, float32 [small_px, size_px].
        place: Where the part lies, in [0, 1]: 0 is the first end, 1 is the other one.
    """
    size_px = pool.shape[1]
    pixels = ((np.arange(size_px) + 0.5) * _ZOOM + place * (1 - _ZOOM) * size_px).astype(np.int64)
    return pool @ np.eye(size_px, dtype=np.float32)[pixels]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Projection:
    """Principal components.

    Not scikit-learn's PCA, which divides by the variance: that is zero if all images are the same.

    Attributes:
        mean: The mean of the rows that it was fitted to, float32 [values].
        components: The directions of the components, float32 [components, values].
    """

    mean: np.ndarray
    components: np.ndarray

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Returns the components of rows, float32 [images, components]."""
        return (rows - self.mean) @ self.components.T


def _fit(rows: np.ndarray) -> _Projection:
    """Fits principal components to rows."""
    mean = rows.mean(axis=0)
    _, _, components = randomized_svd(rows - mean, min(_NUM_COMPONENTS, *rows.shape), random_state=0)
    return _Projection(mean=mean, components=components.astype(np.float32))


def _nearest(queries: np.ndarray, rows: np.ndarray, num_nearest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finds the rows nearest to each query but its own.

    Returns:
        The index of a query, that of a near row, and the row's rank among the nearest, from 1; int64 [pairs] each.
    """
    _, found = find_nearest(queries, rows, num_nearest + 1)
    query = np.broadcast_to(np.arange(len(rows))[:, None], found.shape)
    is_other = query != found
    ranks = np.cumsum(is_other, axis=1)
    return query[is_other], found[is_other], ranks[is_other]


def check_features(features_BD: np.ndarray | None, num_images: int) -> None:
    """Refuses features of another number of images.

    Raises:
        DataError: There are not as many features as images.
    """
    if features_BD is not None and len(features_BD) != num_images:
        raise DataError(
            f"There are features of {len(features_BD)} images and {num_images} thumbnails. Give the same images."
        )
