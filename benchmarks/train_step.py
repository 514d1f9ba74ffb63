"""Training images per second: tlray's `article` recipe beside the article's own steps in plain Keras.

    python benchmarks/train_step.py --data DIR --weights FILE

Two comparisons on the same images, each in turns (A B A B ...) in this one call:

1. steady-state training: tlray with one worker, through Ray Train and Ray Data (`article_tlray.py`), beside
   `ImageDataGenerator` and `model.fit` (`article_keras.py`). Each run is a process of its own with all cores; its first
   epoch (tracing, warm-up) and all validation are left out.
2. decoding and augmenting on one core: `tlray.data.decoding` beside `ImageDataGenerator` (`decode_augment.py`).

It prints a table and writes `train_step_DATE.md` and `.json` (all raw figures) into --out. No figure makes it fail.
"""

import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from tlray.data import labels, listing
from tlray.errors import TlrayError

NEEDS = """This benchmark needs images and weights:
  --data DIR      the public Kaggle data set "Chest CT-Scan images" (mohamedhanyyy/chest-ctscan-images), unpacked,
                  or any other folder of images in four classes (CLASS/* or SPLIT/CLASS/*)
  --weights FILE  weights of keras.applications.InceptionV3 without its top; the published ones are
                  inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5"""

NUM_CLASSES = 4  # the article's
NUM_HELD_OUT = 16  # images of the validation and of the test split, which tlray must have and nobody times
NUM_DECODE_ROUNDS = 9
NUM_DECODED_AHEAD = 700
"""More images than tlray decodes ahead in `article_tlray.py`. Its runs go on for as many after the last timed epoch:
otherwise the last timed epochs would train on what was decoded before, and nobody would pay for decoding."""

PACKAGES = ("tlray", "ray", "tensorflow", "keras", "numpy", "pillow", "scipy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Compare tlray's training with the article's steps in plain Keras on this machine."""

    data: str = ""
    """A local folder of images in four classes: CLASS/* or SPLIT/CLASS/*."""
    weights: str = ""
    """A weights file of InceptionV3 without its top."""
    weights_origin: str = ""
    """Where the weights are from, to stand in the results."""
    repetitions: int = 3
    """Training runs of each side."""
    epochs: int = 3
    """Timed epochs of each run, after the first one."""
    num_images: int = 256
    """Training images, a fixed choice from all classes."""
    out: str = "benchmarks/results"
    """The folder for the results; earlier ones of the same day are replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What one comparison came to, in images per second.

    Attributes:
        title: What was measured.
        goal: The ratio that tlray should reach.
        tlray: One figure for each repetition.
        keras: One figure for each repetition.
    """

    title: str
    goal: float
    tlray: list[float]
    keras: list[float]

    @property
    def ratios(self) -> list[float]:
        """The ratio tlray / Keras of each repetition, whose two sides ran one after the other."""
        return [ours / theirs for ours, theirs in zip(self.tlray, self.keras, strict=True)]

    def row(self) -> str:
        """Returns a row of the Markdown table."""
        cells = [
            self.title,
            _spread(self.tlray, 1),
            _spread(self.keras, 1),
            _spread(self.ratios, 2),
            f"{self.goal:.1f}",
        ]
        return f"| {' | '.join(cells)} |"

    def to_dict(self) -> dict[str, Any]:
        """Returns what goes into the JSON file."""
        return {
            "title": self.title,
            "unit": "images/s",
            "tlray": self.tlray,
            "keras": self.keras,
            "ratios": self.ratios,
            "median_tlray": statistics.median(self.tlray),
            "median_keras": statistics.median(self.keras),
            "median_ratio": statistics.median(self.ratios),
            "goal_ratio": self.goal,
        }


def _spread(values: Sequence[float], digits: int) -> str:
    return f"**{statistics.median(values):.{digits}f}** ({min(values):.{digits}f} to {max(values):.{digits}f})"


# -- the two comparisons


def link_images(settings: Settings, directory: Path) -> None:
    """Makes `directory/{train,valid,test}/CLASS/*` of links to a fixed choice of images, the classes in turns.

    All three splits are there, so that tlray cuts none of them from the training images.
    """
    table, _ = labels.unify_classes(listing.list_images(settings.data).table)
    rows = table.select(["split", "label", "uri"]).to_pylist()
    by_class: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: (row["split"] != "train", row["uri"])):
        if row["label"] is not None:
            by_class.setdefault(row["label"], []).append(row["uri"])
    if len(by_class) != NUM_CLASSES:
        sys.exit(f"{settings.data} has {len(by_class)} classes and the article's model {NUM_CLASSES}.\n{NEEDS}")
    ranked = [(rank, label, uri) for label, uris in by_class.items() for rank, uri in enumerate(uris)]
    chosen = sorted(ranked)[: settings.num_images + 2 * NUM_HELD_OUT]
    if len(chosen) < settings.num_images + 2 * NUM_HELD_OUT:
        sys.exit(f"--num-images {settings.num_images} needs {2 * NUM_HELD_OUT} more; there are {len(chosen)} in all.")
    for number, (_, label, uri) in enumerate(chosen):
        place = number - settings.num_images
        split = "train" if place < 0 else "valid" if place < NUM_HELD_OUT else "test"
        folder = directory / split / label
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:04d}{Path(uri).suffix}").symlink_to(Path(uri).resolve())


def train_with_tlray(settings: Settings, data: Path, scratch: Path) -> list[float]:
    """Runs `article_tlray.py` and returns the images per second of each timed epoch."""
    num_epochs = 1 + settings.epochs + -(-NUM_DECODED_AHEAD // settings.num_images)
    out = scratch / "run"
    _run("article_tlray.py", data, settings.weights, num_epochs, out)
    names, *rows = [line.split(",") for line in (out / "history.csv").read_text().splitlines()]
    return [float(row[names.index("images_per_s")]) for row in rows][1 : 1 + settings.epochs]


def train_with_keras(settings: Settings, data: Path, scratch: Path) -> list[float]:
    """Runs `article_keras.py` and returns the images per second of each timed epoch."""
    out = scratch / "rates.json"
    _run("article_keras.py", data / "train", settings.weights, 1 + settings.epochs, out)
    return json.loads(out.read_text())[1:]


def decode_and_augment(data: Path, scratch: Path) -> list[dict[str, dict[str, float]]]:
    """Runs `decode_augment.py` and returns the images per second of each round, side and clock."""
    out = scratch / "rates.json"
    _run("decode_augment.py", data / "train", NUM_DECODE_ROUNDS, out, environment={"OMP_NUM_THREADS": "1"})
    return json.loads(out.read_text())


def _run(script: str, *arguments: object, environment: dict[str, str] | None = None) -> None:
    """Runs a script of this folder in a process of its own; what it says is shown only if it fails."""
    command = [sys.executable, str(Path(__file__).with_name(script)), *map(str, arguments)]
    done = subprocess.run(
        command,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2"} | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{script} failed:\n{done.stdout[-4000:]}")


def measure(settings: Settings, directory: Path) -> tuple[list[Comparison], dict[str, Any]]:
    """Runs everything and returns the two comparisons and the raw figures."""
    data = directory / "data"
    link_images(settings, data)
    sides: dict[str, Callable[[Settings, Path, Path], list[float]]] = {
        "tlray": train_with_tlray,
        "keras": train_with_keras,
    }
    epochs: dict[str, list[list[float]]] = {side: [] for side in sides}
    for repetition in range(settings.repetitions):
        for side, run in sides.items():
            with tempfile.TemporaryDirectory(dir=directory) as scratch:
                epochs[side].append(run(settings, data, Path(scratch)))
            rates = ", ".join(f"{rate:.1f}" for rate in epochs[side][-1])
            print(f"training {repetition + 1}/{settings.repetitions}, {side}: {rates} images/s", flush=True)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        rounds = decode_and_augment(data, Path(scratch))
    training = Comparison(
        title="training, steady state, all cores",
        goal=1.0,
        tlray=[statistics.median(rates) for rates in epochs["tlray"]],
        keras=[statistics.median(rates) for rates in epochs["keras"]],
    )
    decoding = Comparison(
        title="decode and augment, one core (CPU time)",
        goal=2.0,
        tlray=[each["tlray"]["cpu"] for each in rounds],
        keras=[each["keras"]["cpu"] for each in rounds],
    )
    return [training, decoding], {"training_epochs": epochs, "decode_rounds": rounds}


# -- the results


def machine() -> dict[str, Any]:
    """Describes this machine, without its name."""
    cpu = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": cpu, "num_cores": num_cores, "memory_gib": round(memory_bytes / 2**30, 1)}


def describe(settings: Settings, load_before: float) -> dict[str, Any]:
    """Returns what a reader must know to repeat the measurement."""
    weights = Path(settings.weights)
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": (
            f"python benchmarks/train_step.py --data DIR --weights {weights.name} "
            f"--repetitions {settings.repetitions} --epochs {settings.epochs} --num-images {settings.num_images}"
        ),
        "machine": machine(),
        "load_1_min": {"before": round(load_before, 2), "after": round(os.getloadavg()[0], 2)},
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
        "weights": {
            "file": weights.name,
            "origin": settings.weights_origin or "not told",
            "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        },
    }


def to_markdown(settings: Settings, about: dict[str, Any], comparisons: Sequence[Comparison]) -> str:
    """Returns the results as a page."""
    computer, weights, load = about["machine"], about["weights"], about["load_1_min"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [
        f"# Training images per second, {about['date']}",
        "",
        f"    {about['command']}",
        "",
        "| images/s: median (min to max) | tlray | plain Keras | ratio | goal |",
        "| --- | --- | --- | --- | --- |",
        *(each.row() for each in comparisons),
        "",
        f"- Training: {settings.repetitions} runs of each side in turns, {settings.num_images} images of {NUM_CLASSES} "
        f"classes at 224 px in batches of 32; of each run the median of {settings.epochs} epochs after the first. "
        "tlray: the recipe `article`, one worker, through Ray Train and Ray Data. Plain Keras: "
        "`benchmarks/article_keras.py`.",
        f"- Decode and augment: {NUM_DECODE_ROUNDS} rounds in turns over the same files, one thread, images per second "
        "of CPU time; ImageDataGenerator resizes with the nearest pixel, tlray with antialiased bilinear filtering.",
        "- The ratio is that of each repetition's two neighbours; its median is what to quote. Absolute figures are "
        "this machine's on that day.",
        f"- Machine: {computer['cpu']}, {computer['num_cores']} cores, {computer['memory_gib']} GiB; load average over "
        f"a minute {load['before']} before, {load['after']} at the end.",
        f"- Versions: {versions}.",
        f"- Weights: {weights['file']}, origin: {weights['origin']}, sha256 {weights['sha256']}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints the table, and writes the results."""
    settings = tyro.cli(Settings, prog="train_step.py", description=__doc__)
    if not os.path.isdir(settings.data) or not os.path.isfile(settings.weights):
        print(NEEDS, file=sys.stderr)
        sys.exit(2)
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="tlray-benchmark-") as directory:
        try:
            comparisons, raw = measure(settings, Path(directory))
        except TlrayError as error:
            sys.exit(f"{error}\n{NEEDS}")
    about = describe(settings, load_before)
    page = to_markdown(settings, about, comparisons)
    content = about | {"comparisons": [each.to_dict() for each in comparisons], "raw": raw}
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    stem = out / f"train_step_{about['date']}"
    stem.with_suffix(".json").write_text(json.dumps(content, indent=2) + "\n")
    stem.with_suffix(".md").write_text(page)
    print(f"\n{page}\nWritten: {stem}.md, {stem}.json")


if __name__ == "__main__":
    main()
