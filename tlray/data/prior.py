"""Class priors: the shares of the classes that a model's probabilities assume, and how others take their place.

A classifier that is trained with weights learns the posterior of classes as frequent as the weights make them, not as
frequent as they are. The posterior p of one prior becomes that of another when p_c is multiplied by the ratio of the
two and the sum is made 1 again (Saerens, Latinne and Decaestecker 2002, Neural Computation 14:21-41, equation 2.4);
to a softmax's logits the ratio's logarithm is added. Only the classes' shares may differ, not how each class looks.
"""

from collections.abc import Collection, Sequence

import numpy as np
from sklearn.utils.class_weight import compute_class_weight

from tlray.config.training import TRAIN_PRIOR, UNIFORM_PRIOR, parse_prior
from tlray.errors import ConfigError, some


def class_shares(labels: np.ndarray, num_classes: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Returns the share of each class, float64 [classes]: the prior that images with these weights imply.

    Args:
        labels: Class indices, int [images].
        num_classes: At least 2.
        weights: The weight of each image in the loss, [images]; None: 1.
    """
    sums = np.bincount(labels, weights, minlength=num_classes)
    return sums / sums.sum()


def class_weights(labels: np.ndarray, num_classes: int, *, balanced: bool) -> np.ndarray:
    """Returns a factor of the loss for each class, float64 [classes]: its inverse frequency, or 1.

    Args:
        labels: Class indices, int [images]; every class occurs.
        num_classes: At least 2.
        balanced: Weight by inverse frequency, as scikit-learn does: all classes together have the same sum of weights.
    """
    if not balanced:
        return np.ones(num_classes)
    return compute_class_weight("balanced", classes=np.arange(num_classes), y=labels)


def weighted_logit_shift(labels: np.ndarray, weights: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Returns what is added to logits that were trained with class weights, float32 [classes].

    Args:
        labels: Class indices of the training images, int [images].
        weights: The weight of each class in the loss, [classes]; see `class_weights`.
        wanted: Class shares that the logits are to assume, [classes], each above 0.
    """
    return logit_shift(class_shares(labels, len(weights), weights[labels]), wanted)


def logit_shift(assumed: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Returns what is added to logits so that their softmax assumes other class shares, float32 [classes].

    Args:
        assumed: Class shares that the logits assume, [classes], each above 0.
        wanted: Class shares that they are to assume, the same.
    """
    return np.log(wanted / assumed).astype(np.float32)


def shifted(probs_BK: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Returns the probabilities of logits to which a shift was added, float64 [images, classes]."""
    scaled = probs_BK * np.exp(shift.astype(np.float64))
    return scaled / scaled.sum(axis=1, keepdims=True)


def check_classes(prior: str, classes: Collection[str]) -> None:
    """Refuses a --prior that does not name the classes of the data.

    Raises:
        ConfigError: It names others, or not all.
    """
    given = parse_prior(prior)
    if given and set(given) != set(classes):
        raise ConfigError(f"--prior must give a share for each class, {some(classes)}. Received: {prior}")


def wanted_shares(prior: str, classes: Sequence[str], train_shares: np.ndarray) -> np.ndarray:
    """Returns the class shares that a --prior means, float64 [classes], which sum to 1.

    Args:
        prior: See `config.parse_prior`.
        classes: Class names in the order of the model's outputs.
        train_shares: Those of the training images, [classes].

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
