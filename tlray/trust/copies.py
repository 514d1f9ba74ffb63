"""Finds copies of pictures in a data set: the same pixels, or the same picture changed, and neighbouring slices.

Import it to audit a data set beyond bytes (`tlray.data.audit` knows equal bytes only), or to keep all copies of a
picture in one split: `find_copies` gives groups, `describe` a report.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import ndimage, sparse
from scipy.sparse import csgraph
from sklearn.neighbors import NearestNeighbors
from sklearn.utils.extmath import randomized_svd

from tlray.data.audit import MAX_EXAMPLES
from tlray.errors import DataError
from tlray.trust import pixel_match
from tlray.trust.pixel_match import Kind, Match

NUM_NEAREST = 8
"""Number of candidates that each search gives an image. With it, each of 306 planted copies was a candidate with its
original, on the half `tune` of `benchmarks/planted_copies.py` (2026-11-29). The sizes below come from there, too: with
32, 48, 64 and 96 components more and more of the crops were found, with one zoom 95 % of those with a new window."""

MIN_CONTRAST = 2.0
"""Standard deviation of a thumbnail's grey levels, of 255, below which it shows nothing: all blank slices look alike,
but are no copies."""

_NUM_COMPONENTS = 96  # principal components that a search compares
_NUM_FIT = 4000  # rows at most that they are fitted to
_CHUNK_ROWS = 4096  # images whose features or descriptors are computed at once
_DESCRIPTOR_PX, _DESCRIPTOR_DETAIL_PX = 16, 16 / 6
_MIN_COSINE = 0.5  # of the descriptors of a candidate; of all 1,260 pairs of copies it was above 0.53
_ZOOM = 0.94  # share of the width and height that is compared with whole pictures, for crops
_ZOOM_PLACES = (
    (0.25, 0.25),
    (0.75, 0.75),
)  # of that part in its picture, x and y: 0 is left or top, 1 is right or bottom


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """The copies in a data set.

    Attributes:
        group_of: For each image the lowest index of its group of copies, identical ones among them; int64 [images].
            An image without copies has its own index.
        identical_of: The same for images with identical pixels.
        series_of: The same for images that are copies or neighbours.
        pairs: Indices of the pairs found, the lower one first, int64 [pairs, 2]. Of identical images, all are paired
            with the first one, and only this one is compared with others.
        kinds: What the pairs are: `identical`, `copy` or `neighbour`; str [pairs].
        scores: Their scores, float32 [pairs], see `pixel_match.Match`.
        is_mirrored: Which pairs are mirror images, bool [pairs].
    """

    group_of: np.ndarray
    identical_of: np.ndarray
    series_of: np.ndarray
    pairs: np.ndarray
    kinds: np.ndarray
    scores: np.ndarray
    is_mirrored: np.ndarray


def find_candidates(
    features_BD: np.ndarray | None, thumbnails_BHW: np.ndarray, *, num_nearest: int = NUM_NEAREST
) -> np.ndarray:
    """Finds pairs of images that may be copies.

    For each image these are the nearest ones by the network's features, and by the thumbnails at 16 px: as they are,
    mirrored, and zoomed in. Features find crops; thumbnails find noise, scribbles and mirror images, which change
    features more than another slice does. All distances are of principal components, so time is quadratic in compiled
    code only, and memory is linear.

    Args:
        features_BD: Pooled features, float [images, values], none of them all zero; None: only thumbnails are used.
        thumbnails_BHW: Thumbnails in the same order, uint8 [images, THUMBNAIL_PX, THUMBNAIL_PX].
        num_nearest: Number of nearest images of each search, at least 1.

    Returns:
        Pairs of indices without repetition, the lower one first, sorted, int64 [pairs, 2].

    Raises:
        DataError: There are not as many features as thumbnails.
    """
    num_images = len(thumbnails_BHW)
    _check_features(features_BD, num_images)
    if num_images < 2:
        return np.empty((0, 2), np.int64)
    searches = [_search_thumbnails(thumbnails_BHW, num_nearest)]
    if features_BD is not None:
        rows = _fit(features_BD, _unit)(features_BD)
        searches.append(_nearest(rows, rows, num_nearest))
    codes = np.unique(np.concatenate(searches))
    return np.stack(np.divmod(codes, num_images), axis=1)


def _search_thumbnails(thumbnails_BHW: np.ndarray, num_nearest: int) -> np.ndarray:
    """Returns the nearest pairs by thumbnails, as `_nearest` does."""
    project = _fit(thumbnails_BHW, _descriptors)
    whole = project(thumbnails_BHW)
    views = [whole, project(thumbnails_BHW[:, :, ::-1])]
    for x, y in _ZOOM_PLACES:
        zoomed = replace(project, prepare=lambda rows, x=x, y=y: _descriptors(_zoom(rows, x, y)))
        views.append(zoomed(thumbnails_BHW))
    # Rows of length 1 with cosine c are sqrt(2 - 2 c) apart, their principal components less.
    max_distance = math.sqrt(2 - 2 * _MIN_COSINE)
    return np.concatenate([_nearest(view, whole, num_nearest, max_distance) for view in views])


def _unit(rows: np.ndarray) -> np.ndarray:
    """Returns rows of length 1, float32, so that distances tell cosines; rows of zeros stay zero."""
    rows = rows.astype(np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def _descriptors(thumbnails: np.ndarray) -> np.ndarray:
    """Returns the details of thumbnails at 16 px, without brightness and contrast, float32 [images, 256]."""
    small = pixel_match.shrink(thumbnails, _DESCRIPTOR_PX)
    small -= ndimage.gaussian_filter(small, (0, _DESCRIPTOR_DETAIL_PX, _DESCRIPTOR_DETAIL_PX))
    rows = small.reshape(len(small), -1)
    return _unit(rows - rows.mean(axis=1, keepdims=True))


def _zoom(thumbnails: np.ndarray, x: float, y: float) -> np.ndarray:
    """Returns a part of thumbnails, enlarged to their size (nearest pixel: the details are averaged anyway)."""
    size_px = thumbnails.shape[1]
    middles = (np.arange(size_px) + 0.5) * _ZOOM
    columns, rows = ((middles + place * (1 - _ZOOM) * size_px).astype(np.int64) for place in (x, y))
    return thumbnails[:, rows[:, None], columns]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Projection:
    """Principal components of prepared rows.

    Not scikit-learn's PCA, which divides by the variance: that is zero if all images are the same.

    Attributes:
        prepare: Makes float32 [images, values] of some rows.
        mean: The mean of these, float32 [values].
        components: The directions of the components, float32 [components, values].
    """

    prepare: Callable[[np.ndarray], np.ndarray]
    mean: np.ndarray
    components: np.ndarray

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Returns the components of rows, float32 [images, components], in little memory."""
        starts = range(0, len(rows), _CHUNK_ROWS)
        chunks = (self.prepare(rows[start : start + _CHUNK_ROWS]) for start in starts)
        return np.concatenate([(chunk - self.mean) @ self.components.T for chunk in chunks])


def _fit(rows: np.ndarray, prepare: Callable[[np.ndarray], np.ndarray]) -> _Projection:
    """Fits principal components to some evenly spaced rows."""
    chosen = prepare(rows[:: -(-len(rows) // _NUM_FIT)])
    mean = chosen.mean(axis=0)
    _, _, components = randomized_svd(chosen - mean, min(_NUM_COMPONENTS, *chosen.shape), random_state=0)
    return _Projection(prepare=prepare, mean=mean, components=components.astype(np.float32))


def _nearest(queries: np.ndarray, rows: np.ndarray, num_nearest: int, max_distance: float = math.inf) -> np.ndarray:
    """Returns the rows nearest to each query but its own, as `lower index * images + higher index`, int64."""
    num_images = len(rows)
    search = NearestNeighbors(n_neighbors=min(num_nearest + 1, num_images), algorithm="brute").fit(rows)
    distances, found = search.kneighbors(queries)
    query = np.broadcast_to(np.arange(num_images)[:, None], found.shape)
    codes = np.minimum(query, found) * num_images + np.maximum(query, found)
    return codes[(query != found) & (distances <= max_distance)]


def find_copies(
    features_BD: np.ndarray | None,
    thumbnails_BHW: np.ndarray,
    digests: Sequence[str],
    *,
    num_nearest: int = NUM_NEAREST,
    num_known: int = 0,
    compare: Callable[[np.ndarray, np.ndarray], Match] = pixel_match.compare,
) -> Copies:
    """Finds identical images, copies and neighbouring slices.

    Of identical images only the first one is searched and compared. Images that show nothing (`MIN_CONTRAST`) are
    copies of none. Neighbours are found among the candidates for
    copies, so that a long series can be in several parts.

    Args:
        features_BD: Pooled features, float [images, values]; None: candidates are found by thumbnails alone.
        thumbnails_BHW: Thumbnails of the images, uint8 [images, THUMBNAIL_PX, THUMBNAIL_PX], see `looks.look`.
        digests: The hashes of their pixels.
        num_nearest: Number of candidates of each search for each image.
        num_known: Number of images at the end of the arrays that are not compared with one another, because no two of
            them are copies.
        compare: `pixel_match.compare`, or what does the same in several processes.

    Raises:
        DataError: There are not as many features or digests as thumbnails.
    """
    num_images = len(thumbnails_BHW)
    if len(digests) != num_images:
        raise DataError(f"There are {len(digests)} digests and {num_images} thumbnails. Give both of the same images.")
    _check_features(features_BD, num_images)
    _, firsts, inverse = np.unique(np.asarray(digests, dtype=str), return_index=True, return_inverse=True)
    identical_of = firsts[inverse.ravel()].astype(np.int64)
    is_blank = np.array([thumbnail.std() < MIN_CONTRAST for thumbnail in thumbnails_BHW], dtype=bool)
    identical_of[is_blank] = np.flatnonzero(is_blank)
    distinct = np.unique(identical_of[~is_blank])
    # Memory: a copy of all features is made only if some images are identical.
    is_whole = len(distinct) == num_images
    features = features_BD if features_BD is None or is_whole else features_BD[distinct]
    thumbnails = thumbnails_BHW if is_whole else thumbnails_BHW[distinct]
    candidates = find_candidates(features, thumbnails, num_nearest=num_nearest)
    candidates = candidates[distinct[candidates[:, 0]] < num_images - num_known]
    match = compare(thumbnails, candidates)
    # The same thumbnail with other pixels is a copy, such as one with a small change.
    match_kinds = np.where(match.kinds == Kind.IDENTICAL, Kind.COPY.value, match.kinds)
    is_found = match_kinds != Kind.OTHER
    repeated = np.flatnonzero(identical_of != np.arange(num_images))
    same = np.stack([identical_of[repeated], repeated], axis=1)
    pairs = np.concatenate([same, distinct[candidates[is_found]]])
    kinds = np.concatenate([np.full(len(same), Kind.IDENTICAL.value), match_kinds[is_found]])
    is_copy = kinds != Kind.NEIGHBOUR
    return Copies(
        group_of=_components(pairs[is_copy], num_images),
        identical_of=identical_of,
        series_of=_components(pairs, num_images),
        pairs=pairs,
        kinds=kinds,
        scores=np.concatenate([np.ones(len(same), np.float32), match.scores[is_found]]),
        is_mirrored=np.concatenate([np.zeros(len(same), bool), match.is_mirrored[is_found]]),
    )


def _check_features(features_BD: np.ndarray | None, num_images: int) -> None:
    if features_BD is not None and len(features_BD) != num_images:
        raise DataError(
            f"There are features of {len(features_BD)} images and {num_images} thumbnails. Give the same images."
        )


def _components(pairs: np.ndarray, num_images: int) -> np.ndarray:
    """Returns for each image the lowest index of the images that pairs connect it with, int64 [images]."""
    graph = sparse.coo_array((np.ones(len(pairs)), pairs.T), shape=(num_images, num_images))
    _, component_of = csgraph.connected_components(graph, directed=False)
    _, firsts = np.unique(component_of, return_index=True)
    return firsts[component_of].astype(np.int64)


def describe(copies: Copies, table: pa.Table) -> dict[str, Any]:
    """Returns a report on the copies in a data set.

    Args:
        copies: The copies.
        table: The images in the same order, with `image_id`, `split` and `label` (string, may be null).

    Returns:
        A report that can be written as JSON. For `identical` (groups of the same pixels), `copies` (groups of copies,
        identical ones among them) and `series` (groups of copies and neighbours): `num_groups` and `num_images`, and
        the same with `examples` for the groups that have two images in one split (`within_split`), images in several
        splits (`across_splits`) and several labels (`conflicting_labels`). An example has `images`, each with
        `image_id`, `split` and `label`. `num_pairs` is the number of pairs of each kind that were compared and found.

    Raises:
        DataError: The table has other images.
    """
    if table.num_rows != len(copies.group_of):
        raise DataError(
            f"The table has {table.num_rows} images, the copies are of {len(copies.group_of)}. Give the same images."
        )
    rows = table.select(["image_id", "split", "label"]).to_pylist()
    return {
        "identical": _describe_groups(copies.identical_of, rows),
        "copies": _describe_groups(copies.group_of, rows),
        "series": _describe_groups(copies.series_of, rows),
        "num_pairs": {
            kind.value: int(np.sum(copies.kinds == kind)) for kind in (Kind.IDENTICAL, Kind.COPY, Kind.NEIGHBOUR)
        },
    }


def _describe_groups(group_of: np.ndarray, rows: list[dict[str, Any]]) -> dict[str, Any]:
    members: dict[int, list[dict[str, Any]]] = {}
    for group, row in zip(group_of.tolist(), rows, strict=True):
        members.setdefault(group, []).append(row)
    groups = [images for images in members.values() if len(images) > 1]
    return {
        "num_groups": len(groups),
        "num_images": sum(map(len, groups)),
        "within_split": _finding([images for images in groups if _given(images, "split")[1]]),
        "across_splits": _finding([images for images in groups if _given(images, "split")[0] > 1]),
        "conflicting_labels": _finding([images for images in groups if _given(images, "label")[0] > 1]),
    }


def _given(images: list[dict[str, Any]], column: str) -> tuple[int, bool]:
    """Returns the number of different values that are not null, and whether one of them occurs twice."""
    values = [image[column] for image in images if image[column] is not None]
    return len(set(values)), len(set(values)) < len(values)


def _finding(groups: list[list[dict[str, Any]]]) -> dict[str, Any]:
    return {
        "num_groups": len(groups),
        "num_images": sum(map(len, groups)),
        "examples": [{"images": in_turns(images)[:MAX_EXAMPLES]} for images in groups[:MAX_EXAMPLES]],
    }


def in_turns(images: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns images with one of each `split` and `label` first, so that the first few show what differs."""
    first = {(image["split"], image["label"]): place for place, image in reversed(list(enumerate(images)))}
    places = sorted(first.values())
    return [images[place] for place in (*places, *(each for each in range(len(images)) if each not in set(places)))]
