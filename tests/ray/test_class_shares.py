"""What an exported model says of images without any difference: the class shares that it is to assume, no others."""

import dataclasses
import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from tlray.bundle import store
from tlray.config.training import TrainConfig, to_json
from tlray.errors import ConfigError
from tlray.models.files import load_keras_file
from tlray.training import run, stages

pytestmark = pytest.mark.usefixtures("local_ray")

SIZE_PX = 32
COUNTS = {
    "train": {"common": 90, "rare": 10}, "valid": {"common": 18, "rare": 2}, "test": {"common": 9, "rare": 1}
}  # fmt: skip
GREY = np.full((SIZE_PX, SIZE_PX, 3), 90, np.uint8)
ENTROPY = -(0.9 * np.log(0.9) + 0.1 * np.log(0.1))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of one grey image: 100 for training, 10 of them rare, 20 for validation and 10 for test alike."""
    root = tmp_path_factory.mktemp("images")
    for split, counts in COUNTS.items():
        for label, count in counts.items():
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                Image.fromarray(GREY).save(root / split / label / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    keras.utils.set_random_seed(7)
    pixels = keras.Input((SIZE_PX, SIZE_PX, 3))
    x = keras.layers.Conv2D(4, 3, strides=4, activation="relu")(pixels)
    x = keras.layers.Conv2D(6, 3, strides=2, activation="relu")(x)
    path = str(tmp_path_factory.mktemp("model") / "own.keras")
    keras.Model(pixels, x).save(path)
    return path


def settings(images: Path, backbone: str, out: Path, **changes) -> TrainConfig:
    defaults = {
        "data": str(images),
        "out": str(out),
        "backbone": backbone,
        "preprocessing": "symmetric",
        "image_size_px": SIZE_PX,
        "class_weights": True,
        "epochs": 1,
        "batch_size": 100,  # all images in one step: they always have the same shares
        "max_failures": 0,
        "inference_precision": "float32",
        "quiet": True,
    }
    if changes.get("method") != "probe":
        defaults["dropout"] = 0.0
    return TrainConfig(**(defaults | changes))


@pytest.fixture(scope="module")
def probed(local_ray: str, images: Path, backbone: str, tmp_path_factory: pytest.TempPathFactory) -> stages.TrainResult:  # noqa: ARG001
    return run.train(settings(images, backbone, tmp_path_factory.mktemp("probed") / "run", method="probe"))


def probe_again(probed: stages.TrainResult, config: TrainConfig) -> stages.TrainResult:
    """Fits a probe with other settings on the features of the first one."""
    shutil.copytree(f"{probed.out}/features", f"{config.out}/features")
    for name in ("manifest.parquet", "audit.json"):
        shutil.copy(f"{probed.out}/{name}", config.out)
    Path(config.out, "config.json").write_text(to_json(config.resolved()))
    return run.train(dataclasses.replace(config, resume=True))


def check_shares(result: stages.TrainResult, *, tolerance: float) -> None:
    model = load_keras_file(f"{result.bundle}/model.keras")
    assert np.asarray(model(GREY[np.newaxis]))[0] == pytest.approx([0.9, 0.1], abs=tolerance)
    spec, _ = store.read_spec(result.bundle)
    assert spec.prior == pytest.approx((0.9, 0.1))
    metrics = json.loads(Path(result.out, "metrics.json").read_text())
    assert metrics["prior"] == pytest.approx({"common": 0.9, "rare": 0.1})
    assert metrics["splits"]["valid"]["log_loss"] == pytest.approx(ENTROPY, abs=tolerance)
    if metrics["num_epochs"]:
        rows = Path(result.out, "history.csv").read_text().splitlines()
        losses = [float(row.split(",")[rows[0].split(",").index("valid_loss")]) for row in rows[1:]]
        assert min(losses) == pytest.approx(metrics["splits"]["valid"]["log_loss"], abs=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "lp-ft", "trainable_layers": 1, "hidden_units": (5,)},
        {"method": "lp-ft", "trainable_layers": 1, "cache": "off"},
        {"method": "fine-tune", "trainable_layers": 0, "epochs": 20, "learning_rate": 0.01},
    ],
    ids=["tuned on features", "tuned on images", "fine-tune"],
)
def test_a_network_that_sees_no_difference_gives_the_shares_of_training(images, backbone, tmp_path, changes):
    result = run.train(settings(images, backbone, tmp_path / "run", **changes))
    assert result.num_epochs == changes.get("epochs", 1)
    check_shares(result, tolerance=1e-3)


def test_a_probe_that_sees_no_difference_gives_the_shares_of_training(images, backbone, probed, tmp_path):
    check_shares(probed, tolerance=1e-4)
    config = settings(images, backbone, tmp_path / "run", method="probe", class_weights=False)
    check_shares(probe_again(probed, config), tolerance=1e-4)


def test_a_prior_that_is_named_is_that_of_the_exported_model(images, backbone, probed, tmp_path):
    config = settings(images, backbone, tmp_path / "run", method="probe", prior="rare=0.02,common=0.98")
    result = probe_again(probed, config)
    model = load_keras_file(f"{result.bundle}/model.keras")
    assert np.asarray(model(GREY[np.newaxis]))[0] == pytest.approx([0.98, 0.02], abs=1e-4)
    assert store.read_spec(result.bundle)[0].prior == pytest.approx((0.98, 0.02))
    # Its metrics are those of that model; the probe was chosen under the shares of the training images.
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["log_loss"] == pytest.approx(-(0.9 * np.log(0.98) + 0.1 * np.log(0.02)), abs=1e-3)
    assert metrics["probe"]["best"]["valid_loss"] == pytest.approx(ENTROPY, abs=1e-5)
    assert "common 0.98, rare 0.02" in (Path(result.bundle) / "model_card.md").read_text()


def test_a_prior_of_other_classes_is_refused_before_anything_is_made(images, backbone, tmp_path):
    with pytest.raises(ConfigError, match=r"a share for each class, 'common', 'rare'. Received: rare=0.5,ill=0.5"):
        run.train(settings(images, backbone, tmp_path / "run", prior="rare=0.5,ill=0.5"))
    assert not (tmp_path / "run").exists()
