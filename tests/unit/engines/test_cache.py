"""The cache of converted networks: what is made again, what is removed, and several processes that use it at once."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest

from tlray.engines import cache, networks, openvino_engine, quantization
from tlray.engines.kinds import EngineKind
from tlray.engines.openvino_engine import OpenVinoNetwork

FLOAT32 = EngineKind("openvino", "float32")
DAY_S = 24 * 3600


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    """Gives each test a cache of its own, which is returned."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "tlray"


class Maker:
    """Makes networks of a few bytes.

    Attributes:
        num_made: How many it has made.
    """

    def __init__(self) -> None:
        self.num_made = 0

    def __call__(self, directory: str) -> None:
        self.num_made += 1
        Path(directory, openvino_engine.STRUCTURE).write_bytes(b"<net/>")
        Path(directory, openvino_engine.WEIGHTS).write_bytes(bytes(8))


@pytest.fixture
def make() -> Maker:
    return Maker()


def damage(directory: str) -> None:
    Path(directory, openvino_engine.WEIGHTS).write_bytes(bytes(7))


def set_age(path: Path | str, days: float) -> None:
    used_s = cache.time.time() - days * DAY_S
    os.utime(path, (used_s, used_s))


@pytest.fixture
def change_code(tmp_path, monkeypatch) -> Callable[[str], None]:
    """Returns a function that changes the code of a package, as a process that starts now reads it."""

    def change(package: str) -> None:
        files = cache.importlib.resources.files
        (tmp_path / "changed").mkdir()
        (tmp_path / "changed/module.py").write_text("")
        monkeypatch.setattr(
            cache.importlib.resources, "files", lambda name: tmp_path / "changed" if name == package else files(name)
        )
        monkeypatch.setattr(cache, "_CODE_DIGEST", cache.code_digest(cache.CODE)[:16])

    return change


@pytest.fixture(scope="module")
def network() -> keras.Model:
    pixels = keras.Input((8, 8, 3), dtype="uint8")
    return keras.Model(pixels, [keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(pixels))])


@pytest.mark.parametrize("package", ["tlray.engines", "tlray.models"])
def test_what_other_code_has_converted_is_converted_again(network, monkeypatch, change_code, package):
    converted, convert = [], openvino_engine.convert

    def count(saved_model: str, directory: str) -> None:
        converted.append(directory)
        convert(saved_model, directory)

    monkeypatch.setattr(openvino_engine, "convert", count)
    for _ in range(2):
        networks.pack(network, FLOAT32, fingerprint="f")
    assert len(converted) == 1
    assert networks.kept("f", FLOAT32) is not None
    change_code(package)
    assert networks.kept("f", FLOAT32) is None
    for _ in range(2):
        networks.pack(network, FLOAT32, fingerprint="f")
    assert len(converted) == 2


def test_what_other_code_has_quantized_is_quantized_again(monkeypatch, change_code, make):
    monkeypatch.setattr(quantization, "quantize", lambda _network, _images, directory: make(directory))
    exact = OpenVinoNetwork(structure=b"<net/>", weights=np.zeros(8, np.uint8))

    def quantize() -> int:
        networks.quantized(exact, np.zeros((1, 8, 8, 3), np.uint8), fingerprint="f")
        return make.num_made

    assert [quantize(), quantize()] == [1, 1]
    change_code("tlray.engines")
    assert [quantize(), quantize()] == [2, 2]


def test_a_process_keeps_networks_by_the_code_that_it_runs(monkeypatch, tmp_path, make):
    """The files of its code may be replaced while it runs."""
    cache.kept("networks", "f", make)
    (tmp_path / "module.py").write_text("")
    monkeypatch.setattr(cache.importlib.resources, "files", lambda _: tmp_path)
    assert cache.find("networks", "f") is not None


@pytest.mark.parametrize("num_looks", [1, 2])
def test_what_another_process_has_mended_stays(monkeypatch, make, num_looks):
    """It mends the network after this process has looked at it once, or twice: before and after it made its own."""
    directory = cache.kept("networks", "f", make)
    damage(directory)
    look, looks = cache._is_usable, []

    def look_and_mend(path: Path) -> bool:
        found = look(path)
        looks.append(found)
        if len(looks) == num_looks:
            shutil.rmtree(path)
            shutil.copytree(mended, path)
            inodes.append(path.stat().st_ino)
        return found

    mended, inodes = cache.kept("others", "f", make), list[int]()
    monkeypatch.setattr(cache, "_is_usable", look_and_mend)
    assert cache.kept("networks", "f", make) == directory
    assert looks == [False] * num_looks + [True]
    assert inodes == [os.stat(directory).st_ino]
    assert cache.find("networks", "f") == directory
    assert [path.name for path in Path(directory).parent.iterdir()] == [Path(directory).name]


def test_a_network_that_another_process_makes_meanwhile_is_taken(make):
    def make_twice(directory: str) -> None:
        make(directory)
        inodes.append(os.stat(cache.kept("networks", "f", make)).st_ino)

    inodes: list[int] = []
    directory = cache.kept("networks", "f", make_twice)
    assert inodes == [os.stat(directory).st_ino]


def test_a_network_that_is_removed_before_it_is_read_is_converted_again(network, monkeypatch):
    kept, directories = cache.kept, []

    def keep_and_remove(*arguments: object, **named: int) -> str:
        directories.append(kept(*arguments, **named))  # pyright: ignore[reportArgumentType]
        if len(directories) == 1:
            shutil.rmtree(directories[0])
        return directories[-1]

    monkeypatch.setattr(cache, "kept", keep_and_remove)
    assert networks.pack(network, FLOAT32, fingerprint="f").kind == FLOAT32
    assert len(directories) == 2


def test_the_networks_that_were_used_last_stay(make):
    names = [f"{number:02}" for number in range(cache.MAX_ENTRIES)]
    for place, name in enumerate(names):
        set_age(cache.kept("networks", name, make), days=20 - place)
    cache.find("networks", "00")
    cache.kept("networks", "01", make)
    assert make.num_made == cache.MAX_ENTRIES
    new = Path(cache.kept("networks", "new", make))
    assert {path.name[:2] for path in new.parent.iterdir()} == {*names, "ne"} - {"02"}
    assert [cache.find("networks", name) is None for name in ("00", "01", "02", "new")] == [False, False, True, False]


def test_networks_of_other_versions_are_removed_when_nobody_uses_them(root, make, change_code):
    for name, days in (("a", 6.9), ("b", 7.1)):
        set_age(cache.kept("networks", name, make), days)
    change_code("tlray.models")
    for name, days in ((".new-a", 6.9), (".new-b", 7.1)):  # a process writes them, or was ended while it did
        (root / "networks" / name).mkdir()
        set_age(root / "networks" / name, days)
    set_age(cache.kept("networks", "c", make), days=30)  # of this version
    cache.kept("networks", "d", make)
    found = [path.name.split(f"-{openvino_engine.version()}-")[0] for path in (root / "networks").iterdir()]
    assert sorted(found) == [".new-a", "a", "c", "d"]


def test_few_int8_networks_stay(root, monkeypatch, make):
    monkeypatch.setattr(quantization, "quantize", lambda _network, _images, directory: make(directory))
    exact = OpenVinoNetwork(structure=b"<net/>", weights=np.zeros(8, np.uint8))
    cache.kept("networks", "f", make)
    for number in range(6):
        networks.quantized(exact, np.zeros((1, 8, 8, 3), np.uint8), fingerprint=f"{number}")
        (directory,) = (root / "networks-int8").glob(f"{number}-*")
        set_age(directory, days=6 - number)
    assert sorted(path.name[0] for path in (root / "networks-int8").iterdir()) == ["2", "3", "4", "5"]
    assert cache.find("networks", "f") is not None
