"""How long a replica of `tlray serve` takes to start, and its memory: of this tree, or in turns with another one.

    python benchmarks/replica_start.py --bundle BUNDLE [--other DIR --other-bundle BUNDLE] [--rounds 3]

`--other` is another clone that is set up (`make setup`), with a bundle that it can read. Each start is a process of its
own, with a Ray of its own. The times are those that Serve's controller logs; the memory is the replica's proportional
set size after its first answer. It prints a line for each start. No figure makes it fail.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).parent))
from processes import memory_bytes

ROOT = Path(__file__).parents[1]
STARTED = re.compile(r"after ([\d.]+)s \(PID: (\d+)\)\. Replica constructor.* took ([\d.]+)s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Measure the start of replicas."""

    bundle: str
    """The bundle that this tree serves."""
    other: str | None = None
    """Another clone of the project."""
    other_bundle: str | None = None
    """The bundle that the other clone serves."""
    rounds: int = 3
    """How often each is started, in turns."""


def measure(root: Path, bundle: str) -> str:
    """Starts an endpoint and returns what its start came to."""
    temporary = tempfile.mkdtemp(prefix="tlray-", dir="/tmp")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    # Unbuffered: earlier versions did not flush what they print, and a pipe would keep it.
    command = [str(root / ".venv/bin/python"), "-u", "-m", "tlray", "serve", "--bundle", bundle, "--port", str(port)]
    process = subprocess.Popen(
        command, cwd=root, env=environment | {"RAY_TMPDIR": temporary},
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None  # noqa: S101
        for line in process.stdout:
            if "Ctrl-C stops it" in line:
                break
        urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=60).close()
        logs = Path(temporary, "ray/session_latest/logs/serve").glob("controller_*.log")
        (found,) = STARTED.findall("".join(log.read_text() for log in logs))
        memory_mib = memory_bytes(int(found[1]))[0] / 2**20
        return f"replica started after {float(found[0]):.1f} s, its constructor {found[2]} s, {memory_mib:.0f} MiB"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(120)
        shutil.rmtree(temporary, ignore_errors=True)


def main() -> None:
    """Measures all starts and prints them."""
    settings = tyro.cli(Settings, prog="replica_start.py", description=__doc__)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    for number in range(settings.rounds):
        if settings.other is not None:
            print(f"{number + 1}: other: {measure(Path(settings.other), settings.other_bundle or '')}", flush=True)
        print(f"{number + 1}: this: {measure(ROOT, settings.bundle)}", flush=True)


if __name__ == "__main__":
    main()
