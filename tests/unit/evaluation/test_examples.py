"""Which images a report shows as examples, and what it is given of them."""

import base64
import dataclasses
import hashlib
import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tlray.bundle import store
from tlray.bundle.judgement import Limits
from tlray.bundle.spec import LOOKALIKES, BundleSpec
from tlray.engines.kinds import REFERENCE, EngineKind
from tlray.evaluation import examples
from tlray.evaluation.examples import Example
from tlray.evaluation.measurement import SplitEvaluation
from tlray.inference.lookalikes import Lookalike

SPEC = BundleSpec(classes=("a", "b"), image_size_px=16, preprocessing="unit", backbone="b", weights="w")


def evaluation(
    labels: list[int], probs_of_a: list[float], groups: str, ood_scores: list[float] | None = None
) -> SplitEvaluation:
    probs = np.array(probs_of_a, np.float32)
    scores = np.full(len(labels), np.nan) if ood_scores is None else np.array(ood_scores)
    return SplitEvaluation(
        metrics={},
        labels=np.array(labels),
        probs_BK=np.stack([probs, 1 - probs], axis=1),
        classes=("a", "b"),
        groups=np.array(list(groups)),
        image_ids=np.array([f"i{number}" for number in range(len(labels))]),
        ood_scores=scores.astype(np.float32),
        limits=Limits(refer_below=0.6, max_ood_score=1.0),
        is_new=np.ones(len(labels), bool),
    )


MIXED = evaluation(
    #       right        wrong    uncertain   foreign
    [0, 0, 1, 1, 1, 0, 0, 0, 1],
    [0.9, 0.8, 0.3, 0.7, 0.95, 0.55, 0.48, 0.99, 0.2],
    "ppqrstuvw",
    [0, 0, 0, 0, 0, 0, 0, 2, 3],
)


def ids(found: list[Example]) -> dict[str, list[str]]:
    by_kind: dict[str, list[str]] = {}
    for each in found:
        by_kind.setdefault(each.kind, []).append(each.image_id)
    return by_kind


def chosen(measured: SplitEvaluation) -> list[Example]:
    ids = measured.image_ids.tolist()
    columns = {
        "image_id": ids,
        "uri": [f"/{each}.png" for each in ids],
        "sha256": [f"sha256 of {each}" for each in ids],
    }
    return examples.choose(measured, pa.table(columns))


def test_each_kind_in_its_order_and_one_image_of_a_group():
    found = chosen(MIXED)
    assert ids(found) == {
        "right": ["i0", "i2"],
        "wrong": ["i4", "i3"],
        "uncertain": ["i6", "i5"],
        "foreign": ["i8", "i7"],
    }
    assert found[2] == Example(
        kind="wrong",
        image_id="i4",
        uri="/i4.png",
        sha256="sha256 of i4",
        label="b",
        predicted="a",
        confidence=pytest.approx(0.95),  # pyright: ignore[reportArgumentType]
        reason="",
    )
    assert [each.reason for each in found[4:]] == ["low_confidence"] * 2 + ["out_of_distribution"] * 2


def test_images_that_the_model_knows_are_left_out():
    is_new = np.arange(9) != 4
    assert ids(chosen(dataclasses.replace(MIXED, is_new=is_new)))["wrong"] == ["i3"]


def test_right_ones_are_of_all_classes_and_no_kind_has_too_many():
    right = evaluation([0, 1] * 8, [0.9, 0.1] * 8, "abcdefghijklmnop")
    found = chosen(right)
    assert ids(found).keys() == {"right"}
    assert [each.label for each in found] == ["a", "a", "b", "b"]
    wrong = evaluation([0] * 6, [0.3, 0.2, 0.1, 0.35, 0.25, 0.15], "abcdef")
    assert ids(chosen(wrong)) == {"wrong": ["i2", "i5", "i1", "i4"]}


@pytest.fixture
def shown(tmp_path: Path) -> list[Example]:
    """Two examples: a readable image, and one that has gone."""
    Image.new("L", (32, 32), 200).save(tmp_path / "i0.png")
    uris = [str(tmp_path / f"{name}.png") for name in ("i0", "i1")]
    digests = [hashlib.sha256(Path(uris[0]).read_bytes()).hexdigest(), None]
    images = pa.table({"image_id": ["i0", "i1"], "uri": uris, "sha256": digests})
    made = examples.choose(evaluation([0, 1], [0.9, 0.9], "pq"), images)
    assert [each.kind for each in made] == ["right", "wrong"]
    return made


def seal(directory: Path, *, keeps_images: bool) -> tuple[str, BundleSpec, str]:
    """Writes a bundle; returns its location, its description and its sha256."""
    directory.mkdir()
    (directory / "model.keras").write_bytes(b"")
    if keeps_images:
        (directory / LOOKALIKES).write_bytes(b"")
    store.seal(str(directory), SPEC)
    return str(directory), *store.read_spec(str(directory))


def test_pictures_of_a_bundle_without_training_images(shown, tmp_path):
    (found,) = examples.with_pictures(shown, *seal(tmp_path / "bundle", keeps_images=False), REFERENCE)
    jpeg = base64.b64decode(found.pop("jpeg"))
    assert found == {
        "kind": "right",
        "image_id": "i0",
        "label": "a",
        "predicted": "a",
        "confidence": pytest.approx(0.9),
        "reason": "",
        "lookalikes": [],
    }
    np.testing.assert_allclose(np.asarray(Image.open(io.BytesIO(jpeg))), 200, atol=2)


def test_look_alikes_stand_beside_the_images_that_can_be_read(shown, tmp_path, monkeypatch):
    asked: list[np.ndarray] = []

    def find(images_BHWC: np.ndarray, _location: str, _sha256: str, _kind: EngineKind) -> list[list[Lookalike]]:
        asked.append(images_BHWC)
        return [[Lookalike(class_index=1, similarity=0.5, jpeg=b"x")]]

    monkeypatch.setattr(examples, "_lookalikes", find)
    (found,) = examples.with_pictures(shown, *seal(tmp_path / "bundle", keeps_images=True), REFERENCE)
    assert found["lookalikes"] == [{"label": "b", "similarity": 0.5, "jpeg": base64.b64encode(b"x").decode()}]
    assert (asked[0].shape, asked[0].dtype, int(asked[0].min())) == ((1, 16, 16, 3), np.uint8, 200)


def test_a_model_that_cannot_be_loaded_costs_the_look_alikes_only(shown, tmp_path):
    (found,) = examples.with_pictures(shown, *seal(tmp_path / "bundle", keeps_images=True), REFERENCE)
    assert (found["image_id"], found["lookalikes"]) == ("i0", [])


def test_look_alikes_of_another_bundle_are_not_shown(shown, tmp_path, monkeypatch):
    """It is there in place of the one that predicted; its classes may be others."""
    location, spec, sha256 = seal(tmp_path / "bundle", keeps_images=True)
    other = dataclasses.replace(SPEC, classes=("x", "y", "z"))
    monkeypatch.setattr(
        examples,
        "Predictor",
        lambda *_, **__: SimpleNamespace(
            bundle=SimpleNamespace(sha256=store.seal(location, other), lookalikes=lambda: "kept"),
            score=lambda _: SimpleNamespace(places_BC=np.zeros((1, 2), np.float32)),
        ),
    )
    monkeypatch.setattr(examples.lookalikes, "find", lambda *_: [[Lookalike(class_index=1, similarity=0.5, jpeg=b"x")]])
    (found,) = examples.with_pictures(shown, location, spec, sha256, REFERENCE)
    assert found["lookalikes"] == []
    same = store.read_spec(location)[1]
    (found,) = examples.with_pictures(shown, location, spec, same, REFERENCE)
    assert [each["label"] for each in found["lookalikes"]] == ["b"]


def test_where_no_image_can_be_read_there_are_no_pictures(shown, tmp_path):
    (tmp_path / "i0.png").unlink()
    assert examples.with_pictures(shown, *seal(tmp_path / "bundle", keeps_images=True), REFERENCE) == []


def test_a_file_that_has_changed_since_it_was_measured_is_not_shown(shown, tmp_path):
    Image.new("L", (32, 32), 100).save(tmp_path / "i0.png")
    assert examples.with_pictures(shown, *seal(tmp_path / "bundle", keeps_images=False), REFERENCE) == []
