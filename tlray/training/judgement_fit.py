"""Finds out how far a trained model's predictions can be trusted: calibrates them, and sets the limits that judge them.

All of it is fitted on images that the model was not trained on. Their calibrated probabilities are cross-fitted: those
of each image come from a calibration that was fitted without its group, as new images' will.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special
from sklearn.model_selection import GroupKFold

from tlray.bundle.judgement import prediction_sets
from tlray.data.prior import class_shares, logit_shift, shifted
from tlray.errors import counted
from tlray.evaluation import out_of_fold
from tlray.evaluation.out_of_fold import Predicted
from tlray.trust import calibration, conformal, referral
from tlray.trust.calibration import Calibration
from tlray.trust.conformal import Conformal
from tlray.trust.groups import group_index
from tlray.trust.referral import Threshold

REFER_BELOW = 0.5
"""Confidence below which predictions are referred where no threshold can be shown to keep to `--max-error`."""

ALPHA = 0.1
"""Largest share of images whose prediction set may miss the true class."""

NUM_FOLDS = 5
"""Number of folds, and of groups below which nothing is calibrated."""

NOTHING_UNSEEN = (
    "No validation image is new to the model and can be read, so its probabilities are not calibrated, and no error "
    "rate is known. Add labelled images of other patients."
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Unseen:
    """Logits of labelled images that the model, or one like it, was not trained on.

    Attributes:
        logits_BK: Its logits, floating point [images, K].
        image_ids: The id of each image.
        labels: True classes, int [images].
        groups: Group of each image, str [images]: its patient, joined with those who have a copy or a neighbouring
            slice of one of its images; see `tlray.data.splits.independent_groups`.
        assumed_shares: Class shares that the logits assume, float [K].
        origin: Which images these are, and which model said it, for people.
    """

    logits_BK: np.ndarray
    image_ids: Sequence[str]
    labels: np.ndarray
    groups: np.ndarray
    assumed_shares: np.ndarray
    origin: str

    @property
    def probs_BK(self) -> np.ndarray:
        """The softmax of the logits, float64 [images, K]."""
        return special.softmax(self.logits_BK.astype(np.float64), axis=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Settings of the user that decide how predictions are calibrated and referred.

    Attributes:
        assumed_shares: Class shares that the model's own logits assume, float [K].
        shares: Class shares that the probabilities are to assume, float [K].
        refer_below: The confidence below which predictions are referred; None: chosen by `max_error`.
        max_error: Wished error rate of the predictions that are not referred, in (0, 1).
    """

    assumed_shares: np.ndarray
    shares: np.ndarray
    refer_below: float | None
    max_error: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judging:
    """How a model's predictions are calibrated and judged.

    The probabilities are softmax((logits + shift) / temperature).

    Attributes:
        shift: Added to the trained logits, float32 [K]. It has the prior and the biases of the calibration.
        temperature: Divides them.
        refer_below: See `judgement.Limits`.
        set_thresholds: See `judgement.Limits`.
        about: How they were found and what they are worth; can be written as JSON. `calibration`: the fields of
            `Calibration`, and `ece`, `ece_before`, `brier`, `brier_before` (expected calibration error in
            `calibration.NUM_BINS` bins and Brier score, after it and before), each with its 95 % interval NAME_ci95
            ([low, high]). `referral`: `refer_below`, `max_error` (null: the threshold was given), `coverage` (share
            of images that are not under it, nor ambiguous), `error_rate` of these (null: none), `error_rate_high` (its
            upper bound) and `note`. `sets`: the fields of `Conformal`, and `mean_size`; null without sets.
            `num_images`, `num_groups`, `class_shares` and `origin`: what all this was fitted on. `prior`: the class
            shares that the probabilities assume. Empty: there were no such images.
        predicted: The predictions that the errors of `calibration` were computed from: `out_of_fold.BEFORE` and
            `out_of_fold.AFTER`. Empty: there were no such images.
        warnings: Warnings to the user.
    """

    shift: np.ndarray
    temperature: float
    refer_below: float
    set_thresholds: tuple[float, ...] | None = None
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    predicted: Mapping[str, Predicted] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def fit(unseen: Unseen | None, wanted: Wanted, *, seed: int) -> Judging:
    """Calibrates predictions, and sets the limits by which they are judged.

    Args:
        unseen: Images that the model was not trained on; None: there are none, and nothing is fitted.
        wanted: What the user wants.
        seed: Seed of the folds.

    Raises:
        DataError: The arrays do not fit together, or logits are not finite.
    """
    if unseen is None or not len(unseen.labels):
        return Judging(
            shift=logit_shift(wanted.assumed_shares, wanted.shares),
            temperature=1.0,
            refer_below=REFER_BELOW if wanted.refer_below is None else wanted.refer_below,
            warnings=(NOTHING_UNSEEN,),
        )
    labels, groups = unseen.labels, unseen.groups
    weights = _weights(groups)
    shares, fitting_shares = _own_shares(labels, weights, wanted)
    logits_BK = unseen.logits_BK.astype(np.float64) + logit_shift(unseen.assumed_shares, fitting_shares)
    fitted, calibrated_BK = _calibrated(logits_BK, labels, groups, weights, seed=seed)
    after_BK = shifted(calibrated_BK, logit_shift(fitting_shares, shares))
    before_BK = shifted(special.softmax(logits_BK, axis=1), logit_shift(fitting_shares, shares))
    to_wanted = logit_shift(fitting_shares, wanted.shares)
    probs_BK = shifted(calibrated_BK, to_wanted)
    sets = _sets(probs_BK, labels, groups)
    chosen, warnings = _threshold(probs_BK, labels, groups, sets, wanted)
    about = {
        "calibration": dataclasses.asdict(fitted)
        | out_of_fold.calibration_errors(after_BK, labels, groups)
        | out_of_fold.calibration_errors(before_BK, labels, groups, end="_before"),
        "referral": chosen,
        "sets": _describe_sets(sets, probs_BK),
        "num_images": len(labels),
        "num_groups": len(np.unique(groups)),
        "class_shares": class_shares(labels, len(wanted.shares)).tolist(),
        "prior": wanted.shares.tolist(),
        "origin": unseen.origin,
    }
    predicted = {
        kind: Predicted(image_ids=unseen.image_ids, labels=labels, probs_BK=probs)
        for kind, probs in ((out_of_fold.BEFORE, before_BK), (out_of_fold.AFTER, after_BK))
    }
    to_fitting = logit_shift(wanted.assumed_shares, fitting_shares)
    return Judging(
        shift=(to_fitting + fitted.temperature * (np.asarray(fitted.biases) + to_wanted)).astype(np.float32),
        temperature=fitted.temperature,
        refer_below=chosen["refer_below"],
        set_thresholds=sets.thresholds if sets else None,
        about=about,
        predicted=predicted,
        warnings=warnings,
    )


def _weights(groups: np.ndarray) -> np.ndarray:
    """Returns a weight for each image, float64 [images], with the same sum for each group."""
    index = group_index(groups, len(groups))
    return 1 / np.bincount(index)[index]


def _own_shares(labels: np.ndarray, weights: np.ndarray, wanted: Wanted) -> tuple[np.ndarray, np.ndarray]:
    """Returns the class shares of the images, and of the images with their weights, float64 [K] each.

    A calibration compares probabilities with how often classes occur. Where a class has no image there is nothing to
    compare, and both are the wanted shares.
    """
    num_classes = len(wanted.shares)
    if len(np.unique(labels)) < num_classes:
        return wanted.shares, wanted.shares
    return class_shares(labels, num_classes), class_shares(labels, num_classes, weights)


def _calibrated(
    logits_BK: np.ndarray, labels: np.ndarray, groups: np.ndarray, weights: np.ndarray, *, seed: int
) -> tuple[Calibration, np.ndarray]:
    """Returns a calibration fitted on all images, and the probabilities of each from one fitted without its group.

    It is the identity if the images are too few to fit one.
    """
    num_classes, index = logits_BK.shape[1], group_index(groups, len(labels))
    num_groups = int(index.max()) + 1
    note = ""
    if len(np.unique(labels)) < num_classes:
        note = "Not calibrated: there are not images of every class."
    elif num_groups < NUM_FOLDS:
        note = f"Not calibrated: the images are of {counted(num_groups, 'group')}, and {NUM_FOLDS} are needed."
    if note:
        return _identity(logits_BK, note)
    form = calibration.form_for(labels, num_classes, weights)
    if not form.has_temperature:
        return _identity(logits_BK, form.note)
    fitted = calibration.fit(logits_BK, labels, weights, form)
    probs_BK = np.zeros_like(logits_BK)
    for rest, held_out in GroupKFold(NUM_FOLDS, shuffle=True, random_state=seed).split(logits_BK, groups=index):
        each = calibration.fit(logits_BK[rest], labels[rest], weights[rest], form)
        probs_BK[held_out] = calibration.apply(logits_BK[held_out], each)
    return fitted, probs_BK


def _identity(logits_BK: np.ndarray, note: str) -> tuple[Calibration, np.ndarray]:
    """Returns a calibration that changes nothing, with the reason, and the probabilities."""
    num_images, num_classes = logits_BK.shape
    fitted = Calibration(temperature=1.0, biases=(0.0,) * num_classes, num_images=num_images, note=note)
    return fitted, special.softmax(logits_BK, axis=1)


def _threshold(
    probs_BK: np.ndarray, labels: np.ndarray, groups: np.ndarray, sets: Conformal | None, wanted: Wanted
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns what `Judging.about` says of referrals, and a warning where the wished error rate cannot be shown.

    Ambiguous images are referred whatever their confidence, so only the others choose the threshold.
    """
    is_clear = np.ones(len(labels), bool)
    if sets is not None:
        is_clear = prediction_sets(probs_BK, sets.thresholds).sum(axis=1) == 1
    share, clear_BK, clear_groups = float(is_clear.mean()), probs_BK[is_clear], groups[is_clear]
    confidence, is_right = np.minimum(clear_BK.max(axis=1), 1.0), clear_BK.argmax(axis=1) == labels[is_clear]

    def at(value: float) -> Threshold:
        if not is_clear.any():
            return Threshold(value=value, coverage=0.0, error_rate=math.nan, error_rate_high=1.0)
        return referral.at_threshold(value, confidence, is_right, groups=clear_groups)

    if wanted.refer_below is not None:
        return _describe_threshold(at(wanted.refer_below), share=share, max_error=None, note=""), ()
    if is_clear.any():
        found = referral.choose_threshold(confidence, is_right, max_error=wanted.max_error, groups=clear_groups)
        if found.value != referral.ALL_REFERRED:
            return _describe_threshold(found, share=share, max_error=wanted.max_error, note=""), ()
    note = (
        f"No threshold keeps errors at {100 * wanted.max_error:g} % as far as {counted(len(labels), 'image')} "
        f"({counted(len(np.unique(groups)), 'group')}) can show, so {REFER_BELOW:g} is taken, which promises nothing."
    )
    described = _describe_threshold(at(REFER_BELOW), share=share, max_error=wanted.max_error, note=note)
    return described, (f"{note} Add labelled images of other patients, or choose --refer-below.",)


def _describe_threshold(found: Threshold, *, share: float, max_error: float | None, note: str) -> dict[str, Any]:
    """Returns `referral` of `Judging.about`, given the threshold and the share of images that it was chosen on."""
    return {
        "refer_below": found.value,
        "max_error": max_error,
        "coverage": share * found.coverage,
        "error_rate": None if math.isnan(found.error_rate) else found.error_rate,
        "error_rate_high": found.error_rate_high,
        "note": note,
    }


def _sets(probs_BK: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> Conformal | None:
    """Returns the thresholds of prediction sets; None where a class has no image, or would be in every set.

    Sets that are fitted without images of a class do not cover it; a class is in every set if the images are too few.
    """
    if len(np.unique(labels)) < probs_BK.shape[1]:
        return None
    found = conformal.fit(probs_BK, labels, ALPHA, groups)
    return None if max(found.thresholds) >= 1 else found


def _describe_sets(sets: Conformal | None, probs_BK: np.ndarray) -> dict[str, Any] | None:
    if sets is None:
        return None
    sizes = prediction_sets(probs_BK, sets.thresholds).sum(axis=1)
    return dataclasses.asdict(sets) | {"mean_size": float(sizes.mean())}
