"""`tlray serve`: a process that answers until it is told to end, and then leaves nothing behind."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.e2e.test_jobs import free_ports
from tests.e2e.test_serving import export
from tests.e2e.test_sweep_faults import processes_with

WAIT_S = 120.0
MARK = "TLRAY_TEST_MARK"


@contextmanager
def serving(*arguments: object, **variables: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Runs `tlray serve` until the block ends; gives the process and the lines that it wrote until it answered."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TLRAY_"))}
    # Not the Ray that somebody started on this machine, whose address lies there.
    temporary = Path(f"/tmp/ray-serve-{os.getpid()}")  # noqa: S108
    mark = uuid.uuid4().hex
    environment |= {"RAY_TMPDIR": str(temporary), MARK: mark, **variables}
    command = [sys.executable, "-m", "tlray", "serve", *map(str, arguments)]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    guard = threading.Timer(WAIT_S, process.kill)
    guard.start()
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line.rstrip())
            if "Ctrl-C ends it" in line:
                break
        yield process, lines
        assert process.wait() is not None
        deadline, pause = time.monotonic() + WAIT_S, threading.Event()
        while left := processes_with(mark):
            assert time.monotonic() < deadline, left
            pause.wait(0.05)
    finally:
        guard.cancel()
        process.kill()
        process.communicate()
        shutil.rmtree(temporary, ignore_errors=True)


def test_it_answers_scores_a_folder_and_ends_with_nothing_left(phantom_set, tmp_path):
    (port,) = free_ports(1)
    bundle = export(tmp_path, "bundle", seed=1)
    arguments = ("--bundle", bundle, "--port", port, "--name", "small")
    roots = ("--input-roots", phantom_set, "--output-roots", tmp_path / "out")
    with serving(*arguments, *roots) as (process, lines):
        address = f"http://127.0.0.1:{port}"
        shown = "\n".join(lines)
        for fact in (f" {address} ", "small: one, two, three", bundle, f"-F file=@scan.png {address}/predict"):
            assert fact in shown
        assert "no medical device" in shown
        assert len(lines) < 20, shown  # nothing of Ray's own start
        with httpx.Client(base_url=address, timeout=60) as http:
            scan = sorted(phantom_set.glob("*/*/*.png"))[0]
            answer = http.post("/predict", files={"file": scan.read_bytes()}).raise_for_status().json()
            assert answer["bundle_sha256"] in shown
            locations = {"input": str(phantom_set), "output": str(tmp_path / "out/first")}
            batch = http.post("/v1/batches", json=locations).raise_for_status().json()
            deadline, pause = time.monotonic() + WAIT_S, threading.Event()
            while batch["state"] in ("pending", "running"):
                assert time.monotonic() < deadline, batch
                pause.wait(0.1)
                batch = http.get(f"/v1/batches/{batch['id']}").raise_for_status().json()
        assert (batch["state"], batch["progress"]) == ("succeeded", {"done": 68, "failed": 4, "total": 68})
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
        assert (process.returncode, errors) == (0, "")


def test_mistakes_are_2(tmp_path):
    bundle = export(tmp_path, "bundle", seed=1)
    (Path(bundle) / "model.keras").write_bytes(b"damaged")
    with serving("--bundle", bundle) as (process, lines):
        _, errors = process.communicate()
    assert (process.returncode, lines) == (2, [])
    assert errors.startswith(f"tlray: The bundle '{bundle}' was changed after its export: sha256 of model.keras is")
    assert errors.count("\n") == 1
