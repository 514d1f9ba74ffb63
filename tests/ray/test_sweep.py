"""A sweep: trials on cached features, cross-validated; the best settings are trained and exported."""

import csv
import dataclasses
from pathlib import Path

import keras
import numpy as np
import pyarrow as pa
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler

from tlray import assembly, dataset, featurestore, phantoms, phantomset, sweep
from tlray import model as models
from tlray.bundle import load
from tlray.errors import ConfigError, DataError
from tlray.jobconfig import SweepConfig

pytestmark = pytest.mark.usefixtures("local_ray")

SIZE_PX = 32


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SweepConfig:
    """Four classes of 6 training and 2 validation patients, and a small network of one's own."""
    root = tmp_path_factory.mktemp("sweep")
    for split, num_patients in (("train", 6), ("valid", 2)):
        phantomset.write_data_set(
            str(root / "data" / split),
            num_patients_per_class=num_patients,
            num_slices_per_patient=2,
            size_px=SIZE_PX,
            seed=num_patients,
            num_unreadable=0,
        )
    keras.utils.set_random_seed(7)
    x = pixels = keras.Input((SIZE_PX, SIZE_PX, 3))
    for num_filters in (8, 12, 16):
        x = keras.layers.Conv2D(num_filters, 3, strides=2, activation="relu")(x)
    keras.Model(pixels, x).save(root / "own.keras")
    return SweepConfig(
        data=str(root / "data"),
        out=str(root / "out"),
        backbone=str(root / "own.keras"),
        preprocessing="symmetric",
        image_size_px=SIZE_PX,
        trainable_layers=2,
        num_trials=8,
        num_folds=2,
        epochs=2,
        batch_size=8,
        quiet=True,
    )


@pytest.fixture(scope="module")
def result(local_ray: str, config: SweepConfig) -> sweep.SweepResult:  # noqa: ARG001
    return sweep.sweep(config)


def test_every_trial_is_in_the_table(config, result):
    assert len(result.trials) == config.num_trials
    losses = [trial["best_loss"] for trial in result.trials]
    assert losses == sorted(losses)
    default = sweep.first_trial(config)
    assert sum(all(trial[name] == default[name] for name in default) for trial in result.trials) == 1
    with open(f"{config.out}/trials.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["best_loss"]) for row in rows] == pytest.approx(losses, rel=1e-5)
    assert Path(config.out, "trials.png").read_bytes().startswith(b"\x89PNG")
    # Fine-tuning was tried, and not where nothing can be trained.
    assert all(trial["best_epoch"] == 0 for trial in result.trials if trial["trainable_layers"] == 0)


def test_a_trial_without_fine_tuning_is_the_cross_validated_probe(config, result):
    alone = [trial for trial in result.trials if trial["trainable_layers"] == 0]
    trial = max(alone, key=lambda trial: trial["inverse_penalty"])  # the strongest opinions
    images = dataset.stored_dataset(f"{config.out}/best")
    assert images is not None
    chosen = pa.concat_tables([images.split("train"), images.split("valid")])
    table = featurestore.read_features(f"{config.out}/features", columns=["image_id", "pooled"])
    pooled = dict(zip(table["image_id"].to_pylist(), table["pooled"].to_pylist(), strict=True))
    num_columns = sum((8, 12, 16)[-trial["depths"] :])
    x = np.array([pooled[image_id] for image_id in chosen["image_id"].to_pylist()])[:, -num_columns:]
    y, groups = chosen["class_index"].to_numpy(), chosen["group_id"].to_pylist()
    probs_BK = np.zeros((len(y), 4))
    for train, held in StratifiedGroupKFold(2, shuffle=True, random_state=config.seed).split(y, y, groups):
        assert not {groups[k] for k in train} & {groups[k] for k in held}
        scaler = StandardScaler().fit(x[train])
        model = LogisticRegression(C=trial["inverse_penalty"], class_weight="balanced", tol=1e-8, max_iter=5000)
        probs_BK[held] = model.fit(scaler.transform(x[train]), y[train]).predict_proba(scaler.transform(x[held]))
    assert trial["best_loss"] == pytest.approx(log_loss(y, probs_BK), abs=1e-4)
    assert trial["best_accuracy"] == pytest.approx((probs_BK.argmax(axis=1) == y).mean(), abs=1e-9)


def test_the_best_settings_are_trained_and_exported(config, result):
    best = sweep.best_config(config.training(), result.trials[0])
    assert best.method == ("lp-ft" if result.trials[0]["best_epoch"] else "probe")
    assert best.epochs == max(1, result.trials[0]["best_epoch"])
    assert best.depths == result.trials[0]["depths"]
    assert load(result.best.bundle).spec.classes == phantoms.CLASSES
    assert result.best.bundle == f"{config.out}/best/bundle"
    assert result.best.metrics["valid"]["num_images"] == 16


def test_what_cannot_be_swept_is_refused(config, result, tmp_path):
    with pytest.raises(ConfigError, match="is not empty"):
        sweep.sweep(config)
    few = dataclasses.replace(config, out=str(tmp_path / "few"), num_folds=9)
    with pytest.raises(DataError, match=r"A class has the images of 6 patients .* too few for --num-folds 9"):
        sweep.sweep(few)
    assert not (tmp_path / "few").exists()
    assert result.out == config.out


def test_layers_are_counted_as_in_training(tmp_path):
    x = pixels = keras.Input((SIZE_PX, SIZE_PX, 3))
    for _ in range(3):
        x = keras.layers.ReLU()(keras.layers.Conv2D(4, 3, strides=2)(x))
    keras.Model(pixels, x).save(tmp_path / "own.keras")
    config = SweepConfig(
        data="d", out="o", backbone=str(tmp_path / "own.keras"), preprocessing="unit", image_size_px=SIZE_PX,
        trainable_layers=3,
    ).training()  # fmt: skip
    prepared = assembly.prepare(config, 4)
    assert prepared.tail is not None
    # The first of the three has no weights and is fed by the trunk alone: it counts, though the tail lacks it.
    names = [layer.name for layer in models.leaf_layers(models.from_json(prepared.tail))]
    assert [name in names for name in prepared.tail_layers] == [False, True, True]
