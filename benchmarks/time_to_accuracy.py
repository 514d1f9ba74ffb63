"""Time from images to an exported model, and its accuracy: tlray beside the article's script in plain Keras.

    python benchmarks/time_to_accuracy.py --data DIR --weights FILE

Four ways, on the same images and the same weights, in turns in this one call, each round beginning with another one:
the article's script (`article_script.py`), `jobs/train.py probe`, `jobs/train.py standard` and, once for each seed,
`jobs/sweep.py` with 40 trials. Each run is a process of its own with all cores, and its whole time counts, from its
start: the script's until its model is saved (it notes that time, and only then measures its model on the held-out
images), tlray's until its process ends, with the start of its own local Ray, the report and the evaluation, and the
sweep's with the training of its best settings.

The images of DATA's train and valid folders are cut anew for each seed, into five stratified parts; byte-identical
images stay together, and so do an image and its perturbed copies (`--num-images`, `perturbed.py`). One part is held
out (`test`), the next one is `valid`, the rest is `train`: the same folders for all. `--folds 5` holds out every part
in turn: repeated grouped cross-validation. Images in a test folder of DATA are left out. With `--full-rounds N` the
script, which takes most of the time, and the sweep run in the first N rounds only: `probe` and `standard` then have
more rounds for their accuracy than for their part of the script's time.

It prints tables and writes `time_to_accuracy_DATE.md` and `.json` into --out, after each round anew; with --num-images
N their names begin with `time_to_accuracy_N`. No figure makes it fail.
"""

import datetime
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import tyro
from sklearn.model_selection import StratifiedGroupKFold

sys.path.insert(0, str(Path(__file__).parent))
from perturbed import write_copies
from train_step import NEEDS, NUM_CLASSES, machine

from tlray.data import labels, listing
from tlray.errors import TlrayError

NUM_PARTS = 5
FLOAT32 = "standard, float32"
"""Name of a way: `standard` with features that were computed in float32, whatever the machine can do."""
NUM_TRIALS = 40
TIME_GOALS = {"probe": 0.20, "standard": 0.30, "sweep": 1.0}
"""The part of the script's time that each way of tlray may take."""
GAIN_GOALS_POINTS = {"probe": 8.0, "standard": 8.0}
"""Percentage points of accuracy on held-out images above the script's; a sweep has to be quick only."""

REST_S = 5.0
"""Before each run, so that the processes of the Ray before it are gone."""
NUM_LAST_LINES = 40

PACKAGES = ("tlray", "ray", "tensorflow", "keras", "numpy", "pillow", "scikit-learn", "scipy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Compare whole runs of tlray with the article's script on this machine."""

    data: str = ""
    """A local folder of images in four classes: SPLIT/CLASS/* or CLASS/*."""
    weights: str = ""
    """A weights file of InceptionV3 without its top."""
    weights_origin: str = ""
    """Where the weights are from, to stand in the results."""
    seeds: int = 3
    """How often the images are cut anew: seeds 0, 1, ..., which also seed the runs."""
    folds: int = 1
    """How many of the five parts of each cut are held out in turn."""
    epochs: int = 8
    """The script's epochs (the article's: 8); tlray's recipes have their own."""
    out: str = "benchmarks/results"
    """The folder for the results; earlier ones of the same day are replaced."""
    num_images: int | None = None
    """Images in all: the given ones, and perturbed copies in their original's part, but for the part that is held out,
    which has none. Without a sweep. None: the given ones."""
    float32: bool = False
    """Also run `standard` with features in float32: what training on bfloat16 features changes."""
    full_rounds: int | None = None
    """Rounds in which the script and the sweep run; None: all."""
    resume: bool = False
    """Go on with an interrupted comparison of the same day: the rounds that it has written are not run again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image file, its class, the sha256 of its contents or of its original's, and whether it is a perturbed copy."""

    path: str
    label: str
    sha256: str
    is_copy: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one run came to.

    Attributes:
        wall_s: From the start of its process to the exported model.
        test_accuracy: On the held-out images, 0 to 1.
        valid_accuracy: The script's after its last epoch; tlray's of the model that it chose by these images.
    """

    wall_s: float
    test_accuracy: float
    valid_accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One run of each method on the same images; of the sweep only in the first round of a seed.

    Attributes:
        seed: Of the cut and of the runs.
        fold: Which part was held out, from 0.
        num_images: Images by split.
        runs: By method.
    """

    seed: int
    fold: int
    num_images: dict[str, int]
    runs: dict[str, Run]

    def time_ratio(self, method: str) -> float:
        """Returns a method's wall time as a part of the script's."""
        return self.runs[method].wall_s / self.runs["script"].wall_s

    def gain_points(self, method: str) -> float:
        """Returns by how many percentage points a method's held-out accuracy is above the script's."""
        return 100 * (self.runs[method].test_accuracy - self.runs["script"].test_accuracy)


# -- the images


def read_images(data: str) -> list[Image]:
    """Lists the labelled images of the train and valid folders and reads every file once."""
    table = listing.list_images(data).table
    table, _ = labels.unify_classes(table.filter(~pc.field("split").isin(["test"])))
    rows = table.filter(pc.field("label").is_valid()).sort_by("image_id").to_pylist()
    found = {row["label"] for row in rows}
    if len(found) != NUM_CLASSES:
        sys.exit(f"{data} has {len(found)} classes and the article's model {NUM_CLASSES}.\n{NEEDS}")
    return [
        Image(
            path=row["uri"],
            label=row["label"],
            sha256=hashlib.sha256(Path(row["uri"]).read_bytes()).hexdigest(),
        )
        for row in rows
    ]


def cut(images: Sequence[Image], seed: int) -> list[list[int]]:
    """Cuts the images into stratified parts that share no image; returns the places of each part's images."""
    splitter = StratifiedGroupKFold(n_splits=NUM_PARTS, shuffle=True, random_state=seed)
    groups = [image.sha256 for image in images]
    parts = splitter.split(groups, [image.label for image in images], groups)
    return [held_out.tolist() for _, held_out in parts]


def add_copies(images: list[Image], num_images: int, directory: Path) -> list[Image]:
    """Adds perturbed copies of the images, in turns, until there are enough; a copy's `sha256` is its original's."""
    write_copies([Path(image.path) for image in images], directory, max(0, num_images - len(images)))
    written = sorted(directory.iterdir())
    originals = [images[number % len(images)] for number in range(len(written))]
    copies = [
        Image(path=str(path), label=original.label, sha256=original.sha256, is_copy=True)
        for path, original in zip(written, originals, strict=True)
    ]
    return [*images, *copies]


def link_images(images: Sequence[Image], parts: Sequence[Sequence[int]], fold: int, directory: Path) -> dict[str, int]:
    """Makes `directory/{train,valid,test}/CLASS/*` of links; returns the images by split."""
    split_of = dict.fromkeys(range(len(images)), "train")
    split_of |= dict.fromkeys(parts[(fold + 1) % NUM_PARTS], "valid")
    split_of |= dict.fromkeys(parts[fold], "test")
    splits = ("train", "valid", "test")
    for split in splits:
        for label in {image.label for image in images}:
            # Even without an image: the script numbers the classes by their folders.
            (directory / split / label).mkdir(parents=True)
    for number, image in enumerate(images):
        if image.is_copy and split_of[number] == "test":
            del split_of[number]
            continue
        # A number, as train and valid may have files of the same name.
        name = f"{number:05d}{Path(image.path).suffix}"
        (directory / split_of[number] / image.label / name).symlink_to(Path(image.path).resolve())
    return {split: list(split_of.values()).count(split) for split in splits}


# -- the runs


def run_script(settings: Settings, data: Path, seed: int, scratch: Path) -> Run:
    """Runs `article_script.py`; its time ends when its model is saved."""
    out = scratch / "script.json"
    arguments = [data / "train", data / "valid", data / "test", settings.weights, settings.epochs, seed, out]
    script = Path(__file__).with_name("article_script.py")
    start_s, _ = run_process("The script", [script, *arguments, scratch / "model.keras"], scratch)
    measured = json.loads(out.read_text())
    return Run(
        wall_s=measured["saved_at_s"] - start_s,
        test_accuracy=measured["test_accuracy"],
        valid_accuracy=measured["valid_accuracy"],
    )


def run_tlray(
    settings: Settings, data: Path, seed: int, scratch: Path, *, job: str, arguments: Sequence[object], results: str
) -> Run:
    """Runs a job of tlray, whose metrics are in `results` of its output; its time ends with its process."""
    out = scratch / "run"
    options = ["--data", data, "--weights", settings.weights, "--out", out, "--seed", seed, "--quiet"]
    script = Path(__file__).parents[1] / "jobs" / job
    start_s, end_s = run_process(f"jobs/{job}", [script, *arguments, *options], scratch)
    splits = json.loads((out / results / "metrics.json").read_text())["splits"]
    return Run(
        wall_s=end_s - start_s,
        test_accuracy=splits["test"]["accuracy"],
        valid_accuracy=splits["valid"]["accuracy"],
    )


METHODS: dict[str, Callable[[Settings, Path, int, Path], Run]] = {
    "script": run_script,
    "probe": functools.partial(run_tlray, job="train.py", arguments=["probe"], results=""),
    "standard": functools.partial(run_tlray, job="train.py", arguments=["standard"], results=""),
    FLOAT32: functools.partial(
        run_tlray, job="train.py", arguments=["standard", "--inference-precision", "float32"], results=""
    ),
    "sweep": functools.partial(run_tlray, job="sweep.py", arguments=["--num-trials", NUM_TRIALS], results="best"),
}


def run_process(name: str, command: Sequence[object], scratch: Path) -> tuple[float, float]:
    """Runs Python in a process of its own and returns the times of its start and its end, in seconds since 1970.

    What it says is shown only if it fails.
    """
    log = scratch / "log.txt"
    # Not only without RAY_ADDRESS: it would still join a Ray that `ray start` has started on this machine.
    environment = os.environ | {"RAY_ADDRESS": "local", "TF_CPP_MIN_LOG_LEVEL": "2"}
    # Into a file: a pipe would stay open for as long as any of Ray's processes does.
    with log.open("wb") as stream:
        start_s = time.time()
        done = subprocess.run(
            [sys.executable, *map(str, command)], env=environment, stdout=stream, stderr=subprocess.STDOUT, check=False
        )
        end_s = time.time()
    if done.returncode:
        last_lines = log.read_text(errors="replace").splitlines()[-NUM_LAST_LINES:]
        sys.exit("\n".join([f"{name} failed with exit code {done.returncode}. Its last lines:", *last_lines]))
    return start_s, end_s


def methods_of(number: int, fold: int, settings: Settings) -> list[str]:
    """Returns what runs in a round, from 0, in which a part is held out.

    A sweep, which has to be quick only, runs once for each seed.
    """
    is_full = settings.full_rounds is None or number < settings.full_rounds
    has_sweep = is_full and fold == 0 and settings.num_images is None
    is_wanted = {"script": is_full, "sweep": has_sweep, FLOAT32: settings.float32}
    return [method for method in METHODS if is_wanted.get(method, True)]


def turned(names: list[str], number: int) -> list[str]:
    """Returns names in the order of a round: what runs first in one comes last in the next."""
    start = number % len(names)
    return names[start:] + names[:start]


def measure(settings: Settings, directory: Path, done: Sequence[tuple[int, int]]) -> Iterator[Round]:
    """Runs all rounds but those done, seeds and folds, a line for each run."""
    images = read_images(settings.data)
    if settings.num_images is not None:
        images = add_copies(images, settings.num_images, directory / "copies")
    # The first process of all reads the packages from the disk; none that is timed should pay for that.
    run_process("Importing the packages", ["-c", "import keras, ray.data, tensorflow"], directory)
    places = [(seed, fold) for fold in range(settings.folds) for seed in range(settings.seeds)]
    for number, (seed, fold) in enumerate(places):
        if (seed, fold) in done:
            continue
        data = directory / f"data-{seed}-{fold}"
        num_images = link_images(images, cut(images, seed), fold, data)
        runs: dict[str, Run] = {}
        for method in turned(methods_of(number, fold, settings), number):
            time.sleep(REST_S)
            with tempfile.TemporaryDirectory(dir=directory) as scratch:
                runs[method] = METHODS[method](settings, data, seed, Path(scratch))
            print(
                f"round {number + 1}/{len(places)}, {method}: {runs[method].wall_s:.1f} s, accuracy "
                f"{runs[method].test_accuracy:.3f} on {num_images['test']} held-out images",
                flush=True,
            )
        yield Round(seed=seed, fold=fold, num_images=num_images, runs=runs)


# -- the results


def summarise(rounds: Sequence[Round]) -> dict[str, dict[str, Any]]:
    """Returns for each method what goes into the JSON file and the tables."""
    summary: dict[str, dict[str, Any]] = {}
    for method in METHODS:
        runs = [each.runs[method] for each in rounds if method in each.runs]
        if not runs:
            continue
        summary[method] = {
            "wall_s": [run.wall_s for run in runs],
            "median_wall_s": statistics.median(run.wall_s for run in runs),
            "test_accuracy": [run.test_accuracy for run in runs],
            "mean_test_accuracy": statistics.mean(run.test_accuracy for run in runs),
            "valid_accuracy": [run.valid_accuracy for run in runs],
            "mean_valid_accuracy": statistics.mean(run.valid_accuracy for run in runs),
        }
    if FLOAT32 in summary:
        summary[FLOAT32] |= {"changes_points": changes(rounds)}
    for method, goal in TIME_GOALS.items():
        both = [each for each in rounds if {"script", method} <= each.runs.keys()]
        if not both:
            continue
        ratios = [each.time_ratio(method) for each in both]
        gains = [each.gain_points(method) for each in both]
        summary[method] |= {
            "time_ratios": ratios,
            "median_time_ratio": statistics.median(ratios),
            "goal_time_ratio": goal,
            "gains_points": gains,
            "mean_gain_points": statistics.mean(gains),
            "goal_gain_points": GAIN_GOALS_POINTS.get(method),
        }
    return summary


def changes(rounds: Sequence[Round]) -> dict[str, list[float]]:
    """Returns by how many percentage points `standard` is above itself with float32 features, by split and round."""
    pairs = [(each.runs["standard"], each.runs[FLOAT32]) for each in rounds if FLOAT32 in each.runs]
    return {
        "valid": [100 * (ours.valid_accuracy - other.valid_accuracy) for ours, other in pairs],
        "test": [100 * (ours.test_accuracy - other.test_accuracy) for ours, other in pairs],
    }


def to_change_lines(summary: dict[str, dict[str, Any]]) -> list[str]:
    """Returns a line about each split of `changes`."""
    lines = []
    for split, points in summary.get(FLOAT32, {}).get("changes_points", {}).items():
        error = statistics.stdev(points) / len(points) ** 0.5 if len(points) > 1 else math.nan
        lines.append(
            f"- `standard` with its usual features beside float32 ones, {split}: {statistics.mean(points):+.2f} points "
            f"(standard error {error:.2f}, {len(points)} rounds)."
        )
    return lines


def describe(settings: Settings, load_before: float) -> dict[str, Any]:
    """Returns what a reader must know to repeat the measurement."""
    weights = Path(settings.weights)
    return {
        "date": today(),
        "command": (
            f"python benchmarks/time_to_accuracy.py --data DIR --weights {weights.name} "
            f"--seeds {settings.seeds} --folds {settings.folds} --epochs {settings.epochs}"
            + (f" --num-images {settings.num_images}" if settings.num_images is not None else "")
            + (" --float32" if settings.float32 else "")
            + (f" --full-rounds {settings.full_rounds}" if settings.full_rounds is not None else "")
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


def spread(middle: float, values: Sequence[float], form: str) -> str:
    """Returns a cell of a table: the middle of some values and their range."""
    return f"**{middle:{form}}** ({min(values):{form}} to {max(values):{form}})"


def to_row(method: str, figures: dict[str, Any]) -> str:
    """Returns a method's row of the first table."""
    cells = [method, spread(figures["median_wall_s"], figures["wall_s"], ".1f")]
    if "time_ratios" in figures:
        ratio = spread(figures["median_time_ratio"], figures["time_ratios"], ".2f")
        cells += [ratio, f"at most {figures['goal_time_ratio']:.2f}"]
    else:
        cells += ["", ""]
    cells.append(spread(figures["mean_test_accuracy"], figures["test_accuracy"], ".3f"))
    if "gains_points" in figures:
        gain = spread(figures["mean_gain_points"], figures["gains_points"], "+.1f")
        cells += [gain, f"at least {GAIN_GOALS_POINTS[method]:+.0f}" if method in GAIN_GOALS_POINTS else ""]
    else:
        cells += ["", ""]
    cells.append(f"{figures['mean_valid_accuracy']:.3f}")
    return f"| {' | '.join(cells)} |"


def to_round_row(number: int, each: Round) -> str:
    """Returns a round's row of the second table."""
    sizes = ", ".join(str(count) for count in each.num_images.values())
    cells = [f"{number} (seed {each.seed}, part {each.fold + 1})", sizes]
    for method in METHODS:
        run = each.runs.get(method)
        cells.append(f"{run.wall_s:.1f} s, {run.test_accuracy:.3f}" if run else "")
    for method in TIME_GOALS:
        ran = {"script", method} <= each.runs.keys()
        cells.append(f"{each.time_ratio(method):.2f}, {each.gain_points(method):+.1f}" if ran else "")
    return f"| {' | '.join(cells)} |"


def to_markdown(
    settings: Settings, about: dict[str, Any], summary: dict[str, dict[str, Any]], rounds: Sequence[Round]
) -> str:
    """Returns the results as a page."""
    computer, weights, load = about["machine"], about["weights"], about["load_1_min"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    num_full = sum("script" in each.runs for each in rounds)
    others = f", and {len(rounds) - num_full} more of `probe` and `standard`" if num_full < len(rounds) else ""
    columns = ["round", "images: train, valid, test", *METHODS, *(f"{method} to script" for method in TIME_GOALS)]
    lines = [
        f"# Time to a model and its accuracy, {about['date']}",
        "",
        f"    {about['command']}",
        "",
        "| (in brackets: least to most) | whole process, s: median | part of the script's time: median | goal | "
        "accuracy, held out: mean | points above the script: mean | goal | accuracy, validation: mean |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(to_row(method, figures) for method, figures in summary.items()),
        "",
        f"| {' | '.join(columns)} |",
        "| --- " * len(columns) + "|",
        *(to_round_row(number, each) for number, each in enumerate(rounds, start=1)),
        "",
        f"- Rounds of all of them in turns, each beginning with another one: {num_full}{others}. Each run is a process "
        "of its own, timed from its start: the script until its model is saved, tlray until its process ends, with the "
        "start of its Ray, evaluation, report and bundle.",
        f"- Script: `benchmarks/article_script.py`, epochs: {settings.epochs}; its last model counts. tlray: "
        f"`jobs/train.py` with the recipes `probe` and `standard`, one worker, and `jobs/sweep.py` with {NUM_TRIALS} "
        "trials, whose best settings are trained and evaluated; once for each seed, and not with --num-images.",
        f"- Images: those of the train and valid folders together, for each seed in {NUM_PARTS} stratified parts; "
        "byte-identical images stay together, and so do perturbed copies with their original; no copies are held out. "
        "One part is held out, "
        "the next one is for validation. Slices of the same "
        "patient may lie in several parts, for all alike. Parts held out for different seeds overlap: rounds are not "
        "independent of one another.",
        *to_change_lines(summary),
        "- The validation accuracy of tlray is that of the model chosen by these images, so a little too good.",
        "- The ratio and the points are those of each round's neighbours. Absolute times are this machine's on that "
        "day.",
        f"- Machine: {computer['cpu']}, {computer['num_cores']} cores, {computer['memory_gib']} GiB; load average over "
        f"a minute {load['before']} before, {load['after']} at the end.",
        f"- Versions: {versions}.",
        f"- Weights: {weights['file']}, origin: {weights['origin']}, sha256 {weights['sha256']}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints the tables, and writes the results."""
    settings = tyro.cli(Settings, prog="time_to_accuracy.py", description=__doc__)
    if not os.path.isdir(settings.data) or not os.path.isfile(settings.weights):
        print(NEEDS, file=sys.stderr)
        sys.exit(2)
    if settings.seeds < 1 or not 1 <= settings.folds <= NUM_PARTS:
        print(f"--seeds must be at least 1, and --folds 1 to {NUM_PARTS}.", file=sys.stderr)
        sys.exit(2)
    load_before = os.getloadavg()[0]
    size = f"_{settings.num_images}" if settings.num_images is not None else ""
    stem = Path(settings.out) / f"time_to_accuracy{size}_{today()}"
    rounds = read_rounds(stem) if settings.resume else []
    page = ""
    with tempfile.TemporaryDirectory(prefix="tlray-benchmark-") as directory:
        try:
            for each in measure(settings, Path(directory), [(each.seed, each.fold) for each in rounds]):
                rounds.append(each)
                page = write_results(stem, settings, load_before, rounds)
        except TlrayError as error:
            sys.exit(f"{error}\n{NEEDS}")
    print(f"\n{page}\nWritten: {stem}.md, {stem}.json")


def today() -> str:
    """Returns the date."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def read_rounds(stem: Path) -> list[Round]:
    """Returns the rounds of an earlier run; none, if there was none."""
    path = stem.with_suffix(".json")
    rounds = json.loads(path.read_text())["rounds"] if path.exists() else []
    return [Round(**each | {"runs": {name: Run(**run) for name, run in each["runs"].items()}}) for each in rounds]


def write_results(stem: Path, settings: Settings, load_before: float, rounds: Sequence[Round]) -> str:
    """Writes the results so far, and returns the page."""
    about, summary = describe(settings, load_before), summarise(rounds)
    page = to_markdown(settings, about, summary, rounds)
    content = about | {"methods": summary, "rounds": [asdict(each) for each in rounds]}
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(content, indent=2) + "\n")
    stem.with_suffix(".md").write_text(page)
    return page


if __name__ == "__main__":
    main()
