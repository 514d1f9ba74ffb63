"""Finds the training images that are most like an image, among those that a model's bundle keeps.

They show what the model was trained on. They are no evidence that its prediction is right.
"""

from dataclasses import dataclass

import numpy as np

from tlray.bundle.lookalikes import KeptImages
from tlray.bundle.novelty import directions

NUM_SHOWN = 3
"""Number of training images that are shown beside a prediction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookalike:
    """A training image that is like another image.

    Attributes:
        class_index: Its label, as an index into the model's classes.
        similarity: Cosine similarity of the two images, in [-1, 1], see `nearest`.
        jpeg: Its thumbnail, JPEG.
    """

    class_index: int
    similarity: float
    jpeg: bytes


def find(places_BC: np.ndarray, kept: KeptImages, *, count: int = NUM_SHOWN) -> list[list[Lookalike]]:
    """Returns the training images that are most like each image, the most similar first; takes what `nearest` takes."""
    rows, similarities = (each.tolist() for each in nearest(places_BC, kept, count=count))
    return [
        [
            Lookalike(class_index=int(kept.labels[row]), similarity=similarity, jpeg=kept.jpegs[row])
            for row, similarity in zip(*pair, strict=True)
        ]
        for pair in zip(rows, similarities, strict=True)
    ]


def nearest(places_BC: np.ndarray, kept: KeptImages, *, count: int = NUM_SHOWN) -> tuple[np.ndarray, np.ndarray]:
    """Finds the training images that are most like each image, by an exact search: one matrix product.

    The similarity is the cosine of the angle between two images as they are seen from the mean of the training images,
    in the space that these span: 1 for the same direction, about 0 for unrelated images.

    Args:
        places_BC: Where the images lie in that space, floating point [images, components], see `Novelty.place`.
        kept: The training images.
        count: Number of training images for each image; fewer are returned if `kept` has fewer.

    Returns:
        Indices into `kept`, the most similar first, int64 [images, count], and their similarities, float32
        [images, count], in [-1, 1]. An image with a coordinate that is not finite has a similarity of 0 to all.
    """
    is_finite = np.isfinite(places_BC).all(axis=1, keepdims=True)
    similarities_BN = directions(np.where(is_finite, places_BC, 0)) @ kept.directions.T
    rows = np.argsort(-similarities_BN, axis=1, kind="stable")[:, :count]
    return rows, np.clip(np.take_along_axis(similarities_BN, rows, axis=1), -1, 1)
