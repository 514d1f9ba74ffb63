"""Bulk scoring: `tlray score` beside Keras' own ways on the same images, and beside the bare engine.

    python benchmarks/scoring.py --data DIR --bundle BUNDLE

Perturbed copies of the images (`perturbed.py`) are scored by `tlray score`, by `tf.data` with `predict`, and by
`image_dataset_from_directory` with `predict` (`peers/score_keras.py`), in turns, for each number of images. Each run is
a process of its own with all cores, timed from its start to its end; the peers' processes run TensorFlow, as their
users do. The steady rate is what more images cost: the images that a run has more than the one before it, by the
seconds that it takes more. The bare engine (`peers/bare.py`) runs batches in memory, before the runs and after them: it
reads and decodes nothing. Memory is the largest sum over a run's processes, in each quarter of its time (proportional
set sizes: what they share counts once), and the part of it that is Ray's object store.

It prints a table and writes `scoring_DATE.md` and `.json` into --out. No figure makes it fail.
"""

import contextlib
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

sys.path.insert(0, str(Path(__file__).parent))
import result_page
from perturbed import write_copies
from processes import memory_bytes

from tlray.config.training import PrecisionChoice
from tlray.data import listing

PEERS = Path(__file__).parent / "peers"
READERS = ("tf.data", "image_dataset_from_directory")
SYSTEMS = ("tlray", *READERS)
BARE_S = 10.0
SAMPLE_S = 5.0
"""Seconds between two looks at the memory. Looks twice a second took 14 % of a core from what is measured."""
NUM_LAST_LINES = 40
GOAL_OF_BARE, GOAL_OF_PEERS = 0.85, 2.0
PACKAGES = ("tlray", "ray", "openvino", "tensorflow", "keras", "numpy", "pillow", "pyarrow")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Compare bulk scoring with Keras' own ways on this machine."""

    data: str
    """A local folder of images, at any depth."""
    bundle: str
    """A bundle."""
    precision: PrecisionChoice = "auto"
    """Numbers that tlray computes with; auto: what the bundle's own comparison of engines allows on this machine."""
    num_images: tuple[int, ...] = (1000, 5000, 20000)
    """Images of each run, rising."""
    out: str = "benchmarks/results"
    """The folder for the results; earlier ones of the same day are replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one run came to.

    Attributes:
        wall_s: From the start of its process to its end.
        memory_gib: Peak in each quarter of that time.
        object_store_gib: The part of it that is Ray's object store.
    """

    wall_s: float
    memory_gib: list[float]
    object_store_gib: list[float]


def run_bare(settings: Settings, engine: str, images: Path) -> dict[str, Any]:
    """Returns what `peers/bare.py` measures; TensorFlow computes in float32."""
    precision = settings.precision if engine == "openvino" else "float32"
    command = [sys.executable, str(PEERS / "bare.py"), settings.bundle, engine, str(images), str(BARE_S), precision]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"peers/bare.py failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run(system: str, settings: Settings, images: Path, out: Path) -> Run:
    """Scores the images of a folder and checks that each has a row."""
    table = out / "predictions.csv" if system == "tlray" else out.with_suffix(".csv")
    if system == "tlray":
        command = ["-m", "tlray", "score", "--bundle", settings.bundle, "--input", str(images), "--out", str(out)]
        command += ["--precision", settings.precision, "--quiet"]
    else:
        command = [str(PEERS / "score_keras.py"), settings.bundle, str(images), system, str(table)]
    environment = os.environ | {"RAY_ADDRESS": "local", "TF_CPP_MIN_LOG_LEVEL": "2"}
    samples: list[tuple[int, int]] = []
    with tempfile.TemporaryFile("w+") as log:
        start_s = time.monotonic()
        process = subprocess.Popen([sys.executable, *command], env=environment, stdout=log, stderr=log)
        while process.poll() is None:
            samples.append(memory_bytes(process.pid))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(SAMPLE_S)
        wall_s = time.monotonic() - start_s
        if process.returncode:
            log.seek(0)
            sys.exit(f"{system} failed:\n{''.join(log.readlines()[-NUM_LAST_LINES:])}")
    num_rows = len(table.read_text().splitlines()) - 1
    num_images = len(list(images.iterdir()))
    if num_rows != num_images:
        sys.exit(f"{system} wrote {num_rows} rows for {num_images} images.")
    ends = [len(samples) * part // 4 for part in range(5)]
    quarters = [samples[start:end] for start, end in itertools.pairwise(ends)]
    return Run(
        wall_s=wall_s,
        memory_gib=[max((total for total, _ in quarter), default=0) / 2**30 for quarter in quarters],
        object_store_gib=[max((store for _, store in quarter), default=0) / 2**30 for quarter in quarters],
    )


def link(source: Path, directory: Path, num_images: int) -> None:
    """Makes a folder with the first images of another one."""
    directory.mkdir()
    for path in sorted(source.iterdir())[:num_images]:
        os.link(path, directory / path.name)


def steady_per_s(sizes: tuple[int, ...], runs: list[Run]) -> list[float | None]:
    """Returns the images of each run that the one before it had not, by the seconds that it took more."""
    pairs = zip(itertools.pairwise(sizes), itertools.pairwise(runs), strict=True)
    return [None, *((more - fewer) / (long.wall_s - short.wall_s) for (fewer, more), (short, long) in pairs)]


def main() -> None:
    """Measures, prints the table, and writes the results."""
    settings = tyro.cli(Settings, prog="scoring.py", description=__doc__)
    sizes = settings.num_images
    if any(more <= fewer for fewer, more in itertools.pairwise(sizes)):
        sys.exit(f"--num-images must rise. Received: {sizes}")
    # The first process of all reads the packages from the disk; none that is timed should pay for that.
    subprocess.run([sys.executable, "-c", "import keras, openvino, ray.data, tensorflow"], check=True)
    paths = [Path(uri) for uri in listing.list_images(settings.data).table["uri"].to_pylist()]
    runs: dict[str, list[Run]] = {system: [] for system in SYSTEMS}
    bare: dict[str, list[dict[str, Any]]] = {"openvino": [], "tensorflow": []}
    with tempfile.TemporaryDirectory(prefix="tlray-benchmark-") as temporary:
        scratch = Path(temporary)
        start_s = time.monotonic()
        write_copies(paths, scratch / "all", max(sizes))
        print(f"{max(sizes)} images made in {time.monotonic() - start_s:.0f} s", flush=True)
        link(scratch / "all", scratch / "few", 200)
        for engine, found in bare.items():
            found.append(run_bare(settings, engine, scratch / "few"))
        for turn, size in enumerate(sizes):
            images = scratch / f"images-{size}"
            link(scratch / "all", images, size)
            for system in SYSTEMS[turn % len(SYSTEMS) :] + SYSTEMS[: turn % len(SYSTEMS)]:
                runs[system].append(run(system, settings, images, scratch / f"{system}-{size}"))
                print(f"{size} images, {system}: {runs[system][-1].wall_s:.1f} s", flush=True)
            shutil.rmtree(images)
        for engine, found in bare.items():
            found.append(run_bare(settings, engine, scratch / "few"))
    command = f"python benchmarks/scoring.py --data DIR --bundle BUNDLE --precision {settings.precision} --num-images "
    command += " ".join(map(str, sizes))
    about = result_page.describe(command, PACKAGES)
    raw = {
        system: [{name: getattr(each, name) for name in Run.__dataclass_fields__} for each in found]
        for system, found in runs.items()
    }
    page = to_markdown(about, sizes, runs, bare)
    result_page.write(settings.out, "scoring", page, about, {"runs": raw, "bare": bare})


def to_markdown(
    about: dict[str, Any], sizes: tuple[int, ...], runs: dict[str, list[Run]], bare: dict[str, list[dict[str, Any]]]
) -> str:
    """Returns the results as a page."""
    rates = {engine: [each["images_per_s"] for each in found] for engine, found in bare.items()}
    limit_per_s = statistics.mean(rates["openvino"])
    steady = {system: steady_per_s(sizes, found) for system, found in runs.items()}
    rows = []
    for place, size in enumerate(sizes):
        ours, ours_per_s = runs["tlray"][place], steady["tlray"][place]
        for system in SYSTEMS:
            each, rate = runs[system][place], steady[system][place]
            cells = [
                f"{size:,}",
                system,
                f"{each.wall_s:.1f}",
                f"{each.wall_s / ours.wall_s:.2f}",
                f"{rate:.1f}" if rate else "",
                f"{ours_per_s / rate:.2f}" if rate and ours_per_s else "",
                f"{rate / limit_per_s:.2f}" if rate and system == "tlray" else "",
                ", ".join(f"{value:.1f}" for value in each.memory_gib),
                ", ".join(f"{value:.1f}" for value in each.object_store_gib) if system == "tlray" else "",
            ]
            rows.append(f"| {' | '.join(cells)} |")
    engines = "; ".join(
        f"{engine} {found[0]['precision']} {', '.join(f'{rate:.1f}' for rate in rates[engine])} images/s"
        for engine, found in bare.items()
    )
    lines = [
        f"# Bulk scoring beside Keras, {about['date']}",
        "",
        f"    {about['command']}",
        "",
        "| images | by | whole process, s | times tlray's | steady, images/s | tlray's beside it | of bare "
        "OpenVINO | peak memory in each quarter, GiB | of which object store |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *rows,
        "",
        f"- Goals: a steady rate of {GOAL_OF_BARE} of the bare engine, and {GOAL_OF_PEERS:g} times each peer's.",
        f"- One run each. tlray runs {bare['openvino'][0]['precision']} on OpenVINO, the peers float32 on TensorFlow, "
        "as their users do: much of the difference is the engine's, see the bare ones.",
        f"- Bare engines in batches of 32, before and after: {engines}. Decoding an image takes "
        f"{bare['openvino'][0]['decode_ms']:.1f} ms of one core (median); the bare engines decode none.",
        *result_page.machine_lines(about),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
