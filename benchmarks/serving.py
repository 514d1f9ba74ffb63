"""The endpoint beside its peers: images per second and latencies under the same load, on one machine, in one run.

    python benchmarks/serving.py --bundle BUNDLE --data DIR

The same model behind `tlray serve`, the same application with plain `@serve.batch`, LitServe, BentoML and FastAPI, and
bare, without a server (`peers/`). The peers run it with TensorFlow, as their users do; LitServe also with OpenVINO, to
tell what the engine gives and what the server does. In each round they take turns, in another order each time: each is
started in an environment of its own, tried, put under load (`load.py`, a process of its own), and ended. Load: JPEG
uploads by 1, 8 and 64 clients that wait for their answers (closed loop), and at random times at half and at twice the
bare engine's rate (open loop).

It prints a table and writes `serving_DATE.md` and `.json` into --out. The page has each server's CPU time by process,
and begins with a warning if other work ran on the machine before a server was started. No figure makes it fail; a
server that says something else of an image than the bare model does.
"""

import datetime
import importlib.metadata
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from processes import cpu_by_part, cpu_times, memory_bytes, num_running
from servers import PEERS, ROOT, SYSTEMS, System, make_environment, running
from serving_results import BARE, ENGINES, LOADS, to_markdown
from train_step import machine

from tlray.data import listing

NUM_IMAGES = 200
JPEG_QUALITY = 90
LOAD_TIMEOUT_S = 60.0
SAME = 1e-3
"""The largest difference of a probability between a server and the bare model."""
PACKAGES = ("tlray", "ray", "tensorflow", "openvino", "numpy", "pillow", "fastapi", "uvicorn", "aiohttp")

NEEDS = """This benchmark needs a model and images:
  --bundle DIR    a bundle that `tlray train` or `tlray export` has made
  --data DIR      any folder of images"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Compare the endpoint with its peers on this machine."""

    bundle: str = ""
    """The bundle that all of them serve."""
    data: str = ""
    """A local folder of images, at any depth; an even choice of 200 is sent, as grey JPEGs."""
    systems: tuple[str, ...] = tuple(SYSTEMS)
    """The servers to compare: tlray, what its parts are worth (serve_batch, two_processes, python_proxy), and peers
    (litserve, litserve_openvino, bentoml, fastapi)."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Numbers that OpenVINO computes with, in every server that has it; auto: what the bundle's own comparison of
    engines allows on this machine."""
    rounds: int = 2
    """How often each is started and measured."""
    duration_s: float = 15.0
    """How long each load counts, after a third of it that does not."""
    out: str = "benchmarks/results"
    """The folder for the results; earlier ones of the same day are replaced."""

    def __post_init__(self) -> None:
        if unknown := set(self.systems) - set(SYSTEMS):
            raise ValueError(f"--systems has {', '.join(sorted(unknown))}. Choose from {', '.join(SYSTEMS)}.")


def write_images(data: str, directory: Path) -> None:
    """Writes an even choice of a folder's images as grey JPEGs."""
    uris = sorted(listing.list_images(data).table["uri"].to_pylist())
    directory.mkdir()
    for number, uri in enumerate(uris[:: max(1, len(uris) // NUM_IMAGES)][:NUM_IMAGES]):
        encoded = io.BytesIO()
        Image.open(uri).convert("L").save(encoded, "JPEG", quality=JPEG_QUALITY)
        (directory / f"{number:04d}.jpg").write_bytes(encoded.getvalue())


def run_bare(settings: Settings, engine: str, images: Path) -> dict[str, Any]:
    """Returns what `peers/bare.py` measures; TensorFlow computes in float32."""
    precision = settings.precision if engine == "openvino" else "float32"
    command = [sys.executable, str(PEERS / "bare.py"), settings.bundle, engine, str(images)]
    command += [str(settings.duration_s), precision]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"peers/bare.py failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout)


def run_load(url: str, images: Path, load: Sequence[str], *, warmup_s: float, duration_s: float) -> dict[str, Any]:
    """Returns what `load.py` measures."""
    command = [sys.executable, str(Path(__file__).with_name("load.py")), url, "--images", str(images), *load]
    command += ["--warmup-s", str(warmup_s), "--duration-s", str(duration_s), "--timeout-s", str(LOAD_TIMEOUT_S)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def run_system(
    system: System, settings: Settings, images: Path, bare: dict[str, Any], rate_per_s: float
) -> dict[str, Any]:
    """Starts a server, puts every load on it, and returns what came of each; `bare` is its engine alone."""
    first = sorted(images.iterdir())[0].read_bytes()
    python = make_environment(system.requirements)
    with running(system, python, settings.bundle, first, precision=bare["precision"]) as server:
        difference = float(np.abs(np.subtract(server.probabilities, bare["probabilities"])).max())
        if difference > SAME:
            sys.exit(f"{system.name} differs from the bare model by {difference:.2g} for the same image.")
        found: dict[str, Any] = {}
        for load in LOADS:
            before = cpu_times(server.pid)
            found[load.name] = run_load(
                server.url,
                images,
                load.arguments(rate_per_s),
                warmup_s=settings.duration_s / 3,
                duration_s=settings.duration_s,
            )
            by_part = cpu_by_part(server.pid, before)
            found[load.name] |= {"server_cpu_s": sum(by_part.values()), "server_cpu_s_by_part": by_part}
            print(f"  {system.name}, {load.name}: {_line(found[load.name])}", flush=True)
        return {"loads": found, "memory_bytes": memory_bytes(server.pid)[0]}


def _line(found: dict[str, Any]) -> str:
    latency = found["latency_ms"] or {}
    shown = ", ".join(f"{name} {value:.0f}" for name, value in latency.items() if name.startswith("p"))
    return f"{found['images_per_s']:.1f} images/s, {shown} ms, {found['outcomes']}, load {found['own_cpus']:.2f} CPUs"


def measure(settings: Settings, images: Path) -> dict[str, Any]:
    """Runs all rounds and returns what each system came to in each of them, and the open loop's basis."""
    systems = [SYSTEMS[name] for name in settings.systems]
    for system in systems:
        make_environment(system.requirements)
    first = run_bare(settings, BARE, images)
    if first["precision"] == "int8":
        sys.exit("The peers have no int8 model. Give --precision bfloat16 or float32.")
    rate_per_s = first["images_per_s"]
    print(f"bare: {rate_per_s:.1f} images/s", flush=True)
    rounds: list[dict[str, Any]] = []
    for number in range(settings.rounds):
        found: dict[str, Any] = {}
        for engine in ENGINES:
            running_before = num_running()
            found[engine] = {"running_before": running_before, **run_bare(settings, engine, images)}
            rate = f"{found[engine]['images_per_s']:.1f} images/s ({found[engine]['precision']})"
            print(f"round {number + 1}/{settings.rounds}, bare {engine}: {rate}", flush=True)
        shift = number * max(1, len(systems) // settings.rounds) % len(systems)
        for system in systems[shift:] + systems[:shift]:
            running_before = num_running()
            print(f"  {running_before:.1f} other tasks run on the machine", flush=True)
            came = run_system(system, settings, images, found[system.engine], rate_per_s)
            found[system.name] = {"running_before": running_before, **came}
        rounds.append(found)
    return {"rate_per_s": rate_per_s, "rounds": rounds}


def describe(settings: Settings, load_before: float) -> dict[str, Any]:
    """Returns what a reader must know to repeat the measurement."""
    versions = {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}
    for name in settings.systems:
        if requirements := SYSTEMS[name].requirements:
            pins = dict(
                line.split("==") for line in (PEERS / f"{requirements}.txt").read_text().splitlines() if "==" in line
            )
            versions[f"peer {requirements}"] = pins[requirements]
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": f"python benchmarks/serving.py --bundle BUNDLE --data DIR --systems {' '.join(settings.systems)} "
        f"--precision {settings.precision} --rounds {settings.rounds} --duration-s {settings.duration_s:g}",
        "machine": machine(),
        "load_1_min": {"before": round(load_before, 2), "after": round(os.getloadavg()[0], 2)},
        "versions": versions,
        "model": json.loads(Path(settings.bundle, "bundle.json").read_text())["backbone"],
        "systems": {name: SYSTEMS[name].how for name in settings.systems},
        "sent": {
            "num_images": NUM_IMAGES,
            "jpeg_quality": JPEG_QUALITY,
            "warmup_s": settings.duration_s / 3,
            "duration_s": settings.duration_s,
            "timeout_s": LOAD_TIMEOUT_S,
        },
    }


def main() -> None:
    """Measures, prints the table, and writes the results."""
    settings = tyro.cli(Settings, prog="serving.py", description=__doc__)
    if not Path(settings.bundle, "bundle.json").is_file() or not os.path.isdir(settings.data):
        print(NEEDS, file=sys.stderr)
        sys.exit(2)
    os.environ["PYTHONPATH"] = str(ROOT)
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="tlray-benchmark-") as directory:
        images = Path(directory, "images")
        write_images(settings.data, images)
        measured = measure(settings, images)
    about = describe(settings, load_before)
    page = to_markdown(about, measured)
    stem = Path(settings.out) / f"serving_{about['date']}"
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(about | measured, indent=2) + "\n")
    stem.with_suffix(".md").write_text(page)
    print(f"\n{page}\nWritten: {stem}.md, {stem}.json")


if __name__ == "__main__":
    main()
