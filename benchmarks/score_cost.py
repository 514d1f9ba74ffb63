"""What the score of foreign images costs a model that predicts: with it and without it, in turns.

    python benchmarks/score_cost.py --bundle BUNDLE --data DIR

In the predictor: batches of noise, in memory, are predicted as a replica of the endpoint predicts them, in one process,
with one engine and all CPUs. Pairs of batches take turns, in another order each time; the cost is the median over pairs
of the time with the score over the time without it.

Through the endpoint, if --data is given: `tlray serve` runs with the bundle, and beside it with a copy of the bundle
that has no score. Bursts of JPEG uploads go to the two in turns, and the cost is the median over pairs of bursts, as
above. Bursts are short, because a machine that others share changes its speed from second to second.

It writes `score_cost_DATE.md` into --out.
"""

import dataclasses
import json
import shutil
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from scipy import stats

sys.path.insert(0, str(Path(__file__).parent))
from load import CONTENT_TYPE, encode_form
from result_page import Goal, write_goals
from servers import SYSTEMS, make_environment, running
from serving import JPEG_QUALITY, LOAD_TIMEOUT_S, write_images

from tlray.bundle import store
from tlray.bundle.spec import NOVELTY
from tlray.bundle.store import Bundle
from tlray.config.training import PrecisionChoice
from tlray.engines.kinds import EngineKind
from tlray.inference.predictor import Predictor

MAX_COST = 0.03
BATCH_SIZES = (1, 8, 32)
BURST_FORMS, FORM_IMAGES = 4, 16
NUM_WARMUP_PAIRS = 5
MIN_BURST_PAIRS = 6
"""Of fewer pairs not even the least and the most enclose the median with 95 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Measure what the score of foreign images costs."""

    bundle: str
    """A bundle that has this score."""
    data: str = ""
    """A local folder of images, at any depth, to send to the endpoint; empty: only the predictor is measured."""
    precision: PrecisionChoice = "auto"
    """Numbers that the model computes with; auto: what the bundle's own comparison of engines allows on this machine.
    The faster the model, the more the score weighs."""
    pairs: int = 100
    """Number of pairs of batches of each size in the predictor."""
    burst_pairs: int = 150
    """Number of pairs of bursts on the endpoint."""
    out: str = "benchmarks/results"
    """The folder for the results."""

    def __post_init__(self) -> None:
        if self.pairs < 1 or self.burst_pairs < MIN_BURST_PAIRS:
            raise ValueError(f"--pairs must be at least 1, and --burst-pairs {MIN_BURST_PAIRS}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class BurstPair:
    """A burst that the endpoint answered with the score, and one without it.

    Attributes:
        with_score_s: Seconds of the burst with the score, above 0.
        without_score_s: The same without the score.
    """

    with_score_s: float
    without_score_s: float

    @property
    def cost(self) -> float:
        """The time that the score adds to a burst, as a share of the time without it."""
        return self.with_score_s / self.without_score_s - 1


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


def measure_predictor(settings: Settings) -> tuple[EngineKind, dict[int, tuple[float, float]]]:
    """Returns the engine of the predictor, and by batch size what `measure` found."""
    predictor = Predictor(settings.bundle, precision=settings.precision)
    if predictor.novelty is None:
        sys.exit(f"'{settings.bundle}' has no score of foreign images. Give a bundle of `tlray train probe`.")
    return predictor.kind, {size: measure(predictor, size, settings.pairs) for size in BATCH_SIZES}


def copy_without_score(bundle: Bundle, out: Path) -> None:
    """Copies a bundle without its score of foreign images, as if the score had not been fitted.

    Args:
        bundle: The bundle, which does not change.
        out: The copy's directory, which must not exist.
    """
    shutil.copytree(bundle.directory, out, ignore=shutil.ignore_patterns(NOVELTY))
    spec, predictions = bundle.spec, bundle.spec.validation_predictions
    changed = dataclasses.replace(
        spec,
        thresholds={name: value for name, value in spec.thresholds.items() if name != "max_ood_score"},
        # Otherwise the endpoint would compare the scores that it does not have with these.
        validation_predictions=dataclasses.replace(predictions, ood_scores=()) if predictions else None,
    )
    store.seal(str(out), changed, known=spec.files)


def make_forms(files: Sequence[bytes]) -> list[bytes]:
    """Returns forms with `FORM_IMAGES` image files each, in turns; the last one is filled up with the first files."""
    starts = range(0, len(files), FORM_IMAGES)
    return [encode_form(*(files[(start + each) % len(files)] for each in range(FORM_IMAGES))) for start in starts]


def send(url: str, form: bytes) -> list[dict[str, Any]]:
    """Sends a form of image files to an endpoint; returns its predictions. A refusal ends the benchmark."""
    request = urllib.request.Request(url, form, {"Content-Type": CONTENT_TYPE})  # noqa: S310 (ours)
    with urllib.request.urlopen(request, timeout=LOAD_TIMEOUT_S) as answer:  # noqa: S310
        return json.load(answer)["predictions"]


def check_scores(predictions: Sequence[Mapping[str, Any]], *, has_score: bool) -> None:
    """Ends the benchmark if predictions of a form are missing, have a score and should not, or the other way round."""
    scores = [row["ood_score"] for row in predictions]
    if len(scores) != FORM_IMAGES or any((score is not None) != has_score for score in scores):
        sys.exit(f"With the score: {has_score}, but an endpoint answered {scores}: the costs would mean nothing.")


def measure_endpoint(settings: Settings, precision: str) -> list[BurstPair]:
    """Starts an endpoint with the bundle and one with its copy, and sends bursts to both in turns.

    Args:
        settings: The bundle, the images and the number of pairs.
        precision: The numbers that both compute with.

    Returns:
        The pairs, without those that warm up.
    """
    bundle = store.load(settings.bundle)
    system = SYSTEMS["tlray"]
    python = make_environment(system.requirements)
    with tempfile.TemporaryDirectory(prefix="tlray-benchmark-") as directory:
        images, copy = Path(directory, "images"), Path(directory, "bundle")
        write_images(settings.data, images)
        copy_without_score(bundle, copy)
        files = [path.read_bytes() for path in sorted(images.iterdir())]
        forms = make_forms(files)
        with (
            running(system, python, str(bundle.directory), files[0], precision=precision) as scored,
            running(system, python, str(copy), files[0], precision=precision) as plain,
            ThreadPoolExecutor(BURST_FORMS) as pool,
        ):
            return send_bursts({True: scored.url, False: plain.url}, forms, pool, settings.burst_pairs)


def send_bursts(
    urls: Mapping[bool, str], forms: Sequence[bytes], pool: ThreadPoolExecutor, num_pairs: int
) -> list[BurstPair]:
    """Sends bursts of `BURST_FORMS` forms at a time to two endpoints in turns, in another order each time.

    Args:
        urls: The endpoint with the score (True) and the one without it.
        forms: Forms of image files, which the bursts take in turns.
        pool: Threads that send a burst's forms.
        num_pairs: Number of pairs after those that warm up.
    """
    pairs = []
    for number in range(num_pairs + NUM_WARMUP_PAIRS):
        burst = [forms[(number * BURST_FORMS + each) % len(forms)] for each in range(BURST_FORMS)]
        seconds = {}
        for has_score in (number % 2 == 0, number % 2 == 1):
            start_s = time.perf_counter()
            answers = list(pool.map(send, [urls[has_score]] * BURST_FORMS, burst))
            seconds[has_score] = time.perf_counter() - start_s
            for predictions in answers:
                check_scores(predictions, has_score=has_score)
        if number >= NUM_WARMUP_PAIRS:
            pairs.append(BurstPair(with_score_s=seconds[True], without_score_s=seconds[False]))
    return pairs


def endpoint_goal(pairs: Sequence[BurstPair]) -> Goal:
    """Returns the goal of the cost through the endpoint: the median of the pairs, with its 95 % interval.

    The interval is the distribution-free one of a median, whose ranks follow from the binomial distribution
    (W. J. Conover, Practical Nonparametric Statistics, 1999, section 3.2). It takes the pairs as independent, and
    is for these two processes: others of the same bundle can differ by some percent.
    """
    costs = sorted(each.cost for each in pairs)
    rank = max(int(stats.binom.ppf(0.025, len(costs), 0.5)) - 1, 0)
    cost, low, high = statistics.median(costs), costs[rank], costs[-1 - rank]
    return Goal(
        wanted=f"through the endpoint: at most {MAX_COST:.0%} of the time",
        found=f"{cost:.1%} ({low:.1%} to {high:.1%})",
        is_met=cost <= MAX_COST,
    )


def endpoint_lines(pairs: Sequence[BurstPair]) -> list[str]:
    """Returns the page's lines on the endpoint."""
    rates = [
        BURST_FORMS * FORM_IMAGES / statistics.median(seconds)
        for seconds in ([each.with_score_s for each in pairs], [each.without_score_s for each in pairs])
    ]
    return [
        f"Endpoint: two of `tlray serve`, with the bundle and with its copy without the score. {len(pairs)} pairs of "
        f"bursts, each of {BURST_FORMS} requests of {FORM_IMAGES} grey JPEGs (quality {JPEG_QUALITY}) at once, all "
        f"answered. Median rates: {rates[0]:.1f} images/s with the score, {rates[1]:.1f} without it. Its figure in "
        "the first table is the median over pairs of the time that the score adds, in brackets: its 95 % interval for "
        "these two processes. Start it several times: two processes of the same bundle can differ by some percent.",
    ]


def main() -> None:
    """Measures the predictor, then the endpoint if there are images for it, and writes the page."""
    settings = tyro.cli(Settings, prog="score_cost.py", description=__doc__)
    if settings.data and not Path(settings.data).is_dir():
        sys.exit("Give an existing folder of images as --data, or no --data.")
    kind, found = measure_predictor(settings)
    worst = max(ratio for _, ratio in found.values()) - 1
    command = f"python benchmarks/score_cost.py --bundle BUNDLE --precision {kind.precision} --pairs {settings.pairs}"
    goals = [
        Goal(
            wanted=f"in the predictor: at most {MAX_COST:.0%} of the time",
            found=f"{worst:.1%}",
            is_met=worst <= MAX_COST,
        )
    ]
    lines = [
        f"Engine: {kind}. {settings.pairs} pairs of batches of each size.",
        "",
        "| images in a batch | a batch without the score, ms | the score adds |",
        "| ---: | ---: | ---: |",
        *(f"| {size} | {1000 * seconds:.1f} | {ratio - 1:.2%} |" for size, (seconds, ratio) in found.items()),
    ]
    if settings.data:
        pairs = measure_endpoint(settings, kind.precision)
        command += f" --data DIR --burst-pairs {settings.burst_pairs}"
        goals.append(endpoint_goal(pairs))
        lines += ["", *endpoint_lines(pairs)]
    write_goals(
        "score_cost", "Cost of the score of foreign images", command, goals=goals, lines=lines, out=settings.out
    )


if __name__ == "__main__":
    main()
