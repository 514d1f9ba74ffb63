"""Look-alikes from training to the endpoint: in the bundle, in reports, in answers.

`test_probe.py` trains with `--no-thumbnails`.
"""

import base64
import json
from pathlib import Path

import httpx
import keras
import numpy as np
import pytest

from tests.endpoint import LocalClassifier, listening, local_api
from tlray import cli
from tlray.bundle import store
from tlray.bundle.lookalikes import KeptImages
from tlray.bundle.spec import LOOKALIKES
from tlray.data import manifest, phantom_files

pytestmark = pytest.mark.usefixtures("local_ray")

SIZE_PX = 64
JPEG = "data:image/jpeg;base64,"


def tlray(*arguments: object) -> int:
    return cli.execute(str(arguments[0]), list(map(str, arguments[1:])))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms of 40 patients: enough for the novelty score, whose space look-alikes are searched in."""
    root = tmp_path_factory.mktemp("data")
    phantom_files.write_data_set(
        str(root), num_patients_per_class=10, num_slices_per_patient=1, size_px=SIZE_PX, seed=1, num_unreadable=0
    )
    return root


@pytest.fixture(scope="module")
def run(local_ray, data, tmp_path_factory) -> Path:  # noqa: ARG001
    """A probe on the features of a small network of one's own."""
    keras.utils.set_random_seed(2)
    x = pixels = keras.Input((SIZE_PX, SIZE_PX, 3))
    for num_filters in (8, 12, 16):
        x = keras.layers.Conv2D(num_filters, 3, strides=2, activation="relu")(x)
    root = tmp_path_factory.mktemp("run")
    keras.Model(pixels, x).save(root / "own.keras")
    network = ("--backbone", root / "own.keras", "--preprocessing", "symmetric", "--image-size-px", SIZE_PX)
    exact = ("--inference-precision", "float32", "--quiet")
    assert tlray("train", "probe", "--data", data, "--out", root / "run", *network, *exact) == 0
    return root / "run"


def rows_of(run: Path, split: str) -> list[dict[str, str]]:
    table = manifest.read_manifest(str(run / "manifest.parquet"))
    return [row for row in table.to_pylist() if row["split"] == split]


def kept_by(run: Path) -> KeptImages:
    kept = store.load(str(run / "bundle")).lookalikes()
    assert kept is not None
    return kept


def test_with_the_splits_of_the_training_its_groups_and_new_images_are_found_again(run, tmp_path):
    data = ("--data", run / "manifest.parquet", "--split", "test", "--out", tmp_path / "out", "--quiet")
    assert tlray("evaluate", "--bundle", run / "bundle", *data) == 0
    again, before = (json.loads((each / "metrics.json").read_text()) for each in (tmp_path / "out", run))
    counts = ("split", "num_images", "num_groups", "num_leaked", "is_leak_free")
    assert [again[name] for name in counts] == [before[name] for name in counts]
    assert (again["leak_search"]["among"], again["leak_search"]["knows_splits"]) == ("images", True)


def test_the_bundle_keeps_each_training_image_and_no_name(run):
    bundle = store.load(str(run / "bundle"))
    kept, rows = kept_by(run), rows_of(run, "train")
    assert len(kept.jpegs) == kept.num_pictures
    assert len(kept.jpegs) == len({row["picture"] for row in rows}) >= 20
    labels = [bundle.spec.classes[index] for index in kept.labels.tolist()]
    assert set(labels) == set(bundle.spec.classes)
    np.testing.assert_allclose(np.linalg.norm(kept.directions, axis=1), 1, atol=1e-5)
    content = (run / "bundle" / LOOKALIKES).read_bytes()
    assert not [row["image_id"] for row in rows if Path(row["image_id"]).name.encode() in content]


def test_reports_show_them_except_for_the_one_that_goes_with_the_bundle(run, data, tmp_path):
    report = (run / "report.html").read_text()
    assert "not evidence that it is right" in report
    assert report.count("in training: ") % 3 == 0
    assert report.count("in training: ") >= 3
    assert JPEG not in (run / "bundle/report.html").read_text()
    evaluate = ("evaluate", "--bundle", run / "bundle", "--data", data, "--split", "all", "--quiet")
    assert tlray(*evaluate, "--out", tmp_path / "shown") == 0
    shown = (tmp_path / "shown/report.html").read_text()
    assert "in training: " in shown
    # All training images are found by the pictures of them, so that the others are the figures to quote.
    found = json.loads((tmp_path / "shown/metrics.json").read_text())
    num_known = len(rows_of(run, "train"))
    assert (found["num_leaked"], found["all_images"]["num_images"]) == (num_known, found["num_images"] + num_known)
    assert f"They were compared with pictures of all training images ({len(kept_by(run).jpegs)} in the bundle)" in shown
    assert tlray(*evaluate, "--out", tmp_path / "private", "--no-thumbnails") == 0
    assert JPEG not in (tmp_path / "private/report.html").read_text()


def test_the_endpoint_finds_a_training_image_itself(run):
    bundle = store.load(str(run / "bundle"))
    row = rows_of(run, "train")[0]
    file = {"file": Path(row["uri"]).read_bytes()}
    with listening(local_api(LocalClassifier(str(run / "bundle")))) as address:
        answer = httpx.post(f"{address}/predict?lookalikes=true", files=file, timeout=60).raise_for_status().json()
        plain = httpx.post(f"{address}/predict", files=file, timeout=60).raise_for_status().json()
    (found,), (without,) = answer["predictions"], plain["predictions"]
    first, *others = found.pop("lookalikes")
    assert found == without
    assert first["label"] == row["label"]
    assert first["similarity"] == pytest.approx(1, abs=0.01)
    kept = bundle.lookalikes()
    assert kept is not None
    assert base64.b64decode(first["jpeg"]) in kept.jpegs
    assert [each["similarity"] for each in others] == sorted((each["similarity"] for each in others), reverse=True)
    assert len(others) == 2
