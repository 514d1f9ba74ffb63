"""What the score of foreign images costs a model that predicts: with it and without it, in turns, in one process.

    python benchmarks/score_cost.py --bundle BUNDLE

Batches of noise, in memory, are predicted as a replica of the endpoint predicts them, with one engine and all CPUs.
Pairs of batches take turns, in another order each time; the cost is the median over pairs of the time with the score
over the time without it. It writes `score_cost_DATE.md` into --out.
"""

import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parent))
from result_page import Goal, write_goals

from tlray.inference.predictor import Predictor

MAX_COST = 0.03
BATCH_SIZES = (1, 8, 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Measure what the score of foreign images costs."""

    bundle: str
    """A bundle that has this score."""
    pairs: int = 100
    """Number of pairs of batches of each size."""
    out: str = "benchmarks/results"
    """The folder for the results."""


def measure(predictor: Predictor, batch_size: int, num_pairs: int) -> tuple[float, float]:
    """Returns the median seconds of a batch without the score, and the median ratio of the time with it."""
    novelty, size_px = predictor.novelty, predictor.bundle.spec.image_size_px
    images = np.random.default_rng(0).integers(0, 256, (batch_size, size_px, size_px, 3), dtype=np.uint8)
    plain, ratios = [], []
    for number in range(num_pairs + 3):
        seconds = {}
        for with_score in (number % 2 == 0, number % 2 == 1):
            predictor.novelty = novelty if with_score else None
            start_s = time.perf_counter()
            predictor.score(images)
            seconds[with_score] = time.perf_counter() - start_s
        if number >= 3:  # the first ones warm up
            plain.append(seconds[False])
            ratios.append(seconds[True] / seconds[False])
    return statistics.median(plain), statistics.median(ratios)


def main() -> None:
    """Measures each size of batches and writes the page."""
    settings = tyro.cli(Settings, prog="score_cost.py", description=__doc__)
    predictor = Predictor(settings.bundle)
    if predictor.novelty is None:
        sys.exit(f"'{settings.bundle}' has no score of foreign images. Give a bundle of `tlray train probe`.")
    found = {size: measure(predictor, size, settings.pairs) for size in BATCH_SIZES}
    worst = max(ratio for _, ratio in found.values()) - 1
    write_goals(
        "score_cost",
        "Cost of the score of foreign images",
        f"python benchmarks/score_cost.py --bundle BUNDLE --pairs {settings.pairs}",
        goals=[
            Goal(wanted=f"at most {MAX_COST:.0%} of the time", found=f"{worst:.1%}", is_met=worst <= MAX_COST),
        ],
        lines=[
            f"Engine: {predictor.kind}. {settings.pairs} pairs of batches of each size.",
            "",
            "| images in a batch | a batch without the score, ms | the score adds |",
            "| ---: | ---: | ---: |",
            *(f"| {size} | {1000 * seconds:.1f} | {ratio - 1:.2%} |" for size, (seconds, ratio) in found.items()),
        ],
        out=settings.out,
    )


if __name__ == "__main__":
    main()
