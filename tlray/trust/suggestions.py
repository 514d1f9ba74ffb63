"""Chooses the images whose labels would help a model most: uncertain ones of each kind.

Import it to decide which unlabelled images to label next, given a model's predictions for them. It reads no image and
runs no model: `tlray.inference.suggest` scores them, `tlray.inference.copy_search` tells which are copies.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from tlray.bundle.novelty import directions

COPY_DISTANCE = 0.02
"""Cosine distance of two places, in [0, 2], below which two images count as copies. Unrelated images are about 1 apart;
a picture that was saved again is expected to be much closer than this. The value was not measured. It spares reading
images that were only saved again; copies that were changed are told by their pictures, see `Seen`."""

SHORTLIST = 3
"""Number of images for each wanted one that are clustered: the most uncertain ones."""

SURE = 0.95
"""Confidence from which on a model counts as sure of an image. If its probabilities are calibrated, at most one in
twenty labels of such images differs from its prediction, so they tell it little."""

_NOT_SEEN = -1  # in place of the picture of an image that has not been looked at
_TINY = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The relations of some images, found by comparing their pictures; other images have not been compared.

    Attributes:
        picture_of: The picture that each of these images shows, by the image's index: copies show the same one.
        known: Indices of those that are copies of images which the model was trained on; None: there are no pictures of
            such images to compare them with.
    """

    picture_of: Mapping[int, int] = field(default_factory=dict)
    known: frozenset[int] | None = None


NOTHING = Seen()
"""No image has been looked at."""


def choose(
    probs_BK: np.ndarray,
    ood_scores: np.ndarray,
    max_ood_score: float | None,
    places_BC: np.ndarray | None,
    *,
    count: int,
    seen: Seen = NOTHING,
) -> list[int]:
    """Chooses images for labelling, the most uncertain first.

    Of the images of `shortlist`, so many clusters are made as images are wanted, by k-means of the directions of their
    places, weighted with their uncertainty. Of each cluster the image is chosen that is nearest to its centre (Zhdanov
    2019, Diverse mini-batch active learning, arXiv:1901.05954). So each image stands for others like it: an image that
    is merely unlike all others teaches little.

    The same input gives the same result on one machine.

    Args:
        probs_BK: See `shortlist`.
        ood_scores: See `shortlist`.
        max_ood_score: See `shortlist`.
        places_BC: See `shortlist`. None: not known; the most uncertain images are chosen, even if they are much alike.
        count: Number of images that are wanted, positive.
        seen: What the pictures of the images tell that have been looked at.

    Returns:
        Indices of the chosen images; fewer than `count` if all others are foreign or copies.
    """
    listed = shortlist(probs_BK, ood_scores, max_ood_score, places_BC, num_wanted=SHORTLIST * count, seen=seen)
    if places_BC is None or len(listed) <= count:
        return listed[:count]
    directions_BC, weights = directions(places_BC[listed]), uncertainty(probs_BK[listed])
    # A weight of 0 for all would leave k-means nothing to fit.
    clusters = KMeans(count, random_state=0)
    with threadpool_limits(1, "openmp"):  # several threads add up the centres in any order
        cluster_of = clusters.fit_predict(directions_BC, sample_weight=np.maximum(weights, _TINY))
        distances = clusters.transform(directions_BC)[np.arange(len(listed)), cluster_of]
    # In the order of distance, and of the list where it is equal; the first one of each cluster.
    order = np.argsort(distances, kind="stable")
    _, first = np.unique(cluster_of[order], return_index=True)
    return [listed[place] for place in sorted(order[first].tolist())]


def shortlist(
    probs_BK: np.ndarray,
    ood_scores: np.ndarray,
    max_ood_score: float | None,
    places_BC: np.ndarray | None,
    *,
    num_wanted: int,
    seen: Seen = NOTHING,
) -> list[int]:
    """Returns the most uncertain images that are worth a look, the most uncertain first.

    Foreign images are left out, because their labels would teach nothing about images like those of training. So are
    copies: images that are closer than `COPY_DISTANCE` to a more uncertain one, that show the same picture as one, or
    that are copies of training images. Of equally uncertain images the first one comes first, so a smaller `num_wanted`
    gives its first images.

    The time grows with num_wanted * images * components, the memory with images * components.

    Args:
        probs_BK: Class probabilities, floating point [images, K], finite, with K of at least 2.
        ood_scores: How foreign the images are, floating point [images]; NaN where it is not known.
        max_ood_score: The score above which an image is foreign; None: no image counts as foreign.
        places_BC: Where the images lie in the space that the training images span, floating point [images, components],
            see `Novelty.place`; finite for all images that are not foreign. None: not known; copies are told by `seen`
            alone.
        num_wanted: Number of images that are wanted, positive.
        seen: What the pictures of the images tell that have been looked at.

    Returns:
        Indices of the images; fewer than `num_wanted` if all others are foreign or copies.
    """
    is_left = ~is_foreign(ood_scores, max_ood_score)
    is_left[list(seen.known or ())] = False
    candidates = np.flatnonzero(is_left)
    pictures = np.array([seen.picture_of.get(index, _NOT_SEEN) for index in candidates.tolist()], dtype=np.int64)
    directions_BC = None if places_BC is None else directions(places_BC[candidates])
    order = np.argsort(-uncertainty(probs_BK[candidates]), kind="stable")
    is_left = np.ones(len(candidates), dtype=bool)
    listed: list[int] = []
    for place in order.tolist():
        if len(listed) == num_wanted:
            break
        if not is_left[place]:
            continue
        listed.append(int(candidates[place]))
        if pictures[place] != _NOT_SEEN:
            is_left &= pictures != pictures[place]
        if directions_BC is not None:
            # Unlike `@`, einsum adds in the same order for any row and any number of threads: equal rows stay equal.
            is_left &= 1 - np.einsum("bc,c->b", directions_BC, directions_BC[place]) >= COPY_DISTANCE
    return listed


def is_foreign(ood_scores: np.ndarray, max_ood_score: float | None) -> np.ndarray:
    """Returns which images are unlike the training images, bool [images].

    Args:
        ood_scores: See `choose`.
        max_ood_score: See `choose`.
    """
    return ood_scores > (math.inf if max_ood_score is None else max_ood_score)  # NaN > limit is False


def uncertainty(probs_BK: np.ndarray) -> np.ndarray:
    """Returns how uncertain predictions are, float32 [images], in [0, 1].

    It is the entropy of the probabilities divided by log K: 0 if one class is certain, 1 if all classes are equally
    likely.

    Args:
        probs_BK: Class probabilities, floating point [images, K], finite, with K of at least 2.
    """
    probs_BK = np.asarray(probs_BK, np.float32)
    entropies = -np.sum(probs_BK * np.log(np.maximum(probs_BK, _TINY)), axis=1)
    return np.clip(entropies / math.log(probs_BK.shape[1]), 0, 1)


def is_unsure(probs_BK: np.ndarray) -> np.ndarray:
    """Returns of which images a model is not sure, see `SURE`, bool [images].

    Args:
        probs_BK: Class probabilities, floating point [images, K].
    """
    return probs_BK.max(axis=1) < SURE
