"""Copies and patients of measured images, and what a model knows of them; pictures are compared in this process."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.unit.bundle.test_spec import SPEC
from tests.unit.data.test_manifest import make_table
from tests.unit.evaluation.test_scope import trained_on
from tlray.bundle.leaks import LeakSearch
from tlray.bundle.lookalikes import KeptImages
from tlray.bundle.novelty import directions
from tlray.data import inspection, looks, phantom_drawing, phantoms, splits, thumbnail
from tlray.data.dataset import Dataset
from tlray.data.looks import THUMBNAIL_PX
from tlray.evaluation import evaluate, relations, scope
from tlray.evaluation.relations import Relations
from tlray.inference.pool import PLACES
from tlray.trust import pictures, pixel_match
from tlray.trust.copies import find_copies

CLASSES = ("a", "b")
NUM_PATIENTS = 8


@pytest.fixture(scope="module")
def slices() -> np.ndarray:
    """A slice of each of 8 patients."""
    rng = np.random.default_rng(0)
    anatomies = [phantoms.sample_anatomy(rng) for _ in range(NUM_PATIENTS)]
    return np.stack([phantom_drawing.render_slice(each, None, rng=rng, size_px=THUMBNAIL_PX) for each in anatomies])


@pytest.fixture(autouse=True)
def compared(monkeypatch) -> None:
    monkeypatch.setattr(pictures, "compare", lambda thumbnails, pairs, **_: pixel_match.compare(thumbnails, pairs))


def seen_of(table: pa.Table, shown: Sequence[np.ndarray], unreadable: Sequence[int] = ()) -> pa.Table:
    """Returns what `look` returns: each image has these pixels, and its id as the sha256 of its file."""
    table = table.drop_columns(["sha256"])
    rows: list[dict[str, Any]] = []
    for row, (image_id, pixels) in enumerate(zip(table["image_id"].to_pylist(), shown, strict=True)):
        if row in unreadable:
            rows.append({"error_code": "empty", "error": "The file is empty."})
            continue
        look = {"sha256": image_id, "width_px": 96, "height_px": 96, "is_16_bit": False, "trait_format": "PNG"}
        rows.append(look | {"pixels_sha256": str(hash(pixels.tobytes())), "thumbnail": pixels.tobytes()})
    found = pa.Table.from_pylist(rows, schema=inspection.INSPECTED_SCHEMA)
    for name in (*inspection.INSPECTION_COLUMNS, *looks.SCHEMA.names):
        table = table.append_column(name, found[name])
    return table


def predicted_of(table: pa.Table, places_BC: np.ndarray | None = None) -> pa.Table:
    confidence = pa.array([0.5] * table.num_rows, pa.float32())
    found = table.select(["image_id", "group_id", "label"]).append_column("confidence", confidence)
    if places_BC is None:
        return found
    lists = pa.FixedSizeListArray.from_arrays(pa.array(places_BC.astype(np.float16).ravel()), places_BC.shape[1])
    return found.append_column(PLACES, lists)


def kept_of(shown: Sequence[np.ndarray], **changed: Any) -> KeptImages:
    places = np.random.default_rng(1).normal(size=(len(shown), 4))
    jpegs = [thumbnail.to_jpeg(pixels) for pixels in shown]
    kept = KeptImages(directions=directions(places), labels=np.zeros(len(shown), np.int64), jpegs=jpegs)
    return dataclasses.replace(kept, **changed)


def related(
    listed: pa.Table,
    shown: Mapping[str, np.ndarray],
    *,
    split: str = "test",
    is_own: bool = False,
    has_own_files: bool | None = None,
    kept: KeptImages | None = None,
    places_BC: np.ndarray | None = None,
    with_pictures: bool = False,
) -> Relations:
    """Returns what is found out about the images of a split, given the pixels of each image by its id.

    `is_own` tells whether they are those of the model's training, and `has_own_files` whether its files are.
    """
    chosen = evaluate.select_split(listed, split)
    looked_at = scope.choose(trained_on(listed) if is_own else SPEC, listed, chosen, split)
    looked_at = dataclasses.replace(looked_at, has_own_files=has_own_files)
    read = looked_at.table.filter(pa.array(looked_at.is_read))
    seen = seen_of(read, [shown[image_id] for image_id in read["image_id"].to_pylist()])
    return relations.find(
        looked_at, seen, predicted_of(chosen, places_BC), kept, CLASSES,
        split=split, with_pictures=with_pictures, task_cpus=1.0, quiet=True,
    )  # fmt: skip


def by_id(table: pa.Table, shown: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    return dict(zip(table["image_id"].to_pylist(), shown, strict=True))


def groups_of(found: Relations) -> set[frozenset[str]]:
    members: dict[str, set[str]] = {}
    for image_id, group in found.group_of.items():
        members.setdefault(group, set()).add(image_id)
    return {frozenset(ids) for ids in members.values()}


def test_copies_join_their_patients(slices):
    """Patients x and y have an image of one picture, mirrored; z has another one."""
    listed = make_table(*(("a", "test", patient) for patient in ("x", "x", "y", "y", "z")))
    shown = by_id(listed, [slices[0], slices[1], slices[1][:, ::-1], slices[2], slices[3]])
    found = related(listed, shown)
    assert groups_of(found) == {frozenset({"00000", "00001", "00002", "00003"}), frozenset({"00004"})}
    assert found.leaked is None
    assert found.findings["copies"]["copies"]["num_images"] == 2
    assert found.findings["leak_search"]["among"] == "nothing"
    assert found.gallery == ()
    regrouped = found.regrouped(predicted_of(listed))
    assert regrouped["group_id"].to_pylist() == ["x", "x", "x", "x", "z"]


def test_images_that_the_bundle_keeps_a_picture_of_are_known_with_their_patients(slices):
    """Of patient x one image is a training image; the bundle also keeps pictures that are not measured."""
    listed = make_table(*(("b", "test", patient) for patient in ("x", "x", "y", "z")))
    shown = by_id(listed, slices[:4])
    kept = kept_of([slices[6], slices[1][:, ::-1], slices[5]], num_pictures=9)
    for places_BC in (None, np.random.default_rng(0).normal(size=(4, 4)), np.full((4, 4), np.nan)):
        found = related(listed, shown, kept=kept, places_BC=places_BC, with_pictures=True)
        assert found.leaked == {"00000", "00001"}
        assert found.findings["leak_search"] == {
            "among": "pictures", "num_compared": 3, "num_pictures": 9, "is_own": False, "knows_splits": False,
            "has_own_files": None,
        }  # fmt: skip
        assert found.findings["copies"]["copies"]["across_splits"]["num_images"] == 2
        (group,) = found.gallery
        assert [(each["split"], each["label"]) for each in group["images"]] == [("measured", "b"), ("training", "a")]


def test_the_places_of_images_are_searched_too(slices, monkeypatch):
    """Image 2 lies where the kept picture of it does, scaled to the same length."""
    given = []

    def find(features_BD, *args, **kwargs):
        given.append(features_BD)
        return find_copies(features_BD, *args, **kwargs)

    monkeypatch.setattr(relations, "find_copies", find)
    listed = make_table(*(("b", "test", patient) for patient in "wxyz"))
    places_BC = np.random.default_rng(0).normal(size=(4, 4)) * 7
    kept = kept_of([slices[2]], directions=directions(places_BC[2:3]))
    assert related(listed, by_id(listed, slices[:4]), kept=kept, places_BC=places_BC).leaked == {"00002"}
    (features,) = given
    assert features.shape == (5, 4)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(features[2], features[4], atol=2e-3)


def test_damaged_pictures_in_the_bundle_are_passed_over(slices):
    listed = make_table(*(("b", "test", patient) for patient in "xy"))
    jpegs = [b"", thumbnail.to_jpeg(slices[0][:50]), thumbnail.to_jpeg(slices[1])]
    found = related(listed, by_id(listed, slices[:2]), kept=kept_of(slices[:3], jpegs=jpegs, num_pictures=3))
    assert found.leaked == {"00001"}
    assert found.findings["leak_search"]["num_compared"] == 1
    found = related(listed, by_id(listed, slices[:2]), kept=kept_of(slices[:1], jpegs=[b""]))
    assert (found.leaked, found.findings["leak_search"]["among"]) == (None, "nothing")


@pytest.fixture
def own(slices) -> tuple[pa.Table, list[np.ndarray]]:
    """A data set with splits: copies and patients are in several of them."""
    rows = [
        ("a", "train", "p0", 0), ("b", "train", "p1", 1), ("a", "train", "p2", 2),
        ("a", "valid", "p3", 3), ("b", "valid", "p4", 0),
        ("a", "test", "p5", 3), ("b", "test", "p2", 4), ("a", "test", "p6", 5), ("b", "test", "p7", 5),
        ("a", "test", "p8", 6), ("b", "test", "p1", 7),
    ]  # fmt: skip
    shown = [slices[number][:, ::-1] if row % 2 else slices[number] for row, (*_, number) in enumerate(rows)]
    return make_table(*(row[:3] for row in rows)), shown


ALL_VALID = ("all", "valid")
"""Of all images together, those of validation count as learned from."""


@pytest.mark.parametrize("split", ["valid", "test", "all"])
def test_of_a_models_own_data_groups_and_known_images_are_those_of_its_training(own, split):
    listed, shown = own
    seen = seen_of(listed, shown)
    found = find_copies(None, looks.thumbnails(seen), seen["pixels_sha256"].to_pylist())
    picture = [f"{first:05}" for first in found.group_of.tolist()]
    images = Dataset(table=seen.append_column(splits.PICTURE, pa.array(picture)), findings={})
    wanted = {
        image_id
        for image_id, given in zip(listed["image_id"].to_pylist(), listed["split"].to_pylist(), strict=True)
        if split in (given, "all") and (image_id in images.leaked or given == "train" or (split, given) == ALL_VALID)
    }
    again = related(listed, by_id(listed, shown), split=split, is_own=True, kept=kept_of(shown[9:10]))
    assert again.leaked == wanted
    assert len(wanted) == {"valid": 1, "test": 3, "all": 8}[split]
    measured = evaluate.select_split(listed, split)["image_id"].to_pylist()
    pairs = [(a, b) for a in measured for b in measured]
    assert [again.group_of[a] == again.group_of[b] for a, b in pairs] == [
        images.group_of[a] == images.group_of[b] for a, b in pairs
    ]
    search = again.findings["leak_search"]
    assert (search["among"], search["num_compared"]) == ("images", {"valid": 3, "test": 5, "all": 5}[split])


def test_among_all_images_those_of_validation_and_of_their_patients_are_known(slices):
    """The epoch, the calibration and the thresholds were chosen on them. Image 4 could not be read by the training."""
    listed = make_table(
        ("a", "train", "p0"), ("b", "valid", "p1"), ("a", "test", "p2"), ("b", "test", "p1"), ("a", None, "p1")
    )
    found = related(listed, by_id(listed, slices[:5]), split="all", is_own=True)
    assert found.leaked == {"00000", "00001", "00003", "00004"}
    assert found.findings["leak_search"]["num_compared"] == 2
    assert related(listed, by_id(listed, slices[:5]), split="valid", is_own=True).leaked == frozenset()


def test_other_files_with_the_ids_of_images_that_the_model_learned_from_do_not_make_them_new(slices):
    """All files are others now. Image 3 shows what the training saw in image 0, and is found by its picture."""
    listed = make_table(("a", "train", "p0"), ("b", "valid", "p1"), ("a", "test", "p2"), ("b", "test", "p3"))
    shown = by_id(listed, [slices[4], slices[5], slices[6], slices[0][:, ::-1]])
    kept = kept_of(slices[:1], num_pictures=1)
    same = related(listed, shown, is_own=True, has_own_files=True, kept=kept)
    assert (same.leaked, same.findings["leak_search"]["among"]) == (frozenset(), "images")
    found = related(listed, shown, is_own=True, has_own_files=False, kept=kept)
    assert found.leaked == {"00003"}
    assert found.findings["leak_search"] == {
        "among": "pictures", "num_compared": 1, "num_pictures": 1, "is_own": True, "knows_splits": True,
        "has_own_files": False,
    }  # fmt: skip
    found = related(listed, shown, split="all", is_own=True, has_own_files=False, kept=kept)
    assert found.leaked == {"00000", "00001", "00003"}
    found = related(listed, shown, split="train", is_own=True, has_own_files=False)
    assert (found.leaked, found.findings["leak_search"]["among"]) == ({"00000"}, "nothing")


def test_a_picture_of_a_training_file_that_has_not_changed_is_no_copy_in_another_split(slices):
    listed = make_table(("a", "train", "p0"), ("b", "test", "p1"))
    found = related(
        listed, by_id(listed, slices[:2]), is_own=True, has_own_files=False, kept=kept_of(slices[:1], num_pictures=1)
    )
    assert found.leaked == frozenset()
    assert found.findings["copies"]["copies"]["num_images"] == 2
    assert found.findings["copies"]["copies"]["across_splits"]["num_images"] == 0


def test_in_another_fold_of_its_own_data_a_model_knows_the_images_that_its_bundle_keeps(slices):
    """Its training cut valid from train. Image 0, a training image, is one of test in the other fold."""
    ended = make_table(("a", "train", "p0"), ("b", "train", "p1"), ("a", "valid", "p2"), ("b", "test", "p3"))
    fold = make_table(("a", "test", "p0"), ("b", "train", "p1"), ("a", "train", "p2"), ("b", "train", "p3"))
    looked_at = scope.choose(trained_on(ended, ["valid"]), fold, evaluate.select_split(fold, "test"), "test")
    found = relations.find(
        looked_at, seen_of(looked_at.table, slices[:1]), predicted_of(looked_at.table),
        kept_of(slices[:2], num_pictures=2), CLASSES,
        split="test", with_pictures=False, task_cpus=1.0, quiet=True,
    )  # fmt: skip
    assert found.leaked == {"00000"}
    search = LeakSearch(**found.findings["leak_search"])
    assert (search.among, search.is_blind) == ("pictures", True)


def test_of_own_data_that_is_not_read_patients_and_kept_pictures_are_known(own, monkeypatch):
    monkeypatch.setattr(scope, "MAX_LEARNED", 1)
    listed, shown = own
    none = related(listed, by_id(listed, shown), is_own=True)
    assert none.leaked == {"00006", "00010"}
    assert none.findings["leak_search"]["among"] == "nothing"
    some = related(listed, by_id(listed, shown), is_own=True, kept=kept_of(shown[9:10]))
    assert some.leaked == {"00006", "00009", "00010"}


def test_neighbouring_slices_of_what_the_model_learned_from_are_counted(slices, monkeypatch):
    """Whether pictures are neighbours is given here: the first measured one and the one that is kept."""

    def compare(thumbnails_BHW: np.ndarray, pairs: np.ndarray, **_: Any) -> pixel_match.Match:
        found = pixel_match.compare(thumbnails_BHW, pairs)
        is_near = (pairs == [0, 3]).all(axis=1)
        return dataclasses.replace(found, kinds=np.where(is_near, pixel_match.Kind.NEIGHBOUR.value, "other"))

    monkeypatch.setattr(pictures, "compare", compare)
    listed = make_table(*(("a", "test", patient) for patient in "xyz"))
    found = related(listed, by_id(listed, slices[:3]), kept=kept_of(slices[4:5]))
    assert (found.leaked, found.findings["neighbours"]) == (frozenset(), {"test": 1})


@pytest.mark.parametrize("has_learned", [True, False])
@pytest.mark.parametrize(("is_named", "num_near"), [(True, 0), (False, 1)])
def test_of_own_data_neighbours_of_named_patients_do_not_count(slices, monkeypatch, has_learned, is_named, num_near):
    """The first test image and the first training image, or its picture in the bundle, are given as neighbours."""

    def compare(thumbnails_BHW: np.ndarray, pairs: np.ndarray, **_: Any) -> pixel_match.Match:
        found = pixel_match.compare(thumbnails_BHW, pairs)
        is_near = (pairs == [0, 2]).all(axis=1)
        return dataclasses.replace(found, kinds=np.where(is_near, pixel_match.Kind.NEIGHBOUR.value, "other"))

    monkeypatch.setattr(pictures, "compare", compare)
    monkeypatch.setattr(scope, "MAX_LEARNED", 2 if has_learned else 1)
    rows = [("a", "train"), ("b", "train"), ("a", "test"), ("b", "test")]
    groups = ("p0", "p1", "p2", "p3") if is_named else ("00000", "00001", "00002", "00003")
    listed = make_table(*((*row, group) for row, group in zip(rows, groups, strict=True)))
    kept = None if has_learned else kept_of(slices[:1])
    found = related(listed, by_id(listed, slices[:4]), is_own=True, kept=kept)
    assert found.findings["neighbours"] == {"test": num_near}
    assert found.near == {"00002"} if num_near else not found.near


def test_images_that_cannot_be_read_again_or_were_not_scored_keep_their_patients(slices):
    listed = make_table(*(("a", "test", patient) for patient in "wxyz"))
    looked_at = scope.choose(SPEC, listed, listed, "test")
    seen = seen_of(looked_at.table, [slices[0]] * 4, unreadable=[1])
    predicted = predicted_of(listed)
    confidence = pa.array([0.5, 0.5, None, 0.5], pa.float32())
    predicted = predicted.set_column(predicted.schema.get_field_index("confidence"), "confidence", confidence)
    found = relations.find(
        looked_at, seen, predicted, None, CLASSES, split="test", with_pictures=True, task_cpus=1.0, quiet=True
    )
    assert groups_of(found) == {frozenset({"00000", "00003"}), frozenset({"00001"}), frozenset({"00002"})}
    nothing = seen_of(looked_at.table, [slices[0]] * 4, unreadable=range(4))
    found = relations.find(
        looked_at, nothing, predicted, kept_of(slices[:1]), CLASSES,
        split="test", with_pictures=True, task_cpus=1.0, quiet=True,
    )  # fmt: skip
    assert len(groups_of(found)) == 4
    assert found.leaked == frozenset()


def test_without_labels_nothing_is_read(tmp_path):
    listed = make_table((None, "test", "x"))
    looked_at = scope.choose(SPEC, listed, listed, "test")
    seen = relations.look(looked_at, out=str(tmp_path / "out"), kind="k", task_cpus=1.0, quiet=True)
    assert seen.num_rows == 0
    assert seen.schema.names == seen_of(make_table(("a", "test", "x")), [np.zeros((96, 96), np.uint8)]).schema.names
    assert relations.with_traits(listed, seen)["trait_format"].to_pylist() == [None]
    assert not (tmp_path / "out").exists()


def test_subgroups_know_sizes_and_formats(slices):
    listed = make_table(("a", "test", "x"), (None, "test", "y"), ("b", "test", "z"))
    for name in ("trait_format", "width_px", "is_16_bit", "error_code", "picture", "scanner"):
        listed = listed.append_column(f"given_{name}", pa.array(["JPEG", "BMP", "BMP"]))
    labelled = listed.take(pa.array([2, 0])).select(listed.column_names[:6])
    found = relations.with_traits(listed, seen_of(labelled, slices[:2]))
    assert found["trait_format"].to_pylist() == ["PNG", None, "PNG"]
    assert found["width_px"].to_pylist() == [96, None, 96]
    assert [name for name in found.column_names if name.startswith("given_")] == ["given_scanner"]
