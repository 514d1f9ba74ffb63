"""What the server around the engine costs: tlray and LitServe with the same OpenVINO model, in turns of seconds.

    python benchmarks/serving_turns.py --bundle BUNDLE --data DIR

`serving.py` measures each server for a minute; a machine whose speed moves within minutes moves the ratio of two
servers more than they differ. Here both run at once and take turns: while one is under the load of JPEG uploads by
closed-loop clients, the other waits. The speed of neighbouring turns is alike, so each pair gives a ratio, and the
median of the pairs is what was wanted. The CPU time of an image is that of all processes of a server.

It prints a table and writes `serving_turns_DATE.md` into --out. No figure makes it fail; a server that says something
else of an image than the bare model does.
"""

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parent))
from processes import cpu_by_part, cpu_times
from result_page import Goal, write_goals
from servers import ROOT, SYSTEMS, Server, make_environment, running
from serving import NEEDS, SAME, run_bare, run_load, write_images
from serving import Settings as ServingSettings

OURS, PEER = "tlray", "litserve_openvino"
MIN_RATIO = 1.0
NUM_DRAWS = 2000
"""Number of samples of the bootstrap over pairs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Compare two servers of one engine in turns."""

    bundle: str = ""
    """The bundle that both serve."""
    data: str = ""
    """A local folder of images, at any depth; an even choice of 200 is sent, as grey JPEGs."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Numbers that OpenVINO computes with; auto: what the bundle's own comparison of engines allows on this machine."""
    clients: tuple[int, ...] = (8, 64)
    """Numbers of clients; each is a row of the table."""
    pairs: int = 15
    """How often each server has its turn, for each number of clients."""
    duration_s: float = 4.0
    """How long a turn counts, after a quarter of it that does not."""
    out: str = "benchmarks/results"
    """The folder for the results."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What a server did in its turn.

    Attributes:
        images_per_s: Images answered with 200 in a second.
        cpu_ms: CPU time of all processes of the server for an image, the time that does not count included.
    """

    images_per_s: float
    cpu_ms: float


def take_turn(server: Server, images: Path, num_clients: int, duration_s: float) -> Turn:
    """Puts a load on a server and returns what came of it."""
    before = cpu_times(server.pid)
    found = run_load(
        server.url, images, ["--clients", str(num_clients)], warmup_s=duration_s / 4, duration_s=duration_s
    )
    cpu_s = sum(cpu_by_part(server.pid, before).values())
    answered = found["images_per_s"] * duration_s * 1.25
    return Turn(images_per_s=found["images_per_s"], cpu_ms=1000 * cpu_s / answered)


def median_with_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Returns a median, and the ends of its 95 % interval by the bootstrap over values (percentiles)."""
    given = np.asarray(values)
    drawn = np.random.default_rng(seed).choice(given, (NUM_DRAWS, len(given)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return float(np.median(given)), float(low), float(high)


def text_of(values: Sequence[float], digits: int = 2) -> str:
    """Returns a median with its interval for a table."""
    median, low, high = median_with_interval(values)
    return f"{median:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def rows(num_clients: int, turns: Mapping[str, Sequence[Turn]]) -> list[str]:
    """Returns the table's rows for a number of clients; `turns` has as many of each server, in pairs."""
    ours, peer = turns[OURS], turns[PEER]
    rates = [a.images_per_s / b.images_per_s for a, b in zip(ours, peer, strict=True)]
    cpu = [a.cpu_ms / b.cpu_ms for a, b in zip(ours, peer, strict=True)]
    return [
        f"| {num_clients} | images/s | {text_of([t.images_per_s for t in ours], 1)} | "
        f"{text_of([t.images_per_s for t in peer], 1)} | **{text_of(rates)}** |",
        f"| {num_clients} | CPU ms an image | {text_of([t.cpu_ms for t in ours], 1)} | "
        f"{text_of([t.cpu_ms for t in peer], 1)} | {text_of(cpu)} |",
    ]


def measure(settings: Settings, images: Path) -> dict[int, dict[str, list[Turn]]]:
    """Starts both servers and returns their turns by number of clients."""
    serving = ServingSettings(bundle=settings.bundle, data=settings.data, precision=settings.precision, duration_s=3)
    bare = run_bare(serving, "openvino", images)
    print(f"bare: {bare['images_per_s']:.1f} images/s ({bare['precision']})", flush=True)
    first = sorted(images.iterdir())[0].read_bytes()
    found: dict[int, dict[str, list[Turn]]] = {}
    with ExitStack() as stack:
        servers: dict[str, Server] = {}
        for name in (OURS, PEER):
            python = make_environment(SYSTEMS[name].requirements)
            started = running(SYSTEMS[name], python, settings.bundle, first, precision=bare["precision"])
            servers[name] = stack.enter_context(started)
            difference = float(np.abs(np.subtract(servers[name].probabilities, bare["probabilities"])).max())
            if difference > SAME:
                sys.exit(f"{name} differs from the bare model by {difference:.2g} for the same image.")
        for num_clients in settings.clients:
            turns: dict[str, list[Turn]] = {OURS: [], PEER: []}
            for number in range(settings.pairs):
                # In another order each time: the first turn of one pair would always come before the second.
                for name in (OURS, PEER) if number % 2 else (PEER, OURS):
                    turns[name].append(take_turn(servers[name], images, num_clients, settings.duration_s))
            found[num_clients] = turns
            print("\n".join(rows(num_clients, turns)), flush=True)
    return found


def main() -> None:
    """Measures and writes the table."""
    settings = tyro.cli(Settings, prog="serving_turns.py", description=__doc__)
    if not Path(settings.bundle, "bundle.json").is_file() or not os.path.isdir(settings.data):
        print(NEEDS, file=sys.stderr)
        sys.exit(2)
    os.environ["PYTHONPATH"] = str(ROOT)
    with tempfile.TemporaryDirectory(prefix="tlray-benchmark-") as directory:
        images = Path(directory, "images")
        write_images(settings.data, images)
        found = measure(settings, images)
    most = max(settings.clients)
    ours, peer = (np.array([turn.images_per_s for turn in found[most][name]]) for name in (OURS, PEER))
    ratio, low, high = median_with_interval((ours / peer).tolist())
    write_goals(
        "serving_turns",
        "The server around the engine, in turns",
        f"python benchmarks/serving_turns.py --bundle BUNDLE --data DIR --precision {settings.precision} --clients "
        f"{' '.join(map(str, settings.clients))} --pairs {settings.pairs} --duration-s {settings.duration_s:g}",
        goals=[
            Goal(
                wanted=f"times LitServe's images/s with the same engine, {most} clients: at least {MIN_RATIO:g}",
                found=f"{ratio:.2f} ({low:.2f} to {high:.2f})",
                is_met=ratio >= MIN_RATIO,
            )
        ],
        lines=[
            f"| clients | what | {OURS} | LitServe, same engine | ratio, in pairs |",
            "| --- | --- | --- | --- | --- |",
            *(row for num_clients, turns in found.items() for row in rows(num_clients, turns)),
            "",
            f"Medians of {settings.pairs} pairs of turns, with 95 % intervals by the bootstrap over pairs. Each turn "
            f"counts for {settings.duration_s:g} s after {settings.duration_s / 4:g} s that do not. What the load "
            "generator takes of the CPUs is the same for both.",
        ],
        out=settings.out,
    )


if __name__ == "__main__":
    main()
