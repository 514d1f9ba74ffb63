"""Commands on a cluster of 2 CPUs of which others, such as an endpoint, hold a part."""

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from tlray.cluster import capacity
from tlray.config.commands import FeaturesConfig
from tlray.config.training import TrainConfig
from tlray.features import update
from tlray.training import run

SIZE_PX = 32
DEADLINE_S = 30.0


@pytest.fixture(scope="module")
def common(phantom_set: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Images, and a small network of one's own."""
    keras.utils.set_random_seed(7)
    x = pixels = keras.Input((SIZE_PX, SIZE_PX, 3))
    for num_filters in (8, 12):
        x = keras.layers.Conv2D(num_filters, 3, strides=2, activation="relu")(x)
    path = str(tmp_path_factory.mktemp("model") / "own.keras")
    keras.Model(pixels, x).save(path)
    return {"data": str(phantom_set), "backbone": path, "preprocessing": "symmetric", "image_size_px": SIZE_PX}


@ray.remote
class Replica:
    """Holds what it was given, as one of an endpoint does, and does nothing."""

    def is_up(self) -> bool:
        return True


def wait_until_held(num_cpus: float) -> capacity.Capacity:
    """Returns what there is once Ray tells that so much is held; what a process gives back comes with a delay."""
    deadline, pause = time.monotonic() + DEADLINE_S, threading.Event()
    while abs((found := capacity.measure()).held_cpus - num_cpus) > 1e-6:
        assert time.monotonic() < deadline, found
        pause.wait(0.02)
    return found


@pytest.fixture
def hold(local_ray: str) -> Iterator[Any]:  # noqa: ARG001
    """Has others hold some CPUs until the test is over."""
    replicas: list[Any] = []

    def begin(num_cpus: float) -> Any:
        replicas.append(Replica.options(num_cpus=num_cpus).remote())  # pyright: ignore[reportAttributeAccessIssue]
        assert ray.get(replicas[-1].is_up.remote())
        wait_until_held(num_cpus)
        return replicas[-1]

    wait_until_held(0)
    yield begin
    for replica in replicas:
        ray.kill(replica)
    wait_until_held(0)


def test_what_is_held_is_seen_and_given_back(hold):
    before = capacity.measure()
    assert (before.held_cpus, before.free_cpus, before.nodes) == (0, 2, ((2, 0),))
    replica = hold(0.35)
    beside = capacity.measure()
    assert (beside.num_cpus, beside.free_cpus, beside.task_cpus, beside.is_short) == (2, 1.65, 1, False)
    ray.kill(replica)
    assert wait_until_held(0) == before


@pytest.mark.usefixtures("local_ray")
def test_a_reservation_counts_as_held():
    group = placement_group([{"CPU": 1.8}])
    try:
        assert group.wait(30)
        found = wait_until_held(1.8)
    finally:
        remove_placement_group(group)
    wait_until_held(0)
    assert (found.free_cpus, found.nodes, found.is_short) == (0.51, ((2, 0),), True)


def test_training_takes_what_is_free(hold, common, tmp_path, capsys):
    hold(1.4)
    config = TrainConfig(**common, out=str(tmp_path / "run"), trainable_layers=1, epochs=1)
    result = run.train(config)
    assert (result.num_epochs, result.metrics["valid"]["num_images"]) == (1, 16)
    assert "Waiting" not in capsys.readouterr().out


def test_what_finds_too_little_says_so_and_goes_on_when_it_is_free(hold, common, tmp_path, capsys, monkeypatch):
    replica = hold(1.7)
    told = capacity.tell_shortage

    def tell(*args: Any, **options: Any) -> None:
        told(*args, **options)
        ray.kill(replica)

    monkeypatch.setattr(capacity, "tell_shortage", tell)
    result = update.extract_features(FeaturesConfig(**common, out=str(tmp_path / "features")))
    assert result.num_rows == 64
    assert "Waiting: 1.7 of the cluster's 2 CPUs are in use by other jobs or an endpoint." in capsys.readouterr().out


class KnowsNobody(http.server.BaseHTTPRequestHandler):
    """The API server of another Ray, asked about an actor."""

    def do_GET(self) -> None:
        found = {"result": [], "total": 0, "num_after_truncation": 0, "num_filtered": 0}
        content = json.dumps({"result": True, "msg": "", "data": {"result": found}}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(content)


@pytest.mark.usefixtures("local_ray")
def test_the_api_server_of_another_ray_is_not_asked():
    """Ray Train would ask there whether its controller lives, and end the training's workers if it is not known."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # another Ray listens there already, which does as well
            server = stack.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", 8265), KnowsNobody))
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            stack.callback(server.shutdown)

        @ray.remote(num_cpus=0)
        def ask() -> str:
            from ray.util import state
            from ray.util.state.exception import RayStateApiException

            try:
                return repr(state.get_actor("0" * 32, timeout=5))
            except RayStateApiException as error:
                return type(error).__name__

        assert ray.get(ask.remote()) in {"RayStateApiException", "ServerUnavailable"}
