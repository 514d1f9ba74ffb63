"""Finds copies of pictures in a data set: the same pixels, or the same picture changed, and neighbouring slices.

Import it to audit a data set beyond bytes (`tlray.data.audit` knows equal bytes only), or to keep all copies of a
picture in one split: `find_copies` gives groups, `describe` a report.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import sparse
from scipy.sparse import csgraph

from tlray.data import label_conflicts
from tlray.data.audit import MAX_EXAMPLES
from tlray.errors import DataError
from tlray.trust import pixel_match
from tlray.trust.candidates import NUM_NEAREST, check_features, find_candidates
from tlray.trust.pixel_match import Kind, Match

MIN_CONTRAST = 2.0
"""Standard deviation of a thumbnail's grey levels, of 255, below which it shows nothing: all blank slices look alike,
but are no copies."""


ROUNDS = (1, 3, NUM_NEAREST)
"""Ranks of the candidates that are compared in one round after another. The first round compares the nearest one of
each search. An image is in the next round if it has a relative (a copy or a neighbour), unless it was compared with
others in this round and none of these is one: where there is a copy, there are often more. No pair was lost by that in
`benchmarks/planted_copies.py` (seeds 2 and 3, 2026-11-30)."""


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
    copies of none. Neighbours are found among the candidates for copies, so that a long series can be in several parts.

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
    check_features(features_BD, num_images)
    _, firsts, inverse = np.unique(np.asarray(digests, dtype=str), return_index=True, return_inverse=True)
    identical_of = firsts[inverse.ravel()].astype(np.int64)
    is_blank = np.array([thumbnail.std() < MIN_CONTRAST for thumbnail in thumbnails_BHW], dtype=bool)
    identical_of[is_blank] = np.flatnonzero(is_blank)
    distinct = np.unique(identical_of[~is_blank])
    # Memory: a copy of all features is made only if some images are identical.
    is_whole = len(distinct) == num_images
    features = features_BD if features_BD is None or is_whole else features_BD[distinct]
    thumbnails = thumbnails_BHW if is_whole else thumbnails_BHW[distinct]
    candidates, ranks = find_candidates(features, thumbnails, num_nearest=num_nearest)
    is_known = distinct[candidates] >= num_images - num_known
    # All candidates with a known image are compared first: its relatives among the known ones would not be found.
    ranks = np.where(is_known.any(axis=1), 1, ranks)
    is_wanted = ~is_known.all(axis=1)
    candidates, match = _compare_in_turns(thumbnails, candidates[is_wanted], ranks[is_wanted], compare)
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


def _compare_in_turns(
    thumbnails_BHW: np.ndarray,
    candidates: np.ndarray,
    ranks: np.ndarray,
    compare: Callable[[np.ndarray, np.ndarray], Match],
) -> tuple[np.ndarray, Match]:
    """Compares candidates in `ROUNDS`; returns those that it compared."""
    is_left = np.ones(len(candidates), bool)
    is_open = np.ones(len(thumbnails_BHW), bool)  # which images are in the round
    compared: list[np.ndarray] = []
    matches: list[Match] = []
    for max_rank in (*ROUNDS[:-1], max(ranks, default=1)):
        is_now = is_left & (ranks <= max_rank) & is_open[candidates].any(axis=1)
        if matches and not is_now.any():
            continue
        is_left &= ~is_now
        compared.append(candidates[is_now])
        matches.append(compare(thumbnails_BHW, compared[-1]))
        if len(matches) == 1:
            is_open[:] = False
        is_open[compared[-1].ravel()] = False
        is_open[compared[-1][matches[-1].kinds != Kind.OTHER].ravel()] = True
    return np.concatenate(compared), Match(
        kinds=np.concatenate([each.kinds for each in matches]),
        scores=np.concatenate([each.scores for each in matches]),
        is_mirrored=np.concatenate([each.is_mirrored for each in matches]),
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
    conflicting = [images for images in groups if _given(images, "label")[0] > 1]
    return {
        "num_groups": len(groups),
        "num_images": sum(map(len, groups)),
        "within_split": _finding([images for images in groups if _given(images, "split")[1]]),
        "across_splits": _finding([images for images in groups if _given(images, "split")[0] > 1]),
        "conflicting_labels": _finding(conflicting) | {"num_by_split": label_conflicts.count_by_split(conflicting)},
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
