"""Which copies and neighbouring slices a report shows."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tlray.trust import gallery
from tlray.trust.copies import Copies

Pairs = Sequence[tuple[int, int, float]]
"""Indices of two images, and their score."""


def joined(pairs: np.ndarray, num_images: int) -> np.ndarray:
    """The lowest index of the images that pairs connect an image with."""
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(num_images, num_images))
    component = connected_components(graph, directed=False)[1]
    return np.array([int(np.flatnonzero(component == each)[0]) for each in component])


def shown(
    splits: Sequence[str | None], *, labels: str | None = None, copies: Pairs = (), near: Pairs = ()
) -> list[dict[str, Any]]:
    """The gallery of images a, b, c, ... with these splits; image n has the grey level 8 n."""
    num_images = len(splits)
    names = [chr(ord("a") + number) for number in range(num_images)]
    pairs = np.array([pair[:2] for pair in (*copies, *near)], np.int64).reshape(-1, 2)
    found = Copies(
        group_of=joined(pairs[: len(copies)], num_images), identical_of=np.arange(num_images),
        series_of=joined(pairs, num_images), pairs=pairs,
        kinds=np.array(["copy"] * len(copies) + ["neighbour"] * len(near), dtype=str),
        scores=np.array([pair[2] for pair in (*copies, *near)], np.float32), is_mirrored=np.zeros(len(pairs), bool),
    )  # fmt: skip
    table = pa.table(
        {"image_id": names, "split": pa.array(splits, pa.string()), "label": list(labels or "x" * num_images)}
    )
    thumbnails = np.stack([np.full((16, 16), 8 * number, np.uint8) for number in range(num_images)])
    return gallery.make_gallery(found, table, thumbnails)


def ids(group: dict[str, Any]) -> str:
    return "".join(image["image_id"] for image in group["images"])


def test_copies_come_first_and_are_no_neighbours():
    groups = shown(["train", "test", "train", "train"], copies=[(0, 1, 0.99)], near=[(1, 2, 0.9)])
    assert [(group["kind"], ids(group)) for group in groups] == [("copies", "ab"), ("neighbours", "bc")]
    assert [(group["has_splits"], group["has_labels"], group["num_images"]) for group in groups] == [
        (True, False, 2), (True, False, 2),
    ]  # fmt: skip
    first = groups[1]["images"][0]
    assert (first["split"], first["label"]) == ("test", "x")
    with Image.open(io.BytesIO(base64.b64decode(first["jpeg"]))) as image:
        assert abs(np.asarray(image).mean() - 8) < 2


def test_of_a_picture_one_copy_is_shown_in_a_series():
    """Images a and b are copies; c is a neighbour of a, and d one of b."""
    groups = shown(["train"] * 4, copies=[(0, 1, 0.99)], near=[(0, 2, 0.9), (1, 3, 0.95)])
    assert [ids(group) for group in groups] == ["ab", "bdc"]
    assert groups[1]["num_images"] == 3
    # Neighbours that are copies by way of another image are no series.
    assert [ids(group) for group in shown(["train"] * 3, copies=[(0, 1, 1), (1, 2, 1)], near=[(0, 2, 0.9)])] == ["abc"]


def test_a_series_begins_with_neighbours_in_several_splits_and_goes_on_from_there():
    """A chain a-b-c-d-e, closest at its end; only c and d are in different splits."""
    chain = [(0, 1, 0.86), (1, 2, 0.87), (2, 3, 0.88), (3, 4, 0.94)]
    (group,) = shown(["train", "train", "train", "test", "test"], near=chain)
    assert ids(group) == "cdeba"
    assert (group["has_splits"], group["has_labels"], group["num_images"]) == (True, False, 5)
    (group,) = shown(["train", "train", "train", None, None], near=chain)
    assert (ids(group), group["has_splits"]) == ("decba", False)
    (group,) = shown(["train"] * 5, labels="xyyyy", near=chain)
    assert (ids(group), group["has_labels"]) == ("abcde", True)


def test_the_worst_series_come_first_and_their_number_is_limited():
    near = [(2 * number, 2 * number + 1, 0.9) for number in range(13)]
    assert len(near) == gallery.MAX_GROUPS + 1
    splits = ["train"] * 25 + ["valid", "train"]
    groups = shown(splits, labels="xxxy" + "x" * 23, near=[*near, (5, 26, 0.9)])
    assert len(groups) == gallery.MAX_GROUPS
    # In several splits, with several labels, the longest, and then in the order of the images.
    assert [ids(group) for group in groups[:5]] == ["yz", "cd", "ef{", "ab", "gh"]
    long = [(number, number + 1, 0.9) for number in range(9)]
    (group,) = shown(["train"] * 10, near=long)
    assert (len(group["images"]), group["num_images"]) == (gallery.MAX_IMAGES, 10)
