"""What the figures of a model are worth, in sentences."""

import dataclasses
import json
from typing import Any

import pytest

from tlray.bundle import verdicts
from tlray.bundle.verdicts import Measured, Verdict

TRUST = {
    "referral": {"max_error": 0.05, "note": ""},
    "sets": {"alpha": 0.1},
    "num_images": 584,
}
CONTROL = {"accuracy": 0.6, "chance": 0.25, "split": "test", "is_above_chance": True}


def measured(trust: dict[str, Any] | None = None, data: dict[str, Any] | None = None, **metrics: Any) -> Measured:
    known = {"num_images": 100, "accuracy": 0.8, "accuracy_ci95": [0.7, 0.87]} | metrics
    return Measured(split="test", metrics=known, trust=TRUST if trust is None else trust, data=data or {})


def judge(topic: str, *args: Any, **kwargs: Any) -> Verdict:
    return verdicts.verdicts(measured(*args, **kwargs))[topic]


def test_what_is_not_known_is_left_out():
    assert verdicts.verdicts(measured({})) == {}
    assert verdicts.warnings(measured({})) == ()


def test_coverage_within_and_below_what_was_wanted():
    fine = judge("coverage", set_coverage=0.92, set_coverage_ci95=[0.85, 0.96], mean_set_size=1.25)
    assert not fine.is_warning
    assert fine.answer.endswith("on average; 90 % were wanted.")
    by_chance: dict[str, Any] = {"set_coverage": 0.802, "set_coverage_ci95": [0.473, 0.948], "mean_set_size": 1.0}
    below = judge("coverage", **by_chance)
    assert below.answer == (
        "The prediction set (the classes that may be right) has the true class for 80.2 % of the test images (95 % "
        "interval 47.3 % to 94.8 %), with 1.0 classes on average: less often than in the 90 % that were wanted, though "
        "perhaps by chance."
    )
    # Many sets that keep their word have less than 90 % on some images, by chance.
    assert not below.is_warning
    assert verdicts.warnings(measured(**by_chance)) == ()
    for ends, is_warning in (([0.6, 0.9], False), ([0.6, 0.89], True), (None, False)):
        found = judge("coverage", set_coverage=0.8, set_coverage_ci95=ends, mean_set_size=1.0)
        assert found.is_warning == is_warning
        assert ("significantly less often than in the 90 % that were wanted" in found.answer) == is_warning
    unknown = judge("coverage", {}, set_coverage=0.5, set_coverage_ci95=[0.4, 0.6], mean_set_size=1.0)
    assert not unknown.is_warning


def test_a_confidence_that_is_surely_far_off_is_warned_of_with_the_remedy():
    for low, is_warning in ((0.0, False), (0.1, False), (0.11, True), (None, False)):
        found = judge("calibration", ece=0.18, ece_ci95=[low, None if low is None else 0.25])
        assert found.is_warning == is_warning
        assert found.answer.startswith("The confidence is on" if is_warning else "Within about 18.0 percentage points")
        told = verdicts.warnings(measured(ece=0.18, ece_ci95=[low, 0.25]))
        assert told == ((found.answer,) if is_warning else ())
    far = judge("calibration", ece=0.18, ece_ci95=[0.11, 0.25])
    assert far.answer == (
        "The confidence is on average 18.0 percentage points (95 % interval 11.0 to 25.0) away from how often the "
        "model is right (expected calibration error), surely more than 10. Either do not read it as a probability, or "
        "calibrate it with images like these: as validation images of a training, or by `tlray export --data`."
    )
    assert not judge("calibration", ece=0.18).is_warning


NO_THRESHOLD = {"referral": {"max_error": 0.05, "note": "None."}, "num_images": 584}


def test_without_a_threshold_this_is_said_with_the_remedy():
    little = judge("referral", NO_THRESHOLD, num_referred=1, accepted_error_rate=0.2)
    assert little.is_warning
    assert little.answer.startswith(
        "No threshold keeps errors at 5 %, as far as 584 images can show: the model refers hardly anything, 1 of 100 "
        "test images, and 20.0 % of the accepted answers are wrong. Referral does nothing here."
    )
    for rate, text in ((0.4, "40.0 % of the accepted answers are"), (0.45, "45.0 % of the accepted answers are"),
                       (0.1, "1 in 10 accepted answers is"), (0.05, "1 in 20 accepted answers is")):  # fmt: skip
        assert f"and {text} wrong." in judge("referral", NO_THRESHOLD, num_referred=1, accepted_error_rate=rate).answer
    assert "--refer-below" in little.answer
    much = judge("referral", NO_THRESHOLD, num_referred=40, accepted_error_rate=0.0)
    assert "the model refers 40 of 100 test images, and none of the accepted answers here is wrong." in much.answer
    assert "does nothing" not in much.answer
    # Training warns of it where it looks for a threshold.
    assert verdicts.warnings(measured(NO_THRESHOLD, num_referred=1, accepted_error_rate=0.2)) == ()


def test_a_threshold_that_does_not_keep_its_word():
    kept = judge("referral", num_referred=20, accepted_error_rate=0.0625, accepted_error_rate_ci95=[0.03, 0.12])
    assert not kept.is_warning
    assert kept.answer.endswith("(95 % interval 3.0 % to 12.0 %); at most 5 % were wanted.")
    broken = judge("referral", num_referred=20, accepted_error_rate=0.25, accepted_error_rate_ci95=[0.2, 0.3])
    assert broken.is_warning
    assert "surely more than the 5 % that the threshold was chosen for" in broken.answer
    given = judge("referral", {"referral": {"max_error": None, "note": ""}}, num_referred=20, accepted_error_rate=0.25)
    assert not given.is_warning
    all_referred = judge("referral", num_referred=100, accepted_error_rate=None)
    assert "all 100 images are referred" in all_referred.answer


def test_a_prior_other_than_the_shares_of_the_images_is_a_condition_of_the_promises():
    """The test images have as many of each class; the threshold was chosen on 30 % `sick`, and 5 % are assumed."""
    figures: dict[str, Any] = {
        "classes": ["healthy", "sick"],
        "per_class": {"healthy": {"support": 50}, "sick": {"support": 50}},
        "num_referred": 20,
        "accepted_error_rate": 0.0625,
        "accepted_error_rate_ci95": [0.03, 0.12],
    }
    given = TRUST | {"class_shares": [0.7, 0.3]}
    kept = judge("referral", given | {"prior": [0.95, 0.05]}, **figures)
    assert not kept.is_warning
    condition = (
        " The threshold was chosen on images with other class shares than its probabilities assume (healthy: 70.0 % of "
        "the images, 95.0 % assumed): with the assumed shares, more of the accepted answers may be wrong."
    )
    assert kept.answer.endswith(f"; at most 5 % were wanted.{condition}")
    broken = judge("referral", given | {"prior": [0.95, 0.05]}, **figures | {"accepted_error_rate_ci95": [0.06, 0.12]})
    assert broken.is_warning
    assert broken.answer.endswith(f"or train with images like these.{condition}")
    # Shares that are alike, and bundles of earlier versions, which do not know them.
    for known in ({"prior": [0.79, 0.21]}, {"prior": None}, {}):
        assert judge("referral", given | known, **figures).answer.endswith("; at most 5 % were wanted.")
    assert judge("referral", TRUST | {"prior": [0.95, 0.05]}, **figures).answer.endswith("; at most 5 % were wanted.")

    here = "These images have other class shares than its probabilities assume (healthy: 50.0 % of the images, 95.0 % "
    for low, is_warning in ((0.0, False), (0.2, True)):
        found = judge("calibration", given | {"prior": [0.95, 0.05]}, ece=0.3, ece_ci95=[low, 0.4], **figures)
        assert found.is_warning == is_warning
        assert here in found.answer
        remedy = "give the model those of these images (`tlray train --prior`, `tlray export --data`)."
        assert (remedy in found.answer) == is_warning
        assert "images like these" not in found.answer
    assert "class shares" not in judge("calibration", given | {"prior": [0.55, 0.45]}, ece=0.3, **figures).answer


def test_what_the_model_knew_before():
    none = judge("leaks", num_leaked=0, leak_free=None)
    assert (none.is_warning, none.answer) == (
        False,
        "None of the test images is known to have a copy, or another image of its patient, among those that the model "
        "learned from.",
    )
    some = judge("leaks", num_leaked=10, leak_free={"num_images": 90})
    assert some.answer.startswith("10 of the 100 test images: each has a copy, or another image of its patient,")
    assert not some.is_warning
    near = judge("leaks", data={"neighbours": {"test": 12}}, num_leaked=0, leak_free=None)
    assert near.is_warning
    assert "But 12 of them look like slices of the same series" in near.answer
    assert near.answer.endswith("Name the patients: one folder for each, or the column group_id of a table.")
    assert judge("leaks", num_leaked=100, leak_free=None).is_warning


def test_how_known_images_were_searched_for_is_told():
    search = {"among": "pictures", "num_compared": 40, "num_pictures": 50, "is_own": False, "knows_splits": False}
    findings = {"leak_search": search}
    data = verdicts.about_data(findings)
    assert json.loads(json.dumps(data))["leak_search"] == search
    some = judge("leaks", data=data, num_leaked=10, leak_free={"num_images": 90})
    assert some.answer == (
        "10 of the 100 test images: each has a copy among the training images. The figures are without them. They were "
        "compared with the 40 of 50 training pictures that the bundle keeps: copies of the others are not found. Other "
        "images of the same patients are not found."
    )
    assert not some.is_warning
    unknown = judge("leaks", data={"leak_search": {"among": "nothing"}})
    assert unknown.answer == (
        "Not known. The bundle keeps no pictures of its training images, so copies of them cannot be found."
    )
    assert not unknown.is_warning


def test_controls_that_are_as_good_as_the_model():
    worse = judge("controls", data={"controls": {"traits_control": CONTROL}})
    assert (
        worse.answer == "A random forest that sees only how the files were made is right in 60.0 % (by chance 25.0 %)."
    )
    assert not worse.is_warning
    known = judge("controls", data={"controls": {"traits_control": CONTROL | {"accuracy_ci95": [0.5, 0.69]}}})
    assert known.answer.endswith("is right in 60.0 % (95 % interval 50.0 % to 69.0 %; by chance 25.0 %).")
    as_good = judge("controls", data={"controls": {"traits_control": CONTROL | {"accuracy": 0.75}}})
    assert as_good.is_warning
    assert as_good.answer == (
        "These images do not show that the model needs the anatomy. It is right in 80.0 % (95 % interval 70.0 % to "
        "87.0 %). A random forest that sees only how the files were made is right in 75.0 % (by chance 25.0 %)."
    )
    elsewhere = judge("controls", data={"controls": {"traits_control": CONTROL | {"accuracy": 0.75, "split": "valid"}}})
    assert "of the new valid images" in elsewhere.answer
    assert not elsewhere.is_warning


def test_controls_that_were_not_measured_are_told_with_the_reason():
    without_features = {"traits_control": CONTROL, "neighbour_control": None, "permuted_control": None}
    told = judge("controls", data=verdicts.about_data(without_features))
    assert not told.is_warning
    assert told.answer == (
        "A random forest that sees only how the files were made is right in 60.0 % (by chance 25.0 %). The label of "
        "the most similar training image and a linear probe that learns shuffled labels were not measured, because "
        "this takes features of a frozen network, which the training did not compute (the recipe probe does)."
    )
    of_one_class = {**dict.fromkeys(verdicts.CONTROLS, CONTROL), "permuted_control": None}
    told = judge("controls", data=verdicts.about_data(of_one_class))
    assert told.answer.endswith(
        " A linear probe that learns shuffled labels was not measured, because the images to learn from and to test "
        "on have one class only."
    )
    nothing_new = judge("controls", data=verdicts.about_data(dict.fromkeys(verdicts.CONTROLS)))
    assert nothing_new.answer == "No control was measured, because no test or validation image is new to the model."
    # Where nobody looked for controls, nothing is said.
    assert "controls" not in verdicts.verdicts(measured(data=verdicts.about_data({})))


def test_controls_of_other_data_are_told_in_words_of_their_own():
    search = {"leak_search": {"among": "pictures", "is_own": False}}
    data = {"traits_control": CONTROL, "neighbour_control": CONTROL, "permuted_control": None}
    told = judge("controls", data=verdicts.about_data(data | search))
    assert not told.is_warning
    assert told.answer == (
        "A random forest that sees only how the files were made, trained and tested on different parts of these "
        "images, is right in 60.0 % (by chance 25.0 %). The label of the most similar training image that the bundle "
        "keeps is right in 60.0 % (by chance 25.0 %). A linear probe that learns shuffled labels was not measured, "
        "because this takes features of the training images, which a bundle does not keep."
    )
    nothing = verdicts.about_data(dict.fromkeys(verdicts.CONTROLS) | search)
    assert judge("controls", data=nothing).answer.count(" was not measured, because this takes ") == 3
    known = judge("controls", data=nothing, num_leaked=100, leak_free=None)
    assert known.answer == "No control was measured, because no measured image is new to the model."


@pytest.mark.parametrize(
    ("tested", "has_shortcut"),
    [({}, None), ({"num_folds": 0, "found": []}, None), ({"num_folds": 5, "found": []}, False),
     ({"num_folds": 5, "found": [{"family": "size"}]}, True)],
)  # fmt: skip
def test_shortcuts_of_training_images_are_told_with_those_of_the_measured_ones(tested, has_shortcut):
    data = verdicts.about_data({"training_shortcuts": ["Sizes tell."], "shortcuts": tested})
    assert data["has_shortcut"] is has_shortcut
    answer = judge("controls", data=data).answer
    assert answer.endswith(" Found in training: Sizes tell.")
    told = {None: "it is not known whether", True: "these images have one, too", False: "none was found"}
    assert told[has_shortcut] in answer
    assert "has_shortcut" not in verdicts.about_data({"shortcuts": tested})


def test_a_leak_that_the_permuted_control_finds_is_told_here_and_warned_of_by_the_audit():
    data = {"controls": {"permuted_control": CONTROL}}
    leak = judge("controls", data=data)
    assert leak.is_warning
    assert "training and test images must be related" in leak.answer
    assert "as it should be" not in leak.answer
    assert not any("must be related" in text for text in verdicts.warnings(measured(data=data)))
    fine = judge("controls", data={"controls": {"permuted_control": CONTROL | {"is_above_chance": False}}})
    assert fine.answer == (
        "A linear probe that learns shuffled labels is right in 60.0 % (by chance 25.0 %), as it should be."
    )


def subgroup(value: str, *, is_worse: bool) -> dict[str, Any]:
    ends = [0.4, 0.6] if is_worse else [0.6, 0.95]
    return {"column": "scanner", "value": value, "accuracy": 0.5, "accuracy_ci95": ends, "is_worse": is_worse}


def test_subgroups_that_are_called_out():
    none = judge("subgroups", subgroups={"num_looked_at": 3, "lowest": [subgroup("a", is_worse=False)]})
    assert (none.is_warning, none.answer) == (
        False,
        "In none of 3 subgroups of the test images (by size, format, mode, table column) is it significantly worse "
        "than on all of them.",
    )
    found = {"num_looked_at": 9, "lowest": [subgroup("a", is_worse=True), subgroup("b", is_worse=False)]}
    some = judge("subgroups", subgroups=found)
    assert some.is_warning
    assert (
        "overall (80.0 %) for scanner a 50.0 % (95 % interval 40.0 % to 60.0 %). This is of 9 subgroups" in some.answer
    )
    assert "scanner b" not in some.answer
    many = {"num_looked_at": 9, "lowest": [subgroup(name, is_worse=True) for name in "abcde"]}
    assert "; and 2 more." in judge("subgroups", subgroups=many).answer  # of an earlier version
    assert "; and 11 more." in judge("subgroups", subgroups=many | {"num_worse": 14}).answer
    assert judge("subgroups", subgroups={"num_looked_at": 0, "lowest": []}).answer.startswith("Not known")


def test_the_class_that_is_found_least_often_is_named():
    per_class = {
        "a": {"recall": 0.9, "support": 30, "recall_ci95": [0.8, 0.95]},
        "b": {"recall": 0.4, "support": 25, "recall_ci95": [0.1, 0.8]},
        "absent": {"recall": None, "support": 0, "recall_ci95": [None, None]},
    }
    found = judge("subgroups", subgroups={"num_looked_at": 0, "lowest": []}, per_class=per_class)
    named = "The class with the lowest sensitivity is b: 40.0 % of 25 images"
    assert found.answer.endswith(f" {named} (95 % interval 10.0 % to 80.0 %).")
    per_class["b"]["recall_ci95"] = [None, None]
    unknown = judge("subgroups", subgroups={"num_looked_at": 0, "lowest": []}, per_class=per_class)
    assert unknown.answer.endswith(f" {named}.")


def test_warnings_have_the_gravest_first():
    about = measured(
        data={"controls": {"traits_control": CONTROL | {"accuracy": 0.9}}},
        set_coverage=0.7,
        set_coverage_ci95=[0.6, 0.8],
        mean_set_size=1.0,
        subgroups={"num_looked_at": 9, "lowest": [subgroup("a", is_worse=True)]},
    )
    assert [text.split(" ")[0] for text in verdicts.warnings(about)] == ["These", "The", "It"]


def test_what_an_audit_knows_of_the_data():
    findings = {
        "traits_control": CONTROL,
        "neighbour_control": None,
        "neighbours": {"valid": 1, "test": 2},
        "groups": {"num_groups": 20},
        "num_readable": 20,
        "split_shortcuts": {"given": ["train", "valid"]},
    }
    found = verdicts.about_data(findings)
    assert found == {
        "controls": {"traits_control": CONTROL},
        "unmeasured": ["neighbour_control"],
        "neighbours": {"valid": 1, "test": 2},
        "has_patients": False,
        "cut_splits": ["test"],
    }
    assert json.loads(json.dumps(found)) == found
    assert verdicts.about_data({}) == {"controls": {}, "neighbours": {}, "has_patients": None}


@pytest.mark.parametrize(("num_groups", "num_alike", "has_patients"), [(12, 8, False), (11, 8, True), (12, 0, True)])
def test_groups_that_only_look_alike_are_no_patients(num_groups, num_alike, has_patients):
    """An audit of an earlier version on twenty images; `audit --fix` has put some that look alike into groups."""
    groups = {"num_groups": num_groups, "num_alike": num_alike}
    assert verdicts.about_data({"groups": groups, "num_readable": 20})["has_patients"] is has_patients


@pytest.mark.parametrize(
    ("num_unnamed", "text"),
    [
        (20, "Which images are of one patient: no patients are named. Images without a named patient"),
        (18, "Which images are of one patient: 18 of 20 images have no named patient. Images without"),  # one pair
        (1, None),
    ],
)
def test_limits_count_the_images_without_a_patient(num_unnamed, text):
    about = verdicts.about_data({"groups": {"num_groups": 19, "num_unnamed": num_unnamed}, "num_readable": 20})
    assert (about["num_unnamed"], about["num_images"]) == (num_unnamed, 20)
    told = [each for each in verdicts.limits(measured(data=about)) if each.startswith("Which images")]
    assert [each[: len(text or "")] for each in told] == ([] if text is None else [text])


@pytest.mark.parametrize(
    ("cut", "is_told"), [(["valid", "test"], True), (["valid"], False), ([], False), (None, False)]
)
def test_limits_tell_that_the_split_was_cut(cut, is_told):
    texts = " ".join(verdicts.limits(measured(data={} if cut is None else {"cut_splits": cut})))
    assert ("the data has no split test, so tlray cut it from train" in texts) == is_told


@pytest.mark.parametrize(("has_patients", "is_told"), [(False, True), (True, False), (None, False)])
def test_limits_name_what_is_missing(has_patients, is_told):
    texts = " ".join(verdicts.limits(measured(data={"has_patients": has_patients})))
    assert ("Which images are of one patient: no patients are named." in texts) == is_told
    assert "chosen on validation images" not in texts
    valid = Measured(split="valid", metrics={}, trust={}, data={})
    assert "chosen on validation images" in " ".join(verdicts.limits(valid))


@pytest.mark.parametrize(
    ("split", "given", "num_images"),
    [
        ("test", ("test", "test"), 2),
        ("test", ("train", "test"), 1),
        ("test", ("train", "valid"), 0),
        ("all", ("train", "test"), 2),
        ("all", ("measured", "training"), 1),
        ("test", ("measured", "measured"), 2),
        ("test", (None, None), 0),
    ],
)
def test_measured_images_with_a_copy_of_another_label_are_a_reason_for_doubt(split, given, num_images):
    images = [{"image_id": name, "split": each, "label": name} for name, each in zip("ab", given, strict=True)]
    conflict = {"num_groups": 1, "num_images": 2, "examples": [{"images": images}]}
    data = verdicts.about_data({"copies": {"copies": {"conflicting_labels": conflict}}})
    about = Measured(
        split=split, metrics={"num_images": 100, "accuracy": 0.8}, trust={}, data=json.loads(json.dumps(data))
    )
    found = verdicts.verdicts(about).get("labels")
    if not num_images:
        assert found is None
        return
    assert found is not None
    assert found.is_warning
    assert f"No: {num_images} of the {about.images} {'has' if num_images == 1 else 'have'} a copy" in found.answer
    assert verdicts.warnings(about) == ()  # the audit of the training warns of it
    evaluated = dataclasses.replace(about, data={**about.data, "leak_search": {"among": "nothing"}})
    assert verdicts.warnings(evaluated) == (found.answer,)


def test_where_the_audit_names_some_copies_only_there_may_be_more():
    images = [{"image_id": name, "split": "test", "label": name} for name in "ab"]
    conflict = {"num_groups": 21, "num_images": 42, "examples": [{"images": images}]}
    data = verdicts.about_data({"copies": {"copies": {"conflicting_labels": conflict}}})
    about = Measured(split="test", metrics={"num_images": 100, "accuracy": 0.8}, trust={}, data=data)
    assert "No: at least 2 of the" in verdicts.verdicts(about)["labels"].answer


def test_copies_with_one_label_are_not_told():
    assert "conflicting_labels" not in verdicts.about_data({"duplicates": {"conflicting_labels": {"num_groups": 0}}})
