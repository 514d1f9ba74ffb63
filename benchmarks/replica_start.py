"""How long a replica of `tlray serve` takes to start, and its memory: of this tree, or in turns with another one.

    python benchmarks/replica_start.py --bundle BUNDLE [--other DIR --other-bundle BUNDLE] [--rounds 3]

`--other` is another clone that is set up (`make setup`), with a bundle that it can read. Each start is a process of its
own, with a Ray of its own. A client sends an image ten times a second, until one is answered: the time from when Serve
asked for the replica until then is the start, with all that stands between a client and the replica. Serve's controller
logs when it asked, and when the replica was ready. The memory is the replica's proportional set size after its first
answer. It prints a table and writes `replica_start_DATE.md` into --out. No figure makes it fail.
"""

import datetime
import io
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from load import CONTENT_TYPE, encode_form
from processes import memory_bytes
from result_page import Goal, write_goals

ROOT = Path(__file__).parents[1]
STARTED = re.compile(
    r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}).*after ([\d.]+)s \(PID: (\d+)\)\. Replica constructor.* took ([\d.]+)s"
)
"""A line of the log of Serve's controller, in text or JSON: local time, seconds since the replica was asked for, its
process, seconds of its constructor."""

MAX_START, MAX_MEMORY = 0.25, 0.2
"""Largest start and memory that are wanted, as shares of those of the other tree."""
READY_S = 300.0
POLL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Measure the start of replicas."""

    bundle: str
    """The bundle that this tree serves."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Numbers that this tree's replica computes with; auto: what the bundle's own comparison of engines allows on this
    machine. The other tree's replica always chooses for itself."""
    other: str | None = None
    """Another clone of the project."""
    other_bundle: str | None = None
    """The bundle that the other clone serves."""
    rounds: int = 3
    """How often each is started, in turns."""
    out: str = "benchmarks/results"
    """The folder for the result; an earlier one of the same day is replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One start of a replica; times in seconds since Serve asked for it.

    Attributes:
        answered_s: Until an image was answered.
        ready_s: Until Serve found the replica ready.
        constructor_s: Seconds that the replica's constructor took.
        memory_mib: Memory of the replica after that answer, in MiB.
    """

    answered_s: float
    ready_s: float
    constructor_s: float
    memory_mib: float


def read_log(text: str) -> tuple[float, float, int, float] | None:
    """Returns when the only replica was asked for, and what its start came to; None: it has not started yet.

    Args:
        text: The log of Serve's controller.

    Returns:
        The Unix time at which it was asked for, the seconds until it was ready, its process, and the seconds of its
        constructor.
    """
    found = STARTED.findall(text)
    if not found:
        return None
    ((logged, ready, pid, constructor),) = found
    logged_s = datetime.datetime.strptime(logged, "%Y-%m-%d %H:%M:%S,%f").astimezone().timestamp()
    return logged_s - float(ready), float(ready), int(pid), float(constructor)


def ask(url: str, form: bytes) -> bool:
    """Sends a form with an image; tells whether it was answered with 200."""
    request = urllib.request.Request(url, form, {"Content-Type": CONTENT_TYPE})  # noqa: S310 (ours)
    try:
        with urllib.request.urlopen(request, timeout=READY_S) as answer:  # noqa: S310
            answer.read()
            return True
    except OSError:  # also what urllib raises for any status but 200
        return False


def measure(root: Path, bundle: str, form: bytes, *, options: Sequence[str] = ()) -> Start:
    """Starts an endpoint, waits for its first answer, ends it, and returns what its start came to.

    Args:
        root: A clone of the project that is set up.
        bundle: The bundle that it serves.
        form: A form with an image.
        options: Further options of `tlray serve`.
    """
    temporary = tempfile.mkdtemp(prefix="tlray-", dir="/tmp")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [str(root / ".venv/bin/python"), "-m", "tlray", "serve", "--bundle", bundle, "--port", str(port)]
    command += options
    process = subprocess.Popen(
        command, cwd=root, env=environment | {"RAY_TMPDIR": temporary},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        deadline_s = time.monotonic() + READY_S
        while not ask(f"http://127.0.0.1:{port}/predict", form):
            if process.poll() is not None or time.monotonic() > deadline_s:
                sys.exit(f"{command} ended, or answered no image within {READY_S:g} s.")
            time.sleep(POLL_S)
        answered_unix_s = time.time()
        logs = Path(temporary, "ray/session_latest/logs/serve")
        while (found := read_log("".join(log.read_text() for log in logs.glob("controller_*.log")))) is None:
            if time.monotonic() > deadline_s:
                sys.exit(f"Serve's controller logged no start of a replica within {READY_S:g} s.")
            time.sleep(POLL_S)
        asked_unix_s, ready_s, pid, constructor_s = found
        return Start(
            answered_s=answered_unix_s - asked_unix_s,
            ready_s=ready_s,
            constructor_s=constructor_s,
            memory_mib=memory_bytes(pid)[0] / 2**20,
        )
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(120)
        shutil.rmtree(temporary, ignore_errors=True)


def goals(this: Sequence[Start], other: Sequence[Start]) -> list[Goal]:
    """Returns the goals, by medians of the starts; none without starts of another tree."""
    if not other:
        return []
    found = []
    for what, key, most in (("until the first answer", "answered_s", MAX_START), ("memory", "memory_mib", MAX_MEMORY)):
        ratio = _median(this, key) / _median(other, key)
        wanted = f"{what}: at most {most:g} of the other tree's"
        found.append(Goal(wanted=wanted, found=f"{ratio:.2f}", is_met=ratio <= most))
    return found


def _median(starts: Sequence[Start], key: str) -> float:
    return statistics.median(getattr(each, key) for each in starts)


def rows(name: str, starts: Sequence[Start]) -> list[str]:
    """Returns a row of a Markdown table for each start of a tree, and one of their medians if there are several."""
    keys = ("answered_s", "ready_s", "constructor_s")
    found = [
        (str(number), [*(getattr(each, key) for key in keys)], each.memory_mib)
        for number, each in enumerate(starts, start=1)
    ]
    if len(starts) > 1:
        found.append(("median", [_median(starts, key) for key in keys], _median(starts, "memory_mib")))
    return [
        f"| {name} | {which} | {' | '.join(f'{value:.1f}' for value in seconds)} | {memory_mib:.0f} |"
        for which, seconds, memory_mib in found
    ]


def main() -> None:
    """Measures all starts and writes the page."""
    settings = tyro.cli(Settings, prog="replica_start.py", description=__doc__)
    if (settings.other is None) != (settings.other_bundle is None):
        sys.exit("Give --other and --other-bundle, or neither.")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    encoded = io.BytesIO()
    Image.new("L", (64, 64)).save(encoded, "PNG")
    form = encode_form(encoded.getvalue())
    this: list[Start] = []
    other: list[Start] = []
    for number in range(1, settings.rounds + 1):
        if settings.other is not None and settings.other_bundle is not None:
            other.append(measure(Path(settings.other), settings.other_bundle, form))
            print(f"{number}: other: {other[-1]}", flush=True)
        this.append(measure(ROOT, settings.bundle, form, options=["--precision", settings.precision]))
        print(f"{number}: this: {this[-1]}", flush=True)
    command = f"python benchmarks/replica_start.py --bundle BUNDLE --rounds {settings.rounds}"
    if settings.precision != "auto":
        command += f" --precision {settings.precision}"
    if other:
        command += " --other OTHER --other-bundle OTHER_BUNDLE"
    lines = [
        "| tree | start | until the first answer, s | until ready, s | its constructor, s | memory, MiB |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
        *rows("this", this),
        *rows("other", other),
        "",
        "- Seconds count from when Serve asked for the replica; an image is sent ten times a second until one is "
        "answered. HAProxy starts beside the replica, and counts where it is later.",
    ]
    write_goals("replica_start", "Start of a replica", command, goals=goals(this, other), lines=lines, out=settings.out)


if __name__ == "__main__":
    main()
