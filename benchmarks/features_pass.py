"""Images per second of `tlray features` beside the bare network on the same machine, and the memory that it takes.

    python benchmarks/features_pass.py --data DIR --weights FILE

The bare network (`features_bare.py`: batches in memory, no Ray) and whole runs of `tlray features` over 1,000 and
10,000 images take turns in this one call. The rate is that of the images which a run has more than the smallest one, in
the seconds that it takes longer: start and end count in neither, while reading the images twice, decoding, looking for
copies and writing do. A run's memory is the largest sum over its processes in each quarter of the run (proportional set
sizes: what they share counts once), and the part of it that is Ray's object store, which grows to its fixed limit and
no further. It prints a table and writes `features_pass_DATE.md` and `.json` into --out. No figure makes it fail.
"""

import itertools
import json
import os
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
from processes import memory_bytes
from train_step import NEEDS

from tlray.data import listing

BARE_S = 15.0
SAMPLE_S = 0.5
PACKAGES = ("tlray", "ray", "openvino", "tensorflow", "keras", "numpy", "pillow", "pyarrow")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Compare feature extraction with the bare network on this machine."""

    data: str = ""
    """A local folder of images, at any depth; they are repeated until there are enough."""
    weights: str = ""
    """A weights file of InceptionV3 without its top."""
    num_images: tuple[int, ...] = (1000, 10000)
    """Images of each run."""
    out: str = "benchmarks/results"
    """The folder for the results; earlier ones of the same day are replaced."""


def link_images(data: str, directory: Path, num_images: int) -> None:
    """Makes a flat folder of links to the images, over and over."""
    uris = listing.list_images(data).table["uri"].to_pylist()
    directory.mkdir()
    for number in range(num_images):
        uri = uris[number % len(uris)]
        (directory / f"{number:06d}{Path(uri).suffix}").symlink_to(uri)


def run_bare(weights: str, scratch: Path) -> dict[str, Any]:
    """Returns the bare network's images per second, and its engine."""
    out = scratch / "rate.json"
    command = [sys.executable, str(Path(__file__).with_name("features_bare.py")), weights, str(BARE_S), str(out)]
    subprocess.run(command, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2"}, check=True)
    return json.loads(out.read_text())


def run_pass(weights: str, images: Path, out: Path) -> dict[str, Any]:
    """Runs `tlray features` and returns its wall time and its peak memory in each quarter of that time."""
    command = [sys.executable, "-m", "tlray", "features", "--data", str(images), "--weights", weights]
    environment = os.environ | {"RAY_ADDRESS": "local"}  # not a Ray that `ray start` has started on this machine
    start_s = time.monotonic()
    samples: list[tuple[int, int]] = []
    process = subprocess.Popen([*command, "--out", str(out), "--quiet"], env=environment)
    while process.poll() is None:
        samples.append(memory_bytes(process.pid))
        time.sleep(SAMPLE_S)
    if process.returncode:
        sys.exit(f"tlray features failed with exit code {process.returncode}.")
    wall_s = time.monotonic() - start_s
    return {
        "wall_s": wall_s,
        "memory_gib": [max(total for total, _ in quarter) / 2**30 for quarter in quarters(samples)],
        "object_store_gib": [max(store for _, store in quarter) / 2**30 for quarter in quarters(samples)],
    }


def rate(smallest: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """Returns the images per second of what a run has more than the smallest one, and their ratio to the bare network.

    Args:
        smallest: `num_images` and `wall_s` of the smallest run.
        run: The same of another run, and `bare`. Of the smallest one itself no rate is known.
    """
    if run["num_images"] <= smallest["num_images"]:
        return {"images_per_s": None, "ratio": None}
    found = (run["num_images"] - smallest["num_images"]) / (run["wall_s"] - smallest["wall_s"])
    return {"images_per_s": found, "ratio": found / statistics.mean(run["bare"])}


def _rate(row: dict[str, Any]) -> str:
    return "" if row["ratio"] is None else f"{row['images_per_s']:.1f} images/s more, {row['ratio']:.2f} of bare"


def quarters(samples: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Cuts the samples of a run into four parts of its time."""
    ends = [len(samples) * part // 4 for part in range(5)]
    return [samples[start:end] for start, end in itertools.pairwise(ends)]


def main() -> None:
    """Measures, prints the table, and writes the results."""
    settings = tyro.cli(Settings, prog="features_pass.py", description=__doc__)
    if not os.path.isdir(settings.data) or not os.path.isfile(settings.weights):
        print(NEEDS, file=sys.stderr)
        sys.exit(2)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="tlray-benchmark-") as directory:
        before = run_bare(settings.weights, Path(directory))
        for num_images in settings.num_images:
            images = Path(directory) / f"images-{num_images}"
            link_images(settings.data, images, num_images)
            measured = run_pass(settings.weights, images, Path(directory) / f"features-{num_images}")
            after = run_bare(settings.weights, Path(directory))
            bare = [before["images_per_s"], after["images_per_s"]]
            rows.append({"num_images": num_images, "engine": after["engine"], "bare": bare, **measured})
            rows[-1] |= rate(rows[0], rows[-1])
            print(f"{num_images} images: {measured['wall_s']:.0f} s, {_rate(rows[-1])}", flush=True)
            before = after
    command = (
        f"python benchmarks/features_pass.py --data DIR --weights {Path(settings.weights).name} --num-images "
        f"{' '.join(map(str, settings.num_images))}"
    )
    about = result_page.describe(command, PACKAGES)
    result_page.write(settings.out, "features_pass", to_markdown(about, rows), about, {"runs": rows})


def to_markdown(about: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Returns the results as a page."""
    lines = [
        f"# Feature extraction beside the bare network, {about['date']}",
        "",
        f"    {about['command']}",
        "",
        "| images | whole process | for those that are more than the first | bare, before and after | "
        "peak memory in each quarter, GiB | of which object store |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| {row['num_images']:,} | {row['wall_s']:.0f} s | {_rate(row)} | "
            f"{row['bare'][0]:.1f}, {row['bare'][1]:.1f} | {_gib(row['memory_gib'])} | "
            f"{_gib(row['object_store_gib'])} |"
            for row in rows
        ),
        "",
        f"- InceptionV3 at 224 px, {rows[0]['engine']}, batches of 32, pooled features of five depths. The goal "
        "is 0.9 of the bare network; reading and decoding the images takes a part of the same cores.",
        *result_page.machine_lines(about),
    ]
    return "\n".join(lines) + "\n"


def _gib(values: list[float]) -> str:
    return ", ".join(f"{value:.1f}" for value in values)


if __name__ == "__main__":
    main()
