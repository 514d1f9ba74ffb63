"""What speaks against the figures of an evaluation, on the data that the model was trained on and on other data."""

import dataclasses
import functools
import re
from typing import Any

import numpy as np
import pytest

from tests.unit.bundle.test_spec import SPEC
from tests.unit.evaluation.test_scope import LISTED, chosen, earlier, trained_on, with_own_files
from tlray.bundle.leaks import NOTHING, LeakSearch
from tlray.bundle.spec import BundleSpec
from tlray.data import manifest
from tlray.evaluation import doubts, measurement
from tlray.evaluation.doubts import Doubts
from tlray.evaluation.measurement import SplitEvaluation
from tlray.evaluation.report import Report, make_figures, render_report
from tlray.evaluation.scope import Scope

SHORTCUT = "Classes can be told without looking at the anatomy: the corners alone reach a balanced accuracy of 0.74."
LEAK = "3 images are copies of one another."
CONTROL = {"accuracy": 0.9, "chance": 0.25, "split": "test", "is_above_chance": True}
NONE_TELLS = "No check in this report speaks against it, but none tells whether the model needs the anatomy."
SEARCH = dataclasses.asdict(LeakSearch(among=NOTHING))


def knowing(spec: BundleSpec) -> BundleSpec:
    """A bundle whose training found a shortcut, a leak, and that files tell the classes; it had no features."""
    data = {"controls": {"traits_control": CONTROL}, "unmeasured": ["neighbour_control", "permuted_control"]}
    return dataclasses.replace(spec, shortcuts=(SHORTCUT,), leaks=(LEAK,), trust={"data": data})


OWN, OTHER = knowing(trained_on(LISTED)), knowing(SPEC)


def evaluation(*, accuracy: float = 0.75) -> SplitEvaluation:
    """Forty images of as many patients; the model is as often right as it is confident."""
    labels = np.arange(40) % 2
    is_right = np.arange(40) < 40 * accuracy
    predicted = np.where(is_right, labels, 1 - labels)
    return measurement.measure_probabilities(
        labels,
        np.where(np.arange(2) == predicted[:, None], accuracy, 1 - accuracy),
        ("a", "b"),
        groups=np.arange(40).astype(str),
        image_ids=np.arange(40).astype(str),
        ood_scores=np.full(40, np.nan, np.float32),
        limits=SPEC.limits,
    )


def evaluated(spec: BundleSpec, images: Scope, split: str = "test") -> tuple[Doubts, dict[str, Any]]:
    """Returns the doubts of an evaluation, and its findings, as `evaluate` puts them together."""
    known = {name: getattr(images, name) for name in ("is_own", "knows_splits", "has_own_files")}
    search = LeakSearch(among=NOTHING, **known)
    findings = {"errors": {}, "leak_search": dataclasses.asdict(search)}
    findings |= doubts.findings_of_training(spec, images)
    return doubts.find(spec, split, evaluation(), findings, images=images), findings


@functools.cache
def figures(split: str) -> dict[str, bytes]:
    """Returns the figures of a report, which take most of the time."""
    return make_figures(Report(title="Evaluation", evaluations={split: evaluation()}))


def shown(told: Doubts, findings: dict[str, Any], split: str = "test") -> str:
    """Returns the text of a report."""
    report = Report(
        title="Evaluation",
        audit=findings,
        leaks=told.leaks,
        shortcuts=told.shortcuts,
        warnings=told.warnings,
        evaluations={split: evaluation()},
    )
    page = re.sub(r"<[^>]*>", "", render_report(report, figures(split)))
    return " ".join(page.split())


def test_a_shortcut_of_the_models_own_data_is_the_first_warning_and_stands_above_the_figures():
    told, findings = evaluated(OWN, with_own_files(OWN, LISTED, "test"))
    assert told.shortcuts == (SHORTCUT,)
    assert told.warnings[:2] == (SHORTCUT, LEAK)
    assert told.warnings[2].startswith("These images do not show that the model needs the anatomy. It is right in 75.0")
    text = shown(told, findings)
    assert text.index("Do not believe these numbers yet") < text.index(SHORTCUT) < text.index("Research tool")
    assert text.count(SHORTCUT) == 1
    assert "Not yet. The box at the top says why" in text
    assert "No check in this report speaks against it" not in text
    assert "A random forest that sees only how the files were made is right in 90.0 % (by chance 25.0 %)." in text
    assert "were not measured, because this takes features of a frozen network" in text


def test_where_the_model_knows_all_images_that_comes_before_the_shortcuts():
    known = dataclasses.replace(evaluation(), metrics={**evaluation().metrics, "num_leaked": 40})
    images = with_own_files(OWN, LISTED, "test")
    told = doubts.find(OWN, "test", known, {"errors": {}, "leak_search": SEARCH}, images=images)
    assert told.warnings[0].startswith("The model knows all 40 images from its training")
    assert told.warnings.index(SHORTCUT) == len(told.leaks)


def test_controls_are_those_of_the_trainings_splits():
    assert doubts.findings_of_training(OWN, with_own_files(OWN, LISTED, "test")) == {
        "traits_control": CONTROL,
        "neighbour_control": None,
        "permuted_control": None,
    }
    # On other images of the same data they are told with the name of their split, and are no warning.
    told, findings = evaluated(OWN, with_own_files(OWN, LISTED, "all"), "all")
    assert told.warnings == (SHORTCUT, LEAK)
    assert "is right in 90.0 % of the new test images" in shown(told, findings, "all")
    # The same images with other splits: their test images are not those of the training.
    swapped = [{"train": "test", "valid": "valid", "test": "train"}[each] for each in LISTED["split"].to_pylist()]
    others = with_own_files(OWN, manifest.with_column(LISTED, "split", swapped), "test")
    assert others.is_own
    assert doubts.findings_of_training(OWN, others) == {"training_shortcuts": [SHORTCUT]}
    told, _ = evaluated(OWN, others)
    assert (told.shortcuts, told.leaks) == ((), (LEAK,))


def test_files_that_have_changed_since_the_training_are_told_and_judged_as_those_of_other_data():
    """The shortcut and the control of the training are of the old files."""
    others = dataclasses.replace(with_own_files(OWN, LISTED, "test"), has_own_files=False)
    told, findings = evaluated(OWN, others)
    assert (told.shortcuts, told.leaks) == ((), ())
    files, of_model, of_leak = told.warnings
    assert files == doubts.OTHER_FILES
    assert "it is not known whether these images have it, too." in of_model
    assert of_model.endswith(f"Found in training: {SHORTCUT}")
    assert of_leak == f"Among the images that the model was trained and measured on: {LEAK}"
    text = shown(told, findings)
    assert "Do not believe these numbers yet" not in text
    assert "is right in 90.0 %" not in text


def test_a_bundle_of_an_earlier_version_does_not_know_whether_these_are_the_files_of_its_shortcut():
    spec = earlier(OWN)
    told, _ = evaluated(spec, with_own_files(spec, LISTED, "test"))
    assert (told.shortcuts, told.leaks) == ((), (LEAK,))
    assert told.warnings[0] == LEAK
    assert SHORTCUT in told.warnings[1]
    assert doubts.OTHER_FILES not in told.warnings


@pytest.mark.parametrize("split", ["valid", "all"])
def test_a_control_on_other_images_does_not_tell_whether_the_model_needs_the_anatomy(split):
    """It was measured on the test images of the training, so the model is not compared with it."""
    spec = dataclasses.replace(OWN, shortcuts=(), leaks=())
    told, findings = evaluated(spec, with_own_files(spec, LISTED, split), split)
    assert told.warnings == ()
    text = shown(told, findings, split)
    assert "is right in 90.0 % of the new test images" in text
    assert NONE_TELLS in text


def test_a_shortcut_of_the_training_images_is_a_doubt_about_the_model_on_other_images():
    images = chosen(OTHER, LISTED, "test")
    assert not images.is_own
    told, findings = evaluated(OTHER, images)
    assert (told.shortcuts, told.leaks) == ((), ())
    of_model, of_leak = told.warnings
    assert of_model == (
        "The images that the model was trained on have a shortcut, which it may have learned; it is not known whether "
        f"these images have it, too. Found in training: {SHORTCUT}"
    )
    assert of_leak == f"Among the images that the model was trained and measured on: {LEAK}"
    text = shown(told, findings)
    assert "Do not believe these numbers yet" not in text
    assert "No check in this report speaks against it" not in text
    assert "Not without care. Of the 4 answers in this report, 1 is a reason for doubt" in text
    assert f"Does it need the anatomy? Careful. {of_model}" in text
    assert "is right in 90.0 %" not in text


def test_a_bundle_without_findings_adds_none():
    for spec in (trained_on(LISTED), SPEC):
        assert doubts.findings_of_training(spec, with_own_files(spec, LISTED, "test")) == {}
    told, findings = evaluated(dataclasses.replace(SPEC, leaks=()), chosen(SPEC, LISTED, "test"))
    assert told == Doubts(shortcuts=(), leaks=(), warnings=())
    assert NONE_TELLS in shown(told, findings)


def test_files_that_cannot_be_used_are_told_before_what_other_images_had():
    findings = {"errors": {"empty": {"num_images": 2}}}
    told = doubts.find(OTHER, "test", evaluation(), findings, images=chosen(OTHER, LISTED, "test"))
    assert told.warnings[0] == "2 images could not be used: empty."
    assert told.warnings[1].endswith(LEAK)


def test_images_that_the_model_knows_are_warned_of():
    assert doubts.leak_warnings({"num_images": 9}) == ()
    assert doubts.leak_warnings({"num_images": 9, "num_leaked": 0, "leak_free": None}) == ()
    for accuracy, verb in ((0.5, "are"), (0.9, "may be")):
        metrics = {"num_images": 9, "num_leaked": 4, "accuracy": 0.75, "leak_free": {"accuracy": accuracy}}
        assert doubts.leak_warnings(metrics) == (
            f"The model knows 4 of the 9 images from its training, so the metrics of all images {verb} too good: quote "
            "those of the new images.",
        )
    (whole,) = doubts.leak_warnings({"num_images": 9, "num_leaked": 9, "leak_free": None})
    assert whole.startswith("The model knows all 9 images from its training: measure it on images of other patients.")
    # What the training has found says why some images are known, but not that all are.
    assert doubts.all_leaks(("Copies.",), {"num_images": 9, "num_leaked": 9, "leak_free": None}) == (whole, "Copies.")
    assert doubts.all_leaks(("Copies.",), metrics) == ("Copies.",)
    assert doubts.all_leaks((), metrics) == doubts.leak_warnings(metrics)


@pytest.mark.parametrize("is_known", [False, True])
def test_a_doubt_about_leaks_comes_with_its_question(is_known):
    blind = {"errors": {}, "leak_search": dataclasses.asdict(LeakSearch(among=NOTHING, is_own=True))}
    measured = measurement.with_leak_free(evaluation(), set(map(str, range(40)))) if is_known else evaluation()
    told = doubts.find(SPEC, "all", measured, blind, images=chosen(SPEC, LISTED, "all")).warnings
    question = "Has the model seen these images before? Not known. The bundle keeps no pictures"
    assert told[0].startswith("The model knows all 40 images" if is_known else question)
    assert any("seen these images" in each for each in told) != is_known
