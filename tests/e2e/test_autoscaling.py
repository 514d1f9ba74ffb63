"""`serve deploy` of the project's own config file, with a model that comes and goes with the requests."""

import os
import signal
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

import serve_app
from tests.e2e.test_batches import wait_for
from tests.e2e.test_jobs import free_ports, head  # noqa: F401 (head is a fixture)
from tests.e2e.test_serving import Load, export, upload
from tests.e2e.test_start import serving


class Cluster:
    """What Serve says of the cluster: the dashboard's REST API, which `serve status` asks, too."""

    def __init__(self, head_environment: dict[str, str]) -> None:
        self.environment = head_environment
        self.address = head_environment["RAY_API_SERVER_ADDRESS"]
        token = Path(head_environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        self.http = httpx.Client(base_url=self.address, headers={"Authorization": f"Bearer {token}"}, timeout=60)

    def application(self) -> dict[str, Any]:
        return self.http.get("/api/serve/applications/").raise_for_status().json()["applications"].get("tlray", {})

    def states(self) -> Counter[str]:
        """The states of the model's replicas."""
        deployments = self.application().get("deployments", {})
        return Counter(replica["state"] for replica in deployments["Classifier-1"]["replicas"])


@pytest.fixture(scope="module")
def cluster(head):  # noqa: F811
    found = Cluster(head)
    with found.http:
        yield found


@pytest.fixture(scope="module")
def address(cluster, tmp_path_factory):
    """The address of the endpoint, from config.yaml: with another bundle, on 2 CPUs, and with less patience."""
    directory = tmp_path_factory.mktemp("config")
    (port,) = free_ports(1)
    config = yaml.safe_load((Path(serve_app.__file__).parent / "config.yaml").read_text())
    config["http_options"]["port"] = port
    (application,) = config["applications"]
    application["args"]["bundle"] = export(directory, "bundle", seed=1)
    ingress, model = application["deployments"]
    ingress["ray_actor_options"]["num_cpus"] = 0.1
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
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    command = ["serve", "deploy", directory / "config.yaml", "--address", cluster.address]
    subprocess.run(list(map(str, command)), env=cluster.environment, check=True, capture_output=True, timeout=120)
    wait_for(cluster.application, lambda found: found.get("status") == "RUNNING")
    return f"http://127.0.0.1:{port}"


def test_replicas_come_with_the_load_and_go_with_it(cluster, address, phantom_set):
    scan = sorted(phantom_set.glob("*/*/*.png"))[0]
    assert cluster.states() == {}
    # The first ones wait for a replica, and none is lost.
    with ThreadPoolExecutor(3) as pool:
        firsts = [pool.submit(httpx.post, f"{address}/predict", files=upload(scan), timeout=60) for _ in range(3)]
        answers = [first.result().raise_for_status().json() for first in firsts]
    assert len({str(answer["predictions"]) for answer in answers}) == 1
    with Load(address, scan, num_clients=8) as load:
        wait_for(cluster.states, lambda states: states["RUNNING"] == 2)
    assert set(load.statuses) == {200}
    wait_for(cluster.states, lambda states: not states)
    # Who looks whether it is ready does not wake it.
    ready = httpx.get(f"{address}/v2/health/ready").raise_for_status().json()
    assert (ready["ready"], ready["bundle_sha256"]) == (True, answers[0]["bundle_sha256"])
    assert cluster.states() == {}
    again = httpx.post(f"{address}/predict", files=upload(scan), timeout=60).raise_for_status().json()
    assert again["predictions"] == answers[0]["predictions"]


def test_the_foreground_endpoint_joins_a_ray_and_takes_nothing_over(cluster, address, tmp_path):
    variables = {name: value for name, value in cluster.environment.items() if name.startswith("RAY_AUTH")}
    variables["RAY_ADDRESS"] = Path(f"/tmp/ray-{os.getpid()}/ray_current_cluster").read_text()  # noqa: S108
    (port,) = free_ports(1)
    arguments = ("--bundle", export(tmp_path, "bundle", seed=2), "--port", port)
    with serving(*arguments, **variables) as (process, _):
        _, errors = process.communicate()
    assert process.returncode == 2
    assert errors.startswith("tlray: Ray Serve runs on this Ray already. Use `serve deploy serve_app/config.yaml`")
    httpx.get(f"{address}/v2/health/live").raise_for_status()

    cluster.http.delete("/api/serve/applications/").raise_for_status()
    wait_for(cluster.application, lambda found: not found)
    with serving(*arguments, **variables) as (process, lines):
        assert f" http://127.0.0.1:{port} " in "\n".join(lines)
        httpx.get(f"http://127.0.0.1:{port}/v2/health/ready", timeout=60).raise_for_status()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    assert cluster.application() == {}
