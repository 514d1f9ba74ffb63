"""Compares the predictions of a model's engines and precisions, and tells which precisions are fit to use."""

import math
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
    gained, lost = (int(np.sum(x)) for x in _discordant(label == labels, reference_label == labels))
    num_images = len(labels)
    change, low, high = _paired_difference(gained, lost, num_images)
    return Agreement(
        engine=engine,
        precision=precision,
        num_images=num_images,
        label_agreement=float(np.mean(label == reference_label)),
        num_clear=int(np.sum(is_clear)),
        num_clear_changed=int(np.sum(is_clear & (label != reference_label))),
        max_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        log_loss_change=_log_loss(probs_BK, labels) - _log_loss(reference_BK, labels),
        accuracy_change=change,
        accuracy_change_low=low,
        accuracy_change_high=high,
        num_referrals_changed=num_referrals_changed,
        images_per_s=images_per_s,
        cpu=cpu,
    )


def _discordant(right: np.ndarray, reference_right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return right & ~reference_right, ~right & reference_right


def _paired_difference(gained: int, lost: int, num_images: int) -> tuple[float, float, float]:
    """Returns the difference of two accuracies on the same images, with its 95 % interval.

    Wald's interval of paired proportions, after the Agresti-Min adjustment: half an image is added to each of the four
    cells of the table (Agresti and Min 2005, Statistics in Medicine 24:729, section 2).
    """
    total = num_images + 2
    centre = (gained - lost) / total
    spread = math.sqrt((gained + lost + 1) - (gained - lost) ** 2 / total) / total
    return (gained - lost) / num_images, centre - 1.96 * spread, centre + 1.96 * spread


def _log_loss(probs_BK: np.ndarray, labels: np.ndarray) -> float:
    chosen = np.clip(probs_BK[np.arange(len(labels)), labels].astype(np.float64), _EPSILON, 1.0)
    return float(-np.log(chosen).mean())
