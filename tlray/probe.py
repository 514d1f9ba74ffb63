"""A linear probe: multinomial logistic regression on standardised features, its penalty chosen on validation data."""

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

INVERSE_PENALTIES = tuple(float(f"{value:.2g}") for value in np.logspace(-5, 1, 13))
"""The values of scikit-learn's C that are tried: from features that hardly count to hardly a penalty."""

MIN_DEVIATION = 1e-6
"""Below it a feature is taken as constant: float16 has steps of 6e-8 near zero, and Keras divides by 1e-7 at least."""

MAX_ITERATIONS = 1000
TOLERANCE = 1e-5
"""Of the gradient; with scikit-learn's 1e-4 a probability still moves in its third digit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One penalty and how it did on the validation images.

    Attributes:
        inverse_penalty: scikit-learn's C.
        valid_loss: Mean log loss, nats.
        valid_accuracy: In [0, 1].
    """

    inverse_penalty: float
    valid_loss: float
    valid_accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Probe:
    """A fitted probe: logits = (features - mean) / deviation @ weights + bias.

    Attributes:
        mean: float32 [features].
        deviation: float32 [features], 1 where a feature is constant.
        weights: float32 [features, classes].
        bias: float32 [classes].
        trials: All that was tried, in the order of the penalties.
        best: The trial with the lowest validation loss, which this is.
        train_loss: Mean log loss on the training images, nats.
        train_accuracy: Their accuracy, in [0, 1].
    """

    mean: np.ndarray
    deviation: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    trials: tuple[Trial, ...]
    best: Trial
    train_loss: float
    train_accuracy: float

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns mean, deviation, weights and bias."""
        return {"mean": self.mean, "deviation": self.deviation, "weights": self.weights, "bias": self.bias}


def fit(
    train: np.ndarray,
    train_labels: np.ndarray,
    valid: np.ndarray,
    valid_labels: np.ndarray,
    *,
    num_classes: int,
    balanced: bool,
) -> Probe:
    """Fits a probe for each penalty and keeps the one with the lowest validation loss.

    Args:
        train: Floating point [images, features].
        train_labels: Class indices, int [images]; every class occurs.
        valid: Floating point [images, features].
        valid_labels: Class indices, int [images].
        num_classes: At least 2.
        balanced: Weight each image by the inverse frequency of its class.
    """
    train, valid = np.asarray(train, np.float64), np.asarray(valid, np.float64)
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    deviation[deviation < MIN_DEVIATION] = 1.0
    standardised, valid = (train - mean) / deviation, (valid - mean) / deviation
    del train
    # An L2 penalty does not see a rotation: with fewer images than features, their own span is all there is to fit.
    rotation = None
    if len(standardised) < standardised.shape[1]:
        rotation = np.linalg.svd(standardised, full_matrices=False)[2].T
        standardised, valid = standardised @ rotation, valid @ rotation
    model = LogisticRegression(
        solver="newton-cg",
        max_iter=MAX_ITERATIONS,
        tol=TOLERANCE,
        warm_start=True,
        class_weight="balanced" if balanced else None,
    )
    trials: list[Trial] = []
    fitted: list[tuple[np.ndarray, np.ndarray]] = []
    for inverse_penalty in INVERSE_PENALTIES:
        with warnings.catch_warnings():
            # With hardly a penalty the weights grow without end: such a trial is none of the good ones.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.set_params(C=inverse_penalty).fit(standardised, train_labels)
        probs_BK = model.predict_proba(valid)
        trials.append(
            Trial(
                inverse_penalty=inverse_penalty,
                valid_loss=float(log_loss(valid_labels, probs_BK, labels=range(num_classes))),
                valid_accuracy=float((probs_BK.argmax(axis=1) == valid_labels).mean()),
            )
        )
        fitted.append((np.array(model.coef_), np.array(model.intercept_)))
    best = min(range(len(trials)), key=lambda place: trials[place].valid_loss)
    weights, bias = fitted[best]
    model.coef_, model.intercept_ = weights, bias
    train_probs_BK = model.predict_proba(standardised)
    if num_classes == 2:  # one logit, of the second class against the first
        weights, bias = np.vstack([np.zeros_like(weights), weights]), np.concatenate([[0.0], bias])
    return Probe(
        mean=mean.astype(np.float32),
        deviation=deviation.astype(np.float32),
        weights=(weights.T if rotation is None else rotation @ weights.T).astype(np.float32),
        bias=bias.astype(np.float32),
        trials=tuple(trials),
        best=trials[best],
        train_loss=float(log_loss(train_labels, train_probs_BK, labels=range(num_classes))),
        train_accuracy=float((train_probs_BK.argmax(axis=1) == train_labels).mean()),
    )
