"""Suggestions with a small bundle that tells dark from light images and is uncertain about those between them."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.ray.test_compare import export_bundle
from tlray import SuggestConfig, suggest
from tlray.data.listing import list_images
from tlray.errors import ConfigError, DataError, TlrayError
from tlray.inference.selection import BY_UNCERTAINTY

pytestmark = pytest.mark.usefixtures("local_ray")

GREYS = (10, 60, 100, 120, 126, 140, 180, 250)
"""Grey levels of the images without a label. The bundle is most uncertain in the middle, at 127.5."""


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of images without labels; and of one with a label, an empty file, and a file that is not there."""
    root = tmp_path_factory.mktemp("pool")
    lines = ["uri,label,group_id"]
    for grey in (*GREYS, 128):
        Image.fromarray(np.full((20, 20), grey, np.uint8)).save(root / f"{grey}.png")
        lines.append(f"{grey}.png,{'light' if grey == 128 else ''},p{grey}")
    (root / "empty.png").touch()
    (root / "pool.csv").write_text("\n".join([*lines, "empty.png,,", "gone.png,,"]))
    return root / "pool.csv"


@pytest.fixture(scope="module")
def config(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> SuggestConfig:
    root = tmp_path_factory.mktemp("bundle")
    bundle = export_bundle(root, "sees", ("dark", "light"), [[[-20.0, 20.0]], [10.0, -10.0]])
    return SuggestConfig(
        bundle=bundle, input=str(pool), out=str(root / "out"), count=4, precision="float32", batch_size=3, quiet=True
    )


def test_the_most_uncertain_images_are_suggested_and_the_others_counted(config, pool):
    result = suggest(config)
    found = result.summary
    assert result.image_ids == ("126.png", "120.png", "140.png", "100.png")
    assert (found["num_images"], found["num_labelled"], found["num_scored"]) == (11, 1, 8)
    assert found["num_by_error"] == {"empty": 1, "not_found": 1}
    assert (found["num_foreign"], found["num_suggested"], found["max_ood_score"]) == (0, 4, None)
    assert (found["is_diverse"], result.notes[0]) == (False, BY_UNCERTAINTY)
    # 100.png has a confidence of 0.987, as its logits differ by 40 * 100 / 255 - 20 = -4.31.
    assert (found["num_unsure"], result.notes[1].split(" (")[0]) == (3, "The model is sure of 1 of these 4 images")
    assert len(found["bundle_sha256"]) == 64
    assert found["engine"].endswith(" float32")
    assert found["settings"] == dataclasses.asdict(config)
    rows = dict(result.rows())
    assert rows["images"] == "8 scored, 2 failed (empty: 1, not_found: 1)"
    assert rows["unlike the training images"] == "not known"

    out = Path(result.out)
    assert {path.name for path in out.iterdir()} == {
        *(".tlray", "suggestions.csv", "suggestions.json", "suggestions.png"),
    }
    assert json.loads((out / "suggestions.json").read_text()) == found
    with Image.open(out / "suggestions.png") as sheet:
        assert sheet.size == (8 + 4 * 136, 8 + 154)
    with (out / "suggestions.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["rank"] for line in lines] == ["1", "2", "3", "4"]
    assert [line["uri"] for line in lines] == [str(pool.parent / name) for name in result.image_ids]
    assert [line["label"] for line in lines] == [""] * 4
    assert [(line["predicted_label"], line["second_label"]) for line in lines] == [
        *(("dark", "light"), ("dark", "light"), ("light", "dark"), ("dark", "light")),
    ]
    # Its logits differ by 40 * 126 / 255 - 20 = -0.235.
    assert float(lines[0]["confidence"]) == pytest.approx(0.5586, abs=1e-3)
    assert float(lines[0]["uncertainty"]) == pytest.approx(0.9901, abs=1e-3)

    for line in lines:
        line["label"] = "dark"
    with (out / "suggestions.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    labelled = list_images(str(out / "suggestions.csv")).table
    assert labelled["label"].to_pylist() == ["dark"] * 4
    assert labelled["group_id"].to_pylist() == ["p100", "p120", "p126", "p140"]

    with pytest.raises(ConfigError, match="--overwrite"):
        suggest(config)
    again = suggest(dataclasses.replace(config, count=20, overwrite=True))
    assert again.image_ids[:4] == result.image_ids
    assert len(again.image_ids) == 8
    assert again.notes[1] == "Only 8 images are suggested, not 20: there are no more to choose from."
    assert again.notes[2].startswith("The model is sure of 5 of these 8 images")


def test_what_cannot_be_suggested_from_is_refused(config, pool, tmp_path):
    changed = dataclasses.replace(config, out=str(tmp_path / "out"))
    (tmp_path / "classes/dark").mkdir(parents=True)
    (tmp_path / "classes/dark/1.png").write_bytes((pool.parent / "10.png").read_bytes())
    with pytest.raises(DataError, match=r"All 1 images of .* have labels"):
        suggest(dataclasses.replace(changed, input=str(tmp_path / "classes")))
    assert not (tmp_path / "out").exists()
    (tmp_path / "gone.csv").write_text("uri\na.png\nb.png")
    with pytest.raises(TlrayError, match=r"2 of 2 images of .* were not found"):
        suggest(dataclasses.replace(changed, input=str(tmp_path / "gone.csv")))
    (tmp_path / "empty.png").touch()
    with pytest.raises(DataError, match=r"None of the 1 images without a label could be scored, for example "):
        suggest(dataclasses.replace(changed, input=str(tmp_path / "empty.png")))
