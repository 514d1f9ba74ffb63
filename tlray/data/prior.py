"""Class weights, and changes of the class prior (the class shares that a model's probabilities assume).

A classifier that is trained with class weights learns posteriors for the weighted class shares, not for the true ones.
To change the prior of a posterior p, multiply each p_c by the ratio of the new share of class c to the old one, and
normalize the sum to 1 (Saerens, Latinne and Decaestecker 2002, Neural Computation 14:21-41, equation 2.4). For logits,
add the logarithm of that ratio. This is valid if only the class shares differ, not how each class looks.
"""

from collections.abc import Collection, Sequence

import numpy as np
from sklearn.utils.class_weight import compute_class_weight

from tlray.config.values import TRAIN_PRIOR, UNIFORM_PRIOR, parse_prior
from tlray.errors import ConfigError, some


def class_shares(labels: np.ndarray, num_classes: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Returns the share of each class, float64 [classes]: the prior that images with these weights imply.

    Args:
        labels: Class indices, int [images].
        num_classes: Number of classes, at least 2.
        weights: Weight of each image in the loss, [images]; None: 1 for each.
    """
    sums = np.bincount(labels, weights, minlength=num_classes)
    return sums / sums.sum()


def class_weights(labels: np.ndarray, num_classes: int, *, balanced: bool) -> np.ndarray:
    """Returns the loss weight of each class, float64 [classes]: its inverse frequency if `balanced`, otherwise 1.

    Args:
        labels: Class indices, int [images]; every class must occur.
        num_classes: Number of classes, at least 2.
        balanced: Weight by inverse frequency, as scikit-learn does: the images of each class have the same sum of
            weights.
    """
    if not balanced:
        return np.ones(num_classes)
    return compute_class_weight("balanced", classes=np.arange(num_classes), y=labels)


def weighted_logit_shift(labels: np.ndarray, weights: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Returns the shift to add to logits trained with class weights so that they assume other class shares.

    Args:
        labels: Class indices of the training images, int [images].
        weights: Weight of each class in the loss, [classes]; see `class_weights`.
        wanted: Class shares that the logits are to assume, [classes], each above 0.

    Returns:
        float32 [classes].
    """
    return logit_shift(class_shares(labels, len(weights), weights[labels]), wanted)


def logit_shift(assumed: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Returns the shift to add to logits so that their softmax assumes other class shares, float32 [classes].

    Args:
        assumed: Class shares that the logits assume, [classes], each above 0.
        wanted: Class shares that the logits are to assume, [classes], each above 0.
    """
    return np.log(wanted / assumed).astype(np.float32)


def shifted(probs_BK: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Returns probabilities as if `shift` had been added to their logits, float64 [images, classes]."""
    scaled = probs_BK * np.exp(shift.astype(np.float64))
    return scaled / scaled.sum(axis=1, keepdims=True)


def check_classes(prior: str, classes: Collection[str]) -> None:
    """Refuses a value of --prior with shares for other classes than those of the data.

    Raises:
        ConfigError: A class has no share, or a share is for an unknown class.
    """
    given = parse_prior(prior)
    if given and set(given) != set(classes):
        raise ConfigError(f"--prior must give a share for each class, {some(classes)}. Received: {prior}")


def wanted_shares(prior: str, classes: Sequence[str], train_shares: np.ndarray) -> np.ndarray:
    """Returns the class shares that a value of --prior means, float64 [classes], with the sum 1.

    Args:
        prior: Value of --prior; see `tlray.config.values.parse_prior`.
        classes: Class names in the order of the model's outputs.
        train_shares: Class shares of the training images, [classes].

    Raises:
        ConfigError: See `check_classes`.
    """
    check_classes(prior, classes)
    if prior == TRAIN_PRIOR:
        return train_shares
    if prior == UNIFORM_PRIOR:
        return np.full(len(classes), 1 / len(classes))
    given = parse_prior(prior)
    shares = np.array([given[name] for name in classes])
    return shares / shares.sum()
