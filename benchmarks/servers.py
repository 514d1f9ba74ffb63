"""The servers that are compared: their environments, and each as a process from its start to its end."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

sys.path.insert(0, str(Path(__file__).parent))
from load import CONTENT_TYPE, encode_form
from processes import family, identities

ROOT = Path(__file__).parents[1]
PEERS = Path(__file__).parent / "peers"
ENVIRONMENTS = ROOT / ".venv-peers"

READY_S = 180.0
STOP_S = 30.0
POLL_S = 0.2
REFUSALS = (400, 403, 405, 413, 415, 422, 500)
"""What does not become right by waiting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A server that is measured.

    Attributes:
        name: Its short name.
        command: What its Python is called with, in `peers/`; {port}, {bundle} and {precision} stand for those.
        how: How it is set up, for the results.
        engine: What runs its model.
        requirements: It runs in a virtual environment of its own, made from `peers/REQUIREMENTS.txt`; empty: in ours.
        settings: Environment variables.
    """

    name: str
    command: tuple[str, ...]
    how: str
    engine: str = "tensorflow"
    requirements: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)


SYSTEMS = {
    system.name: system
    for system in (
        System(
            name="tlray",
            command=("-m", "tlray", "serve", "--bundle", "{bundle}", "--port", "{port}", "--precision", "{precision}"),
            how="`tlray serve` in the precision of the bare model, otherwise with its defaults: decoding and "
            "model in one process, HAProxy before it",
            engine="openvino",
        ),
        System(
            name="serve_batch",
            command=("serve_batch_server.py",),
            how="the same application with `@serve.batch(max_batch_size=32, batch_wait_timeout_s=0.01)` in place of "
            "its queue",
            engine="openvino",
        ),
        System(
            name="two_processes",
            command=("two_processes_server.py",),
            how="`tlray serve` with decoding and model in two processes, as with several replicas",
            engine="openvino",
        ),
        System(
            name="python_proxy",
            command=("-m", "tlray", "serve", "--bundle", "{bundle}", "--port", "{port}", "--precision", "{precision}"),
            how="`tlray serve` with Ray Serve's own proxy in place of HAProxy",
            engine="openvino",
            settings={"RAY_SERVE_ENABLE_HA_PROXY": "0"},
        ),
        System(
            name="litserve",
            command=("litserve_server.py",),
            how="max_batch_size 32, batch_timeout 0.01 s, one worker",
            requirements="litserve",
            settings={"BENCHMARK_WORKERS": "1"},
        ),
        System(
            name="litserve_openvino",
            command=("litserve_server.py",),
            how="the same with the bundle's OpenVINO model, in the precision that tlray takes",
            engine="openvino",
            requirements="litserve",
            settings={"BENCHMARK_WORKERS": "1"},
        ),
        System(
            name="bentoml",
            command=("-m", "bentoml", "serve", "bentoml_service:Endpoint", "--host", "127.0.0.1", "--port", "{port}"),
            how="one service with a batchable API that decodes and predicts, max_batch_size 32, max_latency_ms at its "
            "default of 60,000",
            requirements="bentoml",
            settings={"BENTOML_DO_NOT_TRACK": "True"},
        ),
        System(
            name="fastapi",
            command=("fastapi_server.py",),
            how="FastAPI on uvicorn (uvloop, httptools), one process, a plain function in the thread pool, no lock, "
            "no batching, which it does not have",
            requirements="fastapi",
        ),
    )
}


def make_environment(name: str) -> Path:
    """Returns the Python of a virtual environment, which is made if it is not as it should be.

    Args:
        name: It is made from `peers/NAME.txt`; empty: the Python that runs this.
    """
    if not name:
        return Path(sys.executable)
    requirements = PEERS / f"{name}.txt"
    directory = ENVIRONMENTS / name
    python, mark = directory / "bin/python", directory / "installed"
    digest = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()
    if not mark.exists() or mark.read_text() != digest:
        print(f"Setting up {directory} ...", flush=True)
        uv = [sys.executable, "-m", "uv"]
        subprocess.run([*uv, "venv", "-q", "--clear", "--python", sys.executable, directory], check=True)
        install = [*uv, "pip", "install", "-q", "--compile-bytecode", "--python", python, "-r", requirements]
        subprocess.run(install, check=True)
        mark.write_text(digest)
    return python


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server that is ready.

    Attributes:
        url: Where it takes forms.
        pid: Its process; it may have more below.
        probabilities: What it says of the image that it was tried with.
    """

    url: str
    pid: int
    probabilities: list[float]


@contextmanager
def running(system: System, python: Path, bundle: str, image: bytes, *, precision: str) -> Iterator[Server]:
    """Starts a server, waits until it answers, and ends it with all its processes.

    Args:
        system: Which one.
        python: Its Python.
        bundle: The model.
        image: An image file to try it with.
        precision: The numbers that its model computes with.
    """
    # A shell's background jobs ignore Ctrl-C, and so would what they start. A benchmark that is ended ends its servers.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="tlray-benchmark-") as scratch, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        listener.close()
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        environment |= {
            "BENCHMARK_BUNDLE": str(Path(bundle).resolve()),
            "BENCHMARK_PORT": str(port),
            "BENCHMARK_ENGINE": system.engine,
            "BENCHMARK_PRECISION": precision,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(PEERS)]),
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "BENTOML_HOME": scratch,
            **system.settings,
        }
        values = {"port": port, "bundle": Path(bundle).resolve(), "precision": precision}
        first, *rest = (part.format(**values) for part in system.command)
        command = [str(python), first if first.startswith("-") else str(PEERS / first), *rest]
        log = Path(scratch, "log")
        with open(log, "wb") as output:
            process = subprocess.Popen(
                command, env=environment, cwd=scratch, stdout=output, stderr=output, start_new_session=True
            )
        try:
            yield _wait(process, f"http://127.0.0.1:{port}/predict", image, log)
        finally:
            _stop(process)


def _wait(process: subprocess.Popen[bytes], url: str, image: bytes, log: Path) -> Server:
    request = urllib.request.Request(url, encode_form(image), {"Content-Type": CONTENT_TYPE})  # noqa: S310 (ours)
    deadline_s = time.monotonic() + READY_S
    while True:
        try:
            with urllib.request.urlopen(request, timeout=READY_S) as answer:  # noqa: S310
                said = json.load(answer)
                first: dict[str, Any] = said[0] if isinstance(said, list) else said  # BentoML's batches are lists
                row = first["predictions"][0]
                return Server(url=url, pid=process.pid, probabilities=list(row["probabilities"].values()))
        except OSError as error:  # also what urllib raises for any status but 200
            is_refused = isinstance(error, HTTPError) and error.code in REFUSALS
            if is_refused or process.poll() is not None or time.monotonic() > deadline_s:
                said = log.read_text(errors="replace")[-4000:]
                sys.exit(f"{process.args!r} refused, ended, or took more than {READY_S:g} s ({error}):\n{said}")
        time.sleep(POLL_S)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a server: by Ctrl-C, as all of them take it, and then what is left of it."""
    members = identities(family(process.pid))
    process.send_signal(signal.SIGINT)
    deadline_s = time.monotonic() + STOP_S
    while left := members & identities(pid for pid, _ in members):
        process.poll()  # so that the process itself can be gone
        if time.monotonic() > deadline_s:
            for pid, _ in left:
                print(f"Process {pid} of {process.args!r} did not end and is killed.", file=sys.stderr)
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            break
        time.sleep(POLL_S)
    process.wait()
