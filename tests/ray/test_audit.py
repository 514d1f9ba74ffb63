"""The audit of a folder: what it finds, writes and mends."""

import json
import shutil
from dataclasses import replace

import keras
import numpy as np
import pyarrow.csv
import pytest
from PIL import Image

from tlray import AuditConfig, audit_images
from tlray.config.phantoms import PhantomConfig
from tlray.config.training import PrecisionChoice
from tlray.data import phantom_files
from tlray.data.listing import list_images
from tlray.data.manifest import read_manifest
from tlray.engines import openvino_engine
from tlray.errors import ConfigError, DataError

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Phantoms of two classes in given splits; a copy of a training image in test, and one with another label."""
    root = tmp_path_factory.mktemp("audit")
    phantom_files.make(
        PhantomConfig(out=str(root / "made"), patients_per_class=8, slices_per_patient=2, num_unreadable=0, quiet=True)
    )
    classes = sorted(path for path in (root / "made").iterdir() if path.is_dir())[:2]
    for label in classes:
        for number, patient in enumerate(sorted(path for path in label.iterdir() if path.is_dir())):
            shutil.copytree(patient, root / "data" / ("test" if number > 5 else "train") / label.name / patient.name)
    first, second = (sorted((root / "data/train" / label.name).glob("*/*.*")) for label in classes)
    other = root / "data/test" / classes[0].name / "patient_again"
    other.mkdir()
    image = Image.open(first[0]).convert("L")
    image.save(other / "copy.jpg", quality=80)
    wrong = root / "data/train" / classes[1].name / "patient_wrong"
    wrong.mkdir()
    Image.fromarray(np.asarray(Image.open(first[-1]).convert("L"))[:, ::-1]).save(wrong / "mirrored.png")
    (other / "broken.png").write_bytes(b"")
    assert second
    return root / "data"


def test_an_audit_finds_and_mends(folder, tmp_path):
    out = tmp_path / "audit"
    result = audit_images(AuditConfig(data=str(folder), out=str(out), fix=True, quiet=True))
    found = result.findings
    assert (found["num_images"], found["num_readable"]) == (35, 34)
    (across,) = found["copies"]["copies"]["across_splits"]["examples"]
    assert {image["split"] for image in across["images"]} == {"train", "test"}
    assert "copy.jpg" in " ".join(image["image_id"] for image in across["images"])
    (conflict,) = found["copies"]["copies"]["conflicting_labels"]["examples"]
    assert len({image["label"] for image in conflict["images"]}) == 2
    assert found["leaked"]["test"] == 1
    assert found["split_shortcuts"]["given"] == ["train", "test"]
    assert "what tells the splits" in dict(result.rows())
    assert any("copies of one another" in warning for warning in result.warnings)
    assert any("different labels" in warning for warning in result.warnings)
    assert json.loads((out / "audit.json").read_text()) == found
    page = (out / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") >= 4
    assert "What this report cannot tell" not in page  # there is no model

    rows = read_manifest(str(out / "manifest.parquet")).to_pylist()
    names = {image["image_id"] for image in across["images"]}
    assert len({row["picture"] for row in rows if row["image_id"] in names}) == 1

    # What was mended is a data set of its own, without the leak, the conflict and the broken file.
    fixed = list_images(str(out / "fixed.csv")).table
    assert fixed.num_rows == result.num_fixed == 32
    again = audit_images(AuditConfig(data=str(out / "fixed.csv"), out=str(tmp_path / "again"), quiet=True)).findings
    assert again["copies"]["copies"]["across_splits"]["num_groups"] == 0
    assert again["copies"]["copies"]["conflicting_labels"]["num_groups"] == 0
    assert again["groups"]["across_splits"]["num_groups"] == 0
    assert again["leaked"] == {"valid": 0, "test": 0}


def test_an_earlier_audit_is_replaced_only_if_told_and_private_images_are_not_shown(folder, tmp_path):
    config = AuditConfig(data=str(folder), out=str(tmp_path / "out"), thumbnails=False, quiet=True)
    found = audit_images(config).findings
    assert found["copies"]["copies"]["num_groups"] > 0
    assert "data:image/jpeg" not in (tmp_path / "out/report.html").read_text()
    with pytest.raises(ConfigError, match="--overwrite"):
        audit_images(config)


def test_a_set_without_labels_or_readable_images(tmp_path):
    (tmp_path / "flat").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "flat" / f"{number}.png")
    found = audit_images(AuditConfig(data=str(tmp_path / "flat"), out=str(tmp_path / "out"), quiet=True)).findings
    assert (found["num_unlabelled"], found["shortcuts"]["num_folds"], found["traits_control"]) == (3, 0, None)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/1.png").write_bytes(b"")
    with pytest.raises(DataError, match="None of the 1 images"):
        audit_images(AuditConfig(data=str(tmp_path / "bad"), out=str(tmp_path / "none"), quiet=True))


def test_features_find_wrong_labels(tmp_path):
    """Dark and light images, of which one of each has the label of the others."""
    rng = np.random.default_rng(0)
    for number in range(24):
        true, grey = (("dark", 40), ("light", 200))[number % 2]
        label = {0: "light", 1: "dark"}.get(number, true)
        (tmp_path / "data" / label).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(grey - 30, grey + 30, (40, 40), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / label / f"{number:02}.png")
    keras.utils.set_random_seed(3)
    pixels = keras.Input((32, 32, 3))
    keras.Model(pixels, keras.layers.Conv2D(6, 3, strides=2)(pixels)).save(tmp_path / "own.keras")
    both: list[tuple[bool, PrecisionChoice]] = [(True, "auto"), (False, "float32")]
    for thumbnails, precision in both:
        out = tmp_path / f"out-{thumbnails}"
        config = AuditConfig(
            data=str(tmp_path / "data"), out=str(out), weights="imagenet", backbone=str(tmp_path / "own.keras"),
            preprocessing="unit", image_size_px=32, precision=precision, thumbnails=thumbnails, quiet=True,
        )  # fmt: skip
        result = audit_images(config)
        checked = json.loads((out / "audit.json").read_text())["suspect_labels"]
        assert (checked["num_images"], checked["num_suspects"]) == (24, 2)
        rows = pyarrow.csv.read_csv(out / "suspect_labels.csv").to_pylist()
        assert {(row["image_id"], row["label"], row["suggested"]) for row in rows} == {
            ("light/00.png", "light", "dark"), ("dark/01.png", "dark", "light"),
        }  # fmt: skip
        assert dict(result.rows())["labels to check"] == f"2 of 24: {out}/suspect_labels.csv"
        assert "what tells the splits" not in dict(result.rows())  # there are none
        page = (out / "report.html").read_text()
        assert ("Labels to check" in page, page.count("data:image/jpeg;base64,")) == (thumbnails, 2 * thumbnails)


def test_a_network_that_openvino_does_not_know_is_told_and_not_taken_for_another(folder, tmp_path):
    pixels = keras.Input((32, 32, 3))
    path = str(tmp_path / "unknown.keras")
    keras.Model(pixels, keras.ops.erfinv(keras.layers.Conv2D(4, 3, activation="sigmoid")(pixels))).save(path)
    config = AuditConfig(
        data=str(folder), out=str(tmp_path / "out"), weights="imagenet", backbone=path, preprocessing="unit",
        image_size_px=32, quiet=True,
    )  # fmt: skip
    for engine, precision, wish in (("openvino", "auto", "--engine openvino"), ("auto", "int8", "--precision int8")):
        if precision in ("auto", *openvino_engine.cpu_precisions()):
            with pytest.raises(ConfigError, match=f"{wish}: OpenVINO cannot run this model"):
                audit_images(replace(config, engine=engine, precision=precision, out=str(tmp_path / engine)))
    note = "OpenVINO cannot convert the network, so TensorFlow computes its features, more slowly: "
    assert audit_images(config).warnings[-1].startswith(note)
