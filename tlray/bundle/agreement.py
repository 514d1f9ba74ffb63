"""Compares the predictions of a model's engines and precisions, and tells which precisions are fit to use."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

CLEAR_MARGIN = {"float32": 0.05, "bfloat16": 0.05, "int8": 0.2}
"""By precision: an image is clear if its two largest probabilities differ by more than this. A fit precision changes
the label of no clear image; other labels hang on any rounding. Chosen by tlray: bfloat16 changes probabilities by some
hundredths, int8 by more."""

MIN_CLEAR = {"float32": 0, "bfloat16": 20, "int8": 20}
"""By precision: number of clear images below which it is not fit. Of 20 images without a change, a precision that
changes one in seven would show one with a probability of 95 % (1 - (6/7)^20)."""

MAX_LOG_LOSS_CHANGE = 0.01
"""Largest change of the log loss with which a precision is fit. Chosen by tlray: on average the probability of the true
class changes by a hundredth of itself then."""

MAX_ACCURACY_LOSS = {"float32": 1.0, "bfloat16": 1.0, "int8": 0.01}
"""By precision: largest loss of accuracy with which it is fit; 1: any, as only labels that are not clear can change.
For int8, whose margin is wide, a hundredth, as MLPerf Inference allows: its quality targets are 99 % of the accuracy in
float32."""

MAX_REFERRALS_CHANGED = 0.01
"""Largest share of images on which a fit precision decides otherwise (accepted, referred or foreign); see
`max_referrals_changed`. Chosen by tlray: the share of images by which int8 may lose accuracy."""

_EPSILON = 1e-7  # the smallest probability in a log loss, as scikit-learn's float32 limit


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyChange:
    """The accuracy of predicted labels minus that of the reference's on the same images.

    Attributes:
        value: The difference, in [-1, 1].
        low: Lower end of its 95 % interval.
        high: Upper end of this interval.
        num_groups: Number of groups of images (patients, copies, series) that the interval counts.
    """

    value: float
    low: float
    high: float
    num_groups: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """The predictions of one engine and precision, beside those of the reference, TensorFlow in float32.

    Attributes:
        engine: Name of the engine.
        precision: Its precision.
        num_images: Number of images that were compared.
        label_agreement: Share of images with the same predicted label, in [0, 1].
        num_clear: Number of clear images, see `CLEAR_MARGIN`.
        num_clear_changed: Number of clear images whose label changes.
        max_difference: Largest difference of a probability.
        mean_difference: Mean difference of the probabilities.
        log_loss_change: Log loss minus that of the reference.
        accuracy_change: Accuracy minus that of the reference.
        accuracy_change_low: Lower end of the 95 % interval of the change.
        accuracy_change_high: Upper end of this interval.
        num_referrals_changed: Number of images with another decision, see `judgement.Judgement.decisions`.
        images_per_s: Images per second in batches of 16, or of all images where there are fewer. OpenVINO's precisions
            took turns, so that the ratios of their speeds are right even if the machine was busy. TensorFlow was
            measured before them, by itself.
        cpu: Name of the CPU that it ran on.
        num_groups: Number of groups of images (patients, copies, series) that the interval counts; None: it counts
            images, as that of earlier versions did.
    """

    engine: str
    precision: str
    num_images: int
    label_agreement: float
    num_clear: int
    num_clear_changed: int
    max_difference: float
    mean_difference: float
    log_loss_change: float
    accuracy_change: float
    accuracy_change_low: float
    accuracy_change_high: float
    num_referrals_changed: int
    images_per_s: float
    cpu: str
    num_groups: int | None = None

    @property
    def is_fit(self) -> bool:
        """True if the precision can replace TensorFlow in float32, as no quantity changes by more than its limit."""
        return (
            self.num_clear >= MIN_CLEAR[self.precision]
            and self.num_clear_changed == 0
            and self.accuracy_change >= -MAX_ACCURACY_LOSS[self.precision]
            and abs(self.log_loss_change) <= MAX_LOG_LOSS_CHANGE  # False where it is not a number
            and self.num_referrals_changed <= max_referrals_changed(self.num_images)
        )


def max_referrals_changed(num_images: int) -> int:
    """Returns the number of images whose decision may change: the share `MAX_REFERRALS_CHANGED`, at least one.

    One image may always change, because it may lie at the threshold; of 72 images it is more than a hundredth.
    """
    return max(1, int(MAX_REFERRALS_CHANGED * num_images))


def compare(
    probs_BK: np.ndarray,
    reference_BK: np.ndarray,
    labels: np.ndarray,
    *,
    compare_accuracy: Callable[[np.ndarray, np.ndarray], AccuracyChange],
    engine: str,
    precision: str,
    num_referrals_changed: int,
    images_per_s: float,
    cpu: str,
) -> Agreement:
    """Compares the predictions of an engine for some images with those of the reference.

    Args:
        probs_BK: The engine's probabilities, float [images, classes], at least one image.
        reference_BK: Those of the reference.
        labels: The true class indices, int [images].
        compare_accuracy: Returns the change of the accuracy, given the class indices that the engine predicts and those
            of the reference, int [images] each.
        engine: Name of the engine.
        precision: Its precision.
        num_referrals_changed: See `Agreement`.
        images_per_s: The engine's speed.
        cpu: Name of the CPU.
    """
    label, reference_label = probs_BK.argmax(axis=1), reference_BK.argmax(axis=1)
    top = np.sort(reference_BK, axis=1)
    is_clear = top[:, -1] - top[:, -2] > CLEAR_MARGIN[precision]
    difference = np.abs(probs_BK - reference_BK)
    change = compare_accuracy(label, reference_label)
    return Agreement(
        engine=engine,
        precision=precision,
        num_images=len(labels),
        label_agreement=float(np.mean(label == reference_label)),
        num_clear=int(np.sum(is_clear)),
        num_clear_changed=int(np.sum(is_clear & (label != reference_label))),
        max_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        log_loss_change=_log_loss(probs_BK, labels) - _log_loss(reference_BK, labels),
        accuracy_change=change.value,
        accuracy_change_low=change.low,
        accuracy_change_high=change.high,
        num_referrals_changed=num_referrals_changed,
        images_per_s=images_per_s,
        cpu=cpu,
        num_groups=change.num_groups,
    )


def _log_loss(probs_BK: np.ndarray, labels: np.ndarray) -> float:
    chosen = np.clip(probs_BK[np.arange(len(labels)), labels].astype(np.float64), _EPSILON, 1.0)
    return float(-np.log(chosen).mean())
