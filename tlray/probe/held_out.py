"""Logits of images by linear probes that were fitted without them: what a probe says of images that are new to it."""

from collections.abc import Sequence

import numpy as np
from scipy import special
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold

from tlray.data import prior
from tlray.probe import regression

MAX_CHOOSING = 3000
"""Number of images above which `logits` chooses a penalty on a part of the groups: with all images, each of the
penalties would take as long as the probes that are wanted."""


def logits(
    features: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    num_classes: int,
    balanced: bool,
    inverse_penalty: float | None,
    num_folds: int,
    seed: int,
) -> np.ndarray | None:
    """Returns logits for images from probes that were fitted without the image's group.

    Args:
        features: Floating point [images, features].
        labels: Class indices, int [images].
        groups: Group of each image, str [images].
        num_classes: At least 2.
        balanced: See `regression.fit`.
        inverse_penalty: scikit-learn's C; None: the one of `regression.INVERSE_PENALTIES` whose logits have the lowest
            loss, of about `MAX_CHOOSING` images if there are more.
        num_folds: Number of folds, at least 2; fewer where a class has fewer groups.
        seed: Seed of the folds.

    Returns:
        float32 [images, classes]; like those of a probe that was fitted on all these images, they assume equal class
        shares if `balanced`, otherwise those of the images. None if a class has images in one group only.
    """
    penalties = regression.INVERSE_PENALTIES if inverse_penalty is None else (inverse_penalty,)
    if len(penalties) > 1 and len(labels) > MAX_CHOOSING:
        some = _some_groups(labels, groups, num_folds=num_folds, seed=seed)
        folds = _folds(labels[some], groups[some], num_classes=num_classes, num_folds=num_folds, seed=seed)
        if folds is not None:
            tried = _of_all_folds(features[some], labels[some], folds, penalties, num_classes, balanced=balanced)
            penalties = (penalties[_best(tried, labels[some], num_classes, balanced=balanced)],)
    folds = _folds(labels, groups, num_classes=num_classes, num_folds=num_folds, seed=seed)
    if folds is None:
        return None
    found = _of_all_folds(features, labels, folds, penalties, num_classes, balanced=balanced)
    return found[_best(found, labels, num_classes, balanced=balanced)]


def _some_groups(labels: np.ndarray, groups: np.ndarray, *, num_folds: int, seed: int) -> np.ndarray:
    """Returns the places of about `MAX_CHOOSING` images, ascending: whole groups, drawn at random from each class.

    Of a class with few groups, `num_folds` are drawn, or all, so that the folds have some.
    """
    index, rng = np.unique(groups, return_inverse=True)[1], np.random.default_rng(seed)
    drawn = []
    for label in np.unique(labels):
        of_class = rng.permutation(np.unique(index[labels == label]))
        drawn.append(of_class[: max(num_folds, len(of_class) * MAX_CHOOSING // len(labels))])
    return np.flatnonzero(np.isin(index, np.concatenate(drawn)))


def _of_all_folds(
    features: np.ndarray,
    labels: np.ndarray,
    folds: list[tuple[np.ndarray, np.ndarray]],
    penalties: Sequence[float],
    num_classes: int,
    *,
    balanced: bool,
) -> np.ndarray:
    """Returns what `logits` does, for each penalty, float32 [penalties, images, classes]."""
    # The parts without a fold can have other class shares than the whole.
    shares = prior.class_shares(labels, num_classes)
    logits_PBK = np.zeros((len(penalties), len(labels), num_classes), np.float32)
    for fold in folds:
        rest, held_out = fold
        assumed = shares if balanced else prior.class_shares(labels[rest], num_classes)
        shift = prior.logit_shift(assumed, shares)
        logits_PBK[:, held_out] = _of_fold(features, labels, fold, penalties, balanced=balanced) + shift
    return logits_PBK


def _of_fold(
    features: np.ndarray,
    labels: np.ndarray,
    fold: tuple[np.ndarray, np.ndarray],
    penalties: Sequence[float],
    *,
    balanced: bool,
) -> np.ndarray:
    """Returns logits of one fold's images by probes of the others, [penalties, images, classes].

    The large arrays end with the call, so that those of two folds are never in memory at once; see
    `regression.memory_bytes`.
    """
    rest, held_out = fold
    turn = regression.basis(features[rest])
    fitted, model, found = turn.turn(features[rest]), regression.regression(balanced=balanced), []
    for penalty in penalties:
        regression.solve(model, fitted, labels[rest], inverse_penalty=penalty)
        weights, bias = regression.coefficients(model)
        found.append((weights.copy(), bias.copy()))
    del fitted
    asked = turn.turn(features[held_out])
    return np.stack([asked @ weights.T + bias for weights, bias in found])


def _best(logits_PBK: np.ndarray, labels: np.ndarray, num_classes: int, *, balanced: bool) -> int:
    """Returns the place of the penalty whose logits have the lowest loss, which assumes the images' class shares."""
    if len(logits_PBK) == 1:
        return 0
    weights = prior.class_weights(labels, num_classes, balanced=balanced)
    shift = prior.weighted_logit_shift(labels, weights, prior.class_shares(labels, num_classes))
    losses = [
        log_loss(labels, special.softmax(logits_BK + shift, axis=1), labels=range(num_classes))
        for logits_BK in logits_PBK.astype(np.float64)
    ]
    return int(np.argmin(losses))


def _folds(
    labels: np.ndarray, groups: np.ndarray, *, num_classes: int, num_folds: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """Returns for each fold the places of the other images and its own, int [images]; None: see `logits`."""
    num_groups = min(len(np.unique(groups[labels == label])) for label in range(num_classes))
    if num_groups < 2:
        return None
    splitter = StratifiedGroupKFold(min(num_folds, num_groups), shuffle=True, random_state=seed)
    folds = list(splitter.split(np.zeros((len(labels), 1)), labels, groups))
    # Groups with several classes can take all images of one.
    return folds if all(len(np.unique(labels[rest])) == num_classes for rest, _ in folds) else None
