"""Shortcuts and controls of measured images that are not those of the training; all is computed in this process."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.unit.bundle.test_spec import SPEC
from tests.unit.data.test_manifest import make_table
from tests.unit.evaluation.test_doubts import SEARCH, evaluation, knowing, shown
from tests.unit.evaluation.test_relations import kept_of, predicted_of
from tests.unit.evaluation.test_scope import chosen, earlier, trained_on, with_own_files
from tlray.bundle.lookalikes import KeptImages
from tlray.bundle.novelty import directions
from tlray.bundle.spec import BundleSpec
from tlray.data import looks, manifest, traits
from tlray.evaluation import doubts, image_controls
from tlray.evaluation.doubts import Doubts
from tlray.evaluation.relations import Relations
from tlray.evaluation.scope import Scope
from tlray.trust import controls, shortcuts

CLASSES = ("a", "b")
NUM_IMAGES = 60
LISTED = make_table(*(("ab"[number % 2], "test", f"p{number}") for number in range(NUM_IMAGES)))
IMAGE_IDS, LABELS = manifest.column_lists(LISTED, "image_id", "label")
IS_B = np.array(LABELS) == "b"
WITHOUT_LEAKS = dataclasses.replace(SPEC, leaks=())
ALONE = {image_id: image_id for image_id in IMAGE_IDS}
PLACES_BC = np.random.default_rng(0).normal(size=(NUM_IMAGES, 4))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortcuts, "NUM_TREES", 10)


def call(functions: Sequence[Callable[[], Any]]) -> list[Any]:
    return [function() for function in functions]


def seen_of(*, brighter: float = 0.0, unreadable: Sequence[int] = ()) -> pa.Table:
    """Returns what `relations.look` returns: traits that tell nothing, unless the corners of class b are brighter."""
    rng = np.random.default_rng(1)
    rows: list[dict[str, float | str]] = []
    for is_b in IS_B.tolist():
        row = {name: "PNG" if name == "format" else "L" for name in traits.CATEGORIES}
        row |= {name: rng.normal() for name in traits.SCHEMA.names if name not in traits.CATEGORIES}
        rows.append(row | {"top_left_mean": rng.normal() + brighter * is_b})
    table, found = LISTED.select(["image_id", "label"]), traits.to_table(rows)
    for name in found.column_names:
        table = table.append_column(looks.TRAIT_PREFIX + name, found[name])
    table = table.append_column("thumbnail", pa.array([bytes(looks.THUMBNAIL_PX**2)] * NUM_IMAGES))
    errors = pa.array(["empty" if row in unreadable else None for row in range(NUM_IMAGES)], pa.string())
    return table.append_column("error_code", errors)


def kept_like(labels: Sequence[int]) -> KeptImages:
    """A bundle that keeps a training image in the direction of each measured one, with these labels."""
    return kept_of(
        [np.zeros((96, 96), np.uint8)] * NUM_IMAGES, directions=directions(PLACES_BC), labels=np.array(labels)
    )


def found(
    seen: pa.Table,
    *,
    leaked: frozenset[str] | None = None,
    kept: KeptImages | None = None,
    images: Scope | None = None,
    group_of: Mapping[str, str] = ALONE,
    call: Callable[[Sequence[Callable[[], Any]]], list[Any]] = call,
) -> dict[str, Any]:
    return image_controls.find(
        images or chosen(SPEC, LISTED, "test"),
        seen,
        predicted_of(LISTED, PLACES_BC),
        Relations(group_of=group_of, fold_group_of=ALONE, leaked=leaked, findings={}),
        kept=kept,
        classes=CLASSES,
        split="test",
        call=call,
    )


def told(controls_here: dict[str, Any], spec: BundleSpec = WITHOUT_LEAKS) -> tuple[Doubts, str]:
    """Returns the doubts of an evaluation on other data, and the text of its report."""
    images = chosen(spec, LISTED, "test")
    findings = {"errors": {}, "leak_search": SEARCH} | controls_here
    findings |= doubts.findings_of_training(spec, images)
    about = doubts.find(spec, "test", evaluation(), findings, images=images)
    return about, shown(about, findings)


def test_a_shortcut_planted_in_other_data_is_the_first_warning():
    here = found(seen_of(brighter=8))
    assert json.loads(json.dumps(here)) == here
    (shortcut,) = here["shortcuts"]["found"]
    assert (shortcut["family"], shortcut["trait"]) == ("corners", "top_left_mean")
    assert here["shortcuts"]["num_images"] == NUM_IMAGES
    about, text = told(here)
    (warning,) = about.shortcuts
    assert warning.startswith("Classes can be told without looking at the anatomy: ")
    assert about.warnings[0] == warning
    start, _, _ = warning.partition("`")  # the command after it is marked up as code
    assert text.index("Do not believe these numbers yet") < text.index(start) < text.index("Research tool")
    assert "Not yet. The box at the top says why" in text
    control = here["traits_control"]
    assert control["is_above_chance"]
    assert control["accuracy"] > evaluation().metrics["accuracy"] == 0.75
    assert about.warnings[1].startswith(
        "These images do not show that the model needs the anatomy. It is right in 75.0"
    )
    assert (
        "Does it need the anatomy? Careful. These images do not show that the model needs the anatomy. It is right in "
        "75.0 %" in text
    )
    assert (
        "A random forest that sees only how the files were made, trained and tested on different parts of these "
        f"images, is right in {100 * control['accuracy']:.1f} % (95 % interval" in text
    )


def test_a_class_that_is_one_series_is_searched_all_the_same():
    """All slices of class b look alike. They count as one patient in intervals, but are divided where they must be."""
    in_series = {image_id: "b" if is_b else image_id for image_id, is_b in zip(IMAGE_IDS, IS_B.tolist(), strict=True)}
    here = found(seen_of(brighter=8), group_of=in_series)
    assert [shortcut["family"] for shortcut in here["shortcuts"]["found"]] == ["corners"]
    assert here["shortcuts"]["num_groups"] == NUM_IMAGES
    assert here["traits_control"]["num_groups"] == NUM_IMAGES // 2 + 1


def test_where_nothing_speaks_against_figures_of_other_data_the_controls_are_told():
    here = found(seen_of())
    assert (here["shortcuts"]["found"], here["shortcuts"]["num_folds"]) == ([], 5)
    assert not here["traits_control"]["is_above_chance"]
    about, text = told(here)
    assert about == Doubts(shortcuts=(), leaks=(), warnings=())
    assert "No check in this report speaks against it. The interval" in text
    assert (
        "Does it need the anatomy? A random forest that sees only how the files were made, trained and tested" in text
    )
    assert "A linear probe that learns shuffled labels was not measured, because this takes features of the" in text
    assert "The label of the most similar training image was not measured, because this takes training images" in text


def test_the_forest_of_the_control_is_that_of_the_shortcuts():
    here = found(seen_of(brighter=1))
    together = here["shortcuts"]["together"]
    assert here["traits_control"]["accuracy"] == pytest.approx(together["accuracy"])
    assert 0.5 < together["accuracy"] < 1
    assert {name: here["traits_control"][name] for name in ("name", "split", "num_images", "num_groups")} == {
        "name": "traits", "split": "test", "num_images": 60, "num_groups": 60,
    }  # fmt: skip


@pytest.mark.parametrize("is_mirrored", [False, True])
def test_the_label_of_the_most_similar_kept_image_is_a_control(is_mirrored):
    labels = (1 - IS_B if is_mirrored else IS_B).astype(int)
    control = found(seen_of(unreadable=(3,)), kept=kept_like(labels.tolist()))["neighbour_control"]
    assert (control["name"], control["num_images"]) == ("nearest neighbour", NUM_IMAGES - 1)
    assert control["accuracy"] == (0 if is_mirrored else 1)
    assert control["is_above_chance"] == (not is_mirrored)


def test_controls_are_of_images_that_the_model_does_not_know():
    """The first forty images are known; only those look like kept images of their class."""
    known = np.arange(NUM_IMAGES) < 40
    kept = kept_like(np.where(known, IS_B, 1 - IS_B).astype(int).tolist())
    here = found(seen_of(), leaked=frozenset(IMAGE_IDS[:40]), kept=kept)
    assert here["shortcuts"]["num_images"] == NUM_IMAGES
    assert (here["neighbour_control"]["num_images"], here["neighbour_control"]["accuracy"]) == (20, 0)
    assert here["traits_control"]["num_images"] == 20
    nothing_new = found(seen_of(), leaked=frozenset(IMAGE_IDS), kept=kept)
    assert (nothing_new["traits_control"], nothing_new["neighbour_control"]) == (None, None)
    assert nothing_new["shortcuts"]["num_images"] == NUM_IMAGES


def test_without_controls_the_report_does_not_say_that_no_check_speaks_against_it():
    here = found(seen_of(unreadable=np.flatnonzero(IS_B).tolist()))
    assert (here["shortcuts"]["num_folds"], here["traits_control"], here["permuted_control"]) == (0, None, None)
    _, text = told(here)
    assert "No check in this report speaks against it, but none tells whether the model needs the anatomy." in text
    assert (
        "made was not measured, because this takes new images of two classes, and of each class images of two" in text
    )


def test_thumbnails_are_not_copied_for_the_search():
    """Those of 100,000 images have 0.9 GB."""
    seen, taken_bytes = seen_of(), []
    before_bytes = pa.total_allocated_bytes()

    def measured(functions: Sequence[Callable[[], Any]]) -> list[Any]:
        taken_bytes.append(pa.total_allocated_bytes() - before_bytes)
        return call(functions)

    found(seen, call=measured)
    assert max(taken_bytes) < seen["thumbnail"].nbytes / 2


def test_in_the_files_that_the_training_read_it_has_looked():
    assert found(seen_of(brighter=8), images=with_own_files(trained_on(LISTED), LISTED, "test")) == {}


def test_other_files_with_the_ids_of_the_models_own_data_are_searched():
    """The corners of its files tell the classes; in some of the others they were cropped off."""
    spec = trained_on(LISTED)
    cropped = manifest.with_column(LISTED, "sha256", ["cropped"] + [None] * (NUM_IMAGES - 1))
    others = with_own_files(spec, cropped, "test")
    assert (others.is_own, others.knows_splits, others.has_own_files) == (True, True, False)
    assert found(seen_of(brighter=8), images=others)["shortcuts"]["found"]
    here = found(seen_of(), images=others)
    assert here["shortcuts"]["found"] == []
    assert here["traits_control"]["num_images"] == NUM_IMAGES
    # Where nothing tells whether the files are the same, they are searched, too.
    assert found(seen_of(brighter=8), images=with_own_files(earlier(spec), LISTED, "test"))["shortcuts"]["found"]


@pytest.mark.parametrize(
    ("brighter", "answer"), [(8, "these images have one, too"), (0, "none was found in these images")]
)
def test_whether_these_images_have_a_shortcut_like_the_training_images_is_told(brighter, answer):
    about, text = told(found(seen_of(brighter=brighter)), knowing(SPEC))
    sentence = (
        f"The images that the model was trained on have a shortcut, which it may have learned; {answer}. Found in "
    )
    assert sentence in text
    assert any(sentence in warning for warning in about.warnings)


def test_predictions_made_elsewhere_are_judged_as_those_of_a_control():
    labels = ["a", "b"] * 20
    right = controls.by_predictions("traits", labels, labels, IMAGE_IDS[:40])
    assert (right.name, right.accuracy, right.majority, right.num_groups) == ("traits", 1, 0.5, 40)
    assert right.is_above_chance
    unknown = controls.by_predictions("traits", ["c"] * 40, labels, IMAGE_IDS[:40])
    assert (unknown.accuracy, unknown.chance, unknown.is_above_chance) == (0, 0, False)
