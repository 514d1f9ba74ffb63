"""Labels that are likely wrong: by probes on the features of an audit, as a table, and with pictures."""

import base64
import hashlib
import io
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from PIL import Image

from tests.unit.data.test_manifest import make_table
from tests.unit.data.test_splits import with_series
from tlray.data import looks, manifest
from tlray.evaluation import suspect_labels
from tlray.evaluation.suspect_labels import MAX_PICTURES

NUM_PATIENTS, NUM_SLICES = 24, 3
WRONG = (0, 1)
"""Patients whose labels are wrong, one of each class."""


def make_images(num_patients: int = NUM_PATIENTS) -> tuple[pa.Table, np.ndarray]:
    """Images of two classes, and features that show the class, and which patient it is."""
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(num_patients), NUM_SLICES)
    shown = patients % 2
    labels = np.where(np.isin(patients, WRONG), 1 - shown, shown)
    rows = [("ab"[label], None, f"p{patient}") for label, patient in zip(labels, patients, strict=True)]
    classes = np.eye(2)[shown] + 0.05 * rng.normal(size=(len(patients), 2))
    features = np.concatenate([classes, np.eye(num_patients)[patients]], axis=1).astype(np.float16)
    return make_table(*rows), features


def test_wrong_labels_of_whole_patients_are_found():
    """A probe that knows a patient would know its labels, right or wrong."""
    table, features = make_images()
    checked = suspect_labels.check(table, features, memory_bytes=math.inf, seed=0)
    assert checked.suspects is not None
    assert {each["image_id"] for each in checked.suspects} == {f"{number:05}" for number in range(2 * NUM_SLICES)}
    for each in checked.suspects:
        assert (each["label"], each["suggested"]) in {("a", "b"), ("b", "a")}
        assert each["label_prob"] < 0.5 < each["suggested_prob"]
        assert each["uri"] == f"/{each['image_id']}"
    margins = [each["label_prob"] - each["suggested_prob"] for each in checked.suspects]
    assert margins == sorted(margins)
    described = checked.describe()
    assert (described["num_images"], described["num_suspects"], described["note"]) == (72, 6, "")
    assert [each["image_id"] for each in described["examples"]] == [each["image_id"] for each in checked.suspects]
    assert "uri" not in described["examples"][0]


def test_images_without_a_label_are_left_out():
    table, features = make_images()
    unlabelled = make_table((None, None, "q"), (None, "test", "q"))
    mixed = pa.concat_tables([unlabelled, table])
    wide = np.concatenate([np.full((2, features.shape[1]), 9, np.float16), features])
    found = suspect_labels.check(mixed, wide, memory_bytes=math.inf, seed=0)
    assert found == suspect_labels.check(table, features, memory_bytes=math.inf, seed=0)


def test_what_cannot_be_checked_is_said():
    table, features = make_images()
    one = suspect_labels.check(table.slice(0, 3), features[:3], memory_bytes=math.inf, seed=0)
    assert one.describe() == {
        "num_images": 0, "num_suspects": None, "examples": [],
        "note": "it takes two classes, each with images of two patients",
    }  # fmt: skip
    few = suspect_labels.check(*make_images(num_patients=2), memory_bytes=math.inf, seed=0)
    assert (few.suspects, few.note) == (None, "it takes two classes, each with images of two patients")
    # 57 of the 72 images in a fit, with 26 features, and 32 bytes for each of them.
    assert suspect_labels.check(table, features, memory_bytes=57 * 26 * 32, seed=0).note == ""
    large = suspect_labels.check(table, features, memory_bytes=57 * 26 * 32 - 1, seed=0)
    assert large.suspects is None
    assert large.note.startswith("probes would take 0.0 GB, and there are 0.0 GB; give fewer images")


def test_a_class_of_one_patient_is_left_out_and_the_others_are_checked():
    table, features = make_images()
    more = pa.concat_tables([table, make_table(("c", None, "q"), ("c", None, "q"))])
    wide = np.concatenate([features, np.full((2, features.shape[1]), 9, np.float16)])
    found, alone = (
        suspect_labels.check(*each, memory_bytes=math.inf, seed=0) for each in ((more, wide), (table, features))
    )
    assert (found.suspects, found.num_images) == (alone.suspects, 72)
    assert found.note == "classes left out, each of one patient or picture only: 'c'"


def test_copies_of_a_picture_are_held_out_together():
    """Pairs of patients share a picture: one with a wrong label must not vouch for the other."""
    table, features = make_images(num_patients=24)
    pictures = [f"picture {number // (2 * NUM_SLICES)}" for number in range(table.num_rows)]
    shown = np.repeat(np.arange(24) // 2 % 2, NUM_SLICES)
    labels = np.where(np.arange(24) // 2 == 0, 1, np.arange(24) // 2 % 2).repeat(NUM_SLICES)
    rows = [("ab"[label], None, f"p{number // NUM_SLICES}") for number, label in enumerate(labels)]
    of_picture = np.eye(12)[np.arange(24 * NUM_SLICES) // (2 * NUM_SLICES)] * 3
    features = np.concatenate([np.eye(2)[shown], of_picture], axis=1).astype(np.float16)
    table = make_table(*rows).append_column("picture", pa.array(pictures))
    checked = suspect_labels.check(table, features, memory_bytes=math.inf, seed=0)
    assert checked.suspects is not None
    assert {each["image_id"] for each in checked.suspects} == {f"{number:05}" for number in range(2 * NUM_SLICES)}


def test_neighbouring_slices_are_held_out_together():
    """Nobody names the patients. A probe that knows a series would know its labels, right or wrong."""
    table, features = make_images()
    names = table["image_id"].to_pylist()
    unnamed = manifest.with_column(table, "group_id", names)
    series = [names[number // NUM_SLICES * NUM_SLICES] for number in range(len(names))]
    found, without = (
        suspect_labels.check(each, features, memory_bytes=math.inf, seed=0).suspects
        for each in (with_series(unnamed, series), unnamed)
    )
    assert found is not None
    assert {each["image_id"] for each in found} == {f"{number:05}" for number in range(2 * NUM_SLICES)}
    assert without == []


def suspect(uri: str, **changed: str | None) -> dict[str, Any]:
    found: dict[str, Any] = {"image_id": "a/1.png", "uri": uri, "split": "train", "label": "a", "suggested": "b"}
    return found | {"label_prob": 0.125, "suggested_prob": 0.75} | changed


def test_the_table(tmp_path):
    found = [suspect("/1.png"), suspect("/2.png", image_id="=1+1", split=None)]
    suspect_labels.write(str(tmp_path), found)
    rows = pyarrow.csv.read_csv(tmp_path / "suspect_labels.csv").to_pylist()
    assert rows[0] == {
        "image_id": "a/1.png", "split": "train", "label": "a", "suggested": "b", "label_prob": 0.125,
        "suggested_prob": 0.75,
    }  # fmt: skip
    assert rows[1]["image_id"] == "'=1+1"
    assert not rows[1]["split"]
    suspect_labels.write(str(tmp_path), [])
    assert (tmp_path / "suspect_labels.csv").read_text().count("\n") == 1


@pytest.mark.parametrize("num_images", [2, MAX_PICTURES + 2])
def test_pictures_of_the_first_ones_that_can_be_read(tmp_path, num_images):
    Image.fromarray(np.full((40, 30), 200, np.uint8)).save(tmp_path / "1.png")
    uris = [str(tmp_path / "gone.png"), *[str(tmp_path / "1.png")] * (num_images - 1)]
    found = [suspect(uri, image_id=f"{number}.png") for number, uri in enumerate(uris)]
    shown = suspect_labels.with_pictures(found)
    assert len(shown) == min(num_images, MAX_PICTURES) - 1
    with Image.open(io.BytesIO(base64.b64decode(shown[0]["jpeg"]))) as image:
        assert image.size == (looks.THUMBNAIL_PX, looks.THUMBNAIL_PX)
        assert np.asarray(image).mean() == pytest.approx(200, abs=3)


def test_of_copies_of_a_picture_one_is_shown(tmp_path):
    Image.fromarray(np.full((40, 30), 200, np.uint8)).save(tmp_path / "1.png")
    columns = {"image_id": ["1.png", "2.png", "3.png", "4.png"], "uri": [str(tmp_path / "1.png")] * 4}
    rows = pa.table(columns | {"split": ["train"] * 4, "picture": ["1.png", "1.png", "3.png", "4.png"]})
    labels, probs_BK = np.array([0, 0, 0, 1]), np.array([[0.1, 0.9], [0.1, 0.9], [0.2, 0.8], [0.3, 0.7]])
    found = suspect_labels.find(rows, labels, ("a", "b"), probs_BK)
    assert [each["image_id"] for each in found] == ["1.png", "2.png", "3.png"]
    assert [each["image_id"] for each in suspect_labels.with_pictures(found)] == ["1.png", "3.png"]


def test_a_file_that_has_changed_since_it_was_first_read_is_not_shown(tmp_path):
    Image.fromarray(np.full((40, 30), 200, np.uint8)).save(tmp_path / "1.png")
    digest = hashlib.sha256((tmp_path / "1.png").read_bytes()).hexdigest()
    columns = {"image_id": ["1.png", "2.png", "3.png"], "uri": [str(tmp_path / "1.png")] * 3}
    rows = pa.table(columns | {"split": ["train"] * 3, "sha256": [digest] * 3})
    labels, probs_BK = np.array([0, 0, 1]), np.array([[0.1, 0.9], [0.2, 0.8], [0.3, 0.7]])
    found = suspect_labels.find(rows, labels, ("a", "b"), probs_BK)
    assert [each["image_id"] for each in suspect_labels.with_pictures(found)] == ["1.png", "2.png"]
    Image.fromarray(np.full((40, 30), 100, np.uint8)).save(tmp_path / "1.png")
    assert suspect_labels.with_pictures(found) == []
