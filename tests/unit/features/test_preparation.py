"""The network that computes features: built once on a machine, found again by what it is made from, and quantized."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tlray.bundle import store as bundles
from tlray.bundle.spec import BundleSpec
from tlray.config.commands import FeaturesConfig
from tlray.config.training import Augmentation, TrainConfig
from tlray.data.stream import Pixels
from tlray.engines import cache, networks, openvino_engine, quantization
from tlray.engines.kinds import REFERENCE, EngineKind
from tlray.errors import ConfigError, DataError
from tlray.features import preparation, update
from tlray.models import backbone, devices

SIZE_PX = 32
FLOAT32 = EngineKind("openvino", "float32")
HAS_INT8 = "int8" in openvino_engine.cpu_precisions()
REASON = "OpenVINO says: "
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
    """A manifest of these images: four are for training, two for validation."""
    uris = [str(tmp_path / f"{number}.png") for number in range(len(images_BHWC))]
    for uri, image_HWC in zip(uris, images_BHWC, strict=True):
        Image.fromarray(image_HWC).save(uri)
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

    def count(config: TrainConfig, level: str, kind: EngineKind) -> tuple[preparation.Network, Mapping[str, Any]]:
        built.append(level)
        return build(config, level, kind)

    monkeypatch.setattr(preparation, "_built", count)
    return built


def test_only_what_decides_the_network_builds_another(own_backbone, tmp_path, monkeypatch):
    built = count_built(monkeypatch)
    path = tmp_path / "copy.keras"
    shutil.copy(own_backbone, path)
    config = make_config(str(path))
    first = preparation.prepare(config, "pooled", FLOAT32)
    other_place = dataclasses.replace(
        config, data="elsewhere", out="there", overwrite=True, quiet=True, seed=9, intensity_range="0,255",
        augmentation=Augmentation(zoom=0.1),
    )  # fmt: skip
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


@pytest.mark.parametrize("place", ["tlray.models", "tlray.features", "tlray.engines", "keras.json", "KERAS_BACKEND"])
def test_code_and_settings_that_build_a_network_are_in_its_recipe(own_backbone, tmp_path, monkeypatch, place):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    config = make_config(own_backbone)
    before = preparation._recipe(config, "pooled")
    assert before == preparation._recipe(config, "pooled")
    if place == "keras.json":
        (tmp_path / "keras.json").write_text('{"floatx": "float64"}')
    elif place == "KERAS_BACKEND":
        monkeypatch.setenv(place, "other")
    else:
        (tmp_path / "changed.py").write_text("")
        files = cache.importlib.resources.files
        monkeypatch.setattr(
            cache.importlib.resources, "files", lambda package: tmp_path if package == place else files(package)
        )
    assert preparation._recipe(config, "pooled") not in (None, before)


def test_the_first_run_of_a_user_notes_its_network(own_backbone, tmp_path):
    """Keras writes its file while it is imported for the first time."""
    program = f"""
import os
from tlray.config.commands import FeaturesConfig
from tlray.engines.kinds import EngineKind
from tlray.features import preparation
config = FeaturesConfig(data="x", out="y", backbone={own_backbone!r}, preprocessing="unit", image_size_px={SIZE_PX},
                        trainable_layers=1).training()
print(os.path.exists(os.environ["HOME"] + "/.keras/keras.json"))
preparation.prepare(config, "pooled", EngineKind("openvino", "float32"))
print(os.path.exists(os.environ["HOME"] + "/.keras/keras.json"))
preparation._built = None
print(preparation.prepare(config, "pooled", EngineKind("openvino", "float32")).names)
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("KERAS_", "XDG_"))}
    environment["HOME"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["False", "True", "['pooled']"]


def test_keras_settings_are_looked_for_where_keras_does(tmp_path, monkeypatch):
    places = {"given": tmp_path / "given", "home": tmp_path / "home/.keras", "shared": tmp_path / "home/own"}
    for name, place in places.items():
        place.mkdir(parents=True)
        (place / "keras.json").write_text(json.dumps({"backend": name}))
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.delenv("KERAS_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def found() -> object:
        return preparation._keras_settings()["backend"]

    assert found() == "home"
    monkeypatch.setenv("KERAS_HOME", "~/own")
    assert found() == "shared"
    monkeypatch.setenv("KERAS_HOME", str(places["given"]))
    assert found() == "given"
    monkeypatch.setenv("KERAS_BACKEND", "variable")
    assert found() == "variable"
    monkeypatch.setenv("KERAS_HOME", "")
    monkeypatch.setenv("KERAS_BACKEND", "")
    monkeypatch.chdir(places["shared"])
    assert found() == "shared"


def test_keras_settings_of_a_user_who_may_not_write_at_home_are_in_tmp(monkeypatch):
    for name in ("KERAS_HOME", "KERAS_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(preparation.os, "access", lambda *_: False)
    paths: list[str] = []
    monkeypatch.setattr(preparation.os.path, "exists", paths.append)
    assert preparation._keras_settings() == preparation._KERAS_DEFAULTS
    assert paths == ["/tmp/.keras/keras.json"]  # noqa: S108 (Keras looks there)


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"max_epochs": 3}', '{"floatx": "float32"}'])
def test_a_file_of_keras_that_sets_nothing_else_changes_no_recipe(own_backbone, tmp_path, monkeypatch, content):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    defaults = {"floatx": "float32", "epsilon": 1e-07, "backend": "tensorflow", "image_data_format": "channels_last"}
    (tmp_path / "keras.json").write_text(json.dumps(defaults, indent=4))  # as Keras writes it
    written = preparation._recipe(make_config(own_backbone), "pooled")
    if content is None:
        (tmp_path / "keras.json").unlink()
    else:
        (tmp_path / "keras.json").write_text(content)
    assert preparation._recipe(make_config(own_backbone), "pooled") == written is not None


def test_a_file_of_keras_that_cannot_be_read_gives_no_recipe(own_backbone, tmp_path, monkeypatch):
    (tmp_path / "keras.json").mkdir()
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert preparation._recipe(make_config(own_backbone), "pooled") is None


@pytest.fixture(scope="module")
def unknown_backbone(tmp_path_factory) -> str:
    """A backbone with an operation that OpenVINO does not know."""
    path = tmp_path_factory.mktemp("unknown") / "unknown.keras"
    pixels = keras.Input((SIZE_PX, SIZE_PX, 3))
    keras.Model(pixels, keras.ops.erfinv(keras.layers.Conv2D(4, 3, activation="sigmoid")(pixels))).save(path)
    return str(path)


def started(monkeypatch, config: FeaturesConfig) -> preparation.Network:
    """Returns the network that the process computes which `preparation.start` starts, without Ray."""
    monkeypatch.setattr(preparation.connection, "start_here", lambda function, *arguments: function(*arguments))
    return preparation.start(config, update.check(config, config.training()))  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("engine", ["auto", "openvino", "tensorflow"])
@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16", "int8"])
def test_an_engine_or_precision_that_the_network_cannot_have_is_refused(
    unknown_backbone, monkeypatch, engine, precision
):
    monkeypatch.setattr(openvino_engine, "cpu_precisions", lambda: frozenset({"float32", "bfloat16", "int8"}))
    config = FeaturesConfig(
        data="d", out="o", backbone=unknown_backbone, preprocessing="unit", image_size_px=SIZE_PX, engine=engine,
        precision=precision,
    )  # fmt: skip
    wishes = ["--engine openvino"] * (engine == "openvino")
    wishes += [f"--precision {precision}"] * (precision in ("bfloat16", "int8"))
    wish = " ".join(wishes)
    if engine == "tensorflow" and precision in ("bfloat16", "int8"):
        said = f"{wish}: the engine tensorflow predicts in float32. Give --precision float32, which every machine has."
    elif engine == "openvino" or precision in ("bfloat16", "int8"):
        said = f"{wish}: OpenVINO cannot run this model. Without {wish}, TensorFlow computes in float32. {REASON}"
    else:
        network = started(monkeypatch, config)
        note = "OpenVINO cannot convert the network, so TensorFlow computes its features, more slowly: "
        assert network.packed.kind == REFERENCE
        assert network.packed.note.startswith(note) == (engine == "auto")
        return
    with pytest.raises(ConfigError) as raised:
        started(monkeypatch, config)
    assert re.sub(f"{REASON}.* Erfinv.*", REASON, str(raised.value), flags=re.DOTALL) == said


@pytest.mark.parametrize("precision", ["float32", "auto", "int8"])
def test_an_engine_that_the_network_can_have_is_taken(own_backbone, monkeypatch, precision):
    monkeypatch.setattr(openvino_engine, "cpu_precisions", lambda: frozenset({"float32", "int8"}))
    config = FeaturesConfig(
        data="d", out="o", backbone=own_backbone, preprocessing="unit", image_size_px=SIZE_PX, engine="openvino",
        precision=precision,
    )  # fmt: skip
    assert started(monkeypatch, config).packed.kind == FLOAT32


def test_without_a_home_directory_the_network_is_built(own_backbone, monkeypatch):
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    built = count_built(monkeypatch)
    for _ in range(2):
        assert preparation.prepare(make_config(own_backbone), "pooled", FLOAT32).packed.kind == FLOAT32
    assert built == ["pooled"] * 2


def test_weights_are_read_only_where_a_network_can_be_recalled(own_backbone, monkeypatch):
    read, content = [], preparation._content
    monkeypatch.setattr(preparation, "_content", lambda location: (read.append(location), content(location))[1])
    preparation.prepare(make_config(own_backbone), "pooled", REFERENCE)
    assert read == []
    preparation.prepare(make_config(own_backbone), "pooled", FLOAT32)
    assert read == [own_backbone] * 2  # before and after it was built


def test_weights_are_told_by_their_content(tmp_path):
    file, listed = tmp_path / "w.weights.h5", tmp_path / "w.weights.json"
    (tmp_path / "w_00000.weights.h5").write_bytes(b"values")
    recipes = []
    for content in (b"1", b"2", b"1"):
        file.write_bytes(content)
        recipes.append(preparation._recipe(make_config("ResNet50", weights=str(file)), "pooled"))
    assert None not in recipes
    assert (recipes[0] == recipes[1], recipes[0] == recipes[2]) == (False, True)
    listed.write_text("{}")  # the values are in other files
    assert preparation._recipe(make_config("ResNet50", weights=str(listed)), "pooled") is None
    assert preparation._weights(str(file)) == hashlib.sha256(b"1").hexdigest()
    assert preparation._weights("imagenet") == "imagenet"


def test_a_bundle_as_weights_is_told_by_its_sha256(tmp_path, monkeypatch):
    (tmp_path / "bundle.json").write_text("{}")
    monkeypatch.setattr(preparation.bundles, "read_spec", lambda _: (None, "sha256 of the bundle"))
    assert preparation._weights(str(tmp_path)) == "sha256 of the bundle"


def test_the_network_of_a_bundle_gets_the_pixels_that_it_was_trained_on(tmp_path, monkeypatch):
    spec = BundleSpec(classes=("a", "b"), image_size_px=SIZE_PX, preprocessing="unit", backbone="b", weights="w")
    bundles.seal(str(tmp_path / "bundle"), spec)

    def build(_: TrainConfig) -> keras.Model:
        pixels = keras.Input((SIZE_PX, SIZE_PX, 3))
        return keras.Model(pixels, keras.layers.Conv2D(4, 3, strides=2, kernel_initializer="ones")(pixels))

    monkeypatch.setattr(backbone, "build_backbone", build)
    settings = [{}, {"preprocessing": "unit"}, {"weights": "imagenet"}]
    prints = [
        preparation.prepare(
            make_config("MobileNetV2", **({"weights": str(tmp_path / "bundle"), "preprocessing": None} | changes)),
            "pooled",
            REFERENCE,
        ).fingerprint
        for changes in settings
    ]
    assert (prints[0] == prints[1], prints[0] == prints[2]) == (True, False)


def test_the_seed_decides_random_weights():
    configs = [
        TrainConfig(data="d", out="o", weights="none", seed=seed, method="fine-tune").resolved() for seed in (1, 2, 1)
    ]
    first, second, third = [preparation._recipe(config, "pooled") for config in configs]
    assert (first == second, first == third) == (False, True)


def test_a_folder_with_the_name_of_a_backbone_is_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = preparation._recipe(make_config("ResNet50"), "pooled")
    (tmp_path / "ResNet50").mkdir()
    assert preparation._recipe(make_config("ResNet50"), "pooled") == before is not None
    (tmp_path / "x.keras").mkdir()
    with pytest.raises(ConfigError, match=r"x\.keras"):
        preparation.prepare(make_config("x.keras"), "pooled", FLOAT32)


def test_a_file_that_changes_while_the_network_is_built_is_not_noted(own_backbone, places, tmp_path, monkeypatch):
    path = tmp_path / "own.keras"
    shutil.copy(own_backbone, path)
    build = preparation._built

    def change(config: TrainConfig, level: str, kind: EngineKind) -> tuple[preparation.Network, Mapping[str, Any]]:
        built = build(config, level, kind)
        write_backbone(path, seed=4)
        return built

    monkeypatch.setattr(preparation, "_built", change)
    preparation.prepare(make_config(str(path)), "pooled", FLOAT32)
    assert not (places / "notes").exists()


def test_the_cache_is_closed_to_others_and_not_taken_from_them(own_backbone, places, monkeypatch):
    before = os.umask(0o002)
    try:
        preparation.prepare(make_config(own_backbone), "pooled", FLOAT32)
    finally:
        os.umask(before)
    assert places.stat().st_mode & 0o777 == 0o700
    places.chmod(0o777)
    (note,) = (places / "notes").iterdir()
    assert cache.noted(note.stem)
    assert places.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(cache.os, "getuid", lambda: os.geteuid() + 1)
    assert cache.noted(note.stem) == {}
    assert cache.find("networks", json.loads(note.read_text())["sha256"]) is None


def test_a_damaged_network_that_cannot_be_removed_is_not_used(own_backbone, places, monkeypatch, images_BHWC):
    config = make_config(own_backbone)
    first = preparation.prepare(config, "pooled", FLOAT32)
    (weights,) = (places / "networks").glob("*/model.bin")
    weights.write_bytes(weights.read_bytes()[:-8])
    rename = os.rename

    def refuse(source: str | Path, target: str | Path) -> None:
        if source == weights.parent:
            raise PermissionError(source)
        rename(source, target)

    monkeypatch.setattr(cache.os, "rename", refuse)
    again = preparation.prepare(config, "pooled", FLOAT32)
    np.testing.assert_array_equal(compute(again, images_BHWC)[0], compute(first, images_BHWC)[0])


def test_a_network_that_is_deleted_while_it_is_read_is_built(own_backbone, monkeypatch):
    config = make_config(own_backbone)
    preparation.prepare(config, "pooled", FLOAT32)
    find = cache.find

    def find_and_delete(folder: str, name: str) -> str | None:
        found = find(folder, name)
        shutil.rmtree(found or "")
        return found

    monkeypatch.setattr(cache, "find", find_and_delete)
    built = count_built(monkeypatch)
    assert preparation.prepare(config, "pooled", FLOAT32).packed.kind == FLOAT32
    assert built == ["pooled"]


def test_a_network_for_tensorflow_is_built_each_time(own_backbone, monkeypatch):
    built = count_built(monkeypatch)
    config = make_config(own_backbone)
    kinds = [preparation.prepare(config, "pooled", kind).packed.kind for kind in (FLOAT32, REFERENCE, REFERENCE)]
    assert kinds == [FLOAT32, REFERENCE, REFERENCE]
    assert built == ["pooled"] * 3


@pytest.mark.parametrize(
    "damage",
    [
        "{",
        "[1]",
        '{"sha256": 1}',
        '{"sha256": "no network", "names": ["pooled"], "shapes": [[6]]}',
        '{"sha256": "a\\u0000b", "names": ["pooled"], "shapes": [[6]]}',
        '{"sha256": "%s", "names": [], "shapes": []}' % ("0" * 64),
        '{"sha256": "%s", "names": ["pooled"], "shapes": [[6]]}' % ("0" * 64),
    ],
)
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
    np.testing.assert_array_equal(measured[0], images_BHWC[:4])  # the training images
    assert rounded.packed.kind == EngineKind("openvino", "int8")
    assert (rounded.names, rounded.shapes) == (exact.names, exact.shapes)
    wanted, found = compute(exact, images_BHWC)[0], compute(rounded, images_BHWC)[0]
    assert 1e-5 < np.abs(found - wanted).max() < 0.1 * np.ptp(wanted)

    again = preparation.quantize(exact, images_table, pixels)
    assert (again.fingerprint, len(measured)) == (rounded.fingerprint, 1)
    of_others = preparation.quantize(exact, images_table.slice(4), pixels)  # no training images: all are taken
    assert len(measured[1]) == 2
    assert len({exact.fingerprint, rounded.fingerprint, of_others.fingerprint}) == 3


def test_an_image_that_cannot_be_read_any_more_does_not_change_the_int8_network(own_backbone, images_table):
    network = preparation.prepare(make_config(own_backbone), "pooled", FLOAT32)
    Path(images_table["uri"][3].as_py()).write_bytes(b"no image")
    with pytest.raises(DataError, match="Of 4 images that --precision int8 measures, 1 can no longer be read"):
        preparation.quantize(network, images_table, Pixels(size_px=SIZE_PX))


def test_int8_features_are_told_by_the_network_and_not_by_what_it_was_made_from(
    own_backbone, images_table, monkeypatch
):
    """Another version of OpenVINO may quantize otherwise: rows of both must not be mixed."""
    network = preparation.prepare(make_config(own_backbone), "pooled", FLOAT32)
    exact = network.packed.network
    assert isinstance(exact, openvino_engine.OpenVinoNetwork)
    fingerprints = set()
    for weights in (exact.weights, exact.weights[::-1], exact.weights[::-1]):
        other = dataclasses.replace(exact, weights=np.ascontiguousarray(weights))
        monkeypatch.setattr(networks, "quantized", lambda *_, other=other, **__: other)
        fingerprints.add(preparation.quantize(network, images_table, Pixels(size_px=SIZE_PX)).fingerprint)
    assert len(fingerprints) == 2


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
    monkeypatch.setattr(openvino_engine, "cpu_precisions", lambda: frozenset({"float32", "int8"}))
    with pytest.raises(ConfigError, match=r"--precision int8 needs NNCF: pip install 'tlray\[int8\]'"):
        update.check(config, config.training())
    # To install it would not help there.
    with pytest.raises(ConfigError, match="--precision int8: the engine tensorflow predicts in float32"):
        update.check(dataclasses.replace(config, engine="tensorflow"), config.training())
    monkeypatch.setattr(openvino_engine, "cpu_precisions", lambda: frozenset({"float32"}))
    with pytest.raises(ConfigError, match=r"--precision int8: this machine's CPU .* has no instructions for it"):
        update.check(config, config.training())
