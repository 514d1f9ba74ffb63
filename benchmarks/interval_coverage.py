"""How often the 95 % interval of the accuracy, as reports have it, covers the true accuracy of simulated patients.

    python benchmarks/interval_coverage.py

Each case is simulated many times. A patient has a chance of being right, drawn from a beta distribution with the true
accuracy as its mean; each image is right with the chance of its patient. The correlation of two images of one patient
is then 1 / (a + b + 1) of the distribution's parameters a and b, the intraclass correlation. The accuracy over all
images has the true accuracy as its expected value, since the number of images of a patient does not depend on it.

Intervals are those of `tlray.trust.classification.metric_intervals`, which the reports use. Beside them is how often an
interval covers that takes all images as independent. It writes `interval_coverage_DATE.md` into --out.
"""

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parent))
from result_page import Goal, write_goals

from tlray.trust.classification import metric_intervals
from tlray.trust.intervals import share_interval

COVERAGE_RANGE = (0.92, 0.98)
NUM_CLASSES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Count how often intervals cover the truth."""

    sets: int = 500
    """Number of simulated sets of each case. A coverage of 95 % has a standard error of 1.0 % with 500."""
    seed: int = 0
    """Seed of the simulation."""
    out: str = "benchmarks/results"
    """The folder for the results."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A kind of data set.

    Attributes:
        kind: `patients`, with 1 to 10 images each, or `copies`: most images alone, one group in ten of 5 to 20.
        num_groups: Number of patients, or of groups of copies.
        accuracy: The true accuracy.
        correlation: Correlation of whether two images of one group are right.
    """

    kind: str
    num_groups: int
    accuracy: float
    correlation: float


CASES = (
    *(
        Case(kind="patients", num_groups=num_groups, accuracy=accuracy, correlation=correlation)
        for num_groups, accuracy, correlation in itertools.product((40, 80, 150), (0.7, 0.8, 0.9, 0.95), (0.0, 0.3))
    ),
    *(
        Case(kind="copies", num_groups=num_groups, accuracy=accuracy, correlation=0.9)
        for num_groups, accuracy in itertools.product((80, 150, 400), (0.8, 0.9))
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Covered:
    """What came of a case.

    Attributes:
        coverage: Share of the sets whose interval has the true accuracy.
        width: Mean width of the interval.
        num_images: Mean number of images of a set.
        as_independent: Coverage of intervals that take all images as independent.
    """

    coverage: float
    width: float
    num_images: float
    as_independent: float


def group_sizes(case: Case, rng: np.random.Generator) -> np.ndarray:
    """Draws the number of images of each group, int [groups]."""
    if case.kind == "patients":
        return rng.integers(1, 11, case.num_groups)
    return np.where(rng.random(case.num_groups) < 0.1, rng.integers(5, 21, case.num_groups), 1)


def simulate(case: Case, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws a set: which images are right, bool [images], and their groups, int [images]."""
    groups = np.repeat(np.arange(case.num_groups), group_sizes(case, rng))
    chances = np.full(case.num_groups, case.accuracy)
    if case.correlation:
        total = 1 / case.correlation - 1
        chances = rng.beta(case.accuracy * total, (1 - case.accuracy) * total, case.num_groups)
    return rng.random(len(groups)) < chances[groups], groups


def measure(case: Case, num_sets: int, rng: np.random.Generator) -> Covered:
    """Simulates the sets of a case."""
    covers, naive, widths, sizes = [], [], [], []
    for _ in range(num_sets):
        is_right, groups = simulate(case, rng)
        labels = groups % NUM_CLASSES
        predicted = np.where(is_right, labels, (labels + 1) % NUM_CLASSES)
        probs_BK = np.where(np.eye(NUM_CLASSES, dtype=bool)[predicted], 0.7, 0.1)
        found = metric_intervals(labels, probs_BK, groups).accuracy
        alone = share_interval(is_right, np.arange(len(groups)))
        covers.append(found.low <= case.accuracy <= found.high)
        naive.append(alone.low <= case.accuracy <= alone.high)
        widths.append(found.high - found.low)
        sizes.append(len(groups))
    return Covered(
        coverage=float(np.mean(covers)),
        width=float(np.mean(widths)),
        num_images=float(np.mean(sizes)),
        as_independent=float(np.mean(naive)),
    )


def main() -> None:
    """Simulates all cases and writes the table."""
    settings = tyro.cli(Settings, prog="interval_coverage.py", description=__doc__)
    found = [
        measure(case, settings.sets, np.random.default_rng([settings.seed, number]))
        for number, case in enumerate(CASES)
    ]
    low, high = COVERAGE_RANGE
    goals = []
    for kind in ("patients", "copies"):
        coverages = [each.coverage for case, each in zip(CASES, found, strict=True) if case.kind == kind]
        outside = [each for each in coverages if not low <= each <= high]
        mean = float(np.mean(coverages))
        goals += [
            Goal(
                wanted=f"{kind}: coverage {low:.0%} to {high:.0%} over all {len(coverages)} cases",
                found=f"{mean:.1%}",
                is_met=low <= mean <= high,
            ),
            Goal(
                wanted=f"{kind}: coverage {low:.0%} to {high:.0%} in each case",
                found=f"{min(coverages):.1%} to {max(coverages):.1%}; outside: {len(outside)}",
                is_met=not outside,
            ),
        ]
    write_goals(
        "interval_coverage",
        "Coverage of 95 % intervals of the accuracy",
        f"python benchmarks/interval_coverage.py --sets {settings.sets} --seed {settings.seed}",
        goals=goals,
        lines=[
            f"{settings.sets} simulated sets of each case; the standard error of a coverage of 95 % is "
            f"{np.sqrt(0.95 * 0.05 / settings.sets):.1%}.",
            "",
            "| groups | images | true accuracy | correlation | coverage | mean width | coverage as if independent |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
            *(
                f"| {case.num_groups} {case.kind} | {each.num_images:.0f} | {case.accuracy:g} | {case.correlation:g} "
                f"| {each.coverage:.1%} | {each.width:.3f} | {each.as_independent:.1%} |"
                for case, each in zip(CASES, found, strict=True)
            ),
        ],
        out=settings.out,
    )


if __name__ == "__main__":
    main()
