"""Collects what speaks against the figures of an evaluation, the gravest first.

Some of it was found in the measured images, such as shortcuts in other data than the model's. The rest was found by the
training of the model in its own data, and its bundle tells it: it concerns the figures where the measured files are of
that data, and otherwise the model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tlray.bundle import verdicts
from tlray.bundle.leaks import knows_all, verb
from tlray.bundle.spec import BundleSpec
from tlray.errors import counted
from tlray.evaluation.measurement import SplitEvaluation
from tlray.evaluation.scope import Scope
from tlray.trust.finding_warnings import shortcut_warnings

OTHER_IMAGES = "Among the images that the model was trained and measured on: {}"
"""Warning about leaks in a bundle's own data, shown where other images are measured."""

OTHER_FILES = (
    "The images have the ids of those that the model was trained and measured on, but not all of their files are those "
    "that its training read. So shortcuts and controls are those of these files. Images that the model learned from "
    "are known by their ids, and copies of them by the pictures in the bundle."
)
"""Warning where the files of a model's own data set have changed since its training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubts:
    """Warnings about the figures of an evaluation.

    Attributes:
        shortcuts: What tells the classes of the images without the anatomy; empty if nothing is known to.
        leaks: Why the metrics may be too good; empty if no leak is known.
        warnings: All warnings, with these two, the gravest first.
    """

    shortcuts: tuple[str, ...]
    leaks: tuple[str, ...]
    warnings: tuple[str, ...]


def findings_of_training(spec: BundleSpec, images: Scope) -> dict[str, Any]:
    """Returns what the training of a model found, as findings to be added to those of an evaluation.

    Args:
        spec: The description of the model's bundle.
        images: The images that the evaluation looks at.

    Returns:
        For the files that the training read its controls by name, see `tlray.trust.findings.find`; null for those that
        could not be measured. For others, and for a split of the same images with another content,
        `training_shortcuts`, see `verdicts.about_data`; left out if there are none.
    """
    if not images.has_own_files:
        return {"training_shortcuts": list(spec.shortcuts)} if spec.shortcuts else {}
    data = spec.trust.get("data", {})
    return {**dict.fromkeys(data.get("unmeasured", ())), **data.get("controls", {})}


def find(
    spec: BundleSpec, split: str, evaluation: SplitEvaluation, findings: Mapping[str, Any], *, images: Scope
) -> Doubts:
    """Returns what speaks against the figures of an evaluation.

    Args:
        spec: The description of the bundle that predicted.
        split: Name of the measured split, or `all`.
        evaluation: Its evaluation.
        findings: What is known of the images: see `tlray.data.audit.audit`, `Relations.findings`,
            `tlray.evaluation.image_controls.find` and `findings_of_training`.
        images: The images that the evaluation looks at. Where their files are those that the training read, what it
            found concerns these figures.
    """
    shortcuts = spec.shortcuts if images.has_own_files else tuple(shortcut_warnings(findings))
    has_leaks = images.is_own and images.has_own_files is not False
    leaks = all_leaks(spec.leaks if has_leaks else (), evaluation.metrics)
    elsewhere = () if has_leaks else map(OTHER_IMAGES.format, spec.leaks)
    changed = (OTHER_FILES,) if images.has_own_files is False else ()
    answers = _answers(split, evaluation, spec, findings)
    # Of images that the model knows, figures say nothing at all, not even about shortcuts.
    gravest = (*leaks, *shortcuts) if knows_all(evaluation.metrics) else (*shortcuts, *leaks)
    warnings = (*gravest, *changed, *answers, *failure_warnings(findings), *elsewhere)
    return Doubts(shortcuts=shortcuts, leaks=leaks, warnings=warnings)


def all_leaks(known: tuple[str, ...], metrics: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns why metrics may be too good, the gravest first.

    Args:
        known: Leaks that were found in these images when the bundle was trained. They say why the model knows some
            images, but not that it knows all of them.
        metrics: The metrics of all images, see `measurement.with_leak_free`.
    """
    found = leak_warnings(metrics)
    return (*found, *known) if knows_all(metrics) else known or found


def leak_warnings(metrics: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns a warning about images that the model knows; none if it knows none of them, as far as that was found.

    Args:
        metrics: The metrics of all images, see `measurement.with_leak_free`.
    """
    num_leaked, num_images = metrics.get("num_leaked"), metrics["num_images"]
    if not num_leaked:
        return ()
    if knows_all(metrics):
        return (f"The model knows all {num_images} images from its training: measure it on images of other patients.",)
    return (
        f"The model knows {num_leaked} of the {num_images} images from its training, so the metrics of all images "
        f"{verb({'all': metrics})} too good: quote those of the new images.",
    )


def _answers(split: str, evaluation: SplitEvaluation, spec: BundleSpec, findings: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns warnings about what the figures are worth: that about leaks, which training gives from its audit, too.

    The answer about leaks comes with its question, without which it says nothing. It is left out where the model knows
    all images, as `leak_warnings` says that.
    """
    about = verdicts.Measured(
        split=split, metrics=evaluation.metrics, trust=spec.trust, data=verdicts.about_data(findings)
    )
    told = None if knows_all(evaluation.metrics) else verdicts.verdicts(about).get("leaks")
    return (*([told.text] if told and told.is_warning else []), *verdicts.warnings(about))


def failure_warnings(findings: Mapping[str, Any]) -> list[str]:
    """Returns a warning for each kind of error because of which images could not be used."""
    return [
        f"{counted(value['num_images'], 'image')} could not be used: {code}."
        for code, value in findings["errors"].items()
    ]
