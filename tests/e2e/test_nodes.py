"""A cluster of two nodes on this host, of which the one that works does not see a folder of the other's."""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import keras
import pytest

from tests.head import ROOT
from tests.processes import processes_with, wait_until
from tlray.cluster import connection
from tlray.cluster.ports import free_ports
from tlray.data import phantom_files
from tlray.inference import predictions

HIDE = ["unshare", "--map-root-user", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"']
"""Runs a command in whose eyes a folder is empty: the folder, then the command."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """The cluster, a folder that both nodes see, and one that the node of the driver alone sees."""

    environment: dict[str, str]
    shared: Path
    private: Path

    def tlray(self, *arguments: object) -> tuple[int, str]:
        """Runs a command on the driver's node; returns its exit code and what it says on standard error."""
        command = [sys.executable, "-m", "tlray", *map(str, arguments), "--quiet"]
        process = subprocess.run(
            command, env=self.environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=400
        )
        return process.returncode, process.stderr


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """A head without CPUs, where the commands are given, and a node with two."""
    directory = tmp_path_factory.mktemp("nodes")
    shared, private = directory / "shared", directory / "private"
    shared.mkdir()
    private.mkdir()
    if subprocess.run([*HIDE, private, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs a mount namespace of its own (unshare)")
    token = directory / "auth_token"
    token.write_text(secrets.token_hex(32))
    port, client_port, agent_port = free_ports(3)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= connection.LOCAL_RAY_ENVIRONMENT | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    }
    # A short path: Ray's sockets lie below it, and their names have a limit of 107 bytes.
    temporary = Path(f"/tmp/ray-nodes-{os.getpid()}")  # noqa: S108
    ray = str(Path(sys.executable).parent / "ray")
    common = ["--block", "--object-store-memory=500000000", "--node-ip-address=127.0.0.1"]
    head = [ray, "start", "--head", "--num-cpus=0", f"--port={port}", f"--temp-dir={temporary}", *common]
    head += ["--include-dashboard=false", f"--ray-client-server-port={client_port}"]
    worker = [ray, "start", f"--address=127.0.0.1:{port}", "--num-cpus=2", *common]
    worker += [f"--dashboard-agent-listen-port={agent_port}"]
    processes: list[subprocess.Popen] = []

    def start(command: list[str], name: str) -> None:
        with (directory / f"{name}.log").open("w") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        processes.append(process)
        told = directory / f"{name}.log"
        assert wait_until(lambda: "--block" in told.read_text() or process.poll() is not None)
        assert process.poll() is None, told.read_text()

    try:
        start(head, "head")
        start([*HIDE, str(private), *worker], "worker")
        yield Nodes(environment=environment | {"RAY_ADDRESS": f"127.0.0.1:{port}"}, shared=shared, private=private)
    finally:
        for process in reversed(processes):
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        is_over = wait_until(lambda: not processes_with(str(token)))
        shutil.rmtree(temporary, ignore_errors=not is_over)
        assert is_over, processes_with(str(token))


@pytest.fixture(scope="module")
def bundle(nodes: Nodes) -> str:
    """A probe, trained on images that all nodes see, of a network that the driver's node alone sees."""
    for folder in (nodes.shared, nodes.private):
        phantom_files.write_data_set(
            str(folder / "images"), num_patients_per_class=4, num_slices_per_patient=1, size_px=32, seed=1,
            num_unreadable=0,
        )  # fmt: skip
    x = pixels = keras.Input((32, 32, 3))
    for num_filters in (8, 12):
        x = keras.layers.Conv2D(num_filters, 3, strides=2, activation="relu")(x)
    network = keras.Model(pixels, x)
    network.save(nodes.private / "own.keras")
    network.save_weights(nodes.private / "own.weights.h5")
    code, said = nodes.tlray(
        *("train", "probe", "--data", f"file://{nodes.shared}/images", "--out", f"file://{nodes.shared}/run"),
        *("--weights", nodes.private / "own.weights.h5", "--backbone", nodes.private / "own.keras"),
        *("--preprocessing", "symmetric", "--image-size-px", 32),
    )
    assert code == 0, said
    return f"file://{nodes.shared}/run/bundle"


def test_what_only_the_driver_sees_is_refused(nodes, bundle):
    images, out = nodes.private / "images", f"file://{nodes.shared}/refused"
    for option, command in (
        ("--data", ("train", "--data", images, "--out", out, "--weights", "none")),
        ("--input", ("score", "--input", images, "--out", out, "--bundle", bundle)),
        ("--data", ("evaluate", "--data", images, "--out", out, "--bundle", bundle, "--split", "all")),
    ):
        code, said = nodes.tlray(*command)
        assert (code, f"tlray: {option} {images} is a path on this node" in said) == (2, True), said
    assert not (nodes.shared / "refused").exists()


def test_images_that_no_worker_sees_are_a_failure_and_not_a_score(nodes, bundle):
    code, said = nodes.tlray(
        *("score", "--input", f"file://{nodes.private}/images", "--out", f"file://{nodes.shared}/lost"),
        *("--bundle", bundle),
    )
    assert code == 1, said
    assert f"tlray: 16 of 16 images of 'file://{nodes.private}/images' were not found" in said
    found = predictions.read_predictions(str(nodes.shared / "lost"))
    assert found["error_code"].to_pylist() == ["not_found"] * 16


def test_what_all_nodes_see_is_scored(nodes, bundle):
    code, said = nodes.tlray(
        *("score", "--input", f"file://{nodes.shared}/images", "--out", f"file://{nodes.shared}/scores"),
        *("--bundle", bundle),
    )
    assert code == 0, said
    found = predictions.read_predictions(str(nodes.shared / "scores"))
    assert (found.num_rows, found["error_code"].null_count) == (16, 16)
