"""`serve deploy` of the project's own config file: replicas that come and go with the load, a bundle swapped within."""

import copy
import signal
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

import serve_app
from tests.e2e.test_batches import WAIT_S, shut_down, wait_for
from tests.e2e.test_serving import Load, export, upload
from tests.e2e.test_serving import wait_for as wait_for_answers
from tests.e2e.test_start import serving
from tests.head import DIRECTORY
from tlray.bundle.store import read_spec
from tlray.cluster.ports import free_ports


class Cluster:
    """What Serve says of the cluster: the dashboard's REST API, which `serve status` asks, too."""

    def __init__(self, head_environment: dict[str, str]) -> None:
        self.environment = head_environment
        self.address = head_environment["RAY_API_SERVER_ADDRESS"]
        token = Path(head_environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        self.http = httpx.Client(base_url=self.address, headers={"Authorization": f"Bearer {token}"}, timeout=60)

    def application(self) -> dict[str, Any]:
        return self.http.get("/api/serve/applications/").raise_for_status().json()["applications"].get("tlray", {})

    def replicas(self, deployment: str = "Classifier-1") -> dict[str, str]:
        """The states of a deployment's replicas, by their names."""
        replicas = self.application()["deployments"][deployment]["replicas"]
        return {replica["replica_id"]: replica["state"] for replica in replicas}

    def states(self, deployment: str = "Classifier-1") -> Counter[str]:
        """How many of a deployment's replicas are in each state."""
        return Counter(self.replicas(deployment).values())

    def log_of_model(self) -> str:
        """What the model's replicas have logged."""
        return "".join(path.read_text() for path in (DIRECTORY / "session_latest/logs/serve").glob("*Classifier-1*"))

    def put(self, config: dict[str, Any], user_config: dict[str, str] | None = None) -> None:
        """Deploys a config, as `serve deploy` does."""
        (application,) = config["applications"]
        ingress, model = application["deployments"]
        deployments = [ingress, model | {"user_config": user_config}]
        changed = config | {"applications": [application | {"deployments": deployments}]}
        self.http.put("/api/serve/applications/", json=changed).raise_for_status()


@pytest.fixture(scope="module")
def cluster(head):
    found = Cluster(head)
    with found.http:
        yield found
        shut_down(found.http, "/api/serve/applications/")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """config.yaml with a bundle that is here, on 2 CPUs, and with less patience."""
    config = yaml.safe_load((Path(serve_app.__file__).parent / "config.yaml").read_text())
    (config["http_options"]["port"],) = free_ports(1)
    (application,) = config["applications"]
    application["args"]["bundle"] = export(tmp_path_factory.mktemp("first"), "bundle", seed=1)
    ingress, model = application["deployments"]
    ingress["ray_actor_options"]["num_cpus"] = 0.1
    # Each new ingress replica asks the model once what it is, which wakes it.
    ingress["autoscaling_config"]["max_replicas"] = 1
    model["ray_actor_options"]["num_cpus"] = 0.25
    model["autoscaling_config"] |= {
        "min_replicas": 0,
        "max_replicas": 2,
        "target_ongoing_requests": 0.5,  # a request to this small model takes milliseconds
        "upscale_delay_s": 0,
        "downscale_delay_s": 1,
        "look_back_period_s": 1,
        "metrics_interval_s": 0.2,
    }
    return config


@pytest.fixture(scope="module")
def address(cluster, config, tmp_path_factory):
    """The address of the endpoint, started by the command."""
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    command = ["serve", "deploy", str(path), "--address", cluster.address]
    subprocess.run(command, env=cluster.environment, check=True, capture_output=True, timeout=120)
    wait_for(cluster.application, lambda found: found.get("status") == "RUNNING")
    return f"http://127.0.0.1:{config['http_options']['port']}"


@pytest.fixture(scope="module")
def scan(phantom_set):
    return sorted(phantom_set.glob("*/*/*.png"))[0]


def states_for_a_while(cluster: Cluster) -> list[Any]:
    """Looks for 4 s: on a busy machine Serve's last figures of the load come late, and start replicas once more."""
    seen = []
    for _ in range(8):
        time.sleep(0.5)
        seen.append(cluster.states())
    return seen


def test_replicas_come_with_the_load_and_go_with_it(cluster, address, scan):
    assert cluster.states() == {}
    # The first ones wait for a replica, and none is lost.
    with ThreadPoolExecutor(3) as pool:
        firsts = [pool.submit(httpx.post, f"{address}/predict", files=upload(scan), timeout=60) for _ in range(3)]
        answers = [first.result().raise_for_status().json() for first in firsts]
    first, *others = [answer["predictions"][0]["probabilities"] for answer in answers]
    assert all(other == pytest.approx(first, abs=1e-6) for other in others)
    with Load(address, scan, num_clients=8) as load:
        wait_for(cluster.states, lambda states: states["RUNNING"] == 2)
    assert set(load.statuses) == {200}
    wait_for(lambda: states_for_a_while(cluster), lambda seen: not any(seen))
    # Who looks whether it is ready does not wake it.
    ready = httpx.get(f"{address}/v2/health/ready", timeout=60).raise_for_status().json()
    assert (ready["ready"], ready["bundle_sha256"]) == (True, answers[0]["bundle_sha256"])
    assert cluster.states() == {}
    again = httpx.post(f"{address}/predict", files=upload(scan), timeout=60).raise_for_status().json()
    assert again["predictions"][0]["probabilities"] == pytest.approx(first, abs=1e-6)


def test_replicas_come_with_images_and_not_with_requests(cluster, address, config, scan):
    changed = copy.deepcopy(config)
    ingress, model = changed["applications"][0]["deployments"]
    model["autoscaling_config"] |= {"min_replicas": 1, "target_ongoing_requests": 8}  # more than there are requests
    quick = ("upscale_delay_s", "look_back_period_s", "metrics_interval_s")
    ingress["autoscaling_config"] |= {name: model["autoscaling_config"][name] for name in quick} | {"max_replicas": 4}
    cluster.put(changed)
    wait_for(cluster.states, lambda states: states == {"RUNNING": 1})
    with Load(address, scan, num_clients=3, num_images=64) as load:
        wait_for(cluster.states, lambda states: states["RUNNING"] == 2)
        wait_for(lambda: cluster.states("Ingress"), lambda states: states["RUNNING"] > 1)
    assert set(load.statuses) == {200}  # there is room for 3 * 64 images, also before another replica has come


def test_a_bundle_is_swapped_within_the_replica(cluster, address, config, scan, tmp_path):
    (application,) = config["applications"]
    second = export(tmp_path, "second", seed=2)
    before, after = (read_spec(bundle)[1] for bundle in (application["args"]["bundle"], second))
    model = application["deployments"][1]
    model["autoscaling_config"] |= {"min_replicas": 1, "max_replicas": 1}
    cluster.put(config)
    replicas = wait_for(cluster.replicas, lambda found: [*found.values()] == ["RUNNING"])
    with Load(address, scan) as load:
        wait_for_answers(load, before, count=20)
        cluster.put(config, user_config={"bundle": second})
        wait_for_answers(load, after, count=20)
        # One that cannot be used changes nothing.
        cluster.put(config, user_config={"bundle": str(tmp_path)})
        wait_for(cluster.log_of_model, lambda text: "The bundle was not replaced" in text)
        wait_for_answers(load, after, count=20)
    assert set(load.statuses) == {200}
    wait_for(cluster.replicas, lambda found: found == replicas)


def test_the_foreground_endpoint_joins_a_ray_and_takes_nothing_over(cluster, address, tmp_path):
    variables = {name: value for name, value in cluster.environment.items() if name.startswith("RAY_AUTH")}
    variables["RAY_ADDRESS"] = (DIRECTORY / "ray_current_cluster").read_text()
    (port,) = free_ports(1)
    arguments = ("--bundle", export(tmp_path, "bundle", seed=2), "--port", port)
    with serving(*arguments, **variables) as (process, _, _):
        _, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 2
    assert errors.startswith("tlray: Ray Serve runs on this Ray already. Use `serve deploy serve_app/config.yaml`")
    httpx.get(f"{address}/v2/health/live", timeout=60).raise_for_status()

    cluster.http.delete("/api/serve/applications/").raise_for_status()
    wait_for(cluster.application, lambda found: not found)
    with serving(*arguments, **variables, TLRAY_API_KEYS="0123456789abcdef") as (process, _, _):
        _, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 2
    assert errors.startswith("tlray: TLRAY_API_KEYS or TLRAY_API_KEYS_FILE is set here but not where Ray was started")

    with serving(*arguments, **variables) as (process, lines, _):
        assert f" http://127.0.0.1:{port} " in "\n".join(lines)
        httpx.get(f"http://127.0.0.1:{port}/v2/health/ready", timeout=60).raise_for_status()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=WAIT_S)
    assert (process.returncode, errors) == (0, "")
    assert cluster.application() == {}
