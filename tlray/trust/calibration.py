"""Calibrates a classifier's probabilities, and measures how well probabilities agree with how often they are right.

A calibration is fitted on images that the model was not trained on. It divides the logits by a temperature and adds a
bias for each class (Guo et al. 2017, On Calibration of Modern Neural Networks, arXiv:1706.04599, section 4.2: between
their temperature scaling, which cannot correct a shift between classes, and their vector scaling).
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import special
from scipy.optimize import minimize

from tlray.errors import DataError
from tlray.trust.groups import effective_size, evidence_of, group_index, linear_variance, student
from tlray.trust.intervals import Interval, check_predictions, mean_interval

MIN_IMAGES_PER_CLASS = 10
"""Images for each parameter below which it is not fitted: ten events for each variable, the usual rule of logistic
regression (Peduzzi et al. 1996, J. Clin. Epidemiol. 49:1373-1379). A temperature alone needs this many for each class
on average; a bias needs them in each class."""

TEMPERATURE_RANGE = (0.05, 20.0)
"""Smallest and largest temperature. Without a bound, images that are all right would take it to 0."""

PENALTY = 1.0
"""Penalty on the squares of the biases and of the logarithm of the temperature, in images: a normal prior with the
standard deviation 1, which matters less the more images there are. It keeps them finite if all images are right."""

_ROUNDING = 1e-9  # of a sum of weights

NUM_BINS = 10
"""Number of bins of the calibration errors and of a reliability diagram."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """The parameters of a calibration.

    Attributes:
        has_temperature: A temperature is fitted.
        has_biases: A bias for each class is fitted, too.
        note: Why the temperature or the biases are not fitted; otherwise empty.
    """

    has_temperature: bool
    has_biases: bool
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A change of logits that makes their softmax agree better with how often it is right.

    Attributes:
        temperature: Divides the logits; above 1 it makes probabilities less extreme.
        biases: Added to each class's divided logit, with the sum 0.
        num_images: Number of images that it was fitted on.
        note: Why the temperature or the biases were not fitted; otherwise empty.
    """

    temperature: float
    biases: tuple[float, ...]
    num_images: int
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """The rows of a reliability diagram: bins of the confidence, which is the largest probability of an image.

    Attributes:
        low: Lower end of each bin, which it excludes, float64 [bins].
        high: Upper end of each bin, which it includes, float64 [bins].
        num_images: Number of images in each bin, int64 [bins].
        confidence: Mean confidence, float64 [bins], NaN in an empty bin.
        accuracy: Share of right images, float64 [bins], NaN in an empty bin.
    """

    low: np.ndarray
    high: np.ndarray
    num_images: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self) -> float:
        """Mean of |accuracy - confidence| over bins, weighted by their images, in [0, 1] (Guo et al. 2017, eq. 3)."""
        gap = np.abs(np.nan_to_num(self.accuracy) - np.nan_to_num(self.confidence))
        return float(gap @ self.num_images / self.num_images.sum())


def form_for(labels: np.ndarray, num_classes: int, sample_weights: np.ndarray | None = None) -> Form:
    """Returns which parameters images can bear.

    Args:
        labels: True classes, int [images], in [0, num_classes).
        num_classes: Number of classes.
        sample_weights: See `fit`.

    Returns:
        No biases if a class has fewer than `MIN_IMAGES_PER_CLASS` independent images, and no temperature either if
        there are fewer than this many for each class on average.
    """
    weights = np.ones(len(labels)) if sample_weights is None else sample_weights
    per_class, size = np.bincount(labels, weights, num_classes), float(weights.sum())
    if num_classes < 2 or size < MIN_IMAGES_PER_CLASS * num_classes - _ROUNDING:
        few = f"{math.floor(size + _ROUNDING)} independent images are fewer than {MIN_IMAGES_PER_CLASS} for each class"
        return Form(has_temperature=False, has_biases=False, note=f"Not calibrated: {few}.")
    if per_class.min() < MIN_IMAGES_PER_CLASS - _ROUNDING:
        few = f"{math.floor(per_class.min() + _ROUNDING)} independent images, fewer than {MIN_IMAGES_PER_CLASS}"
        return Form(has_temperature=True, has_biases=False, note=f"No class biases: a class has {few}.")
    return Form(has_temperature=True, has_biases=True)


def fit(
    logits_BK: np.ndarray, labels: np.ndarray, sample_weights: np.ndarray | None = None, form: Form | None = None
) -> Calibration:
    """Fits a temperature and a bias for each class by minimizing the penalized log loss; see `PENALTY`.

    Args:
        logits_BK: Logits, or logarithms of probabilities, floating point [images, K], finite.
        labels: True classes, int [images], in [0, K).
        sample_weights: The number of independent images that each image counts as, float [images], not negative.
            Give 1 divided by the number of the patient's images if patients have several: these count as one. None: 1
            for each.
        form: What is fitted; None: what these images can bear.

    Raises:
        DataError: Arrays that do not fit together, values that are not finite, or negative weights.
    """
    logits_BK = logits_BK.astype(np.float64)
    check_logits(logits_BK)
    check_predictions(labels, special.softmax(logits_BK, axis=1))
    weights = np.ones(len(labels)) if sample_weights is None else sample_weights.astype(np.float64)
    if weights.shape != labels.shape or not (np.isfinite(weights) & (weights >= 0)).all() or weights.sum() == 0:
        raise DataError(f"Each of {len(labels)} images needs a finite weight of at least 0, not all 0; got {weights}.")
    num_classes, size = logits_BK.shape[1], float(weights.sum())
    chosen = form_for(labels, num_classes, weights) if form is None else form
    if not chosen.has_temperature:
        return Calibration(temperature=1.0, biases=(0.0,) * num_classes, num_images=len(labels), note=chosen.note)
    in_class_BK = labels[:, None] == np.arange(num_classes)
    parameters = _minimized(logits_BK, in_class_BK, weights / size, PENALTY / size, has_bias=chosen.has_biases)
    biases = parameters[1:] - parameters[1:].mean()
    return Calibration(
        temperature=math.exp(parameters[0]),
        biases=tuple(float(each) for each in biases),
        num_images=len(labels),
        note=chosen.note,
    )


def apply(logits_BK: np.ndarray, calibration: Calibration) -> np.ndarray:
    """Returns calibrated probabilities, float64 [images, K].

    Args:
        logits_BK: Logits, floating point [images, K], finite.
        calibration: The result of `fit` for the same classes.

    Raises:
        DataError: Another number of classes, or logits that are not finite.
    """
    check_logits(logits_BK)
    biases = np.asarray(calibration.biases)
    if logits_BK.shape[1] != len(biases):
        raise DataError(f"The calibration has {len(biases)} classes; got logits of {logits_BK.shape[1]}.")
    return special.softmax(logits_BK.astype(np.float64) / calibration.temperature + biases, axis=1)


def check_logits(logits_BK: np.ndarray) -> None:
    """Refuses logits that are not a finite matrix of at least one image and one class.

    Raises:
        DataError: The shape is another, or a value is not finite.
    """
    if logits_BK.ndim != 2 or logits_BK.size == 0 or not np.isfinite(logits_BK).all():
        num_bad = int(np.sum(~np.isfinite(logits_BK)))
        raise DataError(
            f"Logits [images, classes] must be finite; got the shape {logits_BK.shape} with {num_bad} other values."
        )


def reliability(probs_BK: np.ndarray, labels: np.ndarray, *, num_bins: int = NUM_BINS) -> Reliability:
    """Returns how often images are right, in bins of their confidence of equal width (Guo et al. 2017, section 2).

    Args:
        probs_BK: Probabilities, floating point [images, K].
        labels: True classes, int [images], in [0, K).
        num_bins: Number of bins.

    Raises:
        DataError: See `tlray.trust.intervals.check_predictions`.
    """
    check_predictions(labels, probs_BK)
    confidence, is_right = _confidence(probs_BK), probs_BK.argmax(axis=1) == labels
    edges = np.arange(num_bins + 1) / num_bins
    index = _bins(confidence, num_bins)
    num_images = np.bincount(index, minlength=num_bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 of an empty bin: NaN
        return Reliability(
            low=edges[:-1],
            high=edges[1:],
            num_images=num_images,
            confidence=np.bincount(index, confidence, num_bins) / num_images,
            accuracy=np.bincount(index, is_right, num_bins) / num_images,
        )


def expected_calibration_error(probs_BK: np.ndarray, labels: np.ndarray, *, num_bins: int = NUM_BINS) -> float:
    """Returns the expected calibration error, in [0, 1]. Arguments and errors: see `reliability`."""
    return reliability(probs_BK, labels, num_bins=num_bins).error


def calibration_error_interval(probs_BK: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> Interval:
    """Returns the expected calibration error with its 95 % interval over groups of images.

    The interval covers the error that the same `NUM_BINS` bins would have with unlimited images of this kind. The error
    of a few images is larger than that on average, because chance moves each bin away from 0. This bias is largest if
    the model is perfectly calibrated (Roelofs et al. 2022, Mitigating Bias in Calibration Error Estimation, AISTATS):
    intervals of a plain jackknife covered its error 0 in about two of three simulated sets. So the two ends differ, and
    the interval is rather too wide than too narrow: it covered the truth in 95 to 100 % of 300 sets, in 11 cases. Where
    all images have the same confidence, it covers the truth in at least 92 % of sets (computed from the binomial
    distribution, for 20 to 150 single images, confidences of 0.55 to 0.95 and accuracies of 0.5 to 0.99).

    - The upper end is t standard errors above the error. No bias is subtracted. The sum of the absolute gaps of the
      bins is at least their sum with the signs of the true gaps, which is unbiased.
    - The lower end is t standard errors below the error without its bias, and at least 0. The bias of a bin is that of
      the absolute value of a normal variable (Leone et al. 1961, Technometrics 3:543-550). Its mean is taken t standard
      errors nearer to 0 than the gap that was found.

    The standard error of the error counts t^2 more images, half of them right, as Agresti and Coull do (1998, Am.
    Statistician 52:119-126). So a model that is right on every image has an interval with a width, too. As with their
    interval, the error itself counts these images, but only for the lower end, and only if this makes it smaller.
    Otherwise the lower end is too high for a model that is right on nearly every image.

    Args:
        probs_BK: Probabilities, floating point [images, K].
        labels: True classes, int [images], in [0, K).
        groups: Group of each image, [images], any values that can be sorted.

    Returns:
        With one group the interval is [0, 1].

    Raises:
        DataError: See `tlray.trust.intervals.check_predictions`, or not every image has a group.
    """
    value = expected_calibration_error(probs_BK, labels)
    index = group_index(groups, len(labels))
    evidence = evidence_of(index)
    if evidence.num_groups < 2:
        return Interval(value=value, low=0.0, high=1.0)
    confidence, t = _confidence(probs_BK), student(evidence)
    residuals, bins = (probs_BK.argmax(axis=1) == labels) - confidence, _bins(confidence, NUM_BINS)
    gaps = np.bincount(bins, residuals, NUM_BINS) / len(labels)
    errors = np.sqrt(
        [linear_variance((residuals * (bins == k) - gaps[k]) / len(labels), index) for k in range(NUM_BINS)]
    )
    signs = np.where(gaps < 0, -1, 1)[bins]
    signed = signs * residuals
    variance = linear_variance((signed - value) / len(labels), index)
    size = effective_size(float(np.var(signed)), variance, evidence)
    added = float(np.mean(confidence**2 + (1 - confidence) ** 2)) / 2
    half = t * math.sqrt(size * float(np.var(signed)) + t**2 * added) / (size + t**2)
    shift = t**2 * (value - float(np.mean(signs * (0.5 - confidence)))) / (size + t**2)
    bias = sum(_bias(max(abs(gap) - t * error, 0.0), error) for gap, error in zip(gaps, errors, strict=True))
    return Interval(value=value, low=max(0.0, value - max(shift, 0.0) - bias - half), high=min(1.0, value + half))


def brier_interval(probs_BK: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> Interval:
    """Returns the Brier score with its 95 % interval over groups of images, see `mean_interval`.

    Arguments and errors: see `calibration_error_interval`. With one group the interval is [0, 2].
    """
    check_predictions(labels, probs_BK)
    return mean_interval(_distances(probs_BK, labels), groups, high=2.0)


def brier_score(probs_BK: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean squared distance from the true class's one-hot vector, in [0, 2], after Brier (1950).

    Args:
        probs_BK: Probabilities, floating point [images, K].
        labels: True classes, int [images], in [0, K).

    Raises:
        DataError: See `tlray.trust.intervals.check_predictions`.
    """
    check_predictions(labels, probs_BK)
    return float(np.mean(_distances(probs_BK, labels)))


def _distances(probs_BK: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns each image's squared distance from the true class's one-hot vector, float64 [images]."""
    true_BK = labels[:, None] == np.arange(probs_BK.shape[1])
    return np.sum((probs_BK.astype(np.float64) - true_BK) ** 2, axis=1)


def _confidence(probs_BK: np.ndarray) -> np.ndarray:
    """Returns the largest probability of each image, float64 [images]; a rounding above 1 counts as 1."""
    return np.minimum(probs_BK.max(axis=1).astype(np.float64), 1)


def _bins(confidence: np.ndarray, num_bins: int) -> np.ndarray:
    """Returns the bin of each image, int [images], of bins of equal width that include their upper end."""
    return np.searchsorted(np.arange(1, num_bins) / num_bins, confidence, side="left")


def _bias(mean: float, error: float) -> float:
    """Returns the mean of the absolute value of a normal variable, minus the absolute value of its mean.

    Args:
        mean: Mean of the variable, at least 0.
        error: Its standard deviation.
    """
    if not error:
        return 0.0
    scaled = mean / error
    return error * math.sqrt(2 / math.pi) * math.exp(-(scaled**2) / 2) - mean * math.erfc(scaled / math.sqrt(2))


def _minimized(
    logits_BK: np.ndarray, in_class_BK: np.ndarray, weights: np.ndarray, penalty: float, *, has_bias: bool
) -> np.ndarray:
    """Returns the log temperature and the biases, float64 [1 + K], that minimize the penalized log loss."""
    bound = None if has_bias else 0.0

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        scaled_BK = logits_BK / math.exp(parameters[0])
        log_probs_BK = special.log_softmax(scaled_BK + parameters[1:], axis=1)
        error_BK = (np.exp(log_probs_BK) - in_class_BK) * weights[:, None]  # gradient by the softmax's inputs
        value = -float(weights @ log_probs_BK[in_class_BK]) + penalty / 2 * float(parameters @ parameters)
        gradient = np.concatenate([[-np.sum(error_BK * scaled_BK)], error_BK.sum(axis=0)]) + penalty * parameters
        return value, gradient

    bounds = [(math.log(TEMPERATURE_RANGE[0]), math.log(TEMPERATURE_RANGE[1]))]
    bounds += [(None if bound is None else -bound, bound)] * logits_BK.shape[1]
    start = np.zeros(1 + logits_BK.shape[1])
    return minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-12, "gtol": 1e-8}).x
