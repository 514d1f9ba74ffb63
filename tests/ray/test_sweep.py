"""A sweep: trials on cached features, cross-validated; the best settings are trained and exported."""

import csv
import dataclasses
import json
import math
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pytest
import ray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler

from tlray.bundle.store import load
from tlray.cluster import capacity, plans
from tlray.config.commands import SweepConfig
from tlray.config.training import Augmentation, TrainConfig, to_json
from tlray.data import dataset, decoding, phantom_files, phantoms
from tlray.engines.kinds import REFERENCE
from tlray.errors import ConfigError, DataError, TlrayError
from tlray.features import extraction, store
from tlray.features.cache import FeatureReader
from tlray.features.preparation import Network, as_network
from tlray.models import classifier as models
from tlray.models import devices
from tlray.models.files import load_keras_file
from tlray.models.layers import leaf_layers
from tlray.probe import regression
from tlray.timing import Timing
from tlray.training import model, probing
from tlray.tuning import folds, search, trial_table
from tlray.tuning import trial as trials
from tlray.tuning.task import TrialTask

pytestmark = pytest.mark.usefixtures("local_ray")

SIZE_PX = 32


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SweepConfig:
    """Four classes of 6 training and 2 validation patients, and a small network of one's own."""
    root = tmp_path_factory.mktemp("sweep")
    for split, num_patients in (("train", 6), ("valid", 2)):
        phantom_files.write_data_set(
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
        data=str(root / "data"), out=str(root / "out"), backbone=str(root / "own.keras"), preprocessing="symmetric",
        image_size_px=SIZE_PX, trainable_layers=2, hidden_units=8, num_trials=8, num_folds=2, epochs=2, batch_size=8,
        quiet=True, inference_precision="float32", seed=1,  # two of its trials do not fine-tune
    )  # fmt: skip


@pytest.fixture(scope="module")
def result(local_ray: str, config: SweepConfig) -> search.SweepResult:  # noqa: ARG001
    return search.sweep(config)


def test_every_trial_is_in_the_table(config, result):
    assert len(result.trials) == config.num_trials
    losses = [trial["best_loss"] for trial in result.trials]
    assert losses == sorted(losses)
    tried = [tuple(trial[name] for name in trial_table.SETTINGS) for trial in result.trials]
    assert sorted(tried) == sorted(tuple(settings.values()) for settings in search.draw_settings(config))
    with open(f"{config.out}/trials.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["best_loss"]) for row in rows] == pytest.approx(losses, rel=1e-5)
    assert Path(config.out, "trials.png").read_bytes().startswith(b"\x89PNG")
    assert not any(row["error"] for row in rows)
    assert result.warnings == result.best.warnings


def test_every_phase_is_timed(result):
    assert list(result.timing_s) == [
        "checking settings, listing images", "starting Ray", "reading images, building the model", "computing features",
        "looking for copies and shortcuts", "running the trials", "handing on features",
    ]  # fmt: skip
    assert result.timing_s["running the trials"] > 0
    assert "exporting, comparing engines" in result.best.timing_s


def share_features(config, trial, out) -> tuple[TrainConfig, Network]:
    """Shares a sweep's features with the training of a trial; returns that and its network."""
    images = dataset.stored_dataset(config.out)
    assert images is not None
    base = config.training()
    best = dataclasses.replace(search.best_config(config, trial), out=str(out))
    search._share_features(base, best, images)
    return best, search._network(best.resolved(), images)


@pytest.mark.parametrize(
    "settings",
    [
        {"depths": 1, "trainable_layers": 2, "best_epoch": 0},
        {"depths": 2, "trainable_layers": 2, "best_epoch": 1},  # all that this network has
        {"depths": 1, "trainable_layers": 0, "best_epoch": 1},
    ],
)
def test_features_that_are_there_are_not_computed_again(config, result, tmp_path, monkeypatch, settings):
    trial = result.trials[0] | {"hidden_layers": 2, "dropout": 0.0, "views": 1} | settings
    best, network = share_features(config, trial, tmp_path / "derived")
    images = dataset.stored_dataset(config.out)
    assert images is not None

    def compute(_, rows, *__, **___):
        assert not rows.num_rows
        return iter([])

    monkeypatch.setattr(extraction, "compute", compute)
    plan = plans.plan_scoring(capacity.measure(), use_gpu=False)
    probing.compute(best, f"{best.out}/features", images, network, plan=plan, views=model.num_views(best))
    found = store.read_features(f"{best.out}/features").sort_by("image_id")
    table = images.readable.sort_by("image_id")
    assert found.select(store.COLUMNS).to_pylist() == table.select(store.COLUMNS).to_pylist()
    monkeypatch.setattr(devices, "use_cpus", lambda *_: None)  # this process has chosen already
    pixels = [decoding.to_array(decoding.decode(Path(str(uri)).read_bytes(), size_px=SIZE_PX)) for uri in table["uri"]]
    batch: dict[str, Any] = dict.fromkeys(("row", "sha256", "error_code", "error"), np.arange(len(pixels)))
    batch["image"] = np.stack(pixels)
    expected = extraction._Extractor([ray.put(network)], 1, False, False, 8)(batch)
    assert found.column_names == [*store.COLUMNS, "view", "key", *network.names]
    for name in network.names:
        values = [each.astype(np.float32) for each in (found[name].combine_chunks().to_numpy_ndarray(), expected[name])]
        assert np.ptp(values[0]) > 0.01
        np.testing.assert_allclose(*values, rtol=2e-3, atol=1e-4)  # float16


def test_features_of_another_network_are_not_shared(config, result, tmp_path):
    # Other depths: the maps have the same names and other places in the network.
    trial = result.trials[0] | {"depths": 1, "trainable_layers": 2, "views": 1, "best_epoch": 1}
    share_features(config, trial, tmp_path / "depths")
    assert not (tmp_path / "depths").exists()
    # Other weights, as after a change of the file.
    own: Any = keras.models.load_model(config.backbone)
    own.set_weights([2 * array for array in own.get_weights()])
    own.save(tmp_path / "other.keras")
    shutil.copytree(f"{config.out}/features", tmp_path / "sweep/features")
    for name in (dataset.MANIFEST, dataset.AUDIT):
        shutil.copy(f"{config.out}/{name}", tmp_path / "sweep")
    other = dataclasses.replace(config, backbone=str(tmp_path / "other.keras"), out=str(tmp_path / "sweep"))
    share_features(other, trial | {"best_epoch": 0}, tmp_path / "weights")
    assert not store.part_names(str(tmp_path / "weights/features"))


@pytest.mark.parametrize(("num_layers", "widths"), [(2, ()), (0, (8, 8))])
def test_fine_tuning_that_is_chosen_is_trained(config, result, tmp_path, num_layers, widths):
    shutil.copytree(config.out, tmp_path / "out", ignore=shutil.ignore_patterns("best"))
    config = dataclasses.replace(config, out=str(tmp_path / "out"))
    trial = result.trials[0] | {"depths": 2, "learning_rate": 2e-4, "views": 1, "best_epoch": 1}
    trial |= {"trainable_layers": num_layers, "hidden_layers": len(widths)}
    best = search._train_best(config, trial, capacity.measure(), Timing())
    assert (best.num_epochs, best.metrics["valid"]["num_images"]) == (1, 16)
    settings = json.loads((tmp_path / "out/best/config.json").read_text())
    assert (settings["method"], settings["depths"], settings["learning_rate"]) == ("lp-ft", 2, 2e-4)
    assert (settings["trainable_layers"], tuple(settings["hidden_units"])) == (num_layers, widths)
    assert settings["inverse_penalty"] == trial["inverse_penalty"]
    # What is exported gives what the features gave.
    assert not any("probabilities differ" in warning for warning in best.warnings)
    classifier = load_keras_file(f"{best.bundle}/model.keras")
    (backbone,) = (layer for layer in classifier.layers if isinstance(layer, keras.Model))
    weights = zip(backbone.get_weights(), load_keras_file(config.backbone).get_weights(), strict=True)
    assert [not np.array_equal(*pair) for pair in weights] == [False] * (6 - 2 * num_layers) + [True] * 2 * num_layers
    layers = leaf_layers(classifier)
    relus = [layer for layer in layers if getattr(layer, "activation", None) is keras.activations.relu]
    assert tuple(layer.units for layer in relus if isinstance(layer, keras.layers.Dense)) == widths


@pytest.fixture
def task(config, result) -> TrialTask:  # noqa: ARG001
    images = dataset.stored_dataset(config.out)
    assert images is not None
    prepared = model.build(config.training(), 4)
    assert prepared.network is not None
    splits = {split: images.split(split) for split in ("train", "valid")}
    cache = probing.load(f"{config.out}/features", prepared.network.names, splits, views=1)
    return search._make_task(
        config, images, prepared, cache, folds.make_folds(images, num_folds=config.num_folds, seed=config.seed)
    )


def test_each_fold_has_a_state_of_its_own(config, task):
    settings = search.draw_settings(config)[0] | {"hidden_layers": 2, "dropout": 0.3, "learning_rate": 1e-2}
    reader = FeatureReader(task.cache)
    generator = np.random.default_rng(0)
    num_columns = sum(task.depth_sizes)
    starts = [
        {
            "mean": np.zeros(num_columns, np.float32),
            "deviation": np.ones(num_columns, np.float32),
            "weights": generator.normal(size=(num_columns, 4)).astype(np.float32),
            "bias": np.zeros(4, np.float32),
        }
        for _ in task.folds
    ]
    both = trials._Tail(task, settings, reader, starts)
    found = [[both.train_epoch(fold, epoch) for fold in (0, 1)] for epoch in (0, 1)]
    for fold in (0, 1):
        alone = trials._Tail(dataclasses.replace(task, folds=(task.folds[fold],)), settings, reader, [starts[fold]])
        for epoch in (0, 1):
            np.testing.assert_allclose(alone.train_epoch(0, epoch), found[epoch][fold], rtol=1e-4, atol=1e-5)
    assert np.abs(found[0][0] - found[1][0]).max() > 0.01


@pytest.mark.parametrize(("hidden_layers", "depths"), [(0, 1), (1, 1), (2, 1), (2, 2)])
def test_the_layers_of_a_trial_are_trained_and_no_others(config, task, hidden_layers, depths):
    settings = search.draw_settings(config)[0] | {"hidden_layers": hidden_layers, "trainable_layers": 0, "dropout": 0.0}
    reader = FeatureReader(task.cache)
    num_columns = sum(task.depth_sizes[-depths:])
    rows = np.concatenate([held for _, held in task.folds])
    pooled = reader.take(task.rows[rows, 0], ["pooled"])[0][:, -num_columns:].astype(np.float32)
    start = {
        "mean": pooled.mean(axis=0),
        "deviation": pooled.std(axis=0) + 1e-3,
        "weights": np.random.default_rng(0).normal(size=(num_columns, 4)).astype(np.float32),
        "bias": np.arange(4, dtype=np.float32),
    }
    tail = trials._Tail(task, settings | {"learning_rate": 1e-2}, reader, [start] * 2)
    linear = (pooled - start["mean"]) / start["deviation"] @ start["weights"] + start["bias"]
    np.testing.assert_allclose(tail._predict_all(rows), linear, rtol=2e-3, atol=2e-2)  # of features rounded to float16
    dense = [layer for layer in leaf_layers(tail.model) if isinstance(layer, keras.layers.Dense)]
    from_features = [num_columns] if hidden_layers else []
    hidden = [layer for layer in dense if layer.name != models.LOGITS_LAYER]
    assert [layer.kernel.shape[0] for layer in hidden] == [*from_features, *[task.hidden_units] * hidden_layers]
    trained = {id(variable) for layer in dense for variable in layer.variables}
    assert {id(variable) for variable in tail.model.trainable_variables} == trained
    before = {variable.path: variable.numpy() for variable in tail.model.variables}
    tail.train_epoch(0, 0)
    for variable in tail.model.variables:
        is_changed = not np.array_equal(before[variable.path], variable.numpy())
        assert is_changed is (id(variable) in trained), variable.path


def test_a_trial_that_diverges_ends_with_what_was_best_before(config, task, monkeypatch):
    monkeypatch.setattr(devices, "use_cpus", lambda _: None)  # this process has chosen already
    trial = trials.Trial.__new__(trials.Trial)
    trial._iteration = 0
    trial.setup({"settings": search.draw_settings(config)[0] | {"learning_rate": 1e30}}, task=task)
    start = trial.step()
    trial._iteration = 1
    end = trial.step()
    assert not start["done"]
    assert (end["done"], end["valid_loss"], end["best_epoch"]) == (True, np.inf, 0)
    assert end["best_loss"] == end["probe_loss"] == start["valid_loss"]


def test_a_trial_is_measured_under_the_class_shares_of_all_images(config, task, monkeypatch):
    """With a penalty that leaves nothing but the classes' shares, and one image in four of the second class."""
    monkeypatch.setattr(devices, "use_cpus", lambda _: None)  # this process has chosen already
    labels = (np.arange(len(task.labels)) % 4 == 0).astype(int)
    trial = trials.Trial.__new__(trials.Trial)
    trial._iteration = 0
    settings = search.draw_settings(config)[0] | {"inverse_penalty": 1e-12}
    trial.setup({"settings": settings}, task=dataclasses.replace(task, labels=labels, num_classes=2))
    found = trial.step()
    assert found["probe_loss"] == pytest.approx(-0.75 * np.log(0.75) - 0.25 * np.log(0.25), abs=1e-4)
    assert found["probe_accuracy"] == 0.75


def test_a_trial_is_stopped_for_what_it_fine_tunes_with(config, result):
    epochs = {
        is_tuned: [
            trial["num_epochs"]
            for trial in result.trials
            if (trial["trainable_layers"] + trial["hidden_layers"] > 0) is is_tuned
        ]
        for is_tuned in (False, True)
    }
    assert set(epochs[False]) == {0}
    # Not before its first epoch; some then, and not all.
    assert set(epochs[True]) == {1, config.epochs}
    assert all(trial["best_epoch"] <= trial["num_epochs"] for trial in result.trials)


def test_a_trial_without_fine_tuning_is_the_cross_validated_probe(config, result):
    alone = [trial for trial in result.trials if trial["trainable_layers"] == trial["hidden_layers"] == 0]
    trial = max(alone, key=lambda trial: trial["inverse_penalty"])  # the strongest opinions
    images = dataset.stored_dataset(f"{config.out}/best")
    assert images is not None
    chosen = pa.concat_tables([images.split("train"), images.split("valid")])
    table = store.read_features(f"{config.out}/features", columns=["image_id", "pooled"])
    pooled = dict(zip(table["image_id"].to_pylist(), table["pooled"].to_pylist(), strict=True))
    num_columns = sum((12, 16)[-trial["depths"] :])
    x = np.array([pooled[image_id] for image_id in chosen["image_id"].to_pylist()])[:, -num_columns:]
    y, groups = chosen["class_index"].to_numpy(), chosen["group_id"].to_pylist()
    probs_BK = np.zeros((len(y), 4))
    for train, held in StratifiedGroupKFold(2, shuffle=True, random_state=config.seed).split(y, y, groups):
        assert not {groups[k] for k in train} & {groups[k] for k in held}
        scaler = StandardScaler().fit(x[train])
        model = LogisticRegression(C=trial["inverse_penalty"], class_weight="balanced", tol=1e-8, max_iter=5000)
        probs_BK[held] = model.fit(scaler.transform(x[train]), y[train]).predict_proba(scaler.transform(x[held]))
    assert trial["best_loss"] == pytest.approx(log_loss(y, probs_BK), abs=1e-4)
    assert trial["best_accuracy"] == pytest.approx((probs_BK.argmax(axis=1) == y).mean(), abs=1e-6)
    losses = -np.log(probs_BK[np.arange(len(y)), y])
    patients, patient = np.unique(groups, return_inverse=True)
    sums, sizes = np.bincount(patient, losses), np.bincount(patient)

    def error_of(sums_G: np.ndarray) -> float:
        """The cluster-robust standard error of a mean over images."""
        deviations = sums_G - sizes * sums_G.sum() / len(y)
        return float(np.sqrt(len(patients) / (len(patients) - 1) * (deviations**2).sum()) / len(y))

    assert len(patients) < len(y) / 2
    assert trial["standard_error"] == pytest.approx(error_of(sums), abs=1e-4)
    found = trial_table.read_losses(config.out)
    np.testing.assert_allclose(found[trial_table.identity(trial)].probe, sums, atol=1e-3)
    np.testing.assert_array_equal(found[trial_table.identity(trial)].best, found[trial_table.identity(trial)].probe)
    first = found[trial_table.identity(result.trials[0])]
    assert trial["difference_error"] == pytest.approx(error_of(sums - first.best), abs=1e-3)
    assert result.trials[0]["difference_error"] == 0
    for each in result.trials:
        sums_of = found[trial_table.identity(each)]
        assert sums_of.probe.sum() / len(y) == pytest.approx(each["probe_loss"], rel=1e-5)
        assert sums_of.best.sum() / len(y) == pytest.approx(each["best_loss"], rel=1e-5)


def test_copies_of_an_image_are_in_the_same_fold(config, result):  # noqa: ARG001
    images = dataset.stored_dataset(config.out)
    assert images is not None
    rows = images.table.to_pylist()
    label = rows[0]["label"]
    # The first images of four patients of a class are one image: any two folds would have one of them otherwise.
    kept = [row for row in rows if row["label"] == label and row["split"] != "test"]
    first_of = {row["group_id"]: row for row in reversed(kept)}
    copies = {row["image_id"] for row in list(first_of.values())[:4]}
    named = ["copy" if row["image_id"] in copies else row["picture"] for row in rows]
    table = images.table.drop_columns(["picture"]).append_column("picture", pa.array(named, pa.string()))
    images = dataclasses.replace(images, table=table)
    chosen = pa.concat_tables([images.split("train"), images.split("valid")])["image_id"].to_pylist()
    for _, held_out in folds.make_folds(images, num_folds=config.num_folds, seed=config.seed):
        assert len({chosen[place] for place in held_out} & copies) in (0, 4)


def test_trials_run_side_by_side_as_memory_allows(config):
    images = SimpleNamespace(split=lambda _name: pa.table({"x": range(500)}), classes="abcd")
    network: Any = SimpleNamespace(names=["pooled"], shapes=[(1000,)])
    # A float64 copy of 1,000 images by 1,000 features for the second fold is 8 MB, and a fit takes 24 MB.
    for memory_bytes, expected in ((1e6, 1), (100e6, 3), (1e12, config.num_trials), (math.inf, config.num_trials)):
        available: Any = SimpleNamespace(memory_bytes=memory_bytes)
        assert search.most_at_once(config, available, images, network) == expected  # pyright: ignore[reportArgumentType]
    # 12 bytes a weight, (1,000 + 1,000) by 1,000 of them for two folds and the one in use: 72 MB more.
    wide, available = dataclasses.replace(config, hidden_units=1000), SimpleNamespace(memory_bytes=310e6)
    assert search.most_at_once(wide, available, images, network) == 2  # pyright: ignore[reportArgumentType]


def test_a_run_does_not_go_on_with_another_network(config, result, tmp_path):  # noqa: ARG001
    shutil.copytree(f"{config.out}/features", tmp_path / "features")
    images = dataset.stored_dataset(config.out)
    assert images is not None
    pixels = keras.Input((SIZE_PX, SIZE_PX, 3), dtype="uint8")
    network = as_network(
        keras.Model(pixels, [keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1.0)(pixels))]),
        ["pooled"],
        REFERENCE,
    )
    before = sorted(path.name for path in (tmp_path / "features").iterdir())
    plan = plans.plan_scoring(capacity.measure(), use_gpu=False)
    with pytest.raises(ConfigError, match="features of another network"):
        probing.compute(config.training(), str(tmp_path / "features"), images, network, plan=plan, views=1)
    assert sorted(path.name for path in (tmp_path / "features").iterdir()) == before


def test_the_best_settings_are_trained_and_exported(config, result):
    best = search.best_config(config, result.chosen)
    assert best.method == ("lp-ft" if result.chosen["best_epoch"] else "probe")
    assert best.epochs == max(1, result.chosen["best_epoch"])
    assert best.depths == result.chosen["depths"]
    assert load(result.best.bundle).spec.classes == phantoms.CLASSES
    assert result.best.bundle == f"{config.out}/best/bundle"
    assert result.best.metrics["valid"]["num_images"] == 16


@pytest.mark.parametrize("kept", [None, 0, 350])
def test_a_trial_that_the_table_lacks_is_not_taken_as_tried(config, result, tmp_path, kept):
    shutil.copytree(config.out, tmp_path / "out")
    copy, table = dataclasses.replace(config, out=str(tmp_path / "out")), tmp_path / "out/trials.csv"
    assert search._is_tried(copy)
    if kept is None:
        table.unlink()
    else:
        table.write_text(table.read_text()[:kept])
    assert not search._is_tried(copy)
    assert all(trial in result.trials for trial in trial_table.read_trials(copy.out)[0])


def test_a_finished_sweep_is_left_as_it_is(config, result):
    files = {path: path.stat().st_mtime_ns for path in Path(config.out).rglob("*") if path.is_file()}
    again = search.sweep(dataclasses.replace(config, resume=True, data=os.path.relpath(config.data)))
    assert again.warnings == (*result.warnings, "The run had already finished: nothing was done.")
    assert (again.trials, again.best.metrics) == (result.trials, json.loads(json.dumps(result.best.metrics)))
    assert files == {path: path.stat().st_mtime_ns for path in Path(config.out).rglob("*") if path.is_file()}


def test_the_training_of_the_best_settings_is_continued(config, result):
    best = Path(config.out, "best")
    (best / "metrics.json").unlink()
    kept = [Path(config.out, "trials.csv"), Path(config.out, "trials.png"), *best.glob("features/part-*")]
    times = [path.stat().st_mtime_ns for path in kept]
    again = search.sweep(dataclasses.replace(config, resume=True))
    assert again.trials == result.trials
    assert again.best.metrics["valid"]["log_loss"] == pytest.approx(result.best.metrics["valid"]["log_loss"], abs=1e-5)
    assert (best / "metrics.json").is_file()
    assert [path.stat().st_mtime_ns for path in kept] == times


def test_failed_trials_are_told_and_tried_again(config, result, tmp_path, monkeypatch, capfd):
    shutil.copytree(config.out, tmp_path / "out", ignore=shutil.ignore_patterns("best", "trial*"))
    config = dataclasses.replace(config, out=str(tmp_path / "out"), num_trials=3, resume=True)
    (tmp_path / "out/config.json").write_text(to_json(config))
    good, other, _ = (settings | {"trainable_layers": 0} for settings in search.draw_settings(config))
    broken = [settings | {"inverse_penalty": -1.0} for settings in (good, other)]
    monkeypatch.setattr(search, "draw_settings", lambda _config: broken)
    with pytest.raises(TlrayError, match=r"(?s)Every trial failed\. Fix .* --resume\. The first error:.*'C' parameter"):
        search.sweep(config)
    assert not (tmp_path / "out/best").exists()
    assert "Traceback" not in capfd.readouterr().err  # Ray Tune's, of each
    monkeypatch.setattr(search, "draw_settings", lambda _config: [good, broken[1]])
    result = search.sweep(config)
    assert [trial["inverse_penalty"] for trial in result.trials] == [good["inverse_penalty"]]
    assert result.warnings[:-1] == result.best.warnings
    assert result.warnings[-1].startswith("1 of 2 trials failed and were left out. The first error: ")
    assert "The 'C' parameter of LogisticRegression must be" in result.warnings[-1]
    assert load(result.best.bundle).spec.classes == phantoms.CLASSES
    # Once the best ones are trained, a trial that might be better must not come in between.
    again = search.sweep(config)
    finished = "The run had already finished: nothing was done."
    assert again.warnings == (*result.best.warnings, finished, result.warnings[-1])
    with open(f"{config.out}/trials.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["error"]) for row in rows] == [False, True]
    assert [row["best_loss"] == "" for row in rows] == [False, True]


def test_what_cannot_be_swept_is_refused(config, result, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="is not empty"):
        search.sweep(config)
    few = dataclasses.replace(config, out=str(tmp_path / "few"), num_folds=9)
    with pytest.raises(DataError, match=r"A class has images of only 6 patients .* too few for --num-folds 9"):
        search.sweep(few)
    assert not (tmp_path / "few").exists()
    with pytest.raises(ConfigError, match=r"was started with: num_trials was 8 and is 9\."):
        search.sweep(dataclasses.replace(config, resume=True, num_trials=9))
    small = dataclasses.replace(capacity.measure(), smallest_object_store_bytes=100_000)
    monkeypatch.setattr(capacity, "measure", lambda: small)
    # 64 images as they are, and two more views of the 40 training images.
    views = dataclasses.replace(config, out=str(tmp_path / "views"), views=3, augmentation=Augmentation(zoom=0.1))
    with pytest.raises(ConfigError, match=r"144 images and views of 4 kB .* more than half .* Give fewer --views"):
        search.sweep(views)
    assert not (tmp_path / "views").exists()
    assert result.out == config.out


def test_bases_of_other_depths_are_kept_while_they_are_small(monkeypatch):
    few = np.random.default_rng(0).normal(size=(4, 10))
    basis = regression.basis(few)
    # 10 x 4 of the rotation and 4 x 4 of what was turned, float64.
    bases: trials.Bases = {(fold, columns): (basis, basis.turn(few)) for fold in (0, 1) for columns in (10, 20)}
    monkeypatch.setattr(trials, "MAX_BASES_BYTES", 4 * (40 + 16) * 8)
    assert trials._kept(bases, 10) is bases
    monkeypatch.setattr(trials, "MAX_BASES_BYTES", 4 * (40 + 16) * 8 - 1)
    assert set(trials._kept(bases, 10)) == {(0, 10), (1, 10)}


def test_layers_are_counted_as_in_training(tmp_path):
    x = pixels = keras.Input((SIZE_PX, SIZE_PX, 3))
    for _ in range(3):
        x = keras.layers.ReLU()(keras.layers.Conv2D(4, 3, strides=2)(x))
    keras.Model(pixels, x).save(tmp_path / "own.keras")
    config = SweepConfig(
        data="d", out="o", backbone=str(tmp_path / "own.keras"), preprocessing="unit", image_size_px=SIZE_PX,
        trainable_layers=3,
    ).training()  # fmt: skip
    prepared = model.build(config, 4)
    assert prepared.tail is not None
    # The first of the three has no weights and is fed by the trunk alone: it counts, though the tail lacks it.
    names = [layer.name for layer in leaf_layers(models.from_json(prepared.tail))]
    assert [name in names for name in prepared.tail_layers] == [False, True, True]
