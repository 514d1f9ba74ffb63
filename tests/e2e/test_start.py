"""`tlray serve`: a process that answers until it is told to end, and then leaves nothing behind."""

import base64
import contextlib
import math
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import httpx
import pyarrow.parquet as pq
import pytest

from tests.e2e.test_serving import export
from tests.listening import addresses_of
from tests.processes import processes_with
from tests.unit.serve_app.test_fuzz import OF_SERVE, wrong_requests
from tlray.cluster import connection
from tlray.cluster.ports import free_ports

WAIT_S = 120.0
MARK = "TLRAY_TEST_MARK"
CLASSES = ("one", "two", "three")
NUM_CLIENTS = 4


@contextmanager
def serving(*arguments: object, **variables: str) -> Iterator[tuple[subprocess.Popen[str], list[str], str]]:
    """Runs `tlray serve` until the block ends; gives the process, what it wrote until it answered, and its mark."""
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
            if "Ctrl-C stops it" in line:
                break
        guard.cancel()
        yield process, lines, mark
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


def loaded(mark: str, library: str) -> list[str]:
    """The command lines of the endpoint's processes that have loaded a library, see /proc/PID/maps (proc(5))."""
    found = []
    for pid, line in processes_with(mark).items():
        with contextlib.suppress(OSError):  # it has just ended
            if f"/site-packages/{library}/" in Path(f"/proc/{pid}/maps").read_text():
                found.append(line)
    return found


def assert_replicas_inherit(mark: str, variables: dict[str, str]) -> None:
    """Environment variables of a local Ray's processes come from the process that has started it."""
    pids = [pid for pid, line in processes_with(mark).items() if "ServeReplica" in line]
    assert pids
    for pid in pids:
        found = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert {f"{name}={value}".encode() for name, value in variables.items()} <= set(found)


def assert_haproxy_is_ours_alone(mark: str, port: int) -> None:
    """HAProxy, which Ray has for Linux, listens on this machine's own addresses only, and so for its metrics."""
    (found,) = {line for line in processes_with(mark).values() if "haproxy -db -f " in line}
    config = Path(found.split(" -f ")[1].split()[0]).read_text()
    bound = re.findall(r"^ *bind (\S+)", config, re.MULTILINE)
    assert len(bound) == 3, config
    assert f"127.0.0.1:{port}" in bound
    assert all(each.startswith("127.0.0.1:") for each in bound), bound
    addresses = addresses_of(processes_with(mark))
    assert ("127.0.0.1", port) in addresses
    # Only Serve's own way to a replica is open to others, who need Ray's token there.
    ((_, open_port),) = {each for each in addresses if each[0] != "127.0.0.1"}
    with grpc.insecure_channel(f"127.0.0.1:{open_port}") as channel:
        call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
        with pytest.raises(grpc.RpcError) as refused:
            call(b"", timeout=WAIT_S)
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED  # pyright: ignore[reportAttributeAccessIssue]


def assert_wrong_requests_are_answered(http: httpx.Client) -> None:
    """Sends what `test_fuzz.py` asks of the application alone through HAProxy and Serve to a model."""
    wrong = wrong_requests()
    sent = [each for kind in ("spoilt", "texts", "forms") for each in wrong[kind]]
    # Of the headers those that Serve reads; HAProxy refuses others in its own words.
    sent += [each for each in wrong["headers"] if each.headers.keys() & set(OF_SERVE)]
    assert len(sent) > 250
    statuses: Counter[int] = Counter()
    for each in sent:
        headers = [(name.encode(), text.encode("latin-1")) for name, text in each.headers.items()]
        answer = http.post(each.path.replace("chest-ct", "small"), content=each.content, headers=headers)
        assert answer.status_code < 500, (each, answer.text)
        assert answer.status_code < 400 or answer.json()["error"], each
        statuses[answer.status_code] += 1
    assert sum(count for status, count in statuses.items() if status >= 400) > len(sent) / 3, statuses


def assert_only_what_was_being_answered_is_lost(address: str, image: bytes, mark: str) -> None:
    """Kills the only replica while clients ask: afterwards they are told to try again, until the next one answers."""
    (replica,) = [pid for pid, line in processes_with(mark).items() if "ServeReplica" in line]
    asked: list[tuple[float, str]] = []
    killed_s = math.inf
    enough, is_over = threading.Event(), threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=address, timeout=WAIT_S) as http:
            while not is_over.is_set():
                start_s = time.monotonic()
                try:
                    found = str(http.post("/predict", files={"file": image}).status_code)
                except httpx.TransportError as error:
                    found = type(error).__name__
                asked.append((start_s, found))
                enough.set()
                if start_s > killed_s and found == "200":
                    return

    clients = [threading.Thread(target=ask, daemon=True) for _ in range(NUM_CLIENTS)]
    for client in clients:
        client.start()
    assert enough.wait(WAIT_S)
    killed = os.pidfd_open(replica)
    os.kill(replica, signal.SIGKILL)
    # Its port is open until its last thread has ended: only then is the descriptor ready (pidfd_open(2)).
    assert select.select([killed], [], [], WAIT_S)[0]
    killed_s = time.monotonic()
    os.close(killed)
    guard = threading.Timer(WAIT_S, is_over.set)
    guard.start()
    for client in clients:
        client.join()
    guard.cancel()
    assert not is_over.is_set(), asked
    assert {found for start_s, found in asked if start_s > killed_s} <= {"200", "503"}, asked


def assert_haproxy_comes_back(address: str, mark: str) -> None:
    """Kills HAProxy: nobody listens until Ray has started it again, and no answer has another form than ours."""
    (haproxy,) = [pid for pid, line in processes_with(mark).items() if "haproxy -db -f " in line]
    os.kill(haproxy, signal.SIGKILL)
    deadline, pause = time.monotonic() + WAIT_S, threading.Event()
    statuses: set[int] = set()
    while 200 not in statuses:
        assert time.monotonic() < deadline, statuses
        with contextlib.suppress(httpx.TransportError):
            answer = httpx.get(f"{address}/v2/health/ready", timeout=WAIT_S)
            statuses.add(answer.status_code)
            if answer.status_code != 200:
                assert (answer.status_code, answer.json()["error_code"]) == (503, "unavailable"), answer.text
                assert answer.headers["retry-after"] == "1"
        pause.wait(0.02)


def test_it_answers_scores_a_folder_and_ends_with_nothing_left(phantom_set, tmp_path):
    (port,) = free_ports(1)
    bundle = export(tmp_path, "bundle", seed=1)
    arguments = ("--bundle", bundle, "--port", port, "--name", "small")
    roots = ("--input-roots", phantom_set, "--output-roots", tmp_path / "out")
    with serving(*arguments, *roots) as (process, lines, mark):
        address = f"http://127.0.0.1:{port}"
        shown = "\n".join(lines)
        facts = (f" {address} ", "small: one, two, three", bundle, f"-F file=@scan.png {address}/predict")
        for fact in (*facts, " openvino float32 "):
            assert fact in shown
        assert "no medical device" in shown
        assert len(lines) < 20, shown  # nothing of Ray's own start
        with httpx.Client(base_url=address, timeout=60) as http:
            scan = sorted(phantom_set.glob("*/*/*.png"))[0]
            image = {"file": scan.read_bytes()}
            plain = http.post("/predict", files=image).raise_for_status().json()
            assert http.get("/model").raise_for_status().json()["engine"] == "openvino float32"
            assert loaded(mark, "tensorflow") == []  # none of all processes
            assert_replicas_inherit(mark, connection.WORKER_ENVIRONMENT)
            answer = http.post("/predict?explain=true", files=image).raise_for_status().json()
            assert answer["predictions"][0]["probabilities"] == plain["predictions"][0]["probabilities"]
            (explains,) = loaded(mark, "tensorflow")  # one of its own
            assert "multiprocessing" in explains
            assert answer["bundle_sha256"] in shown
            (row,) = answer["predictions"]
            assert base64.b64decode(row["explanation"]).startswith(b"\x89PNG")
            assert_wrong_requests_are_answered(http)
            locations = {"input": str(phantom_set), "output": str(tmp_path / "out/first")}
            batch = http.post("/v1/batches", json=locations).raise_for_status().json()
            deadline, pause = time.monotonic() + WAIT_S, threading.Event()
            while batch["state"] in ("pending", "running"):
                assert time.monotonic() < deadline, batch
                pause.wait(0.1)
                batch = http.get(f"/v1/batches/{batch['id']}").raise_for_status().json()
        assert (batch["state"], batch["progress"]) == ("succeeded", {"done": 68, "failed": 4, "total": 68})
        scores = pq.read_table(tmp_path / "out/first/predictions/part-00000.parquet").to_pylist()
        (scored,) = [each for each in scores if each["uri"] == str(scan)]
        assert row["probabilities"] == pytest.approx({name: scored[f"p_{name}"] for name in CLASSES}, abs=1e-6)
        assert_haproxy_is_ours_alone(mark, port)
        assert_haproxy_comes_back(address, mark)
        assert_only_what_was_being_answered_is_lost(address, scan.read_bytes(), mark)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=WAIT_S)
        assert (process.returncode, errors) == (0, "")


def test_mistakes_are_2(tmp_path):
    bundle = export(tmp_path, "bundle", seed=1)
    (Path(bundle) / "model.keras").write_bytes(b"damaged")
    with serving("--bundle", bundle) as (process, lines, _):
        _, errors = process.communicate(timeout=WAIT_S)
    assert (process.returncode, lines) == (2, [])
    assert errors.startswith(f"tlray: The bundle '{bundle}' was changed after its export: the sha256 of model.keras is")
    assert errors.count("\n") == 1
