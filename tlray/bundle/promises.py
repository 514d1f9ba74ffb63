"""Says whether measured figures keep what a model promises of a prediction: its confidence, its referral, its set.

`tlray.bundle.verdicts` answers its questions about calibration, referral and coverage with these sentences.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tlray.bundle.wording import bracketed, percent

LITTLE = 0.05
"""Share of referred images below which a model is said to refer hardly anything."""

MAX_CALIBRATION_ERROR = 0.1
"""Expected calibration error above which a confidence is no probability, if it is surely larger. The confidence is then
more than ten percentage points off on average, as if 80 % of the predictions with a confidence of 0.9 were right."""

MAX_ONE_IN = 0.1
"""Error rate up to which a sentence says "1 in N". Above it, whole numbers are too coarse: 0.4 and 0.45 would be the
same."""

MAX_OTHER_SHARES = 0.1
"""Half the sum of the differences between two sets of class shares up to which they count as alike. If nothing but the
class shares differs between two sets of images, the share of wrong predictions differs by at most this."""


def calibration(metrics: Mapping[str, Any], trust: Mapping[str, Any]) -> tuple[str, bool] | None:
    """Answers whether a confidence can be read as a probability.

    Args:
        metrics: The metrics of the images that are new to the model, see `tlray.evaluation.measurement.with_leak_free`;
            any may be missing.
        trust: How the limits of the model were found, see `tlray.bundle.spec.BundleSpec`; may be empty.

    Returns:
        Sentences, and whether they are a reason for doubt. None: nothing is known.
    """
    error = metrics.get("ece")
    if error is None:
        return None
    ends = bracketed(metrics.get("ece_ci95"), lambda end: f"{100 * end:.1f}")
    low, _ = metrics.get("ece_ci95") or (None, None)
    counts = [each["support"] for each in metrics.get("per_class", {}).values()]
    others = _other_shares([count / sum(counts) for count in counts], metrics, trust)
    condition = f" These images have other class shares than its probabilities assume ({others})." if others else ""
    if low is not None and low > MAX_CALIBRATION_ERROR:
        remedy = (
            "Measure it on images with the assumed shares, or give the model those of these images (`tlray train "
            "--prior`, `tlray export --data`)."
            if others
            else "Either do not read it as a probability, or calibrate it with images like these: as validation images "
            "of a training, or by `tlray export --data`."
        )
        return (
            f"The confidence is on average {100 * error:.1f} percentage points{ends} away from how often the model is "
            f"right (expected calibration error), surely more than {100 * MAX_CALIBRATION_ERROR:g}.{condition} {remedy}"
        ), True
    return (
        f"Within about {100 * error:.1f} percentage points{ends}: that is its mean distance from how often the model "
        "is right (expected calibration error). 0 is perfect. On few images, the measured error is above 0 even for a "
        f"perfect model.{condition}"
    ), False


def _other_shares(shares: Sequence[float], metrics: Mapping[str, Any], trust: Mapping[str, Any]) -> str:
    """Returns how class shares differ from those that the probabilities assume, for the class with the most difference.

    Args:
        shares: The class shares of some images, in the order of the classes; may be empty.
        metrics: See `calibration`.
        trust: See `calibration`.

    Returns:
        A part of a sentence; empty if they are alike, or are not known.
    """
    classes, prior = metrics.get("classes", ()), trust.get("prior") or ()
    if not len(shares) == len(prior) == len(classes):
        return ""
    # Of two classes both differ alike, but for rounding: the first one is named.
    differences = [round(abs(share - assumed), 9) for share, assumed in zip(shares, prior, strict=True)]
    if sum(differences) / 2 <= MAX_OTHER_SHARES:
        return ""
    most = differences.index(max(differences))
    return f"{classes[most]}: {percent(shares[most])} of the images, {percent(prior[most])} assumed"


def referral(images: str, metrics: Mapping[str, Any], trust: Mapping[str, Any]) -> tuple[str, bool] | None:
    """Answers whether a model refers to a person what it gets wrong.

    Args:
        images: The name of the images in a sentence, such as `test images`.
        metrics: See `calibration`.
        trust: See `calibration`.

    Returns:
        See `calibration`.
    """
    chosen = trust.get("referral") or {}
    num_images, num_referred = metrics.get("num_images"), metrics.get("num_referred")
    rate, wanted = metrics.get("accepted_error_rate"), chosen.get("max_error")
    if num_images is None or num_referred is None:
        return None
    if rate is None:
        return f"It decides nothing by itself: all {num_images} images are referred to a person.", True
    if wanted is not None and chosen.get("note"):
        is_little = num_referred < LITTLE * num_images
        of = f"{num_referred} of {num_images} {images}"
        refers = f"the model refers {'hardly anything, ' if is_little else ''}{of}"
        tried, _, _ = trust.get("origin", "images").partition(",")
        shown = "" if trust.get("num_images") is None else f", as far as {trust['num_images']} {tried} can show"
        return (
            f"No threshold keeps errors at {100 * wanted:g} %{shown}: "
            f"{refers}, and {_one_in(rate)} wrong. {'Referral does nothing here. ' if is_little else ''}Let a person "
            "look at every image, or add labelled images of other patients, and train or export again; --refer-below "
            "sets a threshold by hand."
        ), True
    answer = (
        f"It refers {num_referred} of {num_images} images to a person{bracketed(metrics.get('referred_share_ci95'))}. "
        f"Of those that it accepts, {percent(rate)} are wrong{bracketed(metrics.get('accepted_error_rate_ci95'))}"
    )
    if wanted is None:
        return f"{answer}.", False
    others = _other_shares(trust.get("class_shares") or (), metrics, trust)
    condition = (
        f" The threshold was chosen on images with other class shares than its probabilities assume ({others}): with "
        "the assumed shares, more of the accepted answers may be wrong."
        if others
        else ""
    )
    low, _ = metrics.get("accepted_error_rate_ci95") or (0.0, 1.0)
    if low <= wanted:
        return f"{answer}; at most {100 * wanted:g} % were wanted.{condition}", False
    return (
        f"{answer}, surely more than the {100 * wanted:g} % that the threshold was chosen for. These images are unlike "
        f"those that it was chosen on: let a person look at every one, or train with images like these.{condition}"
    ), True


def _one_in(rate: float) -> str:
    """Returns an error rate with its subject and verb, such as `1 in 20 accepted answers is`; see `MAX_ONE_IN`."""
    if not rate:
        return "none of the accepted answers here is"
    if rate > MAX_ONE_IN:
        return f"{percent(rate)} of the accepted answers are"
    return f"1 in {round(1 / rate)} accepted answers is"


def coverage(images: str, metrics: Mapping[str, Any], trust: Mapping[str, Any]) -> tuple[str, bool] | None:
    """Answers whether prediction sets have the true class as often as they should; see `referral`."""
    covered, ends, size = metrics.get("set_coverage"), metrics.get("set_coverage_ci95"), metrics.get("mean_set_size")
    sets = trust.get("sets") or {}
    if covered is None or size is None:
        return None
    of_size = bracketed(metrics.get("mean_set_size_ci95"), lambda end: f"{end:.1f}")
    answer = (
        f"The prediction set (the classes that may be right) has the true class for {percent(covered)} of the "
        f"{images}{bracketed(ends)}, with {size:.1f} classes on average{of_size}"
    )
    if "alpha" not in sets:
        return f"{answer}.", False
    wanted = 1 - sets["alpha"]
    if covered >= wanted:
        return f"{answer}; {100 * wanted:g} % were wanted.", False
    if ends is None or ends[1] >= wanted:
        return f"{answer}: less often than in the {100 * wanted:g} % that were wanted, though perhaps by chance.", False
    return (
        f"{answer}: significantly less often than in the {100 * wanted:g} % that were wanted. Do not take a set for "
        "complete; more validation images of other patients make better sets."
    ), True
