"""Finds thresholds of sets of classes that hold the true class with a chosen probability: split conformal prediction.

An image's score is 1 minus the probability of its true class (LAC: Sadinle, Lei and Wasserman 2019, J. Am. Stat. Assoc.
114:223-234). A threshold is a quantile of the scores of images that the model was not trained on; the set of a new
image has all classes whose score is at most the threshold.

Several images of one patient are not exchangeable with those of another patient, but patients are. So an image weighs 1
divided by the number of its patient's images, and the unseen patient weighs 1 at a score above all others (Lee, Barber
and Willett 2023, Distribution-free inference with hierarchical data, arXiv:2306.06342). For an image of a new patient
this holds the same level as one image drawn of each patient. It uses all images and needs no random numbers.
"""

import math
from dataclasses import dataclass

import numpy as np

from tlray.errors import ConfigError
from tlray.trust.groups import group_index
from tlray.trust.intervals import check_predictions

_ROUNDING = 1e-9  # of sums of weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Conformal:
    """Thresholds of prediction sets, for `tlray.bundle.judgement.prediction_sets`.

    Attributes:
        alpha: Largest share of images whose set may miss the true class, in (0, 1).
        thresholds: Largest score of each class with which it is in a set, in [0, 1].
        is_class_conditional: For each class, True if its threshold comes from its own images, so that its own images
            are covered; False if it comes from the images of several classes.
        num_groups: Number of groups (patients) with images of each class.
    """

    alpha: float
    thresholds: tuple[float, ...]
    is_class_conditional: tuple[bool, ...]
    num_groups: tuple[int, ...]


def min_groups(alpha: float) -> int:
    """Returns the number of groups from which on a class has a threshold of its own: 19 for an alpha of 0.1.

    With ceil(1 / alpha) - 1 groups the threshold is the largest score, which a single wrong label can make 1. With
    twice as many it is the second largest, and the coverage of the class has a standard deviation of 0.065 in place
    of 0.090 at alpha 0.1 (a beta distribution: Angelopoulos and Bates 2021, arXiv:2107.07511, section 3.2).

    Args:
        alpha: Largest share of images whose set may miss the true class, in (0, 1).

    Raises:
        ConfigError: `alpha` is out of range.
    """
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha must lie between 0 and 1. Received: {alpha}")
    return math.ceil(2 / alpha - _ROUNDING) - 1


def fit(probs_BK: np.ndarray, labels: np.ndarray, alpha: float, groups: np.ndarray | None = None) -> Conformal:
    """Finds the thresholds, for each class alone where it has enough groups (Mondrian; Vovk et al. 2005).

    Classes with too few groups share one threshold, of their images together. If these have too few groups, too, the
    class with the fewest of the others joins them, and so on. So the images of each threshold are covered, and all
    images together. A threshold of all images for the small classes alone would not do: with own ones for two easy
    classes of 60 patients, the sets of these and of a hard class of 15 patients covered 83 % in place of 90 %.

    Args:
        probs_BK: Probabilities of images that the model was not trained on, floating point [images, K].
        labels: True classes, int [images], in [0, K).
        alpha: Largest share of images whose set may miss the true class, in (0, 1).
        groups: Group of each image (its patient), [images], any values that can be sorted. None: each image is one.

    Returns:
        Thresholds of 1, so that sets have all classes, where there are fewer than 1 / alpha - 1 groups in all.

    Raises:
        ConfigError: `alpha` is out of range.
        DataError: See `tlray.trust.intervals.check_predictions`, or not every image has a group.
    """
    needed = min_groups(alpha)
    check_predictions(labels, probs_BK)
    index = group_index(np.arange(len(labels)) if groups is None else groups, len(labels))
    scores = 1 - probs_BK[np.arange(len(labels)), labels].astype(np.float64)
    in_class = [labels == each for each in range(probs_BK.shape[1])]
    num_groups = tuple(len(np.unique(index[rows])) for rows in in_class)
    sharing = np.zeros(len(labels), bool)
    is_conditional = [True] * len(num_groups)
    for k in np.argsort(num_groups, kind="stable"):
        if num_groups[k] >= needed and (all(is_conditional) or len(np.unique(index[sharing])) >= needed):
            break
        sharing |= in_class[k]
        is_conditional[k] = False
    shared = _threshold(scores[sharing], index[sharing], alpha)
    thresholds = [
        _threshold(scores[rows], index[rows], alpha) if is_own else shared
        for rows, is_own in zip(in_class, is_conditional, strict=True)
    ]
    return Conformal(
        alpha=alpha, thresholds=tuple(thresholds), is_class_conditional=tuple(is_conditional), num_groups=num_groups
    )


def _threshold(scores: np.ndarray, index: np.ndarray, alpha: float) -> float:
    """Returns the smallest score with a weight of at least (1 - alpha) (groups + 1) up to it, otherwise 1.

    With one image for each group this is the ceil((n + 1) (1 - alpha))-th smallest score.
    """
    group = np.unique(index, return_inverse=True)[1]
    sizes_G = np.bincount(group)
    order = np.argsort(scores, kind="stable")
    weight_up_to = np.cumsum(1 / sizes_G[group[order]])
    place = int(np.searchsorted(weight_up_to, (1 - alpha) * (len(sizes_G) + 1) - _ROUNDING))
    return float(scores[order[place]]) if place < len(scores) else 1.0
