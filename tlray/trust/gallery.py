"""Pictures of copies for a report: some groups of images that show one picture, with their splits and labels."""

import base64
from collections import defaultdict
from typing import Any

import numpy as np
import pyarrow as pa

from tlray.data import thumbnail
from tlray.trust.copies import Copies, in_turns

MAX_GROUPS, MAX_IMAGES = 12, 6
"""Maximum number of groups in a gallery, and of images of a group."""

COLUMNS = ["image_id", "split", "label"]


def copies_gallery(found: Copies, table: pa.Table, thumbnails_BHW: np.ndarray) -> list[dict[str, Any]]:
    """Returns groups of copies, those with several labels first, then those in several splits, then the largest.

    Args:
        found: The copies.
        table: The images in the same order, with `image_id`, `split` and `label`.
        thumbnails_BHW: Their thumbnails, uint8 [images, height, width].

    Returns:
        A value that can be written as JSON: for each group `has_labels` and `has_splits` (it has several of them),
        `num_images`, and `images`, each with `image_id`, `split`, `label` and `jpeg` (base64).
    """
    rows = [{**row, "place": place} for place, row in enumerate(table.select(COLUMNS).to_pylist())]
    members: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row, group in zip(rows, found.group_of.tolist(), strict=True):
        members[group].append(row)
    groups = [images for images in members.values() if len(images) > 1]
    groups.sort(key=lambda images: (*(-_has_several(images, name) for name in ("label", "split")), -len(images)))
    return [
        {
            "has_labels": _has_several(images, "label"),
            "has_splits": _has_several(images, "split"),
            "num_images": len(images),
            "images": [
                {name: image[name] for name in COLUMNS} | {"jpeg": jpeg(thumbnails_BHW[image["place"]])}
                for image in in_turns(images)[:MAX_IMAGES]
            ],
        }
        for images in groups[:MAX_GROUPS]
    ]


def _has_several(images: list[dict[str, Any]], column: str) -> bool:
    return len({image[column] for image in images} - {None}) > 1


def jpeg(pixels_HW: np.ndarray) -> str:
    """Returns grey pixels, uint8 [height, width], as a JPEG in base64."""
    return base64.b64encode(thumbnail.to_jpeg(pixels_HW)).decode()
