"""How often the 95 % intervals of a report cover the true figures of simulated patients.

    python benchmarks/interval_coverage.py

First the accuracy. Each case is simulated many times. A patient has a chance of being right, drawn from a beta
distribution with the true accuracy as its mean; each image is right with the chance of its patient. The correlation of
two images of one patient is then 1 / (a + b + 1) of the distribution's parameters a and b, the intraclass correlation.
The accuracy over all images has the true accuracy as its expected value, since the number of images of a patient does
not depend on it. Intervals are those of `tlray.trust.classification.metric_intervals`, which the reports use. Beside
them is how often an interval covers that takes all images as independent.

Then every other figure. Here the logits of an image are simulated, so that there are probabilities. Images of one
patient share half of the variance of their noise. With the sharpness 1, the probabilities are perfectly calibrated: the
noise of a logit has the variance 2, so its likelihood is the softmax of the logits times half of the signal. Then the
true calibration error is 0. All other true figures are those of `TRUTH_GROUPS` patients.

It writes `interval_coverage_DATE.md` into --out.
"""

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from scipy import special

sys.path.insert(0, str(Path(__file__).parent))
from result_page import Goal, write_goals

from tlray.trust.calibration import brier_interval, calibration_error_interval
from tlray.trust.classification import metric_intervals
from tlray.trust.intervals import Interval, mean_interval, share_interval

COVERAGE_RANGE = (0.92, 0.98)
NUM_CLASSES = 4
TRUTH_GROUPS = 20_000
"""Number of patients whose figures count as the true ones."""

IN_SET = 0.2
"""Probability above which a class is in a prediction set here."""

REFER_BELOW = 0.7
"""Confidence below which an image is referred here."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitCase:
    """A kind of data set with probabilities.

    Attributes:
        num_groups: Number of patients, with 1 to 10 images each.
        signal: How much the logit of the true class is above the others, on average, before it is scaled.
        sharpness: Factor of the logits: 1 is perfectly calibrated, 2 overconfident, 0.5 not confident enough.
    """

    num_groups: int
    signal: float
    sharpness: float


LOGIT_CASES = tuple(
    LogitCase(num_groups=num_groups, signal=signal, sharpness=sharpness)
    for num_groups, signal, sharpness in itertools.product((40, 80, 150), (2.0, 3.5), (0.5, 1.0, 2.0))
)


def simulate_logits(
    case: LogitCase, num_groups: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws a set of some patients: labels int [images], probabilities float64 [images, K], and groups int [images]."""
    groups = np.repeat(np.arange(num_groups), rng.integers(1, 11, num_groups))
    labels = groups % NUM_CLASSES
    logits_BK = rng.normal(size=(num_groups, NUM_CLASSES))[groups] + rng.normal(size=(len(groups), NUM_CLASSES))
    logits_BK[np.arange(len(groups)), labels] += case.signal
    return labels, special.softmax(logits_BK * case.signal / 2 * case.sharpness, axis=1), groups


def figures(labels: np.ndarray, probs_BK: np.ndarray, groups: np.ndarray) -> dict[str, Interval]:
    """Returns the figures of a report with their intervals; those of classes are of the first class."""
    found = metric_intervals(labels, probs_BK, groups)
    sets_BK = probs_BK > IN_SET
    sizes = np.maximum(sets_BK.sum(axis=1), 1)
    is_referred, is_wrong = probs_BK.max(axis=1) < REFER_BELOW, probs_BK.argmax(axis=1) != labels
    return {
        "accuracy": found.accuracy,
        "balanced accuracy": found.balanced_accuracy,
        "macro F1": found.f1_macro,
        "macro AUROC": found.auroc_macro,
        "log loss": found.log_loss,
        "Brier score": brier_interval(probs_BK, labels, groups),
        "calibration error": calibration_error_interval(probs_BK, labels, groups),
        "share referred": share_interval(is_referred, groups),
        "error rate of the others": share_interval(is_wrong[~is_referred], groups[~is_referred]),
        "set coverage": share_interval(sets_BK[np.arange(len(labels)), labels], groups),
        "set size": mean_interval(sizes, groups, low=1.0, high=float(max(2, sizes.max()))),
        "sensitivity": found.sensitivities[0],
        "specificity": found.specificities[0],
        "precision": found.precisions[0],
        "F1": found.f1s[0],
        "AUROC": found.aurocs[0],
    }


def measure_figures(case: LogitCase, num_sets: int, rng: np.random.Generator) -> dict[str, tuple[float, float]]:
    """Simulates the sets of a case; returns coverage and mean width of the interval of each figure."""
    truth = {name: each.value for name, each in figures(*simulate_logits(case, TRUTH_GROUPS, rng)).items()}
    if case.sharpness == 1:
        truth["calibration error"] = 0.0
    found = [figures(*simulate_logits(case, case.num_groups, rng)) for _ in range(num_sets)]
    return {
        name: (
            float(np.mean([each[name].low <= value <= each[name].high for each in found])),
            float(np.mean([each[name].high - each[name].low for each in found])),
        )
        for name, value in truth.items()
    }


def main() -> None:
    """Simulates all cases and writes the table."""
    settings = tyro.cli(Settings, prog="interval_coverage.py", description=__doc__)
    found = [
        measure(case, settings.sets, np.random.default_rng([settings.seed, number]))
        for number, case in enumerate(CASES)
    ]
    of_figures = [
        measure_figures(case, settings.sets, np.random.default_rng([settings.seed, len(CASES) + number]))
        for number, case in enumerate(LOGIT_CASES)
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
    coverages_of = {name: [each[name][0] for each in of_figures] for name in of_figures[0]}
    goals += [
        Goal(
            wanted=f"{name}: coverage at least {low:.0%} over all {len(LOGIT_CASES)} cases with probabilities",
            found=f"{np.mean(coverages):.1%}; in each case {min(coverages):.1%} to {max(coverages):.1%}",
            is_met=float(np.mean(coverages)) >= low,
        )
        for name, coverages in coverages_of.items()
    ]
    write_goals(
        "interval_coverage",
        "Coverage of 95 % intervals",
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
            "",
            "Every other figure: coverage, and mean width in brackets. The columns are patients, signal, sharpness.",
            "",
            f"| figure | {' | '.join(f'{c.num_groups}, {c.signal:g}, {c.sharpness:g}' for c in LOGIT_CASES)} |",
            f"| --- | {'---: | ' * len(LOGIT_CASES)}".rstrip(),
            *(
                f"| {name} | {' | '.join('{:.1%} ({:.3f})'.format(*each[name]) for each in of_figures)} |"
                for name in coverages_of
            ),
        ],
        out=settings.out,
    )


if __name__ == "__main__":
    main()
