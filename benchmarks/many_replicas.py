"""How much memory several model replicas take on this machine, and how soon all of them are ready.

    python benchmarks/many_replicas.py --bundle BUNDLE [--replicas 8]

Each replica is a deployment of its own, a version of the same bundle, on a Ray of its own that believes to have enough
CPUs. Memory is the proportional set size: what processes share, such as the weights that they map, counts once. All
replicas have answered for one image when it is taken. It prints one line. No figure makes it fail.
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

from serve_app.app import build
from serve_app.options import Options
from tlray.cluster.ports import free_ports

NAME = b"ray::ServeReplica:default:Classifier"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Measure several replicas on this machine."""

    bundle: str
    """The bundle that all of them serve."""
    replicas: int = 8
    """Number of replicas."""


def is_replica(pid: int) -> bool:
    """Tells whether a process holds a model."""
    with contextlib.suppress(OSError):
        return NAME in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def main() -> None:
    """Starts the replicas, asks each for an image, and prints what they take."""
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
    each = f"{min(of_replicas):.0f} to {max(of_replicas):.0f} MiB each, {sum(of_replicas) / 1024:.1f} GiB together"
    ready = f"{len(of_replicas)} replicas ready after {ready_s:.1f} s"
    print(f"{ready}: {each}, {total_gib:.1f} GiB with Ray and the ingress.")
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
