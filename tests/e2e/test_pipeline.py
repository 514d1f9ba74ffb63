"""The spine: images in, an evaluated and exported classifier and scored folders out, on a Ray of exactly 2 CPUs."""

import contextlib
import csv
import json
import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import ray
import tensorflow as tf

from tests.reports import shown_text
from tlray import cli
from tlray.bundle.store import load, read_spec
from tlray.cluster.plans import ScorePlan
from tlray.data import listing, phantoms
from tlray.data.decoding import decode, to_array
from tlray.engines import openvino_engine
from tlray.engines.kinds import EngineKind
from tlray.inference import predictions, score
from tlray.inference.predictor import Predictor
from tlray.models.files import load_keras_file

pytestmark = pytest.mark.usefixtures("local_ray")

NUM_IMAGES, NUM_UNREADABLE = 64, 4


def pixels_of(path: Path, *, size_px: int) -> np.ndarray:
    return to_array(decode(path.read_bytes(), size_px=size_px))


def tlray(*arguments: object) -> int:
    """Runs a command in this process and returns its exit code."""
    with pytest.raises(SystemExit) as exit_info:
        cli.main([str(argument) for argument in arguments])
    return int(exit_info.value.code or 0)


def test_run_directory_is_complete(trained):
    names = {path.name for path in trained.iterdir()}
    assert names == {
        *("config.json", "manifest.parquet", "audit.json", "gallery.json", "history.csv", "checkpoints"),
        *("metrics.json", "figures", "report.html", "bundle", ".tlray", "evidence.json", "evaluated.parquet"),
        "out_of_fold.parquet",
    }
    assert sorted(path.name for path in (trained / "figures").iterdir()) == [
        *("confusion_matrix_test.png", "confusion_matrix_valid.png", "history.png", "roc_test.png", "roc_valid.png"),
        "trust_test.png",
    ]
    # Each of the unreadable phantoms is so in a way of its own.
    report = (trained / "report.html").read_text()
    assert re.findall(r"<code>(\w+)</code></th><td>(\d+)</td>", report) == [
        ("decode_failed", "1"), ("empty", "1"), ("truncated", "1"), ("unsupported_format", "1"),
    ]  # fmt: skip
    with (trained / "history.csv").open() as file:
        history = list(csv.DictReader(file))
    assert [row["epoch"] for row in history] == ["1", "2"]
    config = json.loads((trained / "config.json").read_text())
    assert (config["trainable_layers"], config["batch_norm"], config["precision"]) == ("all", "synchronized", "float32")


def test_a_run_is_verified_and_an_edited_report_is_named(trained, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    assert tlray("verify", run) == 0
    covered = set(json.loads((run / "evidence.json").read_text())["sha256"])
    assert covered >= {"report.html", "metrics.json", "config.json", "history.csv", "audit.json", "gallery.json"}
    assert covered >= {f"figures/{path.name}" for path in (run / "figures").iterdir()}
    capsys.readouterr()
    (run / "report.html").write_text((run / "report.html").read_text().replace("Accuracy", "Accuracy 0.99", 1))
    assert tlray("verify", run) == 1
    assert capsys.readouterr().err == f"tlray: '{run}' is not as it was written: report.html.\n"


def test_manifest_has_a_row_for_every_file_and_whole_patients(trained):
    table = pq.read_table(trained / "manifest.parquet")
    assert table.num_rows == NUM_IMAGES + NUM_UNREADABLE
    assert table.num_rows - table["error_code"].null_count == NUM_UNREADABLE
    split_of: dict[str, set[str]] = {}
    for row in table.to_pylist():
        if row["error_code"] is None:
            split_of.setdefault(row["group_id"], set()).add(row["split"])
    assert all(len(splits) == 1 for splits in split_of.values())
    # 15 % of 16 images a class is 2.4: two patients of two slices for test, two for valid, four for train.
    counts = json.loads((trained / "audit.json").read_text())["counts"]
    assert {split: set(by_class.values()) for split, by_class in counts.items()} == {
        "train": {8},
        "valid": {4},
        "test": {4},
    }


def test_metrics_are_those_of_the_validation_during_training(trained):
    metrics = json.loads((trained / "metrics.json").read_text())
    with (trained / "history.csv").open() as file:
        best = list(csv.DictReader(file))[metrics["best_epoch"] - 1]
    assert metrics["split"] == "test"
    assert metrics["accuracy"] == metrics["splits"]["test"]["accuracy"]
    valid = metrics["splits"]["valid"]
    assert valid["num_images"] == 16
    assert valid["log_loss"] == pytest.approx(float(best["valid_loss"]), abs=1e-5)
    assert valid["accuracy"] == pytest.approx(float(best["valid_accuracy"]), abs=1e-6)
    spec, _ = read_spec(str(trained / "bundle"))
    assert spec.metrics["test"]["accuracy"] == metrics["accuracy"]
    assert spec.classes == phantoms.CLASSES
    # For drift: of the same images without those that the model knows, two of each patient.
    known, num_new = spec.validation_predictions, valid["num_images"] - valid["num_leaked"]
    assert known is not None
    assert sum(known.class_counts) == len(known.confidences) == num_new
    assert known.num_independent is not None
    assert known.num_independent <= num_new / 2


def test_the_bundle_knows_what_its_training_images_were_like(trained):
    rows = pq.read_table(trained / "manifest.parquet", filters=[("split", "=", "train")]).to_pylist()
    pixels = np.stack([pixels_of(Path(row["uri"]), size_px=64) for row in rows])
    known = read_spec(str(trained / "bundle"))[0].training_images
    assert known is not None
    for found, values in (
        (known.grey_mean, pixels.mean(axis=(1, 2, 3))),
        (known.grey_deviation, pixels.std(axis=(1, 2, 3))),
    ):
        assert found.edges == pytest.approx(np.quantile(values, np.arange(1, 10) / 10), abs=1e-6)
        assert found.counts == tuple(np.histogram(values, [-1, *found.edges, 256])[0])


def test_the_bundle_knows_what_the_model_predicts_for_validation_images(trained):
    spec, _ = read_spec(str(trained / "bundle"))
    assert spec.validation_predictions is not None
    new = spec.metrics["valid"]["leak_free"] or spec.metrics["valid"]
    predicted = np.sum(new["confusion_matrix"], axis=0)  # labels do not enter
    assert spec.validation_predictions.class_counts == tuple(predicted)
    assert sum(spec.validation_predictions.confidence.counts) == new["num_images"]
    assert spec.prior == (0.25, 0.25, 0.25, 0.25)


def test_all_three_loaders_give_the_same_probabilities(trained, phantom_set):
    bundle = load(str(trained / "bundle"))
    paths = sorted(phantom_set.glob("normal/*/*"))[:6]
    images = np.stack([pixels_of(path, size_px=64) for path in paths if path.stat().st_size > 2000])
    from_keras = np.asarray(load_keras_file(str(bundle.model_path))(images))
    signature = tf.saved_model.load(str(bundle.saved_model_path)).signatures["serving_default"]
    from_saved_model = signature(tf.constant(images))["output_0"].numpy()
    from_predictor = Predictor(str(trained / "bundle"), precision="float32").predict(images)
    assert from_predictor.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert from_keras == pytest.approx(from_predictor, abs=1e-5)
    assert from_saved_model == pytest.approx(from_predictor, abs=1e-5)


@pytest.fixture(scope="module")
def scores(trained, phantom_set, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("scores") / "folder"
    assert tlray("score", "--bundle", trained / "bundle", "--input", phantom_set, "--out", out, "--quiet") == 0
    return out


def test_scores_have_a_row_for_every_file(scores, trained, phantom_set):
    table = predictions.read_predictions(str(scores))
    listed = listing.list_images(str(phantom_set)).table
    assert table["image_id"].to_pylist() == listed["image_id"].to_pylist()
    assert table.schema == predictions.prediction_schema(phantoms.CLASSES)
    rows = table.to_pylist()
    failed = [row for row in rows if row["error_code"]]
    assert len(failed) == NUM_UNREADABLE
    assert all(row["predicted_label"] is None and row["refer"] is None and row["error"] for row in failed)
    bundle_sha256 = load(str(trained / "bundle")).sha256
    predictor = Predictor(str(trained / "bundle"))
    for row in [row for row in rows if not row["error_code"]][::9]:
        image = pixels_of(Path(row["uri"]), size_px=64)
        expected = predictor.predict(image[None])[0]
        assert [row[f"p_{name}"] for name in phantoms.CLASSES] == pytest.approx(expected, abs=1e-5)
        assert row["predicted_label"] == phantoms.CLASSES[int(expected.argmax())]
        assert row["confidence"] == pytest.approx(expected.max(), abs=1e-5)
        assert row["refer"] == (row["refer_reason"] is not None)
        assert row["bundle_sha256"] == bundle_sha256
    with (scores / "predictions.csv").open() as file:
        assert [line["image_id"] for line in csv.DictReader(file)] == table["image_id"].to_pylist()


def test_engines_are_measured_on_images(trained, phantom_set, capsys):
    assert tlray("engines", "--bundle", trained / "bundle") == 0
    shown = capsys.readouterr().out
    assert "measured when the bundle was made: 16 images" in shown
    # 16 images cannot show that it is fit. A CPU without instructions for it does not compare it.
    has_int8 = "int8" in openvino_engine.cpu_precisions()
    assert bool(re.search(r"openvino\W+int8\W+no\W", shown)) is has_int8
    assert tlray("engines", "--bundle", trained / "bundle", "--data", phantom_set, "--split", "all") == 0
    shown = capsys.readouterr().out
    assert "measured now: 64 images" in shown
    assert re.search(r"openvino\W+float32\W+yes\W+\d+\W+100.0%\W+0 of \d+\W+0\W+0.0000, 0.000", shown)


def parent_pid() -> int:
    return os.getppid()


def test_an_actor_that_scores_loads_no_tensorflow(trained, phantom_set):
    plan = ScorePlan(max_actors=1, cpus_per_actor=0.5, gpus_per_actor=0)
    images = pa.concat_tables([listing.list_images(str(phantom_set)).table] * 50)  # so that it still scores when seen
    kind = EngineKind("openvino", "float32")
    bundle = str(trained / "bundle")
    tables: Any = score.predict(bundle, *read_spec(bundle), images, plan=plan, kind=kind, batch_size=4)
    maps = []
    with contextlib.closing(tables):
        next(tables)
        parent = ray.get(ray.remote(parent_pid).options(num_cpus=0).remote())  # of this Ray's actors, not of another's
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has just ended, or is somebody else's
                is_ours = f"PPid:\t{parent}\n" in (process / "status").read_text()
                if is_ours and b"_Scorer" in (process / "cmdline").read_bytes():
                    maps.append((process / "maps").read_text())
    (libraries,) = maps
    assert "/site-packages/openvino/" in libraries
    assert "/site-packages/tensorflow/" not in libraries


def test_other_tools_open_the_scores_with_one_path(scores):
    """Nothing but parts is in their folder: Polars and DuckDB's `*` refuse one with other files."""
    table = predictions.read_predictions(str(scores))
    assert pandas.read_parquet(scores / "predictions")["image_id"].tolist() == table["image_id"].to_pylist()
    dataset = pyarrow.dataset.dataset(str(scores / "predictions"))
    assert dataset.schema.names == table.column_names
    assert dataset.to_table().num_rows == 68
    assert [path.name for path in (scores / "predictions").iterdir()] == ["part-00000.parquet"]
    names = {"predictions", "predictions.csv", "_SUCCESS", "_state", ".tlray"}
    assert {path.name for path in scores.iterdir()} == names


def test_a_scoring_goes_on_where_it_was(scores, trained, tmp_path, monkeypatch, capsys):
    """It fails if most images are gone. Only images that were not found or have changed since are scored again."""
    monkeypatch.setattr(predictions, "ROWS_PER_PART", 1)
    rows = [row for row in predictions.read_predictions(str(scores)).to_pylist() if not row["error_code"]]
    chosen = [row for row in rows if row["uri"].endswith(".png")][:9]
    paths = [tmp_path / f"{place}.png" for place in range(9)]
    for place, (path, row) in enumerate(zip(paths, chosen, strict=True)):
        if place < 4:
            shutil.copy(row["uri"], path)
        else:
            path.symlink_to(tmp_path / "gone" / path.name)
    out = tmp_path / "out"
    arguments = ("score", "--bundle", trained / "bundle", "--input", f"{tmp_path}/*.png", "--out", out, "--quiet")
    assert tlray(*arguments) == 1
    message = capsys.readouterr().err
    assert f"tlray: 5 of 9 images of '{tmp_path}/*.png' were not found (the rows are in '{out}'). Check" in message
    assert "then continue with --resume." in message
    table = predictions.read_predictions(str(out))
    assert table["error_code"].to_pylist() == [None] * 4 + ["not_found"] * 5
    parts = [(out / f"predictions/part-0000{place}.parquet") for place in range(9)]

    def scored_again(*options: str) -> list[bool]:
        before = [path.stat().st_mtime_ns for path in parts]
        assert tlray(*arguments, "--resume", *options) == 0
        return [path.stat().st_mtime_ns != old for path, old in zip(parts, before, strict=True)]

    (tmp_path / "gone").mkdir()
    for path, row in list(zip(paths, chosen, strict=True))[4:]:
        shutil.copy(row["uri"], tmp_path / "gone" / path.name)
    assert scored_again() == [False] * 4 + [True] * 5
    found = predictions.read_predictions(str(out)).to_pylist()
    for name in ("sha256", "predicted_label", "error_code"):
        assert [row[name] for row in found] == [row[name] for row in chosen]

    status = paths[1].stat()
    content = paths[1].read_bytes()
    paths[1].write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # of the same size, and with the old time
    os.utime(paths[1], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert scored_again() == [False] * 9  # only its bytes would tell
    assert scored_again("--verify") == [False] + [True] * 8
    os.utime(paths[0])
    assert scored_again() == [False] * 9  # another time, and the same bytes
    shutil.copy(paths[1], paths[2])
    assert scored_again() == [False] * 2 + [True] * 7


def test_a_zip_and_a_continued_scoring_give_the_same(scores, trained, phantom_set, tmp_path, monkeypatch):
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in phantom_set.rglob("*.*"):
            file.write(path, path.relative_to(phantom_set))
    monkeypatch.setattr(predictions, "ROWS_PER_PART", 20)
    out = tmp_path / "out"
    arguments = ("score", "--bundle", trained / "bundle", "--input", archive, "--out", out, "--quiet")
    assert tlray(*arguments) == 0
    assert predictions.part_names(str(out)) == [f"part-{number:05d}.parquet" for number in range(4)]  # 68 rows
    # As a kill after the second part leaves it.
    for name in ("_SUCCESS", "predictions.csv", "predictions/part-00002.parquet", "predictions/part-00003.parquet"):
        (out / name).unlink()
    kept = (out / "predictions/part-00001.parquet").stat().st_mtime_ns
    assert tlray(*arguments) == 2  # not empty
    assert tlray(*arguments, "--resume") == 0
    assert (out / "predictions/part-00001.parquet").stat().st_mtime_ns == kept
    columns = ["image_id", "sha256", "predicted_label", "confidence", "error_code"]
    continued = predictions.read_predictions(str(out)).select(columns).to_pylist()
    for mine, theirs in zip(
        continued, predictions.read_predictions(str(scores)).select(columns).to_pylist(), strict=True
    ):
        assert mine == theirs | {"confidence": pytest.approx(theirs["confidence"], abs=1e-5)}


def test_evaluation_maps_published_class_names(trained, phantom_set, tmp_path):
    # The public data set calls the same classes differently in train and test.
    for name in phantoms.CLASSES:
        shutil.copytree(phantom_set / name, tmp_path / "data" / f"{name}_left.hilum_T1")
    out = tmp_path / "out"
    code = tlray(
        *("evaluate", "--bundle", trained / "bundle", "--data", tmp_path / "data"),
        *("--split", "all", "--check-overlays", "4", "--out", out, "--quiet"),
    )
    assert code == 0
    metrics = json.loads((out / "metrics.json").read_text())
    overlays = metrics["overlays"]
    assert overlays["num_images"] + overlays["num_without"] == 4
    assert overlays["text"] in shown_text(out / "report.html")
    # The training had too few patients for the bundle to keep pictures, by which these images would be known.
    assert (metrics["num_images"], metrics["num_failed"]) == (NUM_IMAGES, NUM_UNREADABLE)
    assert (metrics["leak_search"]["among"], metrics["is_leak_free"]) == ("nothing", None)
    assert metrics["num_groups"] <= NUM_IMAGES / 2  # two of each patient
    table = predictions.read_predictions(str(out))
    hits = [row["label"] == row["predicted_label"] for row in table.to_pylist() if not row["error_code"]]
    assert metrics["accuracy"] == pytest.approx(sum(hits) / NUM_IMAGES)
    names = {"metrics.json", "report.html", "figures", "predictions", "predictions.csv", "_SUCCESS", ".tlray"}
    assert {path.name for path in out.iterdir()} == names


# -- bad input


def test_a_changed_byte_in_a_bundle_is_noticed(trained, phantom_set, tmp_path, capsys):
    shutil.copytree(trained / "bundle", tmp_path / "bundle")
    path = tmp_path / "bundle/saved_model/saved_model.pb"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    code = tlray("score", "--bundle", tmp_path / "bundle", "--input", phantom_set, "--out", tmp_path / "out", "--quiet")
    assert code == 2
    assert "was changed after its export: the sha256 of saved_model/saved_model.pb" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_bundle_lies_wherever_its_user_likes(trained, phantom_set, tmp_path):
    place = tmp_path / "Bündel [1] *"
    shutil.copytree(trained / "bundle", place)
    images = np.stack([pixels_of(path, size_px=64) for path in sorted(phantom_set.glob("normal/*/*.png"))[-2:]])
    assert np.array_equal(Predictor(str(place)).predict(images), Predictor(str(trained / "bundle")).predict(images))


def test_an_earlier_run_is_replaced_only_once_nothing_is_wrong(trained, phantom_set, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    files = sorted(path.relative_to(out) for path in out.rglob("*"))
    for mistake in (
        ("--data", tmp_path / "nowhere", "--weights", "none"),
        ("--data", phantom_set, "--weights", tmp_path / "nothing.h5"),
    ):
        code = tlray("train", *mistake, "--out", out, "--backbone", "MobileNetV2", "--overwrite", "--quiet")
        assert code == 2
        assert "There " in capsys.readouterr().err
        assert sorted(path.relative_to(out) for path in out.rglob("*")) == files


def test_a_diverged_training_is_no_result(phantom_set, tmp_path, capsys):
    inputs = keras.Input((32, 32, 3))
    keras.Model(inputs, keras.layers.Conv2D(3, 3)(inputs)).save(tmp_path / "own.keras")
    out = tmp_path / "run"
    code = tlray(
        *("train", "--data", phantom_set, "--out", out, "--backbone", tmp_path / "own.keras", "--image-size-px", 32),
        *("--method", "fine-tune", "--preprocessing", "unit", "--learning-rate", 1e38, "--epochs", 2),
        *("--max-failures", 0, "--quiet"),
    )
    assert code == 1
    assert "Training diverged: the validation loss is not a number in any epoch." in capsys.readouterr().err
    assert not (out / "metrics.json").exists()
    assert not (out / "bundle").exists()


def make_folder(root: Path, **counts: int) -> Path:
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            keras.utils.save_img(root / name / f"{number}.png", np.full((8, 8, 3), number), scale=False)
    return root


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "DATA/missing"], "There is no file or folder"),
        (["--data", "DATA/empty"], "has no images"),
        (["--data", "DATA/one_class"], "at least two classes"),
        (
            ["--data", "DATA/broken_class"],
            "None of the images of 'b' can be read, for example 'DATA/broken_class/b/1.png' (empty: The file has zero "
            "bytes.). Copy the files again",
        ),
        (
            ["--data", "DATA/ids.csv", "--columns", "uri=id_code,label=diagnosis"],
            "None of the images of '0', '1' can be read, for example 'DATA/id0' (not_found: There is no such file.), "
            "'DATA/id1' (not_found: There is no such file.), 'DATA/id2' (not_found: There is no such file.). "
            "The manifest's uri must have the file's extension",
        ),
        (["--data", "DATA/masks"], "'images', 'masks') hold kinds of files, not patients. Choose one with a glob"),
        (["--data", "DATA/valid_only_class"], "no readable training image of 'c' (in valid)"),
        (["--data", "DATA/climbing.zip"], "has a member that points out of it"),
        (["--data", "DATA/good", "--num-workers", "64", "--batch-size", "64"], "64 asks for more processes than CPUs"),
        (["--data", "DATA/good", "--use-gpu"], "The cluster has 2 CPUs and 0 GPUs"),
        (["--data", "DATA/good", "--weights", "DATA/nothing.h5"], "There are no weights at"),
        (["--data", "DATA/good", "--weights", "DATA/shape.weights.h5"], "does not fit the backbone MobileNetV2"),
        (["--data", "DATA/good", "--out", "DATA/good"], "is not empty"),
        (
            ["--data", "DATA/good", "--out", "DATA/good", "--overwrite"],
            "but not the mark (.tlray) of an earlier training",
        ),
    ],
)
def test_bad_input_ends_with_a_remedy_and_nothing_that_looks_finished(tmp_path, capsys, arguments, message):
    data = tmp_path / "data"
    (data / "empty").mkdir(parents=True)
    make_folder(data / "one_class", a=3)
    make_folder(data / "good", a=4, b=4)
    (make_folder(data / "broken_class", a=3, c=3) / "b").mkdir()
    (data / "broken_class/b/1.png").write_bytes(b"")
    make_folder(data / "valid_only_class/train", a=2, b=2)
    make_folder(data / "valid_only_class/valid", a=1, b=1, c=1)
    (data / "ids.csv").write_text("\n".join(["id_code,diagnosis", *(f"id{n},{n % 2}" for n in range(6))]))
    for name in ("a", "b"):
        make_folder(data / "masks" / name, images=2, masks=2)
    with zipfile.ZipFile(data / "climbing.zip", "w") as file:
        file.writestr("../evil.png", b"")
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save_weights(data / "shape.weights.h5")
    given = [argument.replace("DATA", str(data)) for argument in arguments]
    out = tmp_path / "out"
    defaults = ["--out", out] if "--out" not in given else []
    if "--weights" not in given:
        defaults += ["--weights", "none"]
    code = tlray(
        *("train", *given, *defaults, "--backbone", "MobileNetV2", "--image-size-px", 32, "--max-failures", 0),
        *("--quiet",),
    )
    assert code == 2
    error = capsys.readouterr().err
    assert message.replace("DATA", str(data)) in error
    assert "Traceback" not in error
    assert not (out / "metrics.json").exists()
    assert not (out / "bundle").exists()
    assert len(list((data / "good").rglob("*.png"))) == 8
