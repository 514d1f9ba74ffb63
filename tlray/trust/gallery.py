"""Pictures for a report: some groups of copies and some series of neighbouring slices, with their splits and labels."""

import base64
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tlray.data import thumbnail
from tlray.trust.copies import Copies, in_turns
from tlray.trust.pixel_match import Kind

MAX_GROUPS, MAX_IMAGES = 12, 6
"""Maximum number of groups of each kind in a gallery, and of images of a group."""

COPIES, NEIGHBOURS = "copies", "neighbours"
"""Kinds of groups: images of one picture, and different pictures that look like slices of one series."""

COLUMNS = ["image_id", "split", "label"]

_Pair = tuple[dict[str, Any], dict[str, Any]]  # rows of two neighbours


def make_gallery(found: Copies, table: pa.Table, thumbnails_BHW: np.ndarray) -> list[dict[str, Any]]:
    """Returns some groups of copies, then some series of neighbouring slices.

    Args:
        found: The copies and neighbours.
        table: The images in the same order, with `image_id`, `split` and `label`.
        thumbnails_BHW: Their thumbnails, uint8 [images, height, width].

    Returns:
        A value that can be written as JSON: for each group `kind` (`COPIES` or `NEIGHBOURS`), `has_labels` and
        `has_splits` (it has several of them), `num_images` (of a series the number of pictures: copies count once), and
        `images`, each with `image_id`, `split`, `label` and `jpeg` (base64).
    """
    rows = [{**row, "place": place} for place, row in enumerate(table.select(COLUMNS).to_pylist())]
    for row, group in zip(rows, found.group_of.tolist(), strict=True):
        row["picture"] = group
    return [*_copies(rows, thumbnails_BHW), *_neighbours(found, rows, thumbnails_BHW)]


def _copies(rows: list[dict[str, Any]], thumbnails_BHW: np.ndarray) -> list[dict[str, Any]]:
    """Returns groups of copies, those with several labels first, then those in several splits, then the largest."""
    members: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        members[row["picture"]].append(row)
    groups = [images for images in members.values() if len(images) > 1]
    groups.sort(key=lambda images: (*(-_has_several(images, name) for name in ("label", "split")), -len(images)))
    return [
        _group(COPIES, images, in_turns(images)[:MAX_IMAGES], len(images), thumbnails_BHW)
        for images in groups[:MAX_GROUPS]
    ]


def _neighbours(found: Copies, rows: list[dict[str, Any]], thumbnails_BHW: np.ndarray) -> list[dict[str, Any]]:
    """Returns series, those with neighbours in several splits first, then those with several labels, then the longest.

    A series is shown from such a pair on: see `_walk`.
    """
    is_near = found.kinds == Kind.NEIGHBOUR
    closest_first = np.argsort(-found.scores[is_near], kind="stable")
    pairs_of: dict[int, list[_Pair]] = defaultdict(list)
    for first, second in found.pairs[is_near][closest_first].tolist():
        if rows[first]["picture"] != rows[second]["picture"]:
            pairs_of[int(found.series_of[first])].append((rows[first], rows[second]))
    series = [sorted(pairs, key=_harm) for pairs in pairs_of.values()]
    series.sort(key=lambda pairs: (_harm(pairs[0]), -_num_pictures(pairs)))
    groups = []
    for pairs in series[:MAX_GROUPS]:
        shown = _walk(pairs)
        groups.append(_group(NEIGHBOURS, shown, shown, _num_pictures(pairs), thumbnails_BHW))
    return groups


def _harm(pair: _Pair) -> tuple[bool, bool]:
    """Returns a key that sorts pairs with two splits first, then those with two labels."""
    return not _has_several(pair, "split"), not _has_several(pair, "label")


def _num_pictures(pairs: list[_Pair]) -> int:
    return len({row["picture"] for pair in pairs for row in pair})


def _walk(pairs: list[_Pair]) -> list[dict[str, Any]]:
    """Returns up to `MAX_IMAGES` different pictures of a series: the first pair, then neighbours of those before."""
    shown, known = list(pairs[0]), {row["picture"] for row in pairs[0]}
    while len(shown) < MAX_IMAGES:
        ends = (pair if pair[0]["picture"] in known else pair[::-1] for pair in pairs)
        following = next((new for old, new in ends if old["picture"] in known and new["picture"] not in known), None)
        if following is None:
            break
        shown.append(following)
        known.add(following["picture"])
    return shown


def _group(
    kind: str, images: list[dict[str, Any]], shown: list[dict[str, Any]], num_images: int, thumbnails_BHW: np.ndarray
) -> dict[str, Any]:
    """Returns a group as `make_gallery` describes it, given all of its images, and those to be shown."""
    return {
        "kind": kind,
        "has_labels": _has_several(images, "label"),
        "has_splits": _has_several(images, "split"),
        "num_images": num_images,
        "images": [
            {name: image[name] for name in COLUMNS} | {"jpeg": jpeg(thumbnails_BHW[image["place"]])} for image in shown
        ],
    }


def _has_several(images: Sequence[dict[str, Any]], column: str) -> bool:
    return len({image[column] for image in images} - {None}) > 1


def jpeg(pixels_HW: np.ndarray) -> str:
    """Returns grey pixels, uint8 [height, width], as a JPEG in base64."""
    return base64.b64encode(thumbnail.to_jpeg(pixels_HW)).decode()
