"""The endpoint on a local Ray of 2 CPUs: the same answers by every door, killed and swapped under load.

`serve.run` restarts every replica, whatever has changed: the tests share one deployment, until one swaps its bundle and
the last ones replace it.
"""

import base64
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import keras
import numpy as np
import pytest
import ray
from ray import serve

from serve_app.app import build
from serve_app.options import Options
from tlray import cli
from tlray.cluster.ports import free_ports
from tlray.data.decoding import decode, to_array
from tlray.engines import openvino_engine
from tlray.engines.kinds import Precision
from tlray.inference import predictions
from tlray.inference.predictor import Predictor
from tlray.models.files import load_keras_file

SIZE_PX = 64
DEADLINE_S = 60


def export(directory: Path, name: str, seed: int, *options: str | Path) -> str:
    """Makes a bundle of a small random network."""
    keras.utils.set_random_seed(seed)
    image = keras.Input((SIZE_PX, SIZE_PX, 3))
    x = keras.layers.Conv2D(8, 5, strides=4, activation="relu")(image)
    x = keras.layers.Dense(3, activation="softmax")(keras.layers.Flatten()(x))
    keras.Model(image, x).save(directory / f"{name}.keras")
    (directory / "classes.txt").write_text("one\ntwo\nthree\n")
    arguments = ["--model", directory / f"{name}.keras", "--classes", directory / "classes.txt"]
    arguments += ["--preprocessing", "unit", "--out", directory / name, *options]
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["export", *map(str, arguments)])
    assert not exit_info.value.code
    return str(directory / name)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bundles")
    return [export(directory, name, seed) for seed, name in enumerate(["first", "second", "beside"])]


def application(main: str, bundles: list[str]) -> serve.Application:
    """Two versions; the second one is the last bundle."""
    return build(Options(bundle=main, other_versions={2: bundles[2]}))


@pytest.fixture(scope="module")
def address(local_ray, bundles):  # noqa: ARG001
    (port,) = free_ports(1)
    serve.start(http_options={"port": port})
    serve.run(application(bundles[0], bundles))
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


@pytest.fixture(scope="module")
def files(phantom_set):
    return sorted(phantom_set.glob("*/*/*.png"))[:6]


def upload(path: Path):
    return {"file": (path.name, path.read_bytes())}


def pixels(files: list[Path]) -> np.ndarray:
    return np.stack([to_array(decode(path.read_bytes(), size_px=SIZE_PX)) for path in files])


def predict(address: str, path: Path) -> list[float]:
    answer = httpx.post(f"{address}/predict", files=upload(path), timeout=60).raise_for_status().json()
    return list(answer["predictions"][0]["probabilities"].values())


def test_every_door_gives_the_same(address, bundles, files, tmp_path):
    expected = Predictor(bundles[0]).predict(pixels(files))
    own_model = load_keras_file(f"{bundles[0]}.keras")
    np.testing.assert_allclose(expected, own_model(pixels(files) / np.float32(255)), atol=1e-5)
    assert_every_door_gives(expected, address, bundles[0], files, tmp_path, precision="auto")


def assert_every_door_gives(
    expected: np.ndarray, address: str, bundle: str, files: list[Path], directory: Path, *, precision: str
) -> None:
    """Compares the probabilities of all protocols of an endpoint, and those of a scoring, with the expected ones."""
    assert np.ptp(expected, axis=0).max() > 0.01
    np.testing.assert_allclose([predict(address, path) for path in files], expected, atol=1e-6)
    encoded = [base64.b64encode(path.read_bytes()).decode() for path in files]
    rows = {"instances": [{"b64": each} for each in encoded]}
    found = httpx.post(f"{address}/v1/models/chest-ct:predict", json=rows, timeout=60).json()["predictions"]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    tensor = {"name": "image", "datatype": "BYTES", "shape": [len(files)], "data": encoded}
    found = httpx.post(f"{address}/v2/models/chest-ct/infer", json={"inputs": [tensor]}, timeout=60).json()
    np.testing.assert_allclose(np.reshape(found["outputs"][0]["data"], expected.shape), expected, atol=1e-6)
    (directory / "in").mkdir()
    for number, path in enumerate(files):
        (directory / "in" / f"{number}.png").write_bytes(path.read_bytes())
    arguments = ["--bundle", bundle, "--input", directory / "in", "--out", directory / "out", "--precision", precision]
    assert cli.execute("score", list(map(str, arguments))) == 0
    table = predictions.read_predictions(str(directory / "out"))
    scored = np.stack([table[f"p_{name}"].to_numpy() for name in ("one", "two", "three")], axis=1)
    np.testing.assert_allclose(scored, expected, atol=1e-6)


class Load:
    """Clients that ask on and on, in threads, and count what they are told."""

    def __init__(self, address: str, path: Path, num_clients: int = 4, num_images: int = 1):
        self.statuses: Counter[int] = Counter()
        self.bundles: Counter[str] = Counter()
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(num_clients)
        files = [*upload(path).items()] * num_images
        self._futures = [self._pool.submit(self._ask, address, files) for _ in range(num_clients)]

    def _ask(self, address, files):
        with httpx.Client(timeout=60) as client:
            while not self._stop.is_set():
                answer = client.post(f"{address}/predict", files=files)
                self.statuses[answer.status_code] += 1
                self.bundles[answer.json().get("bundle_sha256")] += 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stop.set()
        for future in self._futures:
            future.result()
        self._pool.shutdown()


def served_bundle(address: str) -> str:
    return httpx.get(f"{address}/v2/health/ready", timeout=60).json()["bundle_sha256"]


def wait_for(load: Load, sha256: str, *, count: int) -> None:
    before = load.bundles[sha256]
    pause = threading.Event()
    while load.bundles[sha256] < before + count:
        assert set(load.statuses) <= {200}, load.statuses
        pause.wait(0.05)


def test_two_versions_side_by_side(address, bundles, files):
    expected = [Predictor(bundle).predict(pixels(files)) for bundle in (bundles[0], bundles[2])]
    assert np.abs(expected[0] - expected[1]).max() > 0.01
    rows = {"instances": [{"b64": base64.b64encode(path.read_bytes()).decode()} for path in files]}
    for version, wanted in zip((1, 2), expected, strict=True):
        path = f"{address}/v1/models/chest-ct/versions/{version}"
        found = httpx.post(f"{path}:predict", json=rows, timeout=60).raise_for_status().json()["predictions"]
        np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert httpx.get(f"{address}/v2/models/chest-ct", timeout=60).json()["versions"] == ["1", "2"]
    assert httpx.post(f"{address}/v1/models/chest-ct/versions/3:predict", json=rows, timeout=60).status_code == 404


def test_no_request_is_lost_with_a_killed_replica(address, files):
    sha256 = served_bundle(address)
    with Load(address, files[0]) as load:
        wait_for(load, sha256, count=20)
        actors: list[Any] = ray.util.list_named_actors(all_namespaces=True)
        (name,) = [actor["name"] for actor in actors if "Classifier-1" in actor["name"]]
        ray.kill(ray.get_actor(name, namespace="serve"), no_restart=True)
        wait_for(load, sha256, count=20)
    assert set(load.statuses) == {200}


def test_a_bundle_is_swapped_under_load(address, bundles, files):
    before, after = (Predictor(bundle).bundle.sha256 for bundle in bundles[:2])
    with Load(address, files[0]) as load:
        wait_for(load, before, count=20)
        serve.run(application(bundles[1], bundles))
        wait_for(load, after, count=20)
    assert set(load.statuses) == {200}
    assert served_bundle(address) == after


@pytest.fixture(scope="module")
def with_int8(phantom_set, tmp_path_factory) -> str:
    """A bundle that has all precisions."""
    return export(tmp_path_factory.mktemp("int8"), "int8", 0, "--int8", "--int8-images", phantom_set)


def only_if_here(precision: Precision) -> Any:
    """A parameter that is skipped on CPUs without a precision."""
    is_here = precision in openvino_engine.cpu_precisions()
    return pytest.param(precision, marks=pytest.mark.skipif(not is_here, reason=f"this CPU has no {precision}"))


@pytest.mark.parametrize("precision", [only_if_here("bfloat16"), only_if_here("int8")])
def test_every_door_gives_the_same_in_a_coarser_precision(address, with_int8, files, tmp_path, precision):
    """Doors give the model batches of other sizes, which must not change how sums are rounded."""
    serve.delete("default")  # no replica with another precision can answer any more
    serve.run(build(Options(bundle=with_int8, precision=precision)))
    deadline_s, pause = time.monotonic() + DEADLINE_S, threading.Event()
    while (answer := httpx.get(f"{address}/model", timeout=DEADLINE_S)).status_code != 200:
        assert time.monotonic() < deadline_s, answer.text  # until the proxy knows the new application
        pause.wait(0.1)
    assert answer.json()["engine"] == f"openvino {precision}"
    expected = Predictor(with_int8, precision=precision).predict(pixels(files))
    exact = Predictor(with_int8, precision="float32").predict(pixels(files))
    assert np.abs(expected - exact).max() > 1e-5  # a door that computes in float32 would be found
    assert_every_door_gives(expected, address, with_int8, files, tmp_path, precision=precision)
