"""Says in sentences what the figures of a model are worth: the answers to "May I believe this?".

The report and the model card show the same sentences, in the same order. Warnings that a command prints come from here,
too. Everything is computed from figures that were measured before; nothing is measured here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tlray.bundle import anatomy, leaks, promises
from tlray.bundle.anatomy import CONTROLS
from tlray.bundle.leaks import LeakSearch
from tlray.bundle.wording import bracketed, percent, unnamed
from tlray.data import audit, label_conflicts
from tlray.errors import counted

MAX_NAMED = 3
"""Maximum number of subgroups that a sentence names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The answer to a question about a model's figures.

    Attributes:
        question: The question, of one line.
        answer: One to three sentences; with the remedy if it is a warning.
        is_warning: The answer is a reason not to believe the figures, or not to rely on a part of the model.
    """

    question: str
    answer: str
    is_warning: bool = False

    @property
    def text(self) -> str:
        """The question and the answer, to be read by themselves."""
        return f"{self.question} {self.answer}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The metrics of a model on one split, with what is known of the model's limits and of the data.

    Attributes:
        split: Name of the split.
        metrics: Its metrics, see `tlray.evaluation.measurement.SplitEvaluation`. Any may be missing, as in bundles of
            earlier versions.
        trust: How the limits of the model were found, see `BundleSpec.trust`; may be empty.
        data: What is known of the images, see `about_data`; empty: nothing.
    """

    split: str
    metrics: Mapping[str, Any]
    trust: Mapping[str, Any]
    data: Mapping[str, Any]

    @property
    def new(self) -> Mapping[str, Any]:
        """The metrics of the images that are new to the model; of all images where these are not told apart."""
        return self.metrics.get("leak_free") or self.metrics

    @property
    def images(self) -> str:
        """The name of the split's images in a sentence, such as `test images`."""
        return "measured images" if self.split == "all" else f"{self.split} images"


def about_data(findings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what an audit knows about how far the figures of a model can be believed; can be written as JSON.

    Args:
        findings: See `tlray.trust.findings.find` and `tlray.data.audit.audit`; parts may be missing. An evaluation's
            have `leak_search`, the fields of `LeakSearch`, and where its files are not those of the training what
            `tlray.trust.elsewhere.find` returns and `training_shortcuts`: what tells the classes of the
            training images without the anatomy, a text each.

    Returns:
        `controls`: name to the control, without those that are not known; `unmeasured`: the names of those that were
        looked for and could not be measured, only if there are any; `neighbours`: split to its number of images that
        are neighbouring slices of images that the model learned from; `has_patients`: see `audit.has_patients`;
        `num_unnamed` of `num_images` images have no named patient, only if it is known; `cut_splits`: which of valid
        and test the data did not have, so that tlray cut them, only if it is known; `conflicting_labels`: see
        `label_conflicts.by_split`, only if there are such images, and `has_more_conflicts` only if it is true: some are
        not counted there. `leak_search` and `training_shortcuts` only if they are there; with the latter
        `has_shortcut`: one was found in these images, too; null if they were not tested.
    """
    num_unnamed, num_images = findings.get("groups", {}).get("num_unnamed"), findings.get("num_readable")
    about: dict[str, Any] = {
        "controls": {name: findings[name] for name in CONTROLS if findings.get(name)},
        "neighbours": dict(findings.get("neighbours", {})),
        "has_patients": audit.has_patients(findings),
    }
    if num_unnamed is not None and num_images is not None:
        about |= {"num_unnamed": num_unnamed, "num_images": num_images}
    given = findings.get("split_shortcuts", {}).get("given")
    if given is not None:
        about["cut_splits"] = [split for split in ("valid", "test") if split not in given]
    conflicts = label_conflicts.conflicts(findings)
    if conflicting := label_conflicts.by_split(conflicts):
        about["conflicting_labels"] = conflicting
        if label_conflicts.is_partial(conflicts):
            about["has_more_conflicts"] = True
    unmeasured = [name for name in CONTROLS if name in findings and findings[name] is None]
    if unmeasured:
        about["unmeasured"] = unmeasured
    if "training_shortcuts" in findings:
        tested = findings.get("shortcuts", {})
        about["has_shortcut"] = bool(tested["found"]) if tested.get("num_folds") else None
    return about | {name: findings[name] for name in ("leak_search", "training_shortcuts") if name in findings}


def verdicts(measured: Measured) -> dict[str, Verdict]:
    """Returns what the figures are worth, by topic, in the order in which they are to be read.

    Topics are `leaks`, `controls`, `labels`, `calibration`, `referral`, `coverage` and `subgroups`; those of which
    nothing is known are left out.
    """
    topics: dict[str, Callable[[Measured], Verdict | None]] = {
        "leaks": _leaks,
        "controls": _controls,
        "labels": _labels,
        "calibration": _calibration,
        "referral": _referral,
        "coverage": _coverage,
        "subgroups": _subgroups,
    }
    found = ((topic, judge(measured)) for topic, judge in topics.items())
    return {topic: verdict for topic, verdict in found if verdict is not None}


def warnings(measured: Measured) -> tuple[str, ...]:
    """Returns the answers that a user must know of, the gravest first.

    That no threshold was found is not among them: training warns of it where it looks for one. Nor is it that labels
    without meaning are told, or that copies have different labels: the audit of a training warns of that.
    """
    found = verdicts(measured)
    has_threshold = not (measured.trust.get("referral") or {}).get("note")
    is_doubtful = _files_do_as_well(measured) or bool(measured.data.get("training_shortcuts"))
    controls, referral = ["controls"] * is_doubtful, ["referral"] * has_threshold
    labels = ["labels"] * ("leak_search" in measured.data)  # it is an evaluation, which has no such audit
    topics = (*controls, *labels, *referral, "calibration", "coverage", "subgroups")
    return tuple(found[topic].answer for topic in topics if topic in found and found[topic].is_warning)


def _leaks(measured: Measured) -> Verdict | None:
    search = measured.data.get("leak_search")
    found = leaks.answer(
        measured.images,
        measured.metrics,
        num_near=measured.data.get("neighbours", {}).get(measured.split, 0),
        search=None if search is None else LeakSearch(**search),
    )
    if found is None:
        return None
    answer, is_warning = found
    return Verdict(question="Has the model seen these images before?", answer=answer, is_warning=is_warning)


def _controls(measured: Measured) -> Verdict | None:
    sentences = [
        *anatomy.training_texts(measured.data),
        *anatomy.measured_texts(measured.data, split=measured.split),
        *anatomy.unmeasured_texts(measured.data, knows_all=leaks.knows_all(measured.metrics)),
    ]
    if not sentences:
        return None
    is_warning = bool(measured.data.get("training_shortcuts"))
    permuted = measured.data.get("controls", {}).get("permuted_control")
    if permuted and permuted["is_above_chance"]:
        is_warning = True
        sentences.append("Shuffled labels should not be told: training and test images must be related.")
    if _files_do_as_well(measured):
        is_warning = True
        right = f"{percent(measured.new['accuracy'])}{bracketed(measured.new.get('accuracy_ci95'))}"
        sentences.insert(0, f"These images do not show that the model needs the anatomy. It is right in {right}.")
    return Verdict(question="Does it need the anatomy?", answer=" ".join(sentences), is_warning=is_warning)


def traits_control(measured: Measured) -> Mapping[str, Any] | None:
    """Returns the control on traits of the files that the model can be compared with: one on the measured split.

    Returns:
        See `tlray.trust.findings.find`; None if there is no such control, or it was measured on another split.
    """
    found = measured.data.get("controls", {}).get("traits_control")
    return found if found and found["split"] == measured.split else None


def _files_do_as_well(measured: Measured) -> bool:
    """Tells whether the traits of the files predict the classes as well as the model may, within its interval."""
    traits = traits_control(measured)
    low, _ = measured.new.get("accuracy_ci95") or (1.0, 1.0)
    return bool(traits and traits["is_above_chance"] and traits["accuracy"] >= low)


def not_better_than_files(measured: Measured) -> str:
    """Returns a sentence with the accuracy of the model and of the files' traits; empty if the model is shown better.

    It is empty, too, if the traits were not measured on this split.
    """
    traits = traits_control(measured)
    if traits is None or not _files_do_as_well(measured):
        return ""
    return (
        "The model is not shown to be better than a look at how the files were made: it is right in "
        f"{percent(measured.new['accuracy'])} of the {measured.images}, a random forest that sees nothing else in "
        f"{percent(traits['accuracy'])}."
    )


def _labels(measured: Measured) -> Verdict | None:
    """Returns a warning if measured images have a copy with another label; otherwise None."""
    found = measured.data.get("conflicting_labels", {})
    # An evaluation of other data than the model's calls its only split `measured`.
    of_images = found if measured.split == "all" else (measured.split, "measured")
    num_images = sum(found.get(split, 0) for split in of_images if split != "training")
    if not num_images:
        return None
    least = "at least " if measured.data.get("has_more_conflicts") else ""
    return Verdict(
        question="Does each picture have one label?",
        answer=(
            f"No: {least}{num_images} of the {measured.images} {'has' if num_images == 1 else 'have'} a copy with "
            "another label. One of the two labels is wrong, and a model that is right about the picture counts as "
            "wrong where it has that label. Correct the labels."
        ),
        is_warning=True,
    )


def _calibration(measured: Measured) -> Verdict | None:
    return _verdict("Can its confidence be read as a probability?", promises.calibration(measured.new, measured.trust))


def _referral(measured: Measured) -> Verdict | None:
    found = promises.referral(measured.images, measured.new, measured.trust)
    return _verdict("Does it know when it is wrong?", found)


def _coverage(measured: Measured) -> Verdict | None:
    found = promises.coverage(measured.images, measured.new, measured.trust)
    return _verdict("Do its prediction sets have the true class?", found)


def _verdict(question: str, found: tuple[str, bool] | None) -> Verdict | None:
    """Returns a verdict, given the answer and whether it is a warning; None: nothing is known."""
    return None if found is None else Verdict(question=question, answer=found[0], is_warning=found[1])


def _subgroups(measured: Measured) -> Verdict | None:
    found = measured.metrics.get("subgroups")
    if not found:
        return None
    looked_at = f"{counted(found['num_looked_at'], 'subgroup')} of the {measured.images}"
    worse = [each for each in found["lowest"] if each["is_worse"]]
    if not found["num_looked_at"]:
        answer = (
            "Not known: nothing that is known of the images here divides them into two kinds with enough of each. "
            "Columns such as scanner or hospital in the table of --data are looked at."
        )
    elif not worse:
        answer = (
            f"In none of {looked_at} (by size, format, mode, table column) is it significantly worse than on all of "
            "them."
        )
    else:
        named = "; ".join(
            f"{subgroup_name(each)} {percent(each['accuracy'])}{bracketed(each['accuracy_ci95'])}"
            for each in worse[:MAX_NAMED]
        )
        num_worse = found.get("num_worse", len(worse))  # bundles of earlier versions do not have it
        more = f"; and {num_worse - MAX_NAMED} more" if num_worse > MAX_NAMED else ""
        answer = (
            f"It is significantly worse than overall ({percent(measured.new['accuracy'])}) for {named}{more}. This is "
            f"of {looked_at} that were looked at; about 1 in 40 would seem worse by chance. Add training images like "
            "these, or do not use the model for them."
        )
    answer = f"{answer}{_lowest(measured)}"
    return Verdict(question="Are there images for which it is worse?", answer=answer, is_warning=bool(worse))


def lowest_sensitivity(metrics: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    """Returns the class with the lowest sensitivity, and its values in `per_class`; None if no class has images."""
    known = [(name, each) for name, each in metrics.get("per_class", {}).items() if each.get("recall") is not None]
    return min(known, key=lambda each: each[1]["recall"], default=None)


def _lowest(measured: Measured) -> str:
    """Returns a sentence about the class with the lowest sensitivity, with a space before it; empty: none is known."""
    lowest = lowest_sensitivity(measured.new)
    if lowest is None:
        return ""
    name, of_class = lowest
    found = f"{percent(of_class['recall'])} of {of_class['support']} images{bracketed(of_class.get('recall_ci95'))}"
    return f" The class with the lowest sensitivity is {name}: {found}."


def subgroup_name(found: Mapping[str, Any]) -> str:
    """Returns the name of a subgroup for people, see `tlray.trust.subgroups.find`."""
    return f"{found['column']} {found['value']}"


def limits(measured: Measured) -> list[str]:
    """Returns what the figures cannot tell, a sentence each."""
    found = [
        "How it does elsewhere: the images are of one data set. Evaluate the model again for another scanner, "
        "hospital, reconstruction or population.",
        "Whether the labels are right: the figures take them as they are given.",
    ]
    if measured.data.get("has_patients") is False:
        # Bundles of earlier versions do not count the images.
        num_unnamed, num_images = (measured.data.get(name, 0) for name in ("num_unnamed", "num_images"))
        found.append(
            f"Which images are of one patient: {unnamed(num_unnamed, num_images)}. Images without a named patient, but "
            "for known copies and neighbouring slices, count as those of different patients. Where that is wrong, the "
            "figures are too good, and the intervals too narrow."
        )
    if measured.split in measured.data.get("cut_splits", ()):
        found.append(
            f"How it does on images that somebody else has set aside: the data has no split {measured.split}, so tlray "
            "cut it from train."
        )
    if measured.split == "valid":
        found.append(
            "How good it is on images that chose nothing: the epoch or the settings were chosen on validation images, "
            "so figures of those are too good."
        )
    return [
        *found,
        "What it does with another disease, or with no chest CT: every image gets one of the classes.",
        "What a volume or a history would add: the model sees a single slice, scaled down to its input size.",
        "What it would change for a patient: that takes a clinical study.",
    ]
