"""`ray start --head` and `ray job submit`, with token authentication, as on a cluster."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.e2e.test_sweep_faults import processes_with, wait_until
from tlray.cluster import connection, ports
from tlray.inference import predictions

ROOT = Path(__file__).parents[2]
START_S = 120.0


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Ray of its own with a token of its own; gives the environment of a submitter."""
    directory = tmp_path_factory.mktemp("head")
    token = directory / "auth_token"
    token.write_text(secrets.token_hex(32))
    port, dashboard_port, agent_port, client_port = ports.free_ports(4)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = clean | connection.LOCAL_RAY_ENVIRONMENT
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    bin_directory = Path(sys.executable).parent
    # There is no Serve to quiesce: the drain before the end would wait its whole 30 s.
    environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"
    environment["PATH"] = f"{bin_directory}{os.pathsep}{environment['PATH']}"
    # A short path: Ray's sockets lie below it, and their names have a limit of 107 bytes.
    temporary = Path(f"/tmp/ray-{os.getpid()}")  # noqa: S108
    command = [
        *(bin_directory / "ray", "start", "--head", "--block", "--num-cpus=2", f"--port={port}"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}", "--object-store-memory=1000000000"),
        # Their fixed defaults belong to the first Ray of a machine, and another one may still be on its way out.
        *(f"--dashboard-agent-listen-port={agent_port}", f"--ray-client-server-port={client_port}"),
        f"--temp-dir={temporary}",
    ]
    with (directory / "ray.log").open("w") as log:
        process = subprocess.Popen(
            list(map(str, command)), env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_for_jobs_api(f"http://127.0.0.1:{dashboard_port}", token.read_text(), process)
        yield environment | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard_port}"}
    finally:
        # The head alone: it ends its own processes, in order.
        process.terminate()
        try:
            process.wait(60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        # It does not wait for its workers, which may still write there.
        is_over = wait_until(lambda: not processes_with(str(token)))
        shutil.rmtree(temporary, ignore_errors=not is_over)
        assert is_over, processes_with(str(token))


def wait_for_jobs_api(address: str, token: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + START_S
    pause = threading.Event()
    while time.monotonic() < deadline and process.poll() is None:
        # A trivial job: the dashboard answers before there is an agent that could take one.
        request = urllib.request.Request(  # noqa: S310
            f"{address}/api/jobs/",
            data=json.dumps({"entrypoint": "true"}).encode(),
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=5):  # noqa: S310
                return
        except OSError:
            pause.wait(0.2)
    raise AssertionError("Ray's head did not come up.")


def submit(
    environment: dict[str, str], *arguments: object, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    options = ["--working-dir", ".", "--runtime-env-json", json.dumps({"env_vars": variables or {}})]
    command = ["ray", "job", "submit", *options, "--", "python", *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=400)


def test_train_and_score_as_jobs(head, phantom_set, tmp_path):
    run, scores = tmp_path / "run", tmp_path / "scores"
    trained = submit(
        head,
        *("jobs/train.py", "standard", "--data", phantom_set, "--out", run, "--weights", "none", "--epochs", 1),
        *("--backbone", "MobileNetV2", "--image-size-px", 32, "--num-workers", 2, "--max-failures", 0),
        # Those that tlray sets for its processes, too: with Keras 2 nothing would work.
        variables={"TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "0"},
    )
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert json.loads((run / "metrics.json").read_text())["num_epochs"] == 1
    assert f"{run}/bundle" in trained.stdout
    scored = submit(head, "jobs/score.py", "--bundle", run / "bundle", "--input", phantom_set, "--out", scores)
    assert scored.returncode == 0, scored.stdout + scored.stderr
    assert predictions.read_predictions(str(scores)).num_rows == 68


def test_a_relative_output_in_a_job_is_refused(head, phantom_set):
    job = submit(head, "jobs/train.py", "--data", phantom_set, "--out", "runs/lost", "--weights", "none")
    assert job.returncode == 1
    assert "--out runs/lost is relative: in a Ray job it would be lost" in job.stdout + job.stderr


def test_without_the_token_nothing_is_submitted(head):
    strangers = {name: value for name, value in head.items() if not name.startswith("RAY_AUTH")}
    job = submit(strangers | {"HOME": "/nonexistent"}, "jobs/train.py", "--help")
    assert job.returncode != 0
    assert "authentication" in (job.stdout + job.stderr).lower()
