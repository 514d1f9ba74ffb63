"""A Ray with a job server and token authentication, as on a cluster: how it is started, and how jobs are submitted."""

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
from contextlib import contextmanager
from pathlib import Path

from tests.processes import processes_with, wait_until
from tlray.cluster import connection, ports

ROOT = Path(__file__).parents[1]
START_S = 120.0
DIRECTORY = Path(f"/tmp/ray-{os.getpid()}")  # noqa: S108
"""Temporary files of this Ray. The path is short: the names of Ray's sockets below it have a limit of 107 bytes."""


@contextmanager
def started(directory: Path) -> Iterator[dict[str, str]]:
    """Runs `ray start --head` with two CPUs until the block ends; gives the environment of a submitter.

    Args:
        directory: An empty directory for its token and its log.
    """
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
    command = [
        *(bin_directory / "ray", "start", "--head", "--block", "--num-cpus=2", f"--port={port}"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}", "--object-store-memory=1000000000"),
        # Their fixed defaults belong to the first Ray of a machine, and another one may still be on its way out.
        *(f"--dashboard-agent-listen-port={agent_port}", f"--ray-client-server-port={client_port}"),
        f"--temp-dir={DIRECTORY}",
    ]
    with (directory / "ray.log").open("w") as log:
        process = subprocess.Popen(
            list(map(str, command)), env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        _wait_for_jobs_api(f"http://127.0.0.1:{dashboard_port}", token.read_text(), process)
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
        shutil.rmtree(DIRECTORY, ignore_errors=not is_over)
        assert is_over, processes_with(str(token))


def _wait_for_jobs_api(address: str, token: str, process: subprocess.Popen) -> None:
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
    """Runs a script of the project as a job, with `ray job submit`, and waits for its end."""
    options = ["--working-dir", ".", "--runtime-env-json", json.dumps({"env_vars": variables or {}})]
    command = ["ray", "job", "submit", *options, "--", "python", *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=400)
