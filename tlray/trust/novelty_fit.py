"""Finds the space that the features of training images span, outside of which an image is foreign to the model.

Import it to fit the score of `tlray.bundle.novelty` to training images.
"""

from collections.abc import Sequence

import numpy as np
from sklearn.decomposition import PCA
from sklearn.model_selection import GroupKFold

from tlray.bundle.novelty import Novelty, normalized
from tlray.errors import DataError

ACCEPTED = 0.95
"""Share of new images of the training images' kind that shall not be called foreign."""

MAX_COMPONENTS = 128
"""Maximum number of principal components. On the public chest-CT images, with a threshold that accepts 95 % of the new
validation images (see `fit`), 10 % of the foreign images are accepted with 16 components, 3.4 % with 64 and 0.7 % with
128 (2026-11-29)."""

MIN_IMAGES_PER_COMPONENT = 3
"""Minimum number of training images per component; with fewer, all training images would lie in the space."""

MIN_GROUPS = 20
"""Minimum number of groups: an image in twenty is rejected at the threshold, and fewer do not show where that is."""

MAX_IMAGES = 2000
"""Number of training images above which a part of the groups is drawn at random, so that fitting takes seconds."""

NUM_FOLDS = 5


def fit(
    features_BD: np.ndarray,
    groups: Sequence[str],
    *,
    valid_BD: np.ndarray | None = None,
    accepted: float = ACCEPTED,
    seed: int = 0,
) -> Novelty:
    """Finds the space of training images, and the threshold by cross-validation with whole groups held out.

    Each image is scored by the space of the other folds; the threshold is that quantile of these
    scores which a new image exceeds with a probability of at most 1 - `accepted`, as in conformal prediction. It holds
    for images from the same sources. If groups are not patients but single images, it is too low for new patients:
    give validation images, and the threshold is raised until it accepts this share of them too. Of few images (fewer
    than 39 for a share of 0.95), the largest score would be this quantile, and one strange image would set it: they
    raise it to their second largest score.

    Measured on 685 chest-CT slices (InceptionV3, 5 depths, 5,632 features) against 715 photographs, textures, noise,
    drawings, documents and phantoms, none of them accepted (2026-11-29): AUROC 0.9998; 0.9973 with the 62 validation
    images that are not in training in place of cross-validated ones. Cosine distance to the nearest training image has
    0.9991 and 0.9956. PCA and Mahalanobis distance with residual have 0.9991, and 0.985 with 60 training images (this
    score: 0.9986).

    Args:
        features_BD: Pooled features of the training images, floating point [images, features].
        groups: The group of each image, such as its patient; copies of an image, and neighbouring slices, should be in
            one group, see `tlray.data.splits.independent_groups`.
        valid_BD: Features of validation images, floating point [images, features], of other patients than the training
            images and without copies of them; None or no row: only cross-validation sets the threshold.
        accepted: Share of new images of this kind to accept, in (0, 1).
        seed: Seed of the folds, and of the sample if there are more than `MAX_IMAGES`.

    Raises:
        DataError: The lengths differ, there are fewer than `MIN_GROUPS` groups, or a feature is not finite.
    """
    if len(features_BD) != len(groups):
        raise DataError(f"There are features of {len(features_BD)} images and {len(groups)} groups. Give as many.")
    numbers = np.unique(np.array(groups, dtype=str), return_inverse=True)[1]
    num_groups = len(np.unique(numbers))
    if num_groups < MIN_GROUPS:
        raise DataError(
            f"A novelty score needs training images of {MIN_GROUPS} groups, and there are {num_groups}: patients, or, "
            "where these are not named, pictures and series of neighbouring slices. Add patients, or name them."
        )
    rows = _sample(numbers, np.random.default_rng(seed))
    normalized_BD, numbers = normalized(features_BD[rows]), numbers[rows]
    if valid_BD is not None and not np.isfinite(valid_BD).all():
        raise DataError("Features of validation images are not finite numbers. Compute them again.")
    if not np.isfinite(normalized_BD).all():
        raise DataError("Features of training images are not finite numbers. Compute them again.")
    scores = np.zeros(len(rows), np.float32)
    splitter = GroupKFold(NUM_FOLDS, shuffle=True, random_state=seed)
    for train, test in splitter.split(normalized_BD, groups=numbers):
        scores[test] = _space(normalized_BD[train], seed).score(features_BD[rows[test]])
    space = _space(normalized_BD, seed)
    threshold = _quantile(scores, accepted)
    if valid_BD is not None and len(valid_BD) > 1:
        threshold = max(threshold, _quantile(space.score(valid_BD), accepted, num_above=1))
    return Novelty(mean=space.mean, basis=space.basis, threshold=threshold)


def _quantile(scores: np.ndarray, accepted: float, *, num_above: int = 0) -> float:
    """Returns the smallest of n scores that at least accepted * (n + 1) of them do not exceed.

    Args:
        scores: float [images], at least one.
        accepted: See `fit`.
        num_above: Number of scores above it, even if fewer than `accepted` do not exceed it then.
    """
    rank = min(len(scores) - num_above, int(np.ceil(accepted * (len(scores) + 1))))
    return float(np.sort(scores)[rank - 1])


def _sample(groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns the rows to use, ascending: all, or about `MAX_IMAGES` in whole groups."""
    if len(groups) <= MAX_IMAGES:
        return np.arange(len(groups))
    sizes = np.bincount(groups)
    order = rng.permutation(len(sizes))
    num_kept = max(MIN_GROUPS, int(np.searchsorted(np.cumsum(sizes[order]), MAX_IMAGES, side="right")))
    return np.flatnonzero(np.isin(groups, order[:num_kept]))


def _space(normalized_BD: np.ndarray, seed: int) -> Novelty:
    """Returns the space of normalized features, with a threshold of 0."""
    num_components = min(MAX_COMPONENTS, len(normalized_BD) // MIN_IMAGES_PER_COMPONENT, normalized_BD.shape[1])
    pca = PCA(num_components, svd_solver="randomized", random_state=seed).fit(normalized_BD)
    basis = np.asarray(pca.components_, np.float16).astype(np.float32)  # as it is stored
    return Novelty(mean=np.asarray(pca.mean_, np.float32), basis=basis, threshold=0.0)
