"""What the audit of the pictures costs: seconds beside the feature pass, and time and memory with very many images.

    python benchmarks/audit_cost.py --data DIR --weights FILE

1. `tlray train probe --timing` runs over --num-images images: those of DIR, and perturbed copies of them
   (`perturbed.py`). The audit is its phase "looking for copies and shortcuts", and what `looks.look` takes more than
   decoding while the images are read. The latter is measured here, on one core, and shared by all cores.
2. `tlray.trust.copies.find_copies` and `tlray.trust.shortcuts.find` run over --num-rows synthetic rows in a process of
   their own: clusters of features, smooth random thumbnails, near copies among them, and random traits. Pairs are
   compared in --processes processes, as a run does it in Ray's tasks. The memory is the largest sum over all these
   processes (proportional set sizes: what they share counts once), arrays given to the functions included.

Without --data only the second part runs. It writes `audit_cost_DATE.md` into --out. No figure makes it fail.
"""

import dataclasses
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tyro
from joblib import Parallel, delayed
from joblib.externals.loky import get_reusable_executor

sys.path.insert(0, str(Path(__file__).parent))
from perturbed import write_copies
from processes import memory_bytes
from result_page import Goal, write_goals

from tlray.data import decoding, labels, listing, looks, traits
from tlray.trust import copies, pixel_match, shortcuts
from tlray.trust.pixel_match import Match

MAX_AUDIT_S = 15.0
"""Wanted for 1,000 images, beside the feature pass; in proportion for other numbers."""
MAX_ROWS_S, MAX_ROWS_BYTES = 180.0, 4e9
"""Wanted for 100,000 rows."""

NUM_ENTRIES = 1000
PHASE = "looking for copies and shortcuts"
NUM_LOOKED = 200
"""Number of images with which `looks.look` is compared with decoding."""

NUM_FEATURES, NUM_CLUSTERS, NUM_DIRECTIONS = 2048, 500, 64
"""Features of a row; clusters of rows; directions in which the rows of a cluster differ."""
SHARE_COPIES = 0.02
COARSE_PX = 12
"""Width and height of the random pictures that thumbnails are enlarged from."""
CHUNK_ROWS = 1024
PAIRS_PER_TASK = 4096
SAMPLE_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Measure what the audit of the pictures costs."""

    data: str = ""
    """The public chest-CT set, a local folder; empty: only synthetic rows."""
    weights: str = ""
    """The weights of InceptionV3 without its top."""
    num_images: int = 1000
    """Number of images that are audited."""
    num_rows: int = 100_000
    """Number of synthetic rows; 0: none."""
    processes: int = os.cpu_count() or 1
    """Number of processes that compare pairs of the synthetic rows."""
    alike: float = 0.0
    """Share of the variance of the synthetic thumbnails that all have in common, in [0, 1): slices of one part of the
    body are alike, and pairs of them take longer to compare."""
    seed: int = 0
    """Seed of the synthetic rows."""
    out: str = "benchmarks/results"
    """The folder for the results."""


# -- the audit of images


def fill(data: str, num_images: int, directory: Path) -> list[Path]:
    """Makes `directory/images/SPLIT/CLASS/*` of links to labelled images and perturbed copies; returns the files."""
    table, _ = labels.unify_classes(listing.list_images(data).table)
    rows = [row for row in table.sort_by("image_id").to_pylist() if row["label"] is not None]
    places = np.linspace(0, len(rows) - 1, min(len(rows), num_images)).astype(int)  # evenly spread, all different
    rows = [rows[place] for place in places.tolist()]
    paths = [Path(row["uri"]) for row in rows]
    write_copies(paths, directory / "copies", num_images - len(paths))
    placed = [(path, row["split"] or "train", row["label"]) for path, row in zip(paths, rows, strict=True)]
    placed += [
        (path, "train", rows[number % len(rows)]["label"])
        for number, path in enumerate(sorted((directory / "copies").iterdir()))
    ]
    for number, (path, split, label) in enumerate(placed):
        folder = directory / "images" / split / label
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:05d}{path.suffix}").symlink_to(path.resolve())
    return [path for path, _, _ in placed]


def look_s(paths: list[Path]) -> float:
    """Returns the seconds that `looks.look` takes more than decoding, for an image, on one core."""
    contents = [path.read_bytes() for path in paths[:: max(1, len(paths) // NUM_LOOKED)]]

    def timed(function: Callable[[bytes], Any]) -> float:
        begin_s = time.process_time()
        for content in contents:
            function(content)
        return (time.process_time() - begin_s) / len(contents)

    timed(looks.look)  # warms up
    return timed(looks.look) - timed(lambda content: decoding.load(content).load())


def audit(settings: Settings) -> tuple[Goal, list[str]]:
    """Trains a probe with `--timing`; returns what was wanted, and lines for the page."""
    with tempfile.TemporaryDirectory(prefix="tlray-audit-cost-") as temporary:
        directory = Path(temporary)
        paths = fill(settings.data, settings.num_images, directory)
        out = directory / "run"
        command = [sys.executable, "-m", "tlray", "train", "probe", "--data", directory / "images"]
        command += ["--weights", settings.weights, "--out", out, "--timing", "--quiet"]
        subprocess.run(command, check=True)
        timing_s: dict[str, float] = json.loads((out / "metrics.json").read_text())["timing_s"]
        reading_s = look_s(paths) * len(paths) / (os.cpu_count() or 1)
    limit_s, found_s = MAX_AUDIT_S * len(paths) / NUM_ENTRIES, timing_s[PHASE] + reading_s
    goal = Goal(
        wanted=f"audit of {len(paths):,} images beside the feature pass: at most {limit_s:g} s",
        found=f"{found_s:.1f} s",
        is_met=found_s <= limit_s,
    )
    lines = [
        f"The run over {len(paths):,} images. While they are read, `looks.look` takes {reading_s:.1f} s more than "
        "decoding (measured on one core, shared by all).",
        "",
        "| phase | seconds |",
        "| --- | ---: |",
        *(f"| {phase} | {seconds:.1f} |" for phase, seconds in timing_s.items()),
        "",
    ]
    return goal, lines


# -- synthetic rows


def synthetic_features(num_rows: int, rng: np.random.Generator) -> np.ndarray:
    """Draws pooled features in clusters, float32 [rows, NUM_FEATURES], at least 0 like those of a network."""
    centres = rng.gamma(0.5, 1.0, (NUM_CLUSTERS, NUM_FEATURES)).astype(np.float32)
    directions = rng.normal(0, 0.05, (NUM_DIRECTIONS, NUM_FEATURES)).astype(np.float32)
    features_BD = np.empty((num_rows, NUM_FEATURES), np.float32)
    for start in range(0, num_rows, CHUNK_ROWS):
        rows = features_BD[start : start + CHUNK_ROWS]
        rows[:] = centres[rng.integers(0, NUM_CLUSTERS, len(rows))]
        rows += rng.standard_normal((len(rows), NUM_DIRECTIONS), np.float32) @ directions
        np.maximum(rows, 0, out=rows)
    return features_BD


def synthetic_thumbnails(num_rows: int, alike: float, rng: np.random.Generator) -> np.ndarray:
    """Draws smooth pictures, uint8 [rows, THUMBNAIL_PX, THUMBNAIL_PX]: coarse noise, enlarged by cubic splines."""
    common = rng.standard_normal((COARSE_PX, COARSE_PX), np.float32) * np.float32(np.sqrt(alike))
    size_px = looks.THUMBNAIL_PX
    enlarge = _cubic(size_px, COARSE_PX)
    thumbnails_BHW = np.empty((num_rows, size_px, size_px), np.uint8)
    for start in range(0, num_rows, CHUNK_ROWS):
        part = thumbnails_BHW[start : start + CHUNK_ROWS]
        coarse = rng.standard_normal((len(part), COARSE_PX, COARSE_PX), np.float32)
        coarse = common + coarse * np.float32(np.sqrt(1 - alike))
        part[:] = np.clip(128 + 55 * (enlarge @ coarse @ enlarge.T), 0, 255)
    return thumbnails_BHW


def _cubic(size_px: int, coarse_px: int) -> np.ndarray:
    """Returns the matrix that enlarges a row by Catmull-Rom splines, float32 [size_px, coarse_px]."""
    place = (np.arange(size_px) + 0.5) * coarse_px / size_px - 0.5
    far = np.abs(place[:, None] - np.arange(-1, coarse_px + 1))
    near = 1.5 * far**3 - 2.5 * far**2 + 1
    outer = -0.5 * far**3 + 2.5 * far**2 - 4 * far + 2
    weights = np.where(far <= 1, near, np.where(far <= 2, outer, 0))
    weights[:, 1] += weights[:, 0]
    weights[:, -2] += weights[:, -1]
    weights = weights[:, 1:-1]
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def plant(features_BD: np.ndarray, thumbnails_BHW: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Overwrites rows with near copies of others, with noise and another window; returns the pairs, int [copies, 2]."""
    chosen = rng.permutation(len(features_BD))[: 2 * round(SHARE_COPIES * len(features_BD))].reshape(-1, 2)
    for start in range(0, len(chosen), CHUNK_ROWS):
        source, place = chosen[start : start + CHUNK_ROWS].T
        change = rng.normal(0, 0.01, (len(source), NUM_FEATURES)).astype(np.float32)
        features_BD[place] = np.maximum(features_BD[source] + change, 0)
        gain = rng.uniform(0.8, 1.2, (len(source), 1, 1))
        pixels = (
            128 + gain * (thumbnails_BHW[source] - 128.0) + rng.normal(0, 3, (len(source), *thumbnails_BHW.shape[1:]))
        )
        thumbnails_BHW[place] = np.clip(pixels, 0, 255).astype(np.uint8)
    return chosen


def synthetic_traits(num_rows: int, rng: np.random.Generator) -> pa.Table:
    """Draws traits of files that say nothing about any class."""
    columns = {
        field.name: rng.choice(["PNG", "JPEG"] if field.name == "format" else ["L", "RGB"], num_rows)
        if field.name in traits.CATEGORIES
        else rng.normal(100, 20, num_rows)
        for field in traits.SCHEMA
    }
    return pa.table({name: pa.array(values, traits.SCHEMA.field(name).type) for name, values in columns.items()})


def compare_in(processes: int) -> Callable[[np.ndarray, np.ndarray], Match]:
    """Returns what does the same as `pixel_match.compare`, in several processes."""

    def compare(thumbnails_BHW: np.ndarray, pairs: np.ndarray) -> Match:
        parts = [pairs[start : start + PAIRS_PER_TASK] for start in range(0, max(1, len(pairs)), PAIRS_PER_TASK)]
        tasks = (delayed(pixel_match.compare)(thumbnails_BHW, part) for part in parts)
        found: list[Any] = list(Parallel(n_jobs=processes)(tasks))
        names = [field.name for field in dataclasses.fields(Match)]
        return Match(**{name: np.concatenate([getattr(match, name) for match in found]) for name in names})

    return compare


def search(settings: Settings, told: Connection) -> None:
    """Makes synthetic rows and searches them; sends what it found. It runs in a process of its own."""
    rng, num_rows, processes = np.random.default_rng(settings.seed), settings.num_rows, settings.processes
    features_BD = synthetic_features(num_rows, rng)
    thumbnails_BHW = synthetic_thumbnails(num_rows, settings.alike, rng)
    planted = plant(features_BD, thumbnails_BHW, rng)
    table = synthetic_traits(num_rows, rng)
    digests = [str(number) for number in range(num_rows)]
    begin_s = time.perf_counter()
    if processes == 1:
        found = copies.find_copies(features_BD, thumbnails_BHW, digests)
    else:
        found = copies.find_copies(features_BD, thumbnails_BHW, digests, compare=compare_in(processes))
    copies_s = time.perf_counter() - begin_s
    group_of = found.group_of
    classes, groups = rng.integers(0, 4, num_rows)[group_of].astype(str).tolist(), group_of.astype(str).tolist()
    num_found = int(np.sum(group_of[planted[:, 0]] == group_of[planted[:, 1]]))
    begin_s = time.perf_counter()
    told_classes = shortcuts.find(table, classes, groups, seed=settings.seed)
    shortcuts_s = time.perf_counter() - begin_s
    told.send(
        {
            "copies_s": copies_s,
            "shortcuts_s": shortcuts_s,
            "num_planted": len(planted),
            "num_found": num_found,
            "num_others": num_rows - len(np.unique(group_of)) - num_found,
            "num_shortcuts": len(told_classes.findings),
        }
    )
    told.close()
    get_reusable_executor().shutdown(wait=True)  # idle processes would end after minutes


def search_rows(settings: Settings) -> tuple[list[Goal], list[str]]:
    """Searches synthetic rows in another process; returns what was wanted, and lines for the page."""
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=search, args=(settings, sending))
    process.start()
    sending.close()
    assert process.pid is not None  # noqa: S101 (it has been started)
    peak_bytes = 0
    while not receiving.poll(SAMPLE_S):
        peak_bytes = max(peak_bytes, memory_bytes(process.pid)[0])
    try:
        found = receiving.recv()
    except EOFError:
        sys.exit("The process that searches synthetic rows has died.")
    process.join()
    seconds, rows = found["copies_s"] + found["shortcuts_s"], f"{settings.num_rows:,} rows"
    goals = [
        Goal(wanted=f"{rows}: at most {MAX_ROWS_S:g} s", found=f"{seconds:.0f} s", is_met=seconds <= MAX_ROWS_S),
        Goal(
            wanted=f"{rows}: at most {MAX_ROWS_BYTES / 1e9:g} GB",
            found=f"{peak_bytes / 1e9:.1f} GB",
            is_met=peak_bytes <= MAX_ROWS_BYTES,
        ),
    ]
    lines = [
        f"Synthetic: {rows} with {NUM_FEATURES} features, thumbnails with {settings.alike:.0%} of their variance in "
        f"common, {settings.processes} processes. `find_copies` took "
        f"{found['copies_s']:.0f} s, `shortcuts.find` {found['shortcuts_s']:.0f} s. Of {found['num_planted']:,} "
        f"planted near copies {found['num_found']:,} were found, and {found['num_others']:,} other images were taken "
        f"for copies; {found['num_shortcuts']} shortcuts were reported where there are none.",
    ]
    return goals, lines


def main() -> None:
    """Measures and writes the page."""
    settings = tyro.cli(Settings, prog="audit_cost.py", description=__doc__)
    goals: list[Goal] = []
    lines: list[str] = []
    if settings.data:
        if not Path(settings.data).is_dir() or not Path(settings.weights).is_file():
            sys.exit("Give an existing folder as --data and a weights file as --weights, or no --data.")
        goal, lines = audit(settings)
        goals.append(goal)
    if settings.num_rows:
        more, told = search_rows(settings)
        goals, lines = goals + more, lines + told
    write_goals(
        "audit_cost",
        "What the audit of the pictures costs",
        "python benchmarks/audit_cost.py --data DIR --weights FILE "
        f"--num-images {settings.num_images} --num-rows {settings.num_rows} --processes {settings.processes} "
        f"--alike {settings.alike:g}",
        goals=goals,
        lines=lines,
        out=settings.out,
    )


if __name__ == "__main__":
    main()
