"""Ten times as many images as the endpoint can answer, for a minute: what it does meanwhile, and afterwards.

    python benchmarks/overload.py --bundle BUNDLE --data DIR

The application is started, its capacity and its normal latency are measured, then images come at random times at ten
times the capacity. Few others, five a second, come before, meanwhile and after, from a client that only looks. It
prints a table, writes it as `overload_DATE.md` into --out, and fails where a request got no answer, or another one than
200, 429 and 503; where memory grows; or where five seconds after the overload latency is not what it was.
"""

import csv
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parent))
from load import DISCONNECTED, TIMED_OUT
from processes import memory_bytes
from servers import SYSTEMS, Server, make_environment, running
from serving import NEEDS, write_images
from train_step import machine

NUM_GENERATORS = 2
CAPACITY_CLIENTS, CAPACITY_S = 64, 15.0
PROBE_PER_S, NORMAL_S = 5.0, 20.0
RECOVERY_S, WATCHED_S = 5.0, 15.0
"""Latency must be normal so long after the overload; it is watched for longer."""

MAX_SLOWER = 1.5
"""Normal is a median of at most so many times the one before: a median of 50 requests on a machine with other work."""
MAX_GROWTH = 0.03
"""Of memory over the last two thirds of the overload, by a straight line: of 4 GiB 7 kB for each of 18,000 requests."""
SAMPLE_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Overload the endpoint."""

    bundle: str = ""
    """The bundle that it serves."""
    data: str = ""
    """A local folder of images, at any depth."""
    factor: float = 10.0
    """The overload, in capacities."""
    duration_s: float = 60.0
    """How long it lasts."""
    out: str = "benchmarks/results"
    """The folder for the result; an earlier one of the same day is replaced."""


@dataclass(frozen=True, slots=True)
class Check:
    """What is asked for, and what was found."""

    what: str
    found: str
    is_met: bool


class Generators:
    """Load generators against one server."""

    def __init__(self, server: Server, images: Path, scratch: Path) -> None:
        self._start = [sys.executable, str(Path(__file__).with_name("load.py")), server.url, "--images", str(images)]
        self._scratch = scratch
        self._num_started = 0

    def start(self, *arguments: object, duration_s: float, warmup_s: float = 0.0) -> "Generator":
        """Starts a generator with further arguments of `load.py`."""
        self._num_started += 1
        records = self._scratch / f"records-{self._num_started}.csv"
        command = [*self._start, "--seed", self._num_started, "--records", records, *arguments]
        command += ["--warmup-s", warmup_s, "--duration-s", duration_s]
        return Generator(subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE), records)


class Generator:
    """A load generator that runs."""

    def __init__(self, process: subprocess.Popen[bytes], records: Path) -> None:
        self._process = process
        self._records = records

    def result(self) -> dict[str, Any]:
        """Waits for its end and returns what it printed."""
        said, _ = self._process.communicate()
        if self._process.returncode:
            sys.exit(f"{self._process.args!r} failed.")
        return json.loads(said)

    def latencies_ms(self, start_unix_s: float, end_unix_s: float) -> list[float]:
        """Returns the latencies of the requests due in a time; infinite for what was not answered with 200."""
        with open(self._records, newline="") as file:
            rows = [(float(row["due_unix_s"]), row) for row in csv.DictReader(file)]
        return [
            float(row["latency_ms"]) if row["outcome"] == "200" else float("inf")
            for due_s, row in rows
            if start_unix_s <= due_s < end_unix_s
        ]


@contextmanager
def memory_samples(pid: int) -> Iterator[list[tuple[float, int]]]:
    """Gives a list that fills with Unix times and the memory of a process and all below it."""
    samples: list[tuple[float, int]] = []
    stop = threading.Event()

    def sample() -> None:
        while not stop.wait(SAMPLE_S):
            samples.append((time.time(), memory_bytes(pid)[0]))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()


def growth(samples: Sequence[tuple[float, int]]) -> float:
    """Returns by how much memory grows over the samples' last two thirds, by a straight line, as a part of it."""
    times_s, sizes = np.array(samples[len(samples) // 3 :], dtype=np.float64).T
    slope, _ = np.polyfit(times_s - times_s[0], sizes, 1)
    return float(slope * (times_s[-1] - times_s[0]) / sizes.mean())


def overload(settings: Settings, server: Server, generators: Generators, tell: Callable[[str], None]) -> list[Check]:
    """Measures, tells the figures, and returns what was found."""
    capacity = generators.start("--clients", CAPACITY_CLIENTS, duration_s=CAPACITY_S, warmup_s=5.0).result()
    per_s = capacity["images_per_s"]
    normal_ms = generators.start("--rate-per-s", PROBE_PER_S, duration_s=NORMAL_S).result()["latency_ms"]["p50"]
    tell(f"Capacity: {per_s:.1f} images/s. Normal: {normal_ms:.0f} ms (p50).")
    probe = generators.start("--rate-per-s", PROBE_PER_S, duration_s=settings.duration_s + WATCHED_S)
    rate_per_s = settings.factor * per_s / NUM_GENERATORS
    with memory_samples(server.pid) as samples:
        running_loads = [
            generators.start("--rate-per-s", rate_per_s, duration_s=settings.duration_s) for _ in range(NUM_GENERATORS)
        ]
        loads = [each.result() for each in running_loads]
    probed = probe.result()
    end_unix_s = max(each["last_sent_unix_s"] for each in loads)
    during = [size / 2**20 for time_s, size in samples if time_s < end_unix_s]
    tell(f"Memory, MiB, every tenth of the overload: {', '.join(f'{each:.0f}' for each in _tenths(during))}")
    outcomes: Counter[str] = Counter()
    for each in (*loads, probed):
        outcomes.update(each["outcomes"])
    tell(
        f"{sum(outcomes.values())} requests: {', '.join(f'{count} {each}' for each, count in outcomes.items())}. "
        f"Answered with 200 meanwhile: {sum(each['images_per_s'] for each in loads):.1f} images/s. Sent late by (p99): "
        f"{max(each['late_sending_p99_ms'] for each in loads):.0f} ms. The load generators took "
        f"{sum(each['own_cpus'] for each in loads):.2f} CPUs."
    )
    by_second = [_median(probe.latencies_ms(end_unix_s + k, end_unix_s + k + 1)) for k in range(int(WATCHED_S) - 1)]
    tell(f"p50 of each second after it, ms: {', '.join(f'{each:.0f}' for each in by_second)}")
    after_ms = _median(probe.latencies_ms(end_unix_s + RECOVERY_S, end_unix_s + WATCHED_S))
    grown = growth([sample for sample in samples if sample[0] < end_unix_s])
    num_unanswered = outcomes[TIMED_OUT] + outcomes[DISCONNECTED]
    others = set(outcomes) - {"200", "429", "503", TIMED_OUT, DISCONNECTED}
    return [
        Check("requests without an answer: 0", str(num_unanswered), not num_unanswered),
        Check("answers but 200, 429 and 503: none", ", ".join(sorted(others)) or "none", not others),
        Check(f"memory grows by at most {MAX_GROWTH:.0%}", f"{grown:.1%}", grown <= MAX_GROWTH),
        Check(
            f"p50 from {RECOVERY_S:g} s after it: at most {MAX_SLOWER:g} times {normal_ms:.0f} ms",
            f"{after_ms:.0f} ms",
            after_ms <= MAX_SLOWER * normal_ms,
        ),
    ]


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else float("nan")


def _tenths(values: Sequence[float]) -> list[float]:
    return [values[place * (len(values) - 1) // 10] for place in range(11)] if values else []


def to_markdown(settings: Settings, told: Sequence[str], checks: Sequence[Check], date: str) -> str:
    """Returns the result as a page."""
    has = machine()
    lines = [
        f"# The endpoint under {settings.factor:g} times what it can answer, {date}",
        "",
        f"    python benchmarks/overload.py --bundle BUNDLE --data DIR --duration-s {settings.duration_s:g}",
        "",
        "| wanted | found | met |",
        "| --- | --- | --- |",
        *(f"| {check.what} | {check.found} | {'yes' if check.is_met else 'NO'} |" for check in checks),
        "",
        *(f"- {each}" for each in told),
        f"- Machine: {has['cpu']}, {has['num_cores']} cores, {has['memory_gib']} GiB.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Overloads the endpoint, writes what was found, and fails where it is not as it should be."""
    settings = tyro.cli(Settings, prog="overload.py", description=__doc__)
    if not Path(settings.bundle, "bundle.json").is_file() or not Path(settings.data).is_dir():
        print(NEEDS, file=sys.stderr)
        sys.exit(2)
    told: list[str] = []

    def tell(figures: str) -> None:
        print(figures, flush=True)
        told.append(figures)

    system = SYSTEMS["tlray"]
    with tempfile.TemporaryDirectory(prefix="tlray-overload-") as directory:
        images = Path(directory, "images")
        write_images(settings.data, images)
        first = min(images.iterdir()).read_bytes()
        with running(system, make_environment(system.requirements), settings.bundle, first, precision="auto") as server:
            checks = overload(settings, server, Generators(server, images, Path(directory)), tell)
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    page = to_markdown(settings, told, checks, date)
    path = Path(settings.out, f"overload_{date}.md")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page)
    print(f"\n{page}\nWritten: {path}")
    sys.exit(not all(check.is_met for check in checks))


if __name__ == "__main__":
    main()
