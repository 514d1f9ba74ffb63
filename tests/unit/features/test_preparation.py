"""The network that computes features: built once on a machine, found again by what it is made from, and quantized."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tlray.config.commands import FeaturesConfig
from tlray.config.training import TrainConfig
from tlray.data.stream import Pixels
from tlray.engines import cache, networks, openvino_engine, quantization
from tlray.engines.kinds import REFERENCE, EngineKind
from tlray.errors import ConfigError, DataError
from tlray.features import preparation, update
from tlray.models import devices

SIZE_PX = 32
FLOAT32 = EngineKind("openvino", "float32")
HAS_INT8 = "int8" in openvino_engine.cpu_precisions()
NEEDS_INT8 = pytest.mark.skipif(not HAS_INT8, reason="this CPU has no 8-bit arithmetic")


def write_backbone(path: Path, seed: int) -> str:
    keras.utils.set_random_seed(seed)
    pixels = keras.Input((SIZE_PX, SIZE_PX, 3))
    x = keras.layers.Conv2D(4, 3, strides=2, activation="relu", name="first")(pixels)
    keras.Model(pixels, keras.layers.Conv2D(6, 3, strides=2, name="second")(x)).save(path)
    return str(path)


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch) -> Path:
    """Gives each test a cache of its own, which is returned."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(devices, "use_cpus", lambda *_: None)  # this process has chosen already
    return tmp_path / "cache/tlray"


@pytest.fixture(scope="module")
def own_backbone(tmp_path_factory) -> str:
    return write_backbone(tmp_path_factory.mktemp("model") / "own.keras", seed=3)


def make_config(backbone: str, **changes: object) -> TrainConfig:
    settings = {"backbone": backbone, "preprocessing": "unit", "image_size_px": SIZE_PX, "trainable_layers": 1}
    return FeaturesConfig(data="d", out="o", **(settings | changes)).training()  # pyright: ignore[reportArgumentType]


def compute(network: preparation.Network, images_BHWC: np.ndarray) -> list[np.ndarray]:
    return networks.load(network.packed, num_threads=1, use_gpu=False, is_long=False).run(images_BHWC)


@pytest.fixture(scope="module")
def images_BHWC() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)


@pytest.fixture
def images_table(tmp_path, images_BHWC) -> pa.Table:
    """A manifest of these images: four are for training, the last of which cannot be read, two for validation."""
    uris = [str(tmp_path / f"{number}.png") for number in range(len(images_BHWC))]
    for uri, image_HWC in zip(uris, images_BHWC, strict=True):
        Image.fromarray(image_HWC).save(uri)
    Path(uris[3]).write_bytes(b"no image")
    return pa.table({"uri": uris, "split": ["train"] * 4 + ["valid"] * 2})


def test_a_second_run_finds_the_network_and_loads_no_tensorflow(own_backbone, images_BHWC):
    config = make_config(own_backbone)
    first = preparation.prepare(config, "both", FLOAT32)
    program = f"""
import json, sys
from tlray.config.commands import FeaturesConfig
from tlray.engines.kinds import EngineKind
from tlray.features import preparation
config = FeaturesConfig(data="x", out="y", backbone={own_backbone!r}, preprocessing="unit", image_size_px={SIZE_PX},
                        trainable_layers=1).training()
network = preparation.prepare(config, "both", EngineKind("openvino", "float32"))
loaded = [name for name in ("keras", "tensorflow") if name in sys.modules]
print(json.dumps([network.names, network.shapes, network.fingerprint, loaded]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    expected = [first.names, [list(shape) for shape in first.shapes], first.fingerprint, []]
    assert json.loads(done.stdout) == expected
    again = preparation.prepare(config, "both", FLOAT32)
    for found, wanted in zip(compute(again, images_BHWC), compute(first, images_BHWC), strict=True):
        np.testing.assert_array_equal(found, wanted)


def count_built(monkeypatch) -> list[str]:
    """Returns a list that gets the level of each network that is built from now on."""
    built, build = [], preparation._built

    def count(config: TrainConfig, level: str, *others: object) -> preparation.Network:
        built.append(level)
        return build(config, level, *others)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(preparation, "_built", count)
    return built


def test_only_what_decides_the_network_builds_another(own_backbone, tmp_path, monkeypatch):
    built = count_built(monkeypatch)
    path = tmp_path / "copy.keras"
    shutil.copy(own_backbone, path)
    config = make_config(str(path))
    first = preparation.prepare(config, "pooled", FLOAT32)
    other_place = dataclasses.replace(config, data="elsewhere", out="there", overwrite=True, quiet=True)
    assert preparation.prepare(other_place, "pooled", FLOAT32).fingerprint == first.fingerprint
    assert built == ["pooled"]
    fingerprints = {first.fingerprint}
    fingerprints.add(preparation.prepare(config, "cut", FLOAT32).fingerprint)
    other = dataclasses.replace(config, preprocessing="raw")
    fingerprints.add(preparation.prepare(other, "pooled", FLOAT32).fingerprint)
    write_backbone(path, seed=4)  # the same name, another content
    fingerprints.add(preparation.prepare(config, "pooled", FLOAT32).fingerprint)
    assert len(fingerprints) == 4
    assert built == ["pooled", "cut", "pooled", "pooled"]


def test_a_network_for_tensorflow_is_built_each_time(own_backbone, monkeypatch):
    built = count_built(monkeypatch)
    config = make_config(own_backbone)
    kinds = [preparation.prepare(config, "pooled", kind).packed.kind for kind in (FLOAT32, REFERENCE, REFERENCE)]
    assert kinds == [FLOAT32, REFERENCE, REFERENCE]
    assert built == ["pooled"] * 3


@pytest.mark.parametrize("damage", ["{", "[1]", '{"sha256": 1}', '{"sha256": "no network", "names": [], "shapes": []}'])
def test_a_damaged_note_is_made_again(own_backbone, places, monkeypatch, damage):
    config = make_config(own_backbone)
    first = preparation.prepare(config, "pooled", FLOAT32)
    (note,) = (places / "notes").iterdir()
    content = note.read_text()
    note.write_text(damage)
    built = count_built(monkeypatch)
    assert preparation.prepare(config, "pooled", FLOAT32).fingerprint == first.fingerprint
    assert (built, note.read_text()) == (["pooled"], content)


def test_a_damaged_network_is_made_again(own_backbone, places, monkeypatch, images_BHWC):
    config = make_config(own_backbone)
    first = preparation.prepare(config, "pooled", FLOAT32)
    (weights,) = (places / "networks").glob("*/model.bin")
    weights.write_bytes(weights.read_bytes()[:-8])
    built = count_built(monkeypatch)
    again = preparation.prepare(config, "pooled", FLOAT32)
    assert (built, again.fingerprint) == (["pooled"], first.fingerprint)
    np.testing.assert_array_equal(compute(again, images_BHWC)[0], compute(first, images_BHWC)[0])


def test_without_a_place_for_the_cache_the_network_is_built_all_the_same(own_backbone, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file/cache"))
    built = count_built(monkeypatch)
    for _ in range(2):
        assert preparation.prepare(make_config(own_backbone), "pooled", FLOAT32).packed.kind == FLOAT32
    assert built == ["pooled"] * 2
    assert cache.noted("n") == {}


@NEEDS_INT8
def test_an_int8_network_is_near_and_made_once(own_backbone, images_table, images_BHWC, monkeypatch):
    exact = preparation.prepare(make_config(own_backbone), "pooled", EngineKind("openvino", "int8"))
    assert exact.packed.kind == FLOAT32  # NNCF quantizes this one
    pixels = Pixels(size_px=SIZE_PX)
    measured, quantize = [], quantization.quantize

    def watched(network: openvino_engine.OpenVinoNetwork, images: np.ndarray, target: str) -> None:
        measured.append(images)
        quantize(network, images, target)

    monkeypatch.setattr(quantization, "quantize", watched)
    rounded = preparation.quantize(exact, images_table, pixels)
    np.testing.assert_array_equal(measured[0], images_BHWC[:3])  # the training images that can be read
    assert rounded.packed.kind == EngineKind("openvino", "int8")
    assert (rounded.names, rounded.shapes) == (exact.names, exact.shapes)
    wanted, found = compute(exact, images_BHWC)[0], compute(rounded, images_BHWC)[0]
    assert 1e-5 < np.abs(found - wanted).max() < 0.1 * np.ptp(wanted)

    again = preparation.quantize(exact, images_table, pixels)
    assert (again.fingerprint, len(measured)) == (rounded.fingerprint, 1)
    of_others = preparation.quantize(exact, images_table.slice(4), pixels)  # no training images: all are taken
    assert len(measured[1]) == 2
    assert len({exact.fingerprint, rounded.fingerprint, of_others.fingerprint}) == 3


def test_what_openvino_cannot_run_is_not_quantized(own_backbone, images_table):
    network = preparation.prepare(make_config(own_backbone), "pooled", REFERENCE)
    assert preparation.quantize(network, images_table, Pixels(size_px=SIZE_PX)) is network


def test_int8_needs_images_that_can_be_read(own_backbone, images_table):
    network = preparation.prepare(make_config(own_backbone), "pooled", FLOAT32)
    with pytest.raises(DataError, match="None of the images that --precision int8 would measure can be read"):
        preparation.quantize(network, images_table.slice(3, 1), Pixels(size_px=SIZE_PX))


def test_a_network_that_nncf_cannot_quantize_is_refused(own_backbone, images_table, monkeypatch):
    network = preparation.prepare(make_config(own_backbone), "pooled", FLOAT32)

    def fail(*_: object) -> None:
        raise RuntimeError("unknown operation")

    monkeypatch.setattr(quantization, "quantize", fail)
    with pytest.raises(ConfigError, match=r"NNCF cannot quantize this network: unknown operation\. Give --precision a"):
        preparation.quantize(network, images_table, Pixels(size_px=SIZE_PX))


def test_int8_without_nncf_is_refused_before_anything(own_backbone, monkeypatch):
    monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda _: None)
    config = FeaturesConfig(
        data="d", out="o", backbone=own_backbone, preprocessing="unit", image_size_px=SIZE_PX, precision="int8"
    )
    with pytest.raises(ConfigError, match=r"--precision int8 needs NNCF: pip install 'tlray\[int8\]'"):
        update.check(config, config.training())
