"""Two small bundles on the same images: one tells dark from light, the other says dark to every image."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

from tlray import CompareConfig, ExportConfig, compare, export
from tlray.data import phantom_drawing, phantoms
from tlray.errors import ConfigError, DataError
from tlray.evaluation.paired import IF_NEW

pytestmark = pytest.mark.usefixtures("local_ray")

SIZE_PX = 16
NUM_IMAGES = 24


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 dark and 12 light images, each of a patient of its own but a light one and its mirror image; an empty file."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for label in ("dark", "light"):
        for number in range(NUM_IMAGES // 2):
            patient = root / label / f"{label}{number:02}"
            patient.mkdir(parents=True)
            pixels = phantom_drawing.render_slice(phantoms.sample_anatomy(rng), None, rng=rng, size_px=128) // 3
            Image.fromarray(255 - pixels if label == "light" else pixels).save(patient / f"{label}{number:02}.png")
    with Image.open(root / "light/light10/light10.png") as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(root / "light/light11/light11.png")
    (root / "dark/dark00/empty.png").touch()
    return root


def export_bundle(root: Path, name: str, classes: tuple[str, str], head: list[Any], **settings: Any) -> str:
    """Makes a bundle of a dense layer, given its kernel and bias, which takes the mean grey of an image, in [0, 1]."""
    pixels = keras.Input((SIZE_PX, SIZE_PX, 3))
    grey = keras.layers.Conv2D(1, 1, use_bias=False, name="grey")
    dense = keras.layers.Dense(2, activation="softmax", name="head")
    model = keras.Model(pixels, dense(keras.layers.GlobalAveragePooling2D()(grey(pixels))))
    grey.set_weights([np.full((1, 1, 3, 1), 1 / 3, np.float32)])
    dense.set_weights([np.array(each, np.float32) for each in head])
    model.save(root / f"{name}.keras")
    (root / f"{name}.txt").write_text("\n".join(classes))
    export(
        ExportConfig(
            model=str(root / f"{name}.keras"), classes=str(root / f"{name}.txt"), out=str(root / name),
            preprocessing="unit", outputs="probabilities", quiet=True, **settings,
        )
    )  # fmt: skip
    return str(root / name)


@pytest.fixture(scope="module")
def config(images: Path, tmp_path_factory: pytest.TempPathFactory) -> CompareConfig:
    root = tmp_path_factory.mktemp("bundles")
    # Their classes have another order, and the second one is never sure enough.
    sees = export_bundle(root, "sees", ("dark", "light"), [[[-20.0, 20.0]], [10.0, -10.0]])
    blind = export_bundle(root, "blind", ("light", "dark"), [[[0.0, 0.1]], [0.0, 1.0]], refer_below=0.9)
    return CompareConfig(
        bundle=sees, reference=blind, data=str(images), out=str(root / "out"), split="all", batch_size=5, quiet=True
    )


def test_the_better_bundle_is_told(config, images):
    result = compare(config)
    found = result.comparison
    assert (found["num_images"], found["num_groups"], found["num_by_error"]) == (NUM_IMAGES, 23, {"empty": 1})
    assert [found[f"{side}_metrics"]["accuracy"] for side in ("bundle", "reference")] == [1, 0.5]
    assert found["reference_metrics"]["classes"] == ["light", "dark"]
    assert found["accuracy_difference"] == pytest.approx(0.5)
    assert (found["num_only_bundle_right"], found["num_only_reference_right"]) == (12, 0)
    assert found["p_value"] == pytest.approx(2 / 2**12)
    assert found["conclusion"].startswith(f"{IF_NEW} the bundle is better: on images like these its accuracy is ")
    assert (found["same_label_share"], found["num_refer_differs"]) == (0.5, NUM_IMAGES)
    assert len(found["bundle_sha256"]) == len(found["reference_sha256"]) == 64
    assert (found["num_left_out"], found["bundle_num_known"], found["is_leak_free"]) == (0, None, None)
    assert result.warnings == ("Left out, because not both bundles could score them: 1 image (empty: 1).",)
    rows = dict(result.rows())
    assert rows["p value"].startswith("below 0.001 ")
    sensitivities = "bundle 1.000 (95 %: 0.674 to 1.000), reference 0.000 (95 %: 0.000 to 0.326)"
    assert rows["sensitivity of 'light'"] == sensitivities

    out = Path(result.out)
    assert {path.name for path in out.iterdir()} == {".tlray", "comparison.json", "comparison.csv"}
    assert json.loads((out / "comparison.json").read_text()) == found
    with (out / "comparison.csv").open() as file:
        lines = list(csv.DictReader(file))
    names = sorted(str(path.relative_to(images)) for path in images.rglob("*.png"))
    assert [line["image_id"] for line in lines] == [name for name in names if name != "dark/dark00/empty.png"]
    assert {line["label"]: (line["is_right_bundle"], line["is_right_reference"]) for line in lines} == {
        "dark": ("true", "true"),
        "light": ("true", "false"),
    }

    with pytest.raises(ConfigError, match="--overwrite"):
        compare(config)
    again = compare(dataclasses.replace(config, bundle=config.reference, reference=config.bundle, overwrite=True))
    assert again.comparison["accuracy_difference"] == pytest.approx(-0.5)
    assert again.comparison["conclusion"].startswith(f"{IF_NEW} the reference is better: ")


def test_what_cannot_be_compared_is_refused_before_anything_is_written(config, images, tmp_path):
    changed = dataclasses.replace(config, out=str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="are the same bundle"):
        compare(dataclasses.replace(changed, reference=config.bundle))
    with pytest.raises(DataError, match="It has no splits: use --split all"):
        compare(dataclasses.replace(changed, split="test"))
    with pytest.raises(DataError, match="have no labels, which a comparison needs"):
        compare(dataclasses.replace(changed, data=str(images / "light/light10")))
    assert not (tmp_path / "out").exists()
