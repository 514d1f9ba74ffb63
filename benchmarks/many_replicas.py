"""How much memory several model replicas take on this machine, and how soon all of them are ready.

    python benchmarks/many_replicas.py --bundle BUNDLE [--replicas 8]

Each replica is a deployment of its own, a version of the same bundle, on a Ray of its own that believes to have enough
CPUs. Memory is the proportional set size: what processes share, such as the weights that they map, counts once. All
replicas have answered for one image when it is taken. It prints a table and writes `many_replicas_DATE.md` into --out.
No figure makes it fail.
"""

import base64
import contextlib
import io
import json
import os
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import ray
import tyro
from PIL import Image
from ray import serve

sys.path.insert(0, str(Path(__file__).parent))
from processes import family, memory_bytes
from result_page import Goal, write_goals

from serve_app.app import build
from serve_app.options import Options
from tlray.cluster.ports import free_ports

NAME = b"ray::ServeReplica:default:Classifier"
MAX_GIB = 24.0
"""Largest memory that is wanted of `WANTED_REPLICAS`, with Ray and the ingress."""
WANTED_REPLICAS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Measure several replicas on this machine."""

    bundle: str
    """The bundle that all of them serve."""
    replicas: int = WANTED_REPLICAS
    """Number of replicas."""
    out: str = "benchmarks/results"
    """The folder for the result; an earlier one of the same day is replaced."""


def is_replica(pid: int) -> bool:
    """Tells whether a process holds a model."""
    with contextlib.suppress(OSError):
        return NAME in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def goal(num_replicas: int, total_gib: float) -> Goal:
    """Returns the goal of the memory. Fewer replicas than are wanted cannot tell unless they take too much.

    Args:
        num_replicas: Number of replicas that were ready.
        total_gib: Memory of all processes, in GiB.
    """
    is_met = total_gib <= MAX_GIB
    return Goal(
        wanted=f"{WANTED_REPLICAS} replicas in {MAX_GIB:g} GiB",
        found=f"{num_replicas} in {total_gib:.1f} GiB",
        is_met=is_met if num_replicas >= WANTED_REPLICAS or not is_met else None,
    )


def main() -> None:
    """Starts the replicas, asks each for an image, and writes what they take."""
    settings = tyro.cli(Settings, prog="many_replicas.py", description=__doc__)
    ray.init(num_cpus=settings.replicas + 4, include_dashboard=False, log_to_driver=False)
    options = Options(
        bundle=settings.bundle, other_versions=dict.fromkeys(range(2, settings.replicas + 1), settings.bundle)
    )
    began_s = time.monotonic()
    (port,) = free_ports(1)
    serve.start(http_options={"port": port})
    serve.run(build(options))
    ready_s = time.monotonic() - began_s
    encoded = io.BytesIO()
    Image.new("L", (64, 64)).save(encoded, "PNG")
    body = json.dumps({"instances": [{"b64": base64.b64encode(encoded.getvalue()).decode()}]}).encode()
    for version in range(1, settings.replicas + 1):
        address = f"http://127.0.0.1:{port}/v1/models/{options.name}/versions/{version}:predict"
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            json.load(answer)
    members = family(os.getpid())
    of_replicas = [memory_bytes(pid)[0] / 2**20 for pid in members if is_replica(pid)]
    total_gib = memory_bytes(os.getpid())[0] / 2**30
    serve.shutdown()
    ray.shutdown()
    lines = [
        "| replicas | all ready after, s | each, MiB | together, GiB | with Ray and the ingress, GiB |",
        "| ---: | ---: | ---: | ---: | ---: |",
        f"| {len(of_replicas)} | {ready_s:.1f} | {min(of_replicas):.0f} to {max(of_replicas):.0f} | "
        f"{sum(of_replicas) / 1024:.1f} | {total_gib:.1f} |",
        "",
        "- Memory is the proportional set size after each replica has answered for an image; what processes share "
        "counts once.",
    ]
    command = f"python benchmarks/many_replicas.py --bundle BUNDLE --replicas {settings.replicas}"
    write_goals(
        "many_replicas", "Memory of several replicas", command,
        goals=[goal(len(of_replicas), total_gib)], lines=lines, out=settings.out,
    )  # fmt: skip


if __name__ == "__main__":
    main()
