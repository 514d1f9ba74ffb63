"""Load on an endpoint that takes image files as a form: a process of its own that measures and prints JSON.

    python benchmarks/load.py http://127.0.0.1:8000/predict --images DIR --clients 8
    python benchmarks/load.py http://127.0.0.1:8000/predict --images DIR --rate-per-s 60

Closed loop: so many clients, each of which sends its next image when it has the answer. Open loop: images are sent at
random times (a Poisson process), whatever has become of the earlier ones; there an image's latency counts from the time
at which it should have been sent, so that nothing is hidden where sending itself is late ("coordinated omission").

It shares the machine with what it measures: forms are encoded before it begins, and it tells what CPU time it took.
"""

import asyncio
import csv
import json
import resource
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import numpy as np
import tyro

BOUNDARY = "tlray-7d0f9c3a5e"
CONTENT_TYPE = f"multipart/form-data; boundary={BOUNDARY}"

PERCENTILES = (50, 95, 99)
KEEP_ALIVE_S = 2.0
"""Less than any server's: a connection that the server closes just then would count as an error of it."""
REFUSED_PAUSE_S = 0.1
"""A client of the closed loop that got no answer, or a refusal, waits so long: at once, it would only burn the CPU."""

TIMED_OUT, DISCONNECTED = "timed_out", "disconnected"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Put load on an endpoint."""

    url: Annotated[str, tyro.conf.Positional]
    """Where to POST forms with a file in the field `file`."""
    images: str
    """A folder of files to send, in random order."""
    clients: int = 0
    """Closed loop: that many clients."""
    rate_per_s: float = 0.0
    """Open loop: images per second."""
    warmup_s: float = 5.0
    """The same load before anything counts."""
    duration_s: float = 15.0
    """How long it counts."""
    timeout_s: float = 60.0
    """A request without an answer by then counts as timed out."""
    seed: int = 0
    """Of the order of the files and of the times of sending."""
    records: str = ""
    """A CSV file for every single request."""

    def __post_init__(self) -> None:
        if (self.clients > 0) == (self.rate_per_s > 0):
            raise ValueError("Give either --clients or --rate-per-s.")


@dataclass(frozen=True, slots=True)
class Record:
    """A request.

    Attributes:
        due_s: When it was to be sent: seconds after the load began, as all times here.
        sent_s: When it was sent.
        done_s: When its answer was complete, or it failed.
        outcome: The HTTP status, `timed_out` or `disconnected`.
    """

    due_s: float
    sent_s: float
    done_s: float
    outcome: int | str


def encode_form(*contents: bytes) -> bytes:
    """Returns a form with files in the field `file`; its Content-Type is CONTENT_TYPE."""
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="image.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    )
    return b"".join(head.encode() + content + b"\r\n" for content in contents) + f"--{BOUNDARY}--\r\n".encode()


def arrival_times(rate_per_s: float, end_s: float, rng: np.random.Generator) -> list[float]:
    """Returns the times of a Poisson process from 0 to `end_s`."""
    times: list[float] = []
    now_s = rng.exponential(1 / rate_per_s)
    while now_s < end_s:
        times.append(now_s)
        now_s += rng.exponential(1 / rate_per_s)
    return times


def summarize(records: Sequence[Record], *, start_s: float, end_s: float) -> dict[str, Any]:
    """Returns what requests came to.

    Throughput counts the images that were answered with 200 from `start_s` to `end_s`, `num_answered` all of them;
    everything else the requests that were due then, whenever they were answered. Latencies are of the 200s only.
    """
    due = [each for each in records if start_s <= each.due_s < end_s]
    latencies_ms = [(each.done_s - each.due_s) * 1e3 for each in due if each.outcome == 200]
    num_in_time = sum(each.outcome == 200 and start_s <= each.done_s < end_s for each in records)
    late_ms = [(each.sent_s - each.due_s) * 1e3 for each in due]
    return {
        "images_per_s": num_in_time / (end_s - start_s),
        "num_requests": len(due),
        "num_answered": sum(each.outcome == 200 for each in records),
        "outcomes": {str(outcome): count for outcome, count in Counter(each.outcome for each in due).items()},
        "latency_ms": _percentiles(latencies_ms),
        "late_sending_p99_ms": float(np.percentile(late_ms, 99)) if late_ms else None,
    }


def _percentiles(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    names = [f"p{percentile}" for percentile in PERCENTILES]
    found = dict(zip(names, np.percentile(values, PERCENTILES).tolist(), strict=True))
    return found | {"mean": float(np.mean(values)), "max": max(values)}


class Load:
    """Requests in flight and what became of them."""

    def __init__(self, settings: Settings, session: aiohttp.ClientSession) -> None:
        self.records: list[Record] = []
        self._settings = settings
        self._session = session
        self._rng = np.random.default_rng(settings.seed)
        self._forms = [encode_form(path.read_bytes()) for path in sorted(Path(settings.images).iterdir())]
        self._end_s = settings.warmup_s + settings.duration_s
        self.start_unix_s = time.time()
        self._start_s = time.perf_counter()

    def _now_s(self) -> float:
        return time.perf_counter() - self._start_s

    async def run(self) -> None:
        """Sends, and returns when the last one is answered or has failed."""
        self.start_unix_s, self._start_s = time.time(), time.perf_counter()
        if self._settings.clients:
            await asyncio.gather(*(self._ask_on() for _ in range(self._settings.clients)))
        else:
            await self._send_at_random()

    async def _ask_on(self) -> None:
        while (now_s := self._now_s()) < self._end_s:
            if await self._send(now_s) != 200:
                await asyncio.sleep(REFUSED_PAUSE_S)

    async def _send_at_random(self) -> None:
        async with asyncio.TaskGroup() as requests:
            for due_s in arrival_times(self._settings.rate_per_s, self._end_s, self._rng):
                await asyncio.sleep(max(0.0, due_s - self._now_s()))
                requests.create_task(self._send(due_s))

    async def _send(self, due_s: float) -> int | str:
        sent_s = self._now_s()
        outcome: int | str
        try:
            form = self._forms[self._rng.integers(len(self._forms))]
            async with self._session.post(
                self._settings.url, data=form, headers={"Content-Type": CONTENT_TYPE}
            ) as answer:
                await answer.read()
                outcome = answer.status
        except TimeoutError:
            outcome = TIMED_OUT
        except aiohttp.ClientError:
            outcome = DISCONNECTED
        self.records.append(Record(due_s, sent_s, self._now_s(), outcome))
        return outcome


async def measure(settings: Settings) -> dict[str, Any]:
    """Runs the load and returns what is printed."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S)
    timeout = aiohttp.ClientTimeout(total=settings.timeout_s)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
    ) as session:
        load = Load(settings, session)
        cpu_start_s = time.process_time()
        await load.run()
        cpu_s, wall_s = time.process_time() - cpu_start_s, max(each.done_s for each in load.records)
    if settings.records:
        _write_records(settings.records, load)
    end_s = settings.warmup_s + settings.duration_s
    return summarize(load.records, start_s=settings.warmup_s, end_s=end_s) | {
        "start_unix_s": load.start_unix_s,
        "last_sent_unix_s": load.start_unix_s + max(each.sent_s for each in load.records),
        "own_cpus": cpu_s / wall_s,
    }


def _write_records(path: str, load: Load) -> None:
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["due_unix_s", "latency_ms", "outcome"])
        rows.writerows(
            [load.start_unix_s + each.due_s, (each.done_s - each.due_s) * 1e3, each.outcome] for each in load.records
        )


def main() -> None:
    """Puts load on an endpoint and prints one line of JSON."""
    settings = tyro.cli(Settings, prog="load.py", description=__doc__)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a server that is slow to answer holds many connections
    try:
        import uvloop  # noqa: PLC0415 (not on every system)

        runner: Any = uvloop.run
    except ImportError:
        runner = asyncio.run
    print(json.dumps(runner(measure(settings))))


if __name__ == "__main__":
    main()
