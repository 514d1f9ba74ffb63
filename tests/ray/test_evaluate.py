"""Evaluating and comparing bundles on images of which some are copies of one another, and some of training images."""

import dataclasses
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.ray.test_compare import export_bundle
from tlray import CompareConfig, EvaluateConfig, compare
from tlray import evaluate as evaluate_images
from tlray.bundle import store
from tlray.bundle.lookalikes import KeptImages
from tlray.bundle.novelty import directions
from tlray.bundle.spec import LOOKALIKES
from tlray.config.values import parse_columns
from tlray.data import fingerprints, inspection, looks, manifest, phantom_drawing, phantoms, thumbnail
from tlray.data.listing import list_images
from tlray.evaluation import doubts, evaluate
from tlray.inference import predictions

pytestmark = pytest.mark.usefixtures("local_ray")


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def slices() -> list[np.ndarray]:
    """A slice of each of six patients."""
    rng = np.random.default_rng(0)
    return [phantom_drawing.render_slice(phantoms.sample_anatomy(rng), None, rng=rng, size_px=128) for _ in range(6)]


@pytest.fixture(scope="module")
def images(slices, tmp_path_factory) -> Path:
    """Two classes: three slices and a mirrored copy of one; three, and one of these as a JPEG; and an empty file."""
    root = tmp_path_factory.mktemp("images")
    for number, pixels in enumerate(slices):
        path = root / ("dark" if number < 3 else "light") / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(pixels))
    (root / "dark/mirrored.png").write_bytes(png(slices[2][:, ::-1]))
    Image.fromarray(slices[5]).save(root / "light/again.jpg", quality=90)
    (root / "dark/empty.png").touch()
    return root


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> str:
    """A bundle that keeps no pictures."""
    root = tmp_path_factory.mktemp("bundles")
    return export_bundle(root, "plain", ("dark", "light"), [[[-20.0, 20.0]], [10.0, -10.0]])


def with_pictures(bundle: str, copy: Path, shown: list[np.ndarray], num_pictures: int) -> str:
    """Returns a copy of a bundle that keeps pictures of training images."""
    shutil.copytree(bundle, copy)
    spec, _ = store.read_spec(str(copy))
    kept = KeptImages(
        directions=directions(np.random.default_rng(0).normal(size=(len(shown), 4))),
        labels=np.zeros(len(shown), np.int64),
        jpegs=[thumbnail.to_jpeg(looks.look(png(pixels)).thumbnail) for pixels in shown],
        num_pictures=num_pictures,
    )
    np.savez(copy / LOOKALIKES, **kept.arrays())  # pyright: ignore[reportArgumentType]
    store.seal(str(copy), spec)
    return str(copy)


def test_copies_count_once_and_training_images_are_left_out(bundle, images, slices, tmp_path):
    out = tmp_path / "out"
    keeps = with_pictures(bundle, tmp_path / "keeps", [slices[0], slices[3][:, ::-1]], num_pictures=2)
    config = EvaluateConfig(bundle=keeps, data=str(images), split="all", out=str(out), quiet=True)
    result = evaluate_images(config)
    found = json.loads((out / "metrics.json").read_text())
    assert (found["num_images"], found["num_groups"], found["num_leaked"], found["num_failed"]) == (6, 4, 2, 1)
    # Two of the six slices look like neighbours, and no patients are named.
    assert (found["all_images"]["num_images"], found["all_images"]["num_groups"]) == (8, 5)
    assert (found["split"], found["is_leak_free"]) == ("all", True)
    assert found["leak_search"] == {
        "among": "pictures", "num_compared": 2, "num_pictures": 2, "is_own": False, "knows_splits": False,
        "has_own_files": None,
    }  # fmt: skip
    assert (result.metrics["accuracy"], result.engine) == (found["accuracy"], found["engine"])
    assert result.warnings[0].startswith("The model knows 2 of the 8 images from its training, so the metrics of all")
    page = (out / "report.html").read_text()
    assert "2 of the 8 measured images: each has a copy among the training images." in page
    assert "They were compared with pictures of all training images (2 in the bundle)." in page
    assert "images of one picture, in several splits." in page
    assert {path.name for path in out.iterdir()} == evaluate.NAMES | {".tlray"}
    parts = [pq.read_table(path) for path in (out / predictions.DATA).iterdir()]
    assert [part.schema.names for part in parts] == [predictions.prediction_schema(("dark", "light")).names]

    # Shortcuts were looked for in all images, and the control is of the new ones; six patients are too few for surety.
    assert (found["shortcuts"]["num_images"], found["shortcuts"]["num_groups"]) == (8, 5)
    assert (found["shortcuts"]["num_folds"], found["shortcuts"]["found"]) == (3, [])
    assert (found["traits_control"]["num_images"], found["traits_control"]["split"]) == (6, "all")
    assert (found["neighbour_control"], found["permuted_control"]) == (None, None)
    assert "The label of the most similar training image was not measured" in page

    # The same images with a bundle that keeps nothing: copies are found, and nobody knows what the model knows.
    again = dataclasses.replace(config, bundle=bundle, overwrite=True, thumbnails=False)
    found = evaluate_images(again).metrics
    assert (found["num_images"], found["num_groups"], found["is_leak_free"]) == (8, 5, None)
    assert "all_images" not in found
    page = (out / "report.html").read_text()
    assert "Not known. The bundle keeps no pictures of its training images, so copies of them cannot be found." in page
    assert "data:image/jpeg" not in page


def test_bundles_are_compared_on_images_that_neither_knows(bundle, images, slices, tmp_path):
    """The same network twice: one of the bundles keeps pictures of two of its training images."""
    keeps = with_pictures(bundle, tmp_path / "keeps", [slices[0], slices[3][:, ::-1]], num_pictures=2)
    out = str(tmp_path / "out")
    result = compare(CompareConfig(bundle=bundle, reference=keeps, data=str(images), split="all", out=out, quiet=True))
    found = result.comparison
    assert (found["num_images"], found["num_groups"], found["num_left_out"]) == (6, 4, 2)
    assert (found["bundle_num_known"], found["reference_num_known"], found["is_leak_free"]) == (None, 2, None)
    assert found["reference_leak_search"] == {
        "among": "pictures", "num_compared": 2, "num_pictures": 2, "is_own": False, "knows_splits": False,
        "has_own_files": None,
    }  # fmt: skip
    assert found["accuracy_difference"] == 0
    near, left_out, failed = result.warnings
    assert near.startswith("Has the reference seen these images before? 2 of the 8 images: each has a copy among the ")
    assert left_out == (
        "Left out, because a bundle knows them from its training: 2 of 8 images (bundle: not known, reference: 2)."
    )
    assert failed == "Left out, because not both bundles could score them: 1 image (empty: 1)."
    assert {path.name for path in Path(out).iterdir()} == {".tlray", "comparison.json", "comparison.csv"}


def test_a_split_whose_images_the_model_knows(bundle, images, slices, tmp_path):
    """Only the images of one folder are measured, and the bundle keeps all of them."""
    for number in range(3, 6):
        path = tmp_path / "data/test/light" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(images / "light" / f"{number}.png", path)
    shutil.copytree(images / "dark", tmp_path / "data/train/dark")
    keeps = with_pictures(bundle, tmp_path / "keeps", slices[3:], num_pictures=9)
    data, out = str(tmp_path / "data"), str(tmp_path / "out")
    found = evaluate_images(EvaluateConfig(bundle=keeps, data=data, out=out, quiet=True))
    assert (found.metrics["num_images"], found.metrics["num_leaked"], found.metrics["is_leak_free"]) == (3, 3, False)
    assert (
        found.warnings[0] == "The model knows all 3 images from its training: measure it on images of other patients."
    )
    assert not [each for each in found.warnings[1:] if "copy among the training images" in each]


@pytest.mark.parametrize(("is_own", "is_same"), [(True, True), (True, False), (False, False)])
def test_a_shortcut_that_the_training_found_is_told_before_the_figures(bundle, images, is_own, is_same, tmp_path):
    """The first bundle was trained on these images, the second on other files with their ids, the third on others."""
    copy, out = tmp_path / "knows", tmp_path / "out"
    shutil.copytree(bundle, copy)
    listed = list_images(str(images), columns=parse_columns(None)).table
    known = manifest.id_fingerprint(listed if is_own else listed.slice(1))
    of_files = fingerprints.of_files(inspection.inspect_here(listed, quiet=True)) if is_same else {"all": "0" * 64}
    spec = dataclasses.replace(
        store.read_spec(bundle)[0], id_fingerprint=known, file_fingerprints=of_files,
        shortcuts=("Sizes tell the classes.",),
    )  # fmt: skip
    store.seal(str(copy), spec)
    found = evaluate_images(EvaluateConfig(bundle=str(copy), data=str(images), split="all", out=str(out), quiet=True))
    page = (out / "report.html").read_text()
    assert ("Do not believe these numbers yet" in page) == is_same
    assert "No check in this report speaks against it" not in page
    assert page.index("Sizes tell the classes.") < page.index("All splits.")
    (told,) = [text for text in found.warnings if "Sizes tell the classes." in text]
    assert (told == "Sizes tell the classes.") == is_same
    assert not is_same or found.warnings[0] == told
    assert (doubts.OTHER_FILES in found.warnings) == (is_own and not is_same)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["leak_search"]["has_own_files"] == (is_same if is_own else None)
    assert ("shortcuts" in metrics) == ("traits_control" in metrics) == (not is_same)
    assert ("none was found in these images" in told) == (not is_same)


def test_a_shortcut_planted_in_an_external_test_set_is_the_first_warning(bundle, tmp_path):
    """One class is saved as PNG, the other one as JPEG. The bundle, of other images, knows no shortcut."""
    rng = np.random.default_rng(1)
    for number in range(40):
        pixels = phantom_drawing.render_slice(phantoms.sample_anatomy(rng), None, rng=rng, size_px=128)
        folder, name = ("dark", f"{number}.png") if number % 2 else ("light", f"{number}.jpg")
        (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "data" / folder / name)
    data, out = str(tmp_path / "data"), tmp_path / "out"
    result = evaluate_images(EvaluateConfig(bundle=bundle, data=data, split="all", out=str(out), quiet=True))
    assert result.warnings[0].startswith("Classes can be told without looking at the anatomy: ")
    metrics = json.loads((out / "metrics.json").read_text())
    assert "file" in {test["family"] for test in metrics["shortcuts"]["found"]}
    assert metrics["traits_control"]["is_above_chance"]
    assert metrics["warnings"] == list(result.warnings)
    page = (out / "report.html").read_text()
    assert "Do not believe these numbers yet" in page
    assert "Does it need the anatomy?" in page
