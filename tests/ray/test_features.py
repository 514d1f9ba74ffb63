"""Feature extraction: the network's own numbers, kept where they are still right and computed where they are not."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from tests.processes import wait_until
from tlray.cluster import connection
from tlray.cluster.plans import ScorePlan
from tlray.config.commands import FeaturesConfig
from tlray.config.training import Augmentation, TrainConfig
from tlray.data import augmentation, dataset, decoding
from tlray.data.stream import Pixels
from tlray.engines import openvino_engine
from tlray.engines.kinds import REFERENCE
from tlray.errors import ConfigError, DataError, TlrayError
from tlray.features import extraction, preparation, store, update
from tlray.models import devices, trunk
from tlray.models.files import load_keras_file
from tlray.training import model

pytestmark = pytest.mark.usefixtures("local_ray")

SIZE_PX = 32
AUGMENTATION = Augmentation(rotation_deg=20, horizontal_flip=True)


def make_backbone(path: Path, seed: int = 3) -> str:
    keras.utils.set_random_seed(seed)
    pixels = keras.Input((SIZE_PX, SIZE_PX, 3))
    x = keras.layers.Conv2D(4, 3, strides=2, activation="relu", name="first")(pixels)
    x = keras.layers.Conv2D(6, 3, strides=2, activation="relu", name="second")(x)
    keras.Model(pixels, keras.layers.Conv2D(5, 3, name="third")(x)).save(path)
    return str(path)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_backbone(tmp_path_factory.mktemp("model") / "own.keras")


def write_images(folder: Path) -> Path:
    """Writes two classes in three splits, 12 images and one that is none; the same ones each time."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("valid", 1), ("test", 1)):
        for label in ("a", "b"):
            (folder / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
                keras.utils.save_img(folder / split / label / f"{number}.png", pixels, scale=False)
    (folder / "train/a/broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_images(tmp_path / "data")


@pytest.fixture(scope="module")
def extracted(local_ray: str, backbone: str, tmp_path_factory: pytest.TempPathFactory) -> update.FeaturesResult:  # noqa: ARG001
    """Features of such images, in parts of five rows."""
    data = write_images(tmp_path_factory.mktemp("extracted") / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "ROWS_PER_PART", 5)
        return extract(data, backbone)


@pytest.fixture
def known(data: Path, extracted: update.FeaturesResult) -> Path:
    shutil.copytree(extracted.out, data.parent / "features")
    return data


def extract(data: Path, backbone: str, **changes: Any) -> update.FeaturesResult:
    settings = {
        "data": str(data), "out": str(data.parent / "features"), "backbone": backbone, "preprocessing": "symmetric",
        "image_size_px": SIZE_PX, "trainable_layers": 1, "level": "both", "views": 2, "augmentation": AUGMENTATION,
        "seed": 7, "precision": "float32", "quiet": True,
    }  # fmt: skip
    return update.extract_features(FeaturesConfig(**(settings | changes)))


def read(out: str) -> dict[tuple[str, int], dict[str, Any]]:
    rows = store.read_features(out).to_pylist()
    return {(row["image_id"], row["view"]): row for row in rows}


def files(out: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(out).glob("part-*")}


def test_features_are_the_networks(extracted, backbone):
    result, data = extracted, Path(extracted.out).parent / "data"
    assert (result.num_rows, result.num_reused, result.num_failed) == (20, 0, 1)
    assert result.shapes == {"pooled": (11,), "cut_0": (7, 7, 6)}
    rows = read(result.out)
    assert len(rows) == 20
    model = load_keras_file(backbone)
    maps = keras.Model(model.inputs[0], [model.get_layer(name).output for name in ("second", "third")])
    for (image_id, view), row in rows.items():
        split, label, _ = image_id.split("/")
        assert (row["split"], row["label"], row["group_id"]) == (split, label, image_id)
        image = decoding.decode((data / image_id).read_bytes(), size_px=SIZE_PX)
        if view:
            assert split == "train"
            rng = augmentation.augmentation_rng(seed=7, epoch=view - 1, image_id=image_id)
            image = augmentation.augment(image, AUGMENTATION, rng)
        second, third = maps(decoding.to_array(image)[None] / np.float32(127.5) - 1)
        pooled = np.concatenate([np.asarray(each)[0].mean(axis=(0, 1)) for each in (second, third)])
        # float16 keeps 11 bits.
        np.testing.assert_allclose(np.array(row["pooled"], np.float32), pooled, rtol=2**-11, atol=1e-5)
        cut = np.array(row["cut_0"], np.float32).reshape(7, 7, 6)
        np.testing.assert_allclose(cut, np.asarray(second)[0], rtol=2**-11, atol=1e-5)
    manifest = pq.read_table(Path(result.out) / "_manifest.parquet").to_pylist()
    assert [row["image_id"] for row in manifest if row["error_code"]] == ["train/a/broken.png"]
    assert len(manifest) == 13


def test_a_process_that_computes_features_loads_no_tensorflow(data, backbone, monkeypatch, tmp_path):
    seen = tmp_path / "seen"
    seen.mkdir()

    class Watched(extraction._Extractor):
        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            features = super().__call__(batch)
            loaded = [name for name in ("keras", "openvino", "tensorflow") if name in sys.modules]
            (seen / str(os.getpid())).write_text(" ".join(loaded))
            return features

    monkeypatch.setattr(extraction, "_Extractor", Watched)
    extract(data, backbone)
    assert {path.read_text() for path in seen.iterdir()} == {"openvino"}
    assert str(os.getpid()) not in {path.name for path in seen.iterdir()}


@pytest.mark.skipif("int8" not in openvino_engine.cpu_precisions(), reason="this CPU has no 8-bit arithmetic")
def test_features_in_int8_are_near_and_kept(data, extracted, backbone):
    result = extract(data, backbone, precision="int8")
    assert (result.num_rows, result.num_reused) == (20, 0)
    assert json.loads((Path(result.out) / store.NETWORK).read_text())["engine"] == "openvino int8"
    exact, found = read(extracted.out), read(result.out)
    differences = [np.abs(np.subtract(found[key]["pooled"], exact[key]["pooled"])).max() for key in exact]
    assert 0 < max(differences) < 0.1 * max(np.ptp(row["pooled"]) for row in exact.values())
    assert extract(data, backbone, precision="int8").num_reused == 20
    with pytest.raises(ConfigError, match="openvino int8 has computed them, and openvino float32 would now"):
        extract(data, backbone)


def test_only_what_changed_is_computed_again(known, backbone):
    data, out = known, str(known.parent / "features")
    before, parts = read(out), files(out)
    again = extract(data, backbone)
    assert (again.num_rows, again.num_reused) == (20, 20)
    assert files(out) == parts
    # One image is another, one is gone, one has another label: of the last the features stay.
    pixels = np.full((40, 48, 3), 200, dtype=np.uint8)
    keras.utils.save_img(data / "train/a/0.png", pixels, scale=False)
    (data / "valid/b/0.png").unlink()
    class_map = data.parent / "classes.json"
    class_map.write_text(json.dumps({"a": "a", "b": "other"}))
    changed = extract(data, backbone, class_map=str(class_map))
    assert (changed.num_rows, changed.num_reused) == (19, 17)
    after = read(out)
    assert {key for key in before if key not in after} == {("valid/b/0.png", 0)}
    for key, row in after.items():
        assert row["label"] == {"a": "a", "b": "other"}[key[0].split("/")[1]]
        assert (row["pooled"] == before[key]["pooled"]) == (key[0] != "train/a/0.png")
    more = extract(data, backbone, views=3, class_map=str(class_map))
    assert (more.num_rows, more.num_reused) == (27, 19)
    with pytest.raises(ConfigError, match=r"16 of the 27 features in .* would be deleted"):
        extract(data, backbone, seed=8, class_map=str(class_map))
    other_seed = extract(data, backbone, seed=8, class_map=str(class_map), overwrite=True)
    assert (other_seed.num_rows, other_seed.num_reused) == (19, 11)


def test_damage_and_interruption_cost_only_what_they_hit(known, backbone, monkeypatch):
    monkeypatch.setattr(store, "ROWS_PER_PART", 5)
    out = str(known.parent / "features")
    before, (damaged, lost, *_) = read(out), sorted(Path(out).glob("part-*"))
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    num_lost = pq.read_table(damaged).num_rows + pq.read_table(lost).num_rows
    damaged.write_bytes(content)
    lost.unlink()
    (Path(out) / "_SUCCESS").unlink()
    with pytest.raises(DataError, match="has no _SUCCESS"):
        store.read_features(out)
    result = extract(known, backbone)
    assert (result.num_rows, result.num_reused) == (20, 20 - num_lost)
    assert result.notes == (f"{damaged.name} was damaged; its features were computed again.",)
    assert read(out) == before


def test_features_of_another_network_are_not_used(known, backbone, tmp_path):
    data, out = known, str(known.parent / "features")
    parts = files(out)
    other = make_backbone(tmp_path / "other.keras", seed=4)
    with pytest.raises(ConfigError, match="holds features of another network"):
        extract(data, other)
    assert files(out) == parts
    result = extract(data, other, overwrite=True)
    assert (result.num_rows, result.num_reused) == (20, 0)
    with pytest.raises(ConfigError, match="is not empty"):
        extract(data, backbone, out=str(data))


@pytest.mark.parametrize("max_actors", [1, 3])
def test_only_a_long_pass_makes_weights_constant(max_actors):
    plan = ScorePlan(max_actors=max_actors, cpus_per_actor=1, gpus_per_actor=0)
    least = extraction.MIN_ROWS_FOR_CONSTANTS * max_actors
    assert [extraction._is_long(num_rows, plan) for num_rows in (least - 1, least)] == [False, True]


def test_features_are_the_same_with_constants(backbone, monkeypatch):
    monkeypatch.setattr(devices, "use_cpus", lambda *_: None)  # this process has chosen already
    config = FeaturesConfig(
        data="d", out="o", backbone=backbone, preprocessing="symmetric", image_size_px=SIZE_PX, trainable_layers=1
    ).training()
    network = preparation.prepare(config, "both", REFERENCE)
    folded, calls = trunk.as_constant, []
    monkeypatch.setattr(trunk, "as_constant", lambda model: calls.append(model) or folded(model))
    results = []
    for with_constants in (False, True):
        batch = {"image": np.random.default_rng(0).integers(0, 256, (5, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)}
        batch |= {name: np.arange(5) for name in ("row", "sha256", "error_code", "error")}
        results.append(extraction._Extractor([ray.put(network)], 1, False, with_constants, 8)(batch))
        assert len(calls) == with_constants
    for name in network.names:
        first, second = (result[name].astype(np.float32) for result in results)
        assert np.ptp(first) > 0.01
        np.testing.assert_allclose(first, second, rtol=2e-3, atol=1e-4)  # float16


@pytest.mark.parametrize("content", ["", "{", "[]", '{"sha": 1}'])
def test_features_of_an_unknown_network_are_not_used(tmp_path, content):
    (tmp_path / store.NETWORK).write_text(content)
    network: Any = SimpleNamespace(fingerprint="f", packed=SimpleNamespace(kind=REFERENCE))
    with pytest.raises(ConfigError, match="holds features of another network"):
        update._open_output(str(tmp_path), network, overwrite=False)


def test_a_network_for_images_of_any_size_has_features_of_each(data, tmp_path):
    keras.utils.set_random_seed(3)
    pixels = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3, strides=2, activation="relu")(pixels)
    keras.Model(pixels, keras.layers.Conv2D(5, 3)(x)).save(tmp_path / "any.keras")
    any_size = str(tmp_path / "any.keras")
    small = extract(data, any_size)
    assert small.shapes == {"pooled": (9,), "cut_0": (15, 15, 4)}
    pooled = extract(data, any_size, level="pooled", overwrite=True)
    larger = extract(data, any_size, level="pooled", image_size_px=40, overwrite=True)
    assert pooled.shapes == larger.shapes == {"pooled": (9,)}
    assert larger.num_reused == 0


def test_a_model_outlives_the_process_that_built_it(data, backbone, tmp_path):
    """Ray ends idle processes, and those of a node that runs out of memory."""
    settings = {"backbone": backbone, "preprocessing": "symmetric", "image_size_px": SIZE_PX, "trainable_layers": 1}
    config = TrainConfig(data=str(data), out=str(tmp_path / "run"), method="lp-ft", epochs=1, **settings).resolved()

    def prepare() -> tuple[int, model.Untrained]:
        return os.getpid(), model.build(config, 2)

    pid, prepared = connection.get(connection.start_here(prepare))
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not os.path.exists(f"/proc/{pid}"))
    expected = [np.asarray(value) for value in load_keras_file(backbone).get_weights()]
    assert prepared.network is not None and prepared.tail_weights is not None  # noqa: PT018
    assert len(expected) == 6
    # The head's mean, deviation, weights and bias follow.
    assert len(prepared.weights) == 6 + 4
    assert all(np.array_equal(mine, theirs) for mine, theirs in zip(prepared.weights[:6], expected, strict=True))
    # The tail begins with the last layer of the backbone.
    assert np.array_equal(prepared.tail_weights[0], expected[4])
    # And other processes get them.
    table = dataset.with_splits(
        dataset.without_looks(
            dataset.read_images(
                dataset.list_classes(config.data, columns=None, class_map=None, quiet=True).table,
                out=config.out,
                kind="training",
                task_cpus=1,
                meanwhile=lambda: None,
                quiet=True,
            )
        ),
        seed=0,
    )
    plan = ScorePlan(max_actors=1, cpus_per_actor=1, gpus_per_actor=0)
    result = update.update(
        str(tmp_path / "features"), table, prepared.network, Pixels(size_px=SIZE_PX),
        plan=plan, views=1, batch_size=4, overwrite=False, quiet=True,
    )  # fmt: skip
    assert (result.num_rows, result.num_failed) == (12, 1)


def write_two_rows(out: Path, *error_codes: str) -> dict[str, np.ndarray]:
    """Writes the features of two images with these error codes, empty for none."""
    rows = {
        "key": ["k0", "k1"],
        "view": [0, 0],
        **{name: ["x", "y"] for name in store.COLUMNS},
    }
    batch = {
        "row": np.array([0, 1]),
        "error_code": np.array(error_codes),
        "error": np.array(error_codes),
        "pooled": np.arange(6, dtype=np.float16).reshape(2, 3),
    }
    return extraction._write_rows(batch, str(out), [ray.put(pa.table(rows))], ["pooled"])


def test_an_image_that_changes_during_the_pass_has_no_features(tmp_path):
    written = write_two_rows(tmp_path, "", "changed")
    assert written["error_code"].tolist() == written["error"].tolist() == ["", "changed"]
    (part,) = tmp_path.glob("part-*")
    assert [(row["image_id"], row["pooled"]) for row in pq.read_table(part).to_pylist()] == [("x", [0, 1, 2])]


def test_a_part_all_of_whose_images_have_gone_is_not_written(tmp_path):
    written = write_two_rows(tmp_path, "changed", "not_found")
    assert written["error_code"].tolist() == ["changed", "not_found"]
    assert written["write_error"].tolist() == ["", ""]
    assert not list(tmp_path.iterdir())


def test_features_where_a_whole_part_vanishes_after_it_was_looked_at(data, backbone, monkeypatch):
    """Two rows a part: the two validation images are one of them, without a single readable image."""
    read_images = dataset.read_images

    def vanish(*arguments: Any, **named: Any) -> pa.Table:
        table = read_images(*arguments, **named)
        shutil.rmtree(data / "valid")
        return table

    monkeypatch.setattr(dataset, "read_images", vanish)
    monkeypatch.setattr(store, "ROWS_PER_PART", 2)
    result = extract(data, backbone)
    assert (result.num_rows, result.num_failed) == (18, 3)
    rows = pq.read_table(Path(result.out) / "_manifest.parquet").to_pylist()
    assert {row["image_id"]: row["error_code"] for row in rows if row["error_code"]} == {
        "train/a/broken.png": "unsupported_format", "valid/a/0.png": "not_found", "valid/b/0.png": "not_found"
    }  # fmt: skip
    assert {split for split, *_ in (key[0].split("/") for key in read(result.out))} == {"train", "test"}


def test_images_without_labels_have_features_too(data, backbone, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for number in range(3):
        shutil.copy(data / f"train/a/{number}.png", flat / f"{number}.png")
    result = extract(flat, backbone, level="pooled")
    rows = read(result.out)
    assert sorted(rows) == [("0.png", 0), ("1.png", 0), ("2.png", 0)]
    assert {(row["label"], row["split"]) for row in rows.values()} == {(None, None)}
    assert result.shapes == {"pooled": (11,)}


def test_a_full_disk_ends_with_a_message(data, backbone, monkeypatch, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    # A place where nothing can be written, whoever runs the tests.
    written = write_two_rows(tmp_path / "file/below", "", "")
    assert "Not a directory" in written["write_error"][0]
    assert written["image_id"].tolist() == ["x", "y"]
    monkeypatch.setattr("tlray.data.stream.iterate", lambda _dataset: iter([written]))
    with pytest.raises(TlrayError, match=r"cannot be written: .*Not a directory.* run the command again"):
        extract(data, backbone)
    monkeypatch.undo()
    result = extract(data, backbone)
    assert result.num_rows == 20  # 8 training images in two views, 4 others
