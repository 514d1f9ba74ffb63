"""What the score of foreign images costs a model that predicts: with it and without it, in turns.

    python benchmarks/score_cost.py --bundle BUNDLE --data DIR

In the predictor: batches of noise, in memory, are predicted as a replica of the endpoint predicts them, in one process,
with one engine and all CPUs. Pairs of batches take turns, in another order each time; the cost is the median over pairs
of the time with the score over the time without it.

Through the endpoint, if --data is given: `tlray serve` is started with the bundle, then with a copy of it that has no
score, and so on. Each time it is put under the load of `serving.py`: JPEG uploads by clients that wait for their
answers. The cost is the median over rounds of the time for an image with the score over the time without it, where the
time for an image is the inverse of the images answered per second.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parent))
from load import CONTENT_TYPE, encode_form
from result_page import Goal, write_goals
from servers import SYSTEMS, make_environment, running
from serving import JPEG_QUALITY, LOAD_TIMEOUT_S, NUM_IMAGES, run_load, write_images

from tlray.bundle import store
from tlray.bundle.spec import NOVELTY
from tlray.bundle.store import Bundle
from tlray.engines.kinds import EngineKind
from tlray.inference.predictor import Predictor

MAX_COST = 0.03
BATCH_SIZES = (1, 8, 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Measure what the score of foreign images costs."""

    bundle: str
    """A bundle that has this score."""
    data: str = ""
    """A local folder of images, at any depth, to send to the endpoint; empty: only the predictor is measured."""
    pairs: int = 100
    """Number of pairs of batches of each size in the predictor."""
    rounds: int = 6
    """How often the endpoint is started with each of the two bundles. Of 6 independent rounds the least and the most
    enclose the true median with a probability of 97 %."""
    clients: int = 64
    """Clients that send images to the endpoint, each its next one when it has the answer."""
    warmup_s: float = 5.0
    """Seconds of load on the endpoint before anything counts, each time that it is started."""
    duration_s: float = 15.0
    """Seconds of load that count, each time."""
    out: str = "benchmarks/results"
    """The folder for the results."""

    def __post_init__(self) -> None:
        if min(self.pairs, self.rounds, self.clients) < 1:
            raise ValueError("--pairs, --rounds and --clients must be at least 1.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What the endpoint answered with each of the two bundles.

    Attributes:
        with_score_per_s: Images answered per second with the score, above 0.
        without_score_per_s: The same without the score.
        num_failed: Number of requests of both that were not answered with 200.
    """

    with_score_per_s: float
    without_score_per_s: float
    num_failed: int

    @property
    def cost(self) -> float:
        """The time that the score adds to an image, as a share of the time without it."""
        return self.without_score_per_s / self.with_score_per_s - 1


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
    predictor = Predictor(settings.bundle)
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


def ask_score(url: str, image: bytes) -> float | None:
    """Sends an image file to the endpoint; returns the `ood_score` of its answer."""
    request = urllib.request.Request(url, encode_form(image), {"Content-Type": CONTENT_TYPE})  # noqa: S310 (ours)
    with urllib.request.urlopen(request, timeout=LOAD_TIMEOUT_S) as answer:  # noqa: S310
        return json.load(answer)["predictions"][0]["ood_score"]


def run_endpoint(
    bundle: Path, images: Path, settings: Settings, *, precision: str, has_score: bool
) -> Mapping[str, Any]:
    """Starts the endpoint with a bundle, puts load on it, ends it, and returns what `load.py` measured.

    It ends the benchmark if the endpoint answers no image, or if its answers have a score and should not, or the other
    way round.

    Args:
        bundle: The bundle's directory.
        images: A folder of image files to send.
        settings: The load.
        precision: The numbers that the model computes with.
        has_score: Whether the bundle has a score of foreign images.
    """
    name = "with the score" if has_score else "without the score"
    system, first = SYSTEMS["tlray"], min(images.iterdir()).read_bytes()
    python = make_environment(system.requirements)
    with running(system, python, str(bundle), first, precision=precision) as server:
        score = ask_score(server.url, first)
        if (score is not None) != has_score:
            sys.exit(f"The endpoint {name} answered with the ood_score {score}: the costs would mean nothing.")
        load = ["--clients", str(settings.clients)]
        found = run_load(server.url, images, load, warmup_s=settings.warmup_s, duration_s=settings.duration_s)
    if not found["images_per_s"]:
        sys.exit(f"The endpoint {name} answered no image. What became of the requests: {found['outcomes']}")
    print(f"  {name}: {found['images_per_s']:.1f} images/s, {found['outcomes']}", flush=True)
    return found


def measure_endpoint(settings: Settings, precision: str) -> list[Round]:
    """Starts the endpoint with the bundle and with its copy in turns, and returns what each round came to."""
    bundle = store.load(settings.bundle)
    rounds: list[Round] = []
    with tempfile.TemporaryDirectory(prefix="tlray-benchmark-") as directory:
        images, copy = Path(directory, "images"), Path(directory, "bundle")
        write_images(settings.data, images)
        copy_without_score(bundle, copy)
        for number in range(settings.rounds):
            print(f"round {number + 1}/{settings.rounds}", flush=True)
            scored = run_endpoint(bundle.directory, images, settings, precision=precision, has_score=True)
            plain = run_endpoint(copy, images, settings, precision=precision, has_score=False)
            rounds.append(round_of(scored, plain))
    return rounds


def round_of(scored: Mapping[str, Any], plain: Mapping[str, Any]) -> Round:
    """Returns a round from what `load.py` measured with the score and without it."""
    outcomes = [*scored["outcomes"].items(), *plain["outcomes"].items()]
    return Round(
        with_score_per_s=scored["images_per_s"],
        without_score_per_s=plain["images_per_s"],
        num_failed=sum(count for outcome, count in outcomes if outcome != "200"),
    )


def endpoint_goal(rounds: Sequence[Round]) -> Goal:
    """Returns the goal of the cost through the endpoint: its median, with the least and the most of the rounds."""
    costs = [each.cost for each in rounds]
    cost = statistics.median(costs)
    return Goal(
        wanted=f"through the endpoint: at most {MAX_COST:.0%} of the time",
        found=f"{cost:.1%} ({min(costs):.1%} to {max(costs):.1%})",
        is_met=cost <= MAX_COST,
    )


def endpoint_lines(rounds: Sequence[Round], settings: Settings) -> list[str]:
    """Returns the page's lines on the endpoint: a table of the rounds, with their medians."""
    with_score = statistics.median(each.with_score_per_s for each in rounds)
    without_score = statistics.median(each.without_score_per_s for each in rounds)
    cost, num_failed = statistics.median(each.cost for each in rounds), sum(each.num_failed for each in rounds)
    return [
        "Endpoint: `tlray serve` with its defaults, started with the bundle and with its copy without the score in "
        f"turns. {settings.clients} clients wait for their answers; each time {settings.duration_s:g} s count, after "
        f"{settings.warmup_s:g} s that do not. At most {NUM_IMAGES} images are sent as grey JPEGs (quality "
        f"{JPEG_QUALITY}). The figure above is the median of the rounds, in brackets: least to most.",
        "",
        "| round | with the score, images/s | without the score, images/s | the score adds | requests without a 200 |",
        "| ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {number} | {each.with_score_per_s:.1f} | {each.without_score_per_s:.1f} | {each.cost:.2%} "
            f"| {each.num_failed} |"
            for number, each in enumerate(rounds, start=1)
        ),
        f"| median | {with_score:.1f} | {without_score:.1f} | {cost:.2%} | {num_failed} in all |",
    ]


def main() -> None:
    """Measures the predictor, then the endpoint if there are images for it, and writes the page."""
    settings = tyro.cli(Settings, prog="score_cost.py", description=__doc__)
    if settings.data and not Path(settings.data).is_dir():
        sys.exit("Give an existing folder of images as --data, or no --data.")
    kind, found = measure_predictor(settings)
    worst = max(ratio for _, ratio in found.values()) - 1
    command = f"python benchmarks/score_cost.py --bundle BUNDLE --pairs {settings.pairs}"
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
        rounds = measure_endpoint(settings, kind.precision)
        command += (
            f" --data DIR --rounds {settings.rounds} --clients {settings.clients} --warmup-s {settings.warmup_s:g} "
            f"--duration-s {settings.duration_s:g}"
        )
        goals.append(endpoint_goal(rounds))
        lines += ["", *endpoint_lines(rounds, settings)]
    write_goals(
        "score_cost", "Cost of the score of foreign images", command, goals=goals, lines=lines, out=settings.out
    )


if __name__ == "__main__":
    main()
