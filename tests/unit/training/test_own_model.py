from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image
from scipy import special

from tlray.config.export import ExportConfig
from tlray.errors import ConfigError
from tlray.inference.predictor import Predictor
from tlray.training import own_judging, own_model
from tlray.training.own_model import export

SLOPE, NUM_IMAGES = 12.0, 400
"""Logit of the class ill by the mean grey level less a half, in [-0.5, 0.5]; number of labelled images."""


def true_probs(images: np.ndarray) -> np.ndarray:
    """The probability that a grey image, uint8 [images, 16, 16, 3], is ill."""
    return special.expit(SLOPE * (images.mean(axis=(1, 2, 3)) / 255 - 0.5))


def grey_images(num_images: int, seed: int) -> np.ndarray:
    """Images of many grey levels, no two of them alike, uint8 [images, 16, 16, 3]."""
    rng = np.random.default_rng(seed)
    levels, noise = rng.integers(20, 230, (num_images, 1, 1, 1)), rng.integers(-5, 6, (num_images, 16, 16, 1))
    return np.repeat(levels + noise, 3, axis=3).astype(np.uint8)


def write_labelled(root: Path) -> list[str]:
    """Writes images whose labels are drawn with their true probabilities; returns the labels."""
    images, rng = grey_images(NUM_IMAGES, seed=1), np.random.default_rng(2)
    labels = ["ill" if is_ill else "normal" for is_ill in rng.random(NUM_IMAGES) < true_probs(images)]
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        (root / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / label / f"{number}.png")
    return labels


def test_labelled_images_calibrate_a_model_and_set_its_limits(tmp_path, capsys):
    """The model's logits are four times too large, and it takes an image for ill too often."""
    labels = write_labelled(tmp_path / "data" / "valid")
    pixels = keras.Input((16, 16, 3))
    model = keras.Model(pixels, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(pixels)))
    per_channel = 4 * SLOPE / 3
    model.set_weights([np.array([[0, per_channel]] * 3), np.array([0, 4 * (1 - SLOPE / 2)])])
    model.save(tmp_path / "own.keras")
    (tmp_path / "classes.txt").write_text("normal\nill\n")
    settings: dict[str, Any] = {"model": str(tmp_path / "own.keras"), "classes": str(tmp_path / "classes.txt")}
    settings |= {"preprocessing": "unit", "outputs": "logits"}
    export(ExportConfig(**settings, out=str(tmp_path / "before")))
    assert capsys.readouterr().out == ""
    export(ExportConfig(**settings, out=str(tmp_path / "after"), data=str(tmp_path / "data"), max_error=0.1))
    before, after = (
        Predictor(str(tmp_path / name), num_threads=1, precision="float32") for name in ("before", "after")
    )
    images = grey_images(50, seed=3)
    expected = true_probs(images)
    assert np.abs(before.predict(images)[:, 1] - expected).max() > 0.2
    assert np.abs(after.predict(images)[:, 1] - expected).max() < 0.1
    loaded: Any = keras.models.load_model(tmp_path / "after" / "model.keras")
    assert np.asarray(loaded(images)) == pytest.approx(after.predict(images), abs=1e-5)

    spec = before.bundle.spec
    assert (spec.temperature, spec.refer_below, spec.set_thresholds, spec.trust) == (1, 0.5, None, {})
    spec = after.bundle.spec
    assert spec.temperature == pytest.approx(4, rel=0.25)
    num_ill = labels.count("ill")
    assert spec.prior == pytest.approx([1 - num_ill / NUM_IMAGES, num_ill / NUM_IMAGES])
    calibration, referral = spec.trust["calibration"], spec.trust["referral"]
    assert calibration["num_images"] == NUM_IMAGES
    assert calibration["ece"] < calibration["ece_before"]
    assert calibration["brier"] < calibration["brier_before"]
    assert (referral["max_error"], referral["note"]) == (0.1, "")
    assert referral["error_rate_high"] <= 0.1
    assert spec.refer_below == referral["refer_below"] != 0.5
    assert spec.set_thresholds is not None
    assert len(spec.set_thresholds) == 2
    assert spec.limits.max_ood_score is None
    assert {each.engine for each in spec.engines} == {"tensorflow", "openvino"}
    assert spec.validation_predictions is not None
    assert sum(spec.validation_predictions.class_counts) == NUM_IMAGES
    # For two classes a confidence is never below a half, and calibrated ones are lower than those of the model.
    confidences = np.array(spec.validation_predictions.confidences)
    assert confidences.mean() == pytest.approx(np.maximum(expected, 1 - expected).mean(), abs=0.05)
    shown = capsys.readouterr().out
    assert "expected calibration error" in shown
    assert "none: the features of a model of one's own are not known" in shown


def test_a_model_that_cannot_be_opened_is_told_before_images_are_read(tmp_path, monkeypatch):
    (tmp_path / "classes.txt").write_text("normal\nill\n")
    monkeypatch.setattr(own_judging, "choose_images", lambda *_: pytest.fail("The images were read."))
    with pytest.raises(ConfigError, match=r"misspelt\.keras"):
        export(
            ExportConfig(
                model=str(tmp_path / "misspelt.keras"), classes=str(tmp_path / "classes.txt"), preprocessing="unit",
                out=str(tmp_path / "out"), data=str(tmp_path),
            )
        )  # fmt: skip


def test_openvino_must_be_exact_on_trial_images_also_where_there_are_labelled_ones(tmp_path, monkeypatch):
    write_labelled(tmp_path / "data")
    pixels = keras.Input((16, 16, 3))
    model = keras.Model(pixels, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(pixels)))
    model.save(tmp_path / "own.keras")
    (tmp_path / "classes.txt").write_text("normal\nill\n")
    monkeypatch.setattr(own_model, "_find_failures", lambda *_: {"float32": "it differs"})
    export(
        ExportConfig(
            model=str(tmp_path / "own.keras"), classes=str(tmp_path / "classes.txt"), preprocessing="unit",
            outputs="logits", out=str(tmp_path / "out"), data=str(tmp_path / "data"),
        )
    )  # fmt: skip
    predictor = Predictor(str(tmp_path / "out"), num_threads=1)
    assert {each.engine for each in predictor.bundle.spec.engines} == {"tensorflow"}
    assert str(predictor.kind) == "tensorflow float32"


def test_a_bundle_gives_what_its_model_gives_as_the_user_says(tmp_path):
    """One sigmoid in a nested head, which no value tells from a logit."""
    keras.utils.set_random_seed(1)
    pixels = keras.Input((16, 16, 3))
    head = keras.Sequential([keras.layers.Dense(1), keras.layers.Activation("sigmoid")], name="head")
    model = keras.Model(pixels, head(keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(pixels))))
    model.save(tmp_path / "own.keras")
    (tmp_path / "classes.txt").write_text("normal\nill\n")
    settings: dict[str, Any] = {"model": str(tmp_path / "own.keras"), "classes": str(tmp_path / "classes.txt")}
    settings |= {"out": str(tmp_path / "bundle"), "preprocessing": "unit", "quiet": True}
    with pytest.raises(ConfigError, match="Give --outputs probabilities or --outputs logits"):
        export(ExportConfig(**settings))
    assert not (tmp_path / "bundle").exists()
    export(ExportConfig(**settings, outputs="probabilities"))
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    ill = np.asarray(model(images / np.float32(255)))[:, 0]
    found = Predictor(str(tmp_path / "bundle"), num_threads=1)
    assert found.predict(images) == pytest.approx(np.stack([1 - ill, ill], axis=1), abs=1e-6)
    spec = found.bundle.spec
    assert (spec.prior, spec.training_images, spec.validation_predictions) == (None, None, None)
