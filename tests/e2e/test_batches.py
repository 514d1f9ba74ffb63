"""Bulk scoring through the endpoint, on a Ray with a job server and token authentication, as on a cluster."""

import os
import signal
import threading
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest

from tests.e2e.test_serving import export
from tests.head import submit
from tlray.cluster.ports import free_ports
from tlray.inference import predictions

KEY = "0123456789abcdef"
WAIT_S = 120.0
NUM_IMAGES, NUM_UNREADABLE = 68, 4
NUM_COPIES = 100
"""Of the phantoms in the large input: the first part of its predictions is there long before the end."""
PROBABILITIES = ["p_one", "p_two", "p_three"]


def wait_for(look: Callable[[], Any], wanted: Callable[[Any], bool]) -> Any:
    """Looks until something is as it is wanted, and returns it."""
    deadline = time.monotonic() + WAIT_S
    pause = threading.Event()
    while not wanted(found := look()):
        assert time.monotonic() < deadline, found
        pause.wait(0.1)
    return found


def shut_down(http: httpx.Client, path: str) -> None:
    """Ends Serve on a head that other tests use too; `path` is that of its REST API."""
    http.delete(path).raise_for_status()
    wait_for(lambda: http.get(path).raise_for_status().json()["applications"], lambda found: not found)


class Endpoint:
    """The application on a head of its own, and the folders that its clients may use."""

    def __init__(self, head_environment: dict[str, str], directory: Path) -> None:
        (port,) = free_ports(1)
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"X-API-Key": KEY}, timeout=60)
        token = Path(head_environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        self.serve = httpx.Client(
            base_url=f"{head_environment['RAY_API_SERVER_ADDRESS']}/api/serve/applications/",
            headers={"Authorization": f"Bearer {token}"},
            timeout=60,
        )
        self.input, self.output = directory / "in", directory / "out"
        self.bundle = export(directory, "bundle", seed=1)
        self.config = {
            "http_options": {"host": "127.0.0.1", "port": port},
            "applications": [
                {
                    "name": "tlray",
                    "import_path": "serve_app.app:build",
                    "runtime_env": {"env_vars": {"TLRAY_API_KEYS": KEY}},
                    "args": {
                        "bundle": self.bundle,
                        "input_roots": [str(self.input)],
                        "output_roots": [str(self.output)],
                    },
                }
            ],
        }

    def start(self) -> None:
        """Deploys the application and waits until it answers."""
        self.serve.put("", json=self.config).raise_for_status()
        wait_for(lambda: self.status("/v2/health/ready"), lambda status: status == 200)

    def stop(self) -> None:
        """Takes the application out of Serve."""
        self.serve.put("", json=self.config | {"applications": []}).raise_for_status()
        wait_for(lambda: self.status("/v2/health/live"), lambda status: status != 200)

    def status(self, path: str) -> int | None:
        try:
            return self.http.get(path).status_code
        except httpx.TransportError:
            return None

    def post(self, source: str, target: str) -> str:
        locations = {"input": f"{self.input}/{source}", "output": f"{self.output}/{target}"}
        answer = self.http.post("/v1/batches", json=locations)
        assert answer.status_code == 202, answer.text
        return answer.json()["id"]

    def get(self, name: str) -> dict[str, Any]:
        return self.http.get(f"/v1/batches/{name}").raise_for_status().json()

    def wait_for_end(self, name: str) -> dict[str, Any]:
        return wait_for(lambda: self.get(name), lambda batch: batch["state"] not in ("pending", "running"))


@pytest.fixture(scope="module")
def endpoint(head, phantom_set, tmp_path_factory) -> Iterator[Endpoint]:
    """Started beside jobs/score.py, whose predictions of the phantoms then lie in `script`."""
    directory = tmp_path_factory.mktemp("batches")
    endpoint = Endpoint(head, directory)
    endpoint.input.mkdir()
    with zipfile.ZipFile(endpoint.input / "many.zip", "w") as archive:
        for number in range(NUM_COPIES):
            for path in phantom_set.glob("*/*/*"):
                archive.write(path, f"{number:03d}/{path.relative_to(phantom_set)}")
    (endpoint.input / "elsewhere.csv").write_text("uri\na.png\n/etc/hostname\n")
    with endpoint.http, endpoint.serve:
        try:
            with ThreadPoolExecutor(1) as pool:
                arguments = ("--bundle", endpoint.bundle, "--input", phantom_set, "--out", directory / "script")
                script = pool.submit(submit, head, "jobs/score.py", *arguments)
                endpoint.start()
                assert script.result().returncode == 0, script.result().stdout + script.result().stderr
            yield endpoint
        finally:
            shut_down(endpoint.serve, "")


def check_predictions(endpoint: Endpoint, table: pa.Table) -> None:
    """Compares a copy of the phantoms in the large input with what the script and `/predict` say of them."""
    script = predictions.read_predictions(str(endpoint.output.parent / "script"))
    is_copy = [image_id.startswith("007/") for image_id in table["image_id"].to_pylist()]
    copy = table.filter(is_copy)
    assert copy["image_id"].to_pylist() == [f"007/{image_id}" for image_id in script["image_id"].to_pylist()]
    same = ["sha256", "predicted_label", "refer", "error_code", "bundle_sha256"]
    assert copy.select(same).equals(script.select(same))
    np.testing.assert_allclose(probabilities(copy), probabilities(script), atol=1e-6)
    for row in [row for row in script.to_pylist() if not row["error_code"]][::9]:
        upload = {"file": Path(row["uri"]).read_bytes()}
        (found,) = endpoint.http.post("/predict", files=upload).raise_for_status().json()["predictions"]
        expected = [row[name] for name in PROBABILITIES]
        np.testing.assert_allclose(list(found["probabilities"].values()), expected, atol=1e-6)
        assert found["label"] == row["predicted_label"]


def probabilities(table: pa.Table) -> np.ndarray:
    return np.stack([table[name].to_numpy(zero_copy_only=False) for name in PROBABILITIES], axis=1)


def scoring_into(output: Path) -> dict[int, bytes]:
    """The environments of the processes of this host that score into a directory, by their ids."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(output).encode() in (process / "cmdline").read_bytes().split(b"\0"):
                found[int(process.name)] = (process / "environ").read_bytes()
        except OSError:
            continue  # it has ended meanwhile
    return found


@contextmanager
def halted(pids: Iterable[int]) -> Iterator[None]:
    """Holds processes up, so that they do not end while something is asked of them."""
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):  # Ray kills what does not end
                os.kill(pid, signal.SIGCONT)


def test_a_batch_is_cancelled_and_continued_while_the_endpoint_restarts(endpoint):
    first = endpoint.post("many.zip", "many")
    part = endpoint.output / "many/predictions/part-00000.parquet"
    wait_for(part.exists, bool)
    environments = scoring_into(endpoint.output / "many")
    assert environments
    assert not [each for each in environments.values() if KEY.encode() in each]
    with halted(environments):
        batch = endpoint.get(first)
        assert batch["state"] == "running"
        assert 0 < batch["progress"]["done"] < batch["progress"]["total"] == NUM_IMAGES * NUM_COPIES
        answer = endpoint.http.post("/v1/batches", json={"input": batch["input"], "output": batch["output"]})
        assert (answer.status_code, first in answer.json()["error"]) == (409, True)
        assert endpoint.http.delete(f"/v1/batches/{first}").status_code == 202
    assert endpoint.wait_for_end(first)["state"] == "cancelled"
    assert endpoint.http.delete(f"/v1/batches/{first}").status_code == 200
    written_ns = part.stat().st_mtime_ns

    second = endpoint.post("many.zip", "many")
    endpoint.stop()
    endpoint.start()
    batch = endpoint.wait_for_end(second)
    assert (batch["state"], batch["message"]) == ("succeeded", None)
    total = NUM_IMAGES * NUM_COPIES
    assert batch["progress"] == {"done": total, "failed": NUM_UNREADABLE * NUM_COPIES, "total": total}
    assert part.stat().st_mtime_ns == written_ns
    assert endpoint.get(first)["state"] == "cancelled"
    table = predictions.read_predictions(batch["output"])
    assert table.num_rows == total
    check_predictions(endpoint, table)


def test_a_manifest_that_leads_elsewhere_fails_with_a_message(endpoint):
    batch = endpoint.wait_for_end(endpoint.post("elsewhere.csv", "elsewhere"))
    assert batch["state"] == "failed"
    assert batch["message"] == (
        f"1 of the 2 images of '{endpoint.input}/elsewhere.csv' do not lie below the allowed roots: a manifest or a "
        "symbolic link leads elsewhere. Leave them out."
    )
    assert batch["progress"] is None
    assert not (endpoint.output / "elsewhere").exists()
