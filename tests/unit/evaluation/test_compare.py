"""Two bundles on the same images: the joined predictions, the figures by hand, and what may be concluded.

`test_compared_copies.py` runs the command on copies and on images that a bundle knows.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from tests.unit.data.test_manifest import make_table
from tlray.bundle.leaks import NOTHING, PICTURES, LeakSearch
from tlray.bundle.spec import BundleSpec
from tlray.bundle.store import Bundle
from tlray.data import manifest
from tlray.errors import ConfigError, DataError
from tlray.evaluation.compare import check_bundles
from tlray.evaluation.paired import NONE_IS_NEW, SIDES, Paired, conclude, csv_table, measure, pair
from tlray.evaluation.paired_doubts import OTHER_FILES, TRAINED_ON_SHORTCUT, failure_warnings, find, is_leak_free
from tlray.evaluation.relations import Relations
from tlray.inference import predictions

NOT_KNOWN: dict[str, frozenset[str] | None] = dict.fromkeys(SIDES)


def make_spec(*classes: str, refer_below: float = 0.5) -> BundleSpec:
    return BundleSpec(
        classes=classes, image_size_px=8, preprocessing="unit", backbone="b", weights="w",
        thresholds={"refer_below": refer_below},
    )  # fmt: skip


def predict(
    images: pa.Table,
    spec: BundleSpec,
    labels: Sequence[str | None],
    *,
    confidences: Sequence[float] | None = None,
    contents: Sequence[str] | None = None,
) -> pa.Table:
    """Predictions of some labels, as scoring gives them; None: the file is empty. Contents stand for the sha256."""
    probs_BK = np.full((len(labels), len(spec.classes)), np.nan, np.float32)
    for row, label, confidence in zip(probs_BK, labels, confidences or [0.9] * len(labels), strict=True):
        if label is not None:
            row[:] = (1 - confidence) / (len(spec.classes) - 1)
            row[spec.classes.index(label)] = confidence
    codes = np.array(["" if label else "empty" for label in labels])
    batch = {
        "probabilities": probs_BK,
        "ood_score": np.full(len(labels), np.nan, np.float32),
        "sha256": np.array(contents or images["image_id"].to_pylist()),
        "error_code": codes,
        "error": codes,
    }
    return predictions.prediction_table(images, batch, spec, "5" * 64)


# Joined predictions


def test_figures_by_hand_with_classes_and_rows_in_another_order():
    """10 patients: both are right for 6, the bundle alone for the first 3, the reference alone for the last one."""
    images = make_table(*((label, "test", f"p{number}") for number, label in enumerate("aaaaabbbbb")))
    bundle, reference = make_spec("a", "b"), make_spec("b", "a", refer_below=0.7)
    one = predict(images, bundle, list("aaaaabbbba"))
    other = predict(images, reference, list("bbbaabbbbb"), confidences=[0.6] * 4 + [0.9] * 6)
    paired = pair(one, other.take(pa.array([9, 8, 7, 6, 5, 4, 3, 2, 1, 0])), NOT_KNOWN)
    assert paired.tables["reference"]["image_id"].to_pylist() == images["image_id"].to_pylist()
    found = measure(paired, {"bundle": bundle.classes, "reference": reference.classes})
    assert (found["num_images"], found["num_groups"], found["num_by_error"]) == (10, 10, {})
    assert (found["num_only_bundle_right"], found["num_only_reference_right"]) == (3, 1)
    assert found["p_value"] == pytest.approx(2 * (1 + 4) / 2**4)  # 0 or 1 of 4, two-sided
    assert found["accuracy_difference"] == pytest.approx(0.2)
    # Agresti and Min, with Student's t of 9 degrees of freedom: 10 images of 10 patients, 4 of them discordant.
    centre, half = 10 * 0.2 / 12, stats.t.ppf(0.975, 9) * (10 * 0.4 + 1 - 2**2 / 12) ** 0.5 / 12
    assert found["accuracy_difference_ci95"] == pytest.approx([centre - half, centre + half])
    assert found["conclusion"] == (
        "The images do not show which is better: the bundle's accuracy may be up to 24.1 percentage points lower or up "
        "to 57.4 higher (95 % interval)."
    )
    assert found["same_label_share"] == pytest.approx(0.6)
    assert found["num_refer_differs"] == 4
    for side, accuracy, sensitivities in (("bundle", 0.9, (1, 0.8)), ("reference", 0.7, (0.4, 1))):
        values = found[f"{side}_metrics"]
        assert values["accuracy"] == pytest.approx(accuracy)
        assert [values["per_class"][name]["recall"] for name in "ab"] == pytest.approx(sensitivities)


def test_what_is_one_group_for_either_bundle_is_one():
    """Images 0 and 2 are copies for the bundle, and 2 and 3 for the reference, whose rows have another order."""
    images = make_table(*((label, "test", f"p{number}") for number, label in enumerate("aabb")))
    spec = make_spec("a", "b")
    one, other = (predict(images, spec, list(labels)) for labels in ("aabb", "abbb"))
    one = manifest.with_column(one, "group_id", ["p0", "p1", "p0", "p3"])
    other = manifest.with_column(other, "group_id", ["p0", "p1", "p2", "p2"])
    paired = pair(one, other.take(pa.array([3, 2, 1, 0])), NOT_KNOWN)
    assert paired.groups.tolist() == ["p0", "p1", "p0", "p0"]
    found = measure(paired, dict.fromkeys(SIDES, spec.classes))
    assert (found["num_images"], found["num_groups"]) == (4, 2)


def pair_known(bundle: str | None, reference: str | None) -> Paired:
    """Predictions of six images, of which only the reference misses the last one; the bundles know images by number."""
    images = make_table(*((label, "test", f"p{number}") for number, label in enumerate("aaabbb")))
    known = {
        side: None if numbers is None else frozenset(f"0000{number}" for number in numbers)
        for side, numbers in zip(SIDES, (bundle, reference), strict=True)
    }
    spec = make_spec("a", "b")
    return pair(predict(images, spec, list("aaabbb")), predict(images, spec, list("aaabba")), known)


def test_images_that_a_bundle_knows_are_left_out():
    """Image 9 was not scored."""
    paired = pair_known("09", "05")
    assert paired.tables["reference"]["image_id"].to_pylist() == ["00001", "00002", "00003", "00004"]
    assert paired.groups.tolist() == ["p1", "p2", "p3", "p4"]
    assert (paired.num_left_out, paired.num_scored, paired.knows_all) == (2, 6, False)
    found = measure(paired, dict.fromkeys(SIDES, ("a", "b")))
    assert (found["num_images"], found["num_left_out"], found["accuracy_difference"]) == (4, 2, 0)
    assert (found["bundle_num_known"], found["reference_num_known"]) == (1, 2)


def test_nothing_is_concluded_from_images_that_are_known():
    paired = pair_known("012", "2345")
    assert (paired.num_left_out, paired.num_scored, paired.knows_all) == (0, 6, True)
    found = measure(paired, dict.fromkeys(SIDES, ("a", "b")))
    assert (found["num_images"], found["conclusion"]) == (6, NONE_IS_NEW)


def test_images_without_a_label_or_a_prediction_of_both_are_left_out():
    images = make_table(*((label, "test", "p") for label in (None, "a", "a", "a", "b", "a")))
    spec = make_spec("a", "b")
    bundle = predict(images, spec, [None, None, "a", "a", "a", "a"], contents=list("uvwxyz"))
    reference = predict(images, spec, ["a", "a", None, "a", "b", "a"], contents=list("uvw!yz"))
    paired = pair(bundle, reference, NOT_KNOWN)
    assert paired.tables["bundle"]["image_id"].to_pylist() == ["00004", "00005"]
    assert paired.tables["reference"]["predicted_label"].to_pylist() == ["b", "a"]
    assert paired.groups.tolist() == ["p", "p"]
    assert paired.num_by_error == {"empty": 2, "changed": 1}
    assert failure_warnings(paired.num_by_error) == [
        "Left out, because not both bundles could score them: 3 images (empty: 2, changed: 1)."
    ]
    assert failure_warnings({}) == []


def test_where_no_image_is_left_this_is_an_error():
    spec = make_spec("a", "b")
    images = make_table(("a", "test", "p"))
    with pytest.raises(DataError, match=r"and a prediction of both bundles, for example '/00000' \(empty: empty\)"):
        pair(predict(images, spec, ["a"]), predict(images, spec, [None]), NOT_KNOWN)
    images = make_table((None, "test", "p"))
    with pytest.raises(DataError, match="and a prediction of both bundles: there is nothing to compare"):
        pair(predict(images, spec, ["a"]), predict(images, spec, ["a"]), NOT_KNOWN)


def test_the_csv_has_a_row_for_each_image_and_no_formulas():
    images = make_table(("=a", "test", "p1"), ("b", "test", "p2"))
    bundle, reference = make_spec("=a", "b"), make_spec("b", "=a", refer_below=0.95)
    table = csv_table(pair(predict(images, bundle, ["=a", "=a"]), predict(images, reference, ["b", "b"]), NOT_KNOWN))
    assert table.column_names == [
        *("image_id", "label"),
        *("predicted_label_bundle", "confidence_bundle", "refer_bundle", "is_right_bundle"),
        *("predicted_label_reference", "confidence_reference", "refer_reference", "is_right_reference"),
    ]
    confidence = pytest.approx(0.9)
    assert [tuple(row.values()) for row in table.to_pylist()] == [
        ("00000", "'=a", "'=a", confidence, False, True, "b", confidence, True, False),
        ("00001", "b", "'=a", confidence, False, False, "b", confidence, True, True),
    ]


# What may be concluded


@pytest.mark.parametrize(
    ("low", "high", "sentence"),
    [
        (
            0.012,
            0.2,
            "The bundle is better: on images like these its accuracy is 1.2 to 20.0 percentage points higher (95 % "
            "interval).",
        ),
        (
            -0.2,
            -0.012,
            "The reference is better: on images like these its accuracy is 1.2 to 20.0 percentage points higher (95 % "
            "interval).",
        ),
        (
            -0.05,
            0.1,
            "The images do not show which is better: the bundle's accuracy may be up to 5.0 percentage points lower or "
            "up to 10.0 higher (95 % interval).",
        ),
        (
            0.0,
            0.3,
            "The images do not show which is better: the bundle's accuracy may be up to 0.0 percentage points lower or "
            "up to 30.0 higher (95 % interval).",
        ),
    ],
)
def test_the_conclusion_is_one_plain_sentence(low, high, sentence):
    assert conclude(low, high) == sentence


# What is refused, and what is warned of


def make_bundle(*classes: str, sha256: str) -> Bundle:
    return Bundle(spec=make_spec(*classes), directory=Path("b"), sha256=sha256)


def test_bundles_have_the_same_classes_in_any_order():
    check_bundles(make_bundle("a", "b", sha256="1"), make_bundle("b", "a", sha256="2"))
    with pytest.raises(ConfigError, match=r"Only --bundle has: 'c'; only --reference has: none. Give bundles with the"):
        check_bundles(make_bundle("a", "b", "c", sha256="1"), make_bundle("a", "b", sha256="2"))
    with pytest.raises(ConfigError, match=r"Only --bundle has: 'a'; only --reference has: 'A'"):
        check_bundles(make_bundle("a", "b", sha256="1"), make_bundle("A", "b", sha256="2"))


def test_a_bundle_is_not_compared_with_itself():
    with pytest.raises(ConfigError, match=r"are the same bundle \(sha256 1…\). Give two different ones"):
        check_bundles(make_bundle("a", "b", sha256="1"), make_bundle("a", "b", sha256="1"))


def related(leaked: frozenset[str] | None, *, near: str = "", **search: Any) -> Relations:
    found = dataclasses.asdict(LeakSearch(**{"among": PICTURES, "num_compared": 9, "num_pictures": 9} | search))
    return Relations(
        group_of={}, leaked=leaked, near=frozenset(f"0000{digit}" for digit in near), findings={"leak_search": found}
    )


NONE = frozenset[str]()
PLAIN = {side: make_spec("a", "b") for side in SIDES}
OWN: dict[str, Any] = {"is_own": True, "knows_splits": True, "has_own_files": True}
"""What is known of images that a bundle was trained on."""


def but(**changes: Any) -> dict[str, Any]:
    """Returns `OWN` with changes."""
    return OWN | changes


def test_a_shortcut_in_other_data_is_a_doubt_about_the_bundle():
    """The reference was trained on the compared images, the bundle on others."""
    other = dataclasses.replace(make_spec("a", "b"), shortcuts=("Sizes.", "Formats."))
    own = dataclasses.replace(other, shortcuts=("Formats.",))
    both = {"bundle": related(NONE), "reference": related(NONE, **OWN)}
    assert find(pair_known("", ""), both, {"bundle": other, "reference": own}) == [
        "The reference was trained on this data, and the training found: Formats.",
        TRAINED_ON_SHORTCUT.format("the bundle", "Sizes."),
        TRAINED_ON_SHORTCUT.format("the bundle", "Formats."),
    ]
    both = {"bundle": related(NONE), "reference": related(NONE)}
    assert find(pair_known("", ""), both, {"bundle": other, "reference": other}) == [
        TRAINED_ON_SHORTCUT.format("both bundles", "Sizes."),
        TRAINED_ON_SHORTCUT.format("both bundles", "Formats."),
    ]


def test_what_the_trainings_found_in_the_data_is_told_after_shortcuts():
    known = dataclasses.replace(make_spec("a", "b"), shortcuts=("Sizes.",), leaks=("Copies.",))
    more = dataclasses.replace(known, leaks=("Copies.", "Patients."))
    both = {"bundle": related(NONE, **OWN), "reference": related(NONE, **OWN)}
    paired, specs = pair_known("9", ""), {"bundle": known, "reference": more}
    assert find(paired, both, specs) == [
        "Both bundles were trained on this data, and the training found: Sizes.",
        "Both bundles were trained on this data, and the training found: Copies.",
        "The reference was trained on this data, and the training found: Patients.",
    ]
    assert find(paired, both, {"bundle": known, "reference": make_spec("a", "b")}) == [
        "The bundle was trained on this data, and the training found: Sizes.",
        "The bundle was trained on this data, and the training found: Copies.",
    ]
    elsewhere = {"bundle": related(NONE), "reference": related(NONE)}
    assert find(paired, elsewhere, specs) == [TRAINED_ON_SHORTCUT.format("both bundles", "Sizes.")]
    # What cannot be told is graver.
    blind = {**both, "bundle": related(NONE, **but(knows_splits=False))}
    doubt, *others = find(paired, blind, specs)
    assert doubt.startswith("Has the bundle seen these images before?")
    assert others == find(paired, both, specs)


@pytest.mark.parametrize("sides", [("bundle",), SIDES])
def test_what_the_trainings_found_in_other_files_with_these_ids_is_not_said_of_these(sides):
    spec = dataclasses.replace(make_spec("a", "b"), shortcuts=("Sizes.",), leaks=("Copies.",))
    changed = related(NONE, **but(has_own_files=False))
    both: dict[str, Relations] = {side: changed if side in sides else related(NONE, **OWN) for side in SIDES}
    of_same = "The reference was trained on this data, and the training found: {}"
    is_one = len(sides) == 1
    assert find(pair_known("", ""), both, dict.fromkeys(SIDES, spec)) == [
        *([of_same.format("Sizes.")] if is_one else []),
        TRAINED_ON_SHORTCUT.format("the bundle" if is_one else "both bundles", "Sizes."),
        OTHER_FILES.format("the bundle was" if is_one else "both bundles were"),
        *([of_same.format("Copies.")] if is_one else []),
    ]


def test_of_files_that_may_have_changed_shortcuts_are_not_told():
    """Bundles of earlier versions have no fingerprints of the files."""
    spec = dataclasses.replace(make_spec("a", "b"), shortcuts=("Sizes.",), leaks=("Copies.",))
    both: dict[str, Relations] = dict.fromkeys(SIDES, related(NONE, **but(has_own_files=None)))
    assert find(pair_known("", ""), both, dict.fromkeys(SIDES, spec)) == [
        TRAINED_ON_SHORTCUT.format("both bundles", "Sizes."),
        "Both bundles were trained on this data, and the training found: Copies.",
    ]


def test_without_a_new_image_nothing_else_is_graver():
    both = {"bundle": related(NONE), "reference": related(NONE)}
    assert find(pair_known("", ""), both, PLAIN) == []
    assert is_leak_free(pair_known("", ""), both) is True
    assert find(pair_known("09", "05"), both, PLAIN) == [
        "Left out, because a bundle knows them from its training: 2 of 6 images (bundle: 1, reference: 2)."
    ]
    assert find(pair_known("012", "345"), both, PLAIN) == [
        "None of the images is new to both bundles, so the figures do not show which one is better. Known from "
        "training, of 6 images: bundle: 3, reference: 3."
    ]
    assert is_leak_free(pair_known("012", "345"), both) is False


def test_what_a_bundle_may_know_is_told():
    unknown = {"bundle": related(NONE, near="1345"), "reference": related(None, among=NOTHING)}
    paired = pair_known("1", None)
    assert is_leak_free(paired, unknown) is None
    doubt, left_out = find(paired, unknown, PLAIN)
    assert left_out.endswith(": 1 of 6 images (bundle: 1, reference: not known).")
    assert doubt.startswith("Has the bundle seen these images before? 1 of the 6 images: each has a copy among the ")
    # Image 1 is left out, so it does not count.
    assert "But 3 of the others look like slices of the same series as images that it learned from" in doubt
    own = {"bundle": related(NONE), "reference": related(NONE, num_compared=8, is_own=True)}
    paired = pair_known("", "")
    assert is_leak_free(paired, own) is None
    (doubt,) = find(paired, own, PLAIN)
    assert doubt.startswith("Has the reference seen these images before? None of the images is known to have a copy")
    assert doubt.endswith("it is not known on which: give the manifest.parquet of its run as --data.")


def test_a_conclusion_about_images_that_may_not_be_new_says_so():
    paired, classes = pair_known("", ""), {side: spec.classes for side, spec in PLAIN.items()}
    plain = measure(paired, classes)["conclusion"]
    unsure = measure(paired, classes, are_new=None)["conclusion"]
    assert plain.startswith("T")
    assert unsure == f"If these images are new to both bundles, which cannot be told here: t{plain[1:]}"
