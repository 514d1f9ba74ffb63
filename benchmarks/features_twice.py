"""How long `tlray features` takes on a machine that has never converted its network, and how long the second time.

    python benchmarks/features_twice.py --data DIR --weights FILE

Whole runs of the command over the same folder, in pairs: the first with an empty XDG_CACHE_HOME, the second with what
the first has left there, and an output directory of its own. It tells of each run whether one of its processes loaded
TensorFlow, which Keras needs to build the network. It prints a table and writes `features_twice_DATE.md` into --out. No
figure makes it fail.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).parent))
from processes import has_mapped
from result_page import Goal, write_goals
from train_step import NEEDS

SAMPLE_S = 0.2
TENSORFLOW = "/site-packages/tensorflow/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Run feature extraction without and with its cache."""

    data: str = ""
    """A local folder of images, in any layout that `tlray features` takes; few images show the start best."""
    weights: str = ""
    """A weights file of InceptionV3 without its top."""
    rounds: int = 3
    """How often the pair of runs is repeated, each time from an empty cache."""
    out: str = "benchmarks/results"
    """The folder for the result; an earlier one of the same day is replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of the command.

    Attributes:
        wall_s: Seconds that the whole process took.
        has_tensorflow: Whether one of its processes loaded TensorFlow.
    """

    wall_s: float
    has_tensorflow: bool


def run(data: str, weights: str, out: Path, cache: Path) -> Run:
    """Runs `tlray features`; ends the benchmark if it fails.

    Args:
        data: The images.
        weights: The weights file.
        out: The directory for the features, which must not exist.
        cache: The value of XDG_CACHE_HOME.
    """
    command = [sys.executable, "-m", "tlray", "features", "--data", data, "--weights", weights, "--out", str(out)]
    # RAY_ADDRESS: not a Ray that `ray start` has started on this machine.
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "RAY_ADDRESS": "local"}
    has_tensorflow = False
    start_s = time.monotonic()
    process = subprocess.Popen([*command, "--quiet"], env=environment)
    try:
        while process.poll() is None:
            has_tensorflow = has_tensorflow or has_mapped(process.pid, TENSORFLOW)
            time.sleep(SAMPLE_S)
    finally:
        process.terminate()  # does nothing if it has ended
        process.wait()
    wall_s = time.monotonic() - start_s
    if process.returncode:
        sys.exit(f"tlray features failed with exit code {process.returncode}.")
    return Run(wall_s=wall_s, has_tensorflow=has_tensorflow)


def goals(second: Sequence[Run]) -> list[Goal]:
    """Returns the goal of the second runs: none of them loads TensorFlow."""
    with_it = sum(each.has_tensorflow for each in second)
    return [
        Goal(
            wanted="the second run loads no TensorFlow",
            found=f"{with_it} of {len(second)} loaded it",
            is_met=not with_it,
        )
    ]


def rows(first: Sequence[Run], second: Sequence[Run]) -> list[str]:
    """Returns a table row for each pair of runs, and one of their medians."""
    found = [
        f"| {number} | {_shown(one)} | {_shown(other)} |"
        for number, (one, other) in enumerate(zip(first, second, strict=True), start=1)
    ]
    medians = [statistics.median(each.wall_s for each in runs) for runs in (first, second)]
    return [*found, f"| median | {medians[0]:.1f} | {medians[1]:.1f} |"]


def _shown(one: Run) -> str:
    return f"{one.wall_s:.1f} ({'TensorFlow' if one.has_tensorflow else 'no TensorFlow'})"


def main() -> None:
    """Runs all pairs and writes the page."""
    settings = tyro.cli(Settings, prog="features_twice.py", description=__doc__)
    if not os.path.isdir(settings.data) or not os.path.isfile(settings.weights):
        print(NEEDS, file=sys.stderr)
        sys.exit(2)
    first: list[Run] = []
    second: list[Run] = []
    for number in range(settings.rounds):
        with tempfile.TemporaryDirectory(prefix="tlray-benchmark-") as directory:
            cache = Path(directory, "cache")
            cache.mkdir()
            for name, runs in (("first", first), ("second", second)):
                runs.append(run(settings.data, settings.weights, Path(directory, name), cache))
                print(f"{number + 1}: {name}: {runs[-1]}", flush=True)
    lines = [
        "| pair | first, s: empty cache | second, s: cache of the first |",
        "| --- | --- | --- |",
        *rows(first, second),
        "",
        f"- Whole processes. All processes of a run are looked at every {SAMPLE_S:g} s, for TensorFlow.",
    ]
    command = (
        f"python benchmarks/features_twice.py --data DIR --weights {Path(settings.weights).name} "
        f"--rounds {settings.rounds}"
    )
    write_goals(
        "features_twice", "Features without and with the cache", command,
        goals=goals(second), lines=lines, out=settings.out,
    )  # fmt: skip


if __name__ == "__main__":
    main()
