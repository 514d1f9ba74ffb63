"""A linear probe: multinomial logistic regression on standardised features, its penalty chosen on validation data."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from tlray.data import prior

INVERSE_PENALTIES = tuple(float(f"{value:.2g}") for value in np.logspace(-5, 1, 13))
"""The values of scikit-learn's C to try: from a penalty under which features hardly count to hardly any penalty."""

MIN_DEVIATION = 1e-6
"""Standard deviation below which a feature is taken as constant. float16 has steps of 6e-8 near zero, and Keras divides
by 1e-7 at least."""

MIN_VARIATION = 0.01
"""Value of `variation` below which users are warned. float16 keeps 11 bits of a feature, of which then fewer than 5
differ between images."""

MAX_ITERATIONS = 1000
TOLERANCE = 1e-5
"""Tolerance of the gradient at which fitting stops. With scikit-learn's 1e-4 a probability still moves in its third
digit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One penalty and how it did on the validation images.

    Attributes:
        inverse_penalty: scikit-learn's C.
        valid_loss: Mean log loss of the shifted logits (see `Probe`), nats.
        valid_accuracy: Accuracy of the shifted logits, in [0, 1].
    """

    inverse_penalty: float
    valid_loss: float
    valid_accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Probe:
    """A fitted probe: logits = (features - mean) / deviation @ weights + bias.

    These are the logits that were fitted, and fine-tuning with the same class weights continues from them. With `shift`
    added, their softmax assumes the class shares of the training images. In this form they are validated, and exported
    with the prior `train`.

    Attributes:
        mean: float32 [features].
        deviation: float32 [features], 1 where a feature is constant.
        weights: float32 [features, classes].
        bias: float32 [classes].
        shift: float32 [classes], all 0 without class weights; see `prior.logit_shift`.
        trials: All trials, in the order of the penalties.
        best: The trial with the lowest validation loss, from which this probe is.
        train_loss: Mean log loss on the training images, weighted as they were in fitting, nats.
        train_accuracy: Accuracy of the shifted logits on the training images, in [0, 1].
    """

    mean: np.ndarray
    deviation: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    shift: np.ndarray
    trials: tuple[Trial, ...]
    best: Trial
    train_loss: float
    train_accuracy: float

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns mean, deviation, weights and bias."""
        return {"mean": self.mean, "deviation": self.deviation, "weights": self.weights, "bias": self.bias}

    @property
    def variation(self) -> float:
        """Variation of the features between the training images, see the function `variation`."""
        return variation(self.mean, np.where(self.deviation == 1, 0, self.deviation))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Basis:
    """The standardisation of features, and a rotation after which fitting is cheap.

    Attributes:
        mean: float64 [features].
        deviation: float64 [features], 1 where a feature is constant.
        rotation: float64 [features, images], or None unless there are fewer images than features. An L2 penalty does
            not change under a rotation, so with fewer images than features only the images' span has to be fitted.
    """

    mean: np.ndarray
    deviation: np.ndarray
    rotation: np.ndarray | None

    def turn(self, features: np.ndarray) -> np.ndarray:
        """Returns features [images, features] standardised and rotated, float64."""
        standardised = (np.asarray(features, np.float64) - self.mean) / self.deviation
        return standardised if self.rotation is None else standardised @ self.rotation

    def turn_back(self, weights: np.ndarray, bias: np.ndarray) -> dict[str, np.ndarray]:
        """Returns a probe's arrays for features, given weights [classes, n] and bias [classes] for turned ones."""
        return {
            "mean": self.mean.astype(np.float32),
            "deviation": self.deviation.astype(np.float32),
            "weights": (weights.T if self.rotation is None else self.rotation @ weights.T).astype(np.float32),
            "bias": bias.astype(np.float32),
        }


def basis(train: np.ndarray) -> Basis:
    """Finds the basis of training features, floating point [images, features]; see `memory_bytes`.

    The columns of the rotation are the principal components of the images. In another basis of the same span fitting
    would stop earlier, because it stops by the largest component of the gradient.
    """
    train = np.asarray(train, np.float64)
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    deviation[deviation < MIN_DEVIATION] = 1.0
    rotation = None
    if len(train) < train.shape[1]:
        # The same as the singular vectors, in half the time (1,200 images of 2,048 features).
        span, triangle = np.linalg.qr(((train - mean) / deviation).T)
        rotation = span @ np.linalg.eigh(triangle @ triangle.T)[1]
    return Basis(mean=mean, deviation=deviation, rotation=rotation)


def variation(mean: np.ndarray, deviation: np.ndarray) -> float:
    """Returns how much the median feature differs between images: its deviation divided by its root mean square.

    The value is in [0, 1]: 0 for a constant feature, 1 for a feature whose mean is 0.

    Args:
        mean: Mean of each feature, [features].
        deviation: Standard deviation of each feature, [features].
    """
    size = np.hypot(mean, deviation)
    return float(np.median(np.divide(deviation, size, out=np.zeros_like(size), where=size > 0)))


def variation_warning(found: float) -> list[str]:
    """Returns the warning about a variation that is too low; empty where it is as usual."""
    if found >= MIN_VARIATION:
        return []
    return [
        f"The network's features hardly differ between the images: the median feature varies by {found:.1%} of its "
        "size. Check --preprocessing (and --intensity-range of 16-bit images)."
    ]


def regression(*, balanced: bool) -> LogisticRegression:
    """Returns an unfitted regression for `solve`; each further fit starts from the coefficients of the last one."""
    return LogisticRegression(
        solver="newton-cg",
        max_iter=MAX_ITERATIONS,
        tol=TOLERANCE,
        warm_start=True,
        class_weight="balanced" if balanced else None,
    )


def solve(model: LogisticRegression, turned: np.ndarray, labels: np.ndarray, *, inverse_penalty: float) -> None:
    """Fits a regression on turned features with one penalty, in place."""
    with warnings.catch_warnings():
        # With hardly any penalty the weights grow without end; such a trial is not among the good ones.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.set_params(C=inverse_penalty).fit(turned, labels)


def coefficients(model: LogisticRegression) -> tuple[np.ndarray, np.ndarray]:
    """Returns weights [classes, n] and bias [classes] of a fitted regression."""
    weights, bias = np.array(model.coef_), np.array(model.intercept_)
    if len(bias) == 1:  # one logit, of the second class against the first
        weights, bias = np.vstack([np.zeros_like(weights), weights]), np.concatenate([[0.0], bias])
    return weights, bias


def memory_bytes(num_images: int, num_features: int, num_classes: int) -> int:
    """Returns about the peak memory of fitting, in bytes, including the float16 features and the validation features.

    It grows with training images times features: the features are held in float64 twice, and once more for two classes,
    whose Hessian scikit-learn multiplies out. (With fewer images than features the basis holds a rotation as large as
    the features, and finding it takes up to twice as much as this, but for 5,632 features never over 2.3 GB.)
    """
    return num_images * num_features * (32 if num_classes == 2 else 24)


def fit(
    train: np.ndarray,
    train_labels: np.ndarray,
    valid: np.ndarray,
    valid_labels: np.ndarray,
    *,
    num_classes: int,
    balanced: bool,
    inverse_penalties: Sequence[float] = INVERSE_PENALTIES,
) -> Probe:
    """Fits a probe for each penalty and keeps the one with the lowest validation loss.

    Memory grows with images times features: see `memory_bytes`.

    Args:
        train: Floating point [images, features].
        train_labels: Class indices, int [images]; every class occurs.
        valid: Floating point [images, features].
        valid_labels: Class indices, int [images].
        num_classes: At least 2.
        balanced: Weight each image by the inverse frequency of its class.
        inverse_penalties: The values of scikit-learn's C to try.
    """
    weights = prior.class_weights(train_labels, num_classes, balanced=balanced)
    shift = prior.weighted_logit_shift(train_labels, weights, prior.class_shares(train_labels, num_classes))
    turn = basis(train)
    train, valid = turn.turn(train), turn.turn(valid)
    model = regression(balanced=balanced)
    trials: list[Trial] = []
    fitted: list[tuple[np.ndarray, np.ndarray]] = []
    for inverse_penalty in inverse_penalties:
        solve(model, train, train_labels, inverse_penalty=inverse_penalty)
        probs_BK = prior.shifted(model.predict_proba(valid), shift)
        trials.append(
            Trial(
                inverse_penalty=inverse_penalty,
                valid_loss=float(log_loss(valid_labels, probs_BK, labels=range(num_classes))),
                valid_accuracy=float((probs_BK.argmax(axis=1) == valid_labels).mean()),
            )
        )
        fitted.append((np.array(model.coef_), np.array(model.intercept_)))
    best = min(range(len(trials)), key=lambda place: trials[place].valid_loss)
    model.coef_, model.intercept_ = fitted[best]
    train_probs_BK = model.predict_proba(train)
    train_weights = weights[train_labels]
    return Probe(
        **turn.turn_back(*coefficients(model)),
        shift=shift,
        trials=tuple(trials),
        best=trials[best],
        train_loss=float(
            log_loss(train_labels, train_probs_BK, labels=range(num_classes), sample_weight=train_weights)
        ),
        train_accuracy=float((prior.shifted(train_probs_BK, shift).argmax(axis=1) == train_labels).mean()),
    )
