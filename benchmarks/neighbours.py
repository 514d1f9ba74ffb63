"""Two endpoints with keys on one machine, one of them killed again and again: does either ever answer for the other?

    python benchmarks/neighbours.py --bundle BUNDLE --data DIR

Both are `tlray serve`, with bundles that differ, keys that differ, and clients of their own. Of the second one the
replica, then HAProxy, then all processes are killed in turn, and it is started again where it must be. The script
prints a table and writes it as `neighbours_DATE.md` into --out. It fails where an answer came from a wrong endpoint or
without a key, where the first one gave anything but its own answers, or where the second one did not come back.
"""

import dataclasses
import datetime
import http.client
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from tlray.cluster.ports import free_ports

sys.path.insert(0, str(Path(__file__).parent))
from load import CONTENT_TYPE, encode_form
from processes import family, identities
from serving import NEEDS, write_images
from train_step import machine

from tlray.bundle import store

START_S = 240.0
"""Seconds for an endpoint to start, or to come back, beside another one."""
NUM_CLIENTS = 2
"""Clients of each endpoint that send images; one more asks without a key, and one with the other endpoint's."""
PAUSE_S = 0.02
"""Seconds between two requests of a client."""
KILLS = ("replica", "HAProxy", "everything")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Kill one of two endpoints again and again."""

    bundle: str = ""
    """The bundle that is served; the second endpoint gets a copy with another threshold."""
    data: str = ""
    """A local folder of images, at any depth."""
    rounds: int = 3
    """How often each kind of kill is made."""
    out: str = "benchmarks/results"
    """The folder for the result; an earlier one of the same day is replaced."""


@dataclass(slots=True, kw_only=True)
class Endpoint:
    """An endpoint, and what its clients saw.

    Attributes:
        bundle: The bundle's location.
        port: Where it listens.
        key: What opens it.
        sha256: The name of its bundle.
        process: `tlray serve`.
        answers: By time ("at its start", or "later", when it has answered once), client ("own key", "no key", "other
            key") and what came: a status with the bundle, or an error.
        last_ok_s: When its own bundle answered last, by the monotonic clock.
    """

    bundle: str
    port: int
    key: str
    sha256: str
    process: subprocess.Popen[bytes] | None = None
    answers: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    last_ok_s: float = 0.0

    def start(self, log: Path) -> None:
        """Starts it; does not wait."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TLRAY_"))}
        environment |= {"TLRAY_API_KEYS": self.key, "TF_CPP_MIN_LOG_LEVEL": "2"}
        command = [sys.executable, "-m", "tlray", "serve", "--quiet", "--bundle", self.bundle, "--port", str(self.port)]
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=output, start_new_session=True
            )

    def wait(self, since_s: float) -> float:
        """Waits until it has answered an own client later than a time; returns the seconds that this took."""
        begin_s, pause = time.monotonic(), threading.Event()
        while self.last_ok_s <= since_s:
            if time.monotonic() > begin_s + START_S:
                raise TimeoutError(f"The endpoint at port {self.port} did not answer within {START_S:g} s.")
            pause.wait(0.1)
        return self.last_ok_s - since_s

    def members(self, part: str) -> set[tuple[int, str]]:
        """Returns its processes of a kind, each with its start."""
        if self.process is None:
            return set()
        wanted = {"replica": "ray::ServeReplica", "HAProxy": "haproxy -db", "everything": ""}[part]
        found = {pid for pid in family(self.process.pid) if wanted in _command(pid)}
        return identities(found)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def ask(port: int, key: str | None, image: bytes) -> str:
    """Sends an image; returns the status and the answering bundle, or what went wrong on the way."""
    headers = {"Content-Type": CONTENT_TYPE} | ({"X-API-Key": key} if key else {})
    request = urllib.request.Request(f"http://127.0.0.1:{port}/predict", encode_form(image), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return f"{answer.status} {json.load(answer)['bundle_sha256'][:12]}"
    except urllib.error.HTTPError as error:
        body = error.read()
        kind = "JSON" if body.startswith(b"{") else "no JSON"
        return f"{error.code} {kind}"
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:  # also an answer of another shape
        return type(getattr(error, "reason", error)).__name__


@contextmanager
def clients(endpoint: Endpoint, other_key: str, image: bytes) -> Iterator[None]:
    """Has clients ask an endpoint all the time: with its key, without one, and with the other endpoint's."""
    is_over = threading.Event()

    def run(kind: str, key: str | None) -> None:
        while not is_over.wait(PAUSE_S):
            phase = "later" if endpoint.last_ok_s else "at its start"
            found = ask(endpoint.port, key, image)
            endpoint.answers[phase, kind, found] += 1
            if kind == "own key" and found == f"200 {endpoint.sha256[:12]}":
                endpoint.last_ok_s = time.monotonic()

    kinds = [("own key", endpoint.key)] * NUM_CLIENTS + [("no key", None), ("other key", other_key)]
    threads = [threading.Thread(target=run, args=each) for each in kinds]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def kill(endpoint: Endpoint, part: str) -> None:
    """Kills processes of an endpoint, and waits until they are gone."""
    members = endpoint.members(part)
    if not members:
        raise RuntimeError(f"The endpoint at port {endpoint.port} has no {part}.")
    for pid, _ in members:
        os.kill(pid, signal.SIGKILL)
    pause = threading.Event()
    while members & identities(pid for pid, _ in members):
        if endpoint.process is not None:
            endpoint.process.poll()
        pause.wait(0.05)


def soak(settings: Settings, first: Endpoint, second: Endpoint, image: bytes, log: Path) -> list[str]:
    """Runs both and kills the second; returns a line for each kill."""
    told: list[str] = []
    with ExitStack() as stack:
        for endpoint in (first, second):
            endpoint.start(log)
            stack.callback(end, endpoint)
        for endpoint, other in ((first, second), (second, first)):
            stack.enter_context(clients(endpoint, other.key, image))
        for endpoint in (first, second):
            endpoint.wait(0.0)
        for number in range(settings.rounds * len(KILLS)):
            part = KILLS[number % len(KILLS)]
            kill(second, part)
            killed_s = time.monotonic()
            if part == "everything":
                second.start(log)
            told.append(f"{part} killed: it answered again after {second.wait(killed_s):.1f} s.")
            print(told[-1], flush=True)
            first.wait(killed_s)
    return told


def end(endpoint: Endpoint) -> None:
    """Ends an endpoint by Ctrl-C."""
    if endpoint.process is None:
        return
    endpoint.process.send_signal(signal.SIGINT)
    endpoint.process.wait(120)


def wrong_answers(endpoint: Endpoint, *, is_left_alone: bool) -> Counter[tuple[str, str, str]]:
    """Returns the answers that must not be.

    Args:
        endpoint: The endpoint.
        is_left_alone: Nobody kills it: once it has answered, it always does.
    """
    own = f"200 {endpoint.sha256[:12]}"
    allowed = {"own key": {own, "429 JSON"}, "no key": {"401 JSON"}, "other key": {"403 JSON"}}
    away = {"503 JSON", "ConnectionRefusedError"}
    cut = {"ConnectionResetError", "RemoteDisconnected", "IncompleteRead", "BadStatusLine"}

    def may_be(phase: str, kind: str, found: str) -> bool:
        is_away = phase == "at its start" or not is_left_alone
        return found in allowed[kind] or (is_away and found in away) or (not is_left_alone and found in cut)

    wrong = Counter({each: count for each, count in endpoint.answers.items() if not may_be(*each)})
    # A client that has died would have seen nothing wrong.
    asked = {kind for phase, kind, found in endpoint.answers if phase == "later" and found in allowed[kind]}
    return wrong + Counter({("later", kind, "no answer at all"): 1 for kind in allowed.keys() - asked})


def to_markdown(endpoints: tuple[Endpoint, Endpoint], told: list[str], wrong: str, date: str, rounds: int) -> str:
    """Returns the result as a page."""
    has = machine()
    lines = [
        f"# Two endpoints with keys on one machine, the second one killed {rounds * len(KILLS)} times, {date}",
        "",
        f"    python benchmarks/neighbours.py --bundle BUNDLE --data DIR --rounds {rounds}",
        "",
        f"Answers that must not be (another endpoint's model, any without a key, no JSON): {wrong or 'none'}.",
        "",
        "| endpoint | when | asked with | what came | times |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {name} | {phase} | {kind} | {found} | {count} |"
            for name, endpoint in zip(("first", "second"), endpoints, strict=True)
            for (phase, kind, found), count in sorted(endpoint.answers.items())
        ),
        "",
        f"The bundles are {endpoints[0].sha256[:12]} (first) and {endpoints[1].sha256[:12]} (second).",
        "",
        *(f"- {each}" for each in told),
        f"- Machine: {has['cpu']}, {has['num_cores']} cores, {has['memory_gib']} GiB.",
    ]
    return "\n".join(lines) + "\n"


def copy_bundle(location: str, out: str) -> str:
    """Copies a bundle with another threshold, so that its name differs; returns the name."""
    shutil.copytree(location, out)
    spec, _ = store.read_spec(location)
    thresholds = dict(spec.thresholds) | {"refer_below": 0.75 if spec.refer_below < 0.5 else 0.25}
    return store.seal(out, dataclasses.replace(spec, thresholds=thresholds))


def main() -> None:
    """Kills one of two endpoints, writes what came, and fails where it is not as it should be."""
    settings = tyro.cli(Settings, prog="neighbours.py", description=__doc__)
    if not Path(settings.bundle, "bundle.json").is_file() or not Path(settings.data).is_dir():
        print(NEEDS, file=sys.stderr)
        sys.exit(2)
    with tempfile.TemporaryDirectory(prefix="tlray-neighbours-") as directory:
        images = Path(directory, "images")
        write_images(settings.data, images)
        image = min(images.iterdir()).read_bytes()
        location = str(Path(settings.bundle).resolve())
        other = str(Path(directory, "other"))
        names = (store.read_spec(location)[1], copy_bundle(location, other))
        first, second = (
            Endpoint(bundle=place, port=port, key=secrets.token_hex(16), sha256=sha256)
            for place, port, sha256 in zip((location, other), free_ports(2), names, strict=True)
        )
        log = Path(directory, "log")
        try:
            told = soak(settings, first, second, image, log)
        except (TimeoutError, RuntimeError, subprocess.TimeoutExpired) as error:
            sys.exit(f"{error}\n{log.read_text(errors='replace')[-4000:]}")
    wrong = wrong_answers(first, is_left_alone=True) + wrong_answers(second, is_left_alone=False)
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    found = ", ".join(f"{count} times {came} with {kind} ({phase})" for (phase, kind, came), count in wrong.items())
    page = to_markdown((first, second), told, found, date, settings.rounds)
    path = Path(settings.out, f"neighbours_{date}.md")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page)
    print(f"\n{page}\nWritten: {path}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
