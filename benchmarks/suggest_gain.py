"""Do the images that `tlray suggest` chooses teach a model more than images drawn at random?

    python benchmarks/suggest_gain.py --run RUN

RUN is a finished `tlray train probe`; only its features and its manifest are used. Its readable images are cut into
five stratified parts, with patients, copies and neighbouring slices together. One part measures, the next one
validates, and of the other three some images have labels at the beginning, as many of each class, drawn at random. A
probe is fitted to them, and --count of the others get their labels:

- `suggested`: by `tlray.trust.suggestions`, as `tlray suggest` chooses them, with copies told by the manifest;
- `uncertain`: those with the highest entropy, copies among them or not;
- `random`: drawn at random;
- `random pictures`: the same without copies of one another and of those with labels;
- `all`: all others, as the limit of what labels can give.

Each time a probe is fitted anew and measured on the part. Every part measures in turn, and all is repeated with other
cuts. It prints a table and writes it as `suggest_gain_DATE.md` into --out. No figure makes it fail.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from scipy import special

sys.path.insert(0, str(Path(__file__).parent))
from result_page import write_goals
from trust import NUM_PARTS, Images, cut, read

from tlray.probe import regression
from tlray.probe.regression import Probe
from tlray.trust import novelty_fit, suggestions
from tlray.trust.suggestions import Seen

WAYS = ("suggested", "uncertain", "random", "random pictures", "all")
MAX_SHARE = 5
"""Of the first images of a class one in so many may be of one group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Measure what labels of suggested images are worth."""

    run: str
    """A finished `tlray train probe`."""
    num_labelled: int = 60
    """Number of images with labels at the beginning."""
    count: int = 50
    """Number of further images that get labels."""
    seeds: int = 5
    """How often the images are cut anew."""
    out: str = "benchmarks/results"
    """The folder for the results."""


def fit(train: Images, valid: Images, num_classes: int) -> Probe:
    """Fits a probe as a training does."""
    return regression.fit(
        train.pooled_BD, train.labels, valid.pooled_BD, valid.labels, num_classes=num_classes, balanced=True
    )


def probs(probe: Probe, images: Images) -> np.ndarray:
    """Returns a probe's probabilities with the class shares of its training images, not calibrated, [images, K]."""
    standardised_BD = (images.pooled_BD.astype(np.float32) - probe.mean) / probe.deviation
    return special.softmax(standardised_BD @ probe.weights + probe.bias + probe.shift, axis=1)


def draw_labelled(images: Images, rows: np.ndarray, num_labelled: int, rng: np.random.Generator) -> np.ndarray:
    """Draws as many images of each class, at most a fifth of them from one group; returns their rows.

    Args:
        images: All images.
        rows: The rows to draw from.
        num_labelled: Number of images that are wanted.
        rng: Draws.
    """
    labels, groups = images.labels[rows], images.groups[rows]
    classes = np.unique(labels)
    num_of_class = num_labelled // len(classes)
    drawn: list[int] = []
    for label in classes:
        of_class: list[int] = []
        for group in rng.permutation(np.unique(groups[labels == label])):
            members = rng.permutation(rows[(labels == label) & (groups == group)])
            of_class += members[: max(1, num_of_class // MAX_SHARE)].tolist()
        drawn += of_class[:num_of_class]
    return np.array(sorted(drawn))


def choose(
    images: Images, pictures: np.ndarray, valid: Images, *, labelled: np.ndarray, pool: np.ndarray, count: int
) -> dict[str, np.ndarray]:
    """Returns the rows that each of `WAYS` but the random ones chooses from a pool.

    Args:
        images: All images.
        pictures: The picture that each of them shows, int [images].
        valid: The validation images.
        labelled: The rows with labels.
        pool: The rows without.
        count: Number of images to choose.
    """
    train, others = images.take(labelled), images.take(pool)
    num_classes = int(images.labels.max()) + 1
    probs_BK = probs(fit(train, valid, num_classes), others)
    novelty = novelty_fit.fit(train.pooled_BD, train.groups.tolist(), valid_BD=valid.pooled_BD)
    ood_scores, places_BC = novelty.place(others.pooled_BD)
    known = np.flatnonzero(np.isin(pictures[pool], pictures[labelled]))
    seen = Seen(picture_of=dict(enumerate(pictures[pool].tolist())), known=frozenset(known.tolist()))
    chosen = suggestions.choose(probs_BK, ood_scores, novelty.threshold, places_BC, count=count, seen=seen)
    by_uncertainty = np.argsort(-suggestions.uncertainty(probs_BK), kind="stable")[:count]
    return {"suggested": pool[chosen], "uncertain": pool[by_uncertainty], "all": pool}


def measure(
    images: Images, pictures: np.ndarray, parts: Sequence[np.ndarray], settings: Settings, *, number: int, seed: int
) -> dict[str, float]:
    """Returns the accuracy on a part before (`start`) and after each of `WAYS`, and how many images each gave labels.

    Args:
        images: All images.
        pictures: The picture that each of them shows, int [images].
        parts: The rows of each part.
        settings: Number of images.
        number: Which part measures.
        seed: Of all draws.
    """
    rng = np.random.default_rng([seed, number])
    report, valid = images.take(parts[number]), images.take(parts[(number + 1) % NUM_PARTS])
    rest = np.concatenate([parts[(number + step) % NUM_PARTS] for step in range(2, NUM_PARTS)])
    labelled = draw_labelled(images, rest, settings.num_labelled, rng)
    pool = np.setdiff1d(rest, labelled)
    chosen = choose(images, pictures, valid, labelled=labelled, pool=pool, count=settings.count)
    drawn = rng.permutation(pool)
    chosen["random"] = drawn[: settings.count]
    new = drawn[~np.isin(pictures[drawn], pictures[labelled])]
    _, first = np.unique(pictures[new], return_index=True)
    chosen["random pictures"] = new[np.sort(first)][: settings.count]
    num_classes = int(images.labels.max()) + 1

    def accuracy(rows: np.ndarray) -> float:
        probe = fit(images.take(rows), valid, num_classes)
        return float(np.mean(probs(probe, report).argmax(axis=1) == report.labels))

    found = {"start": accuracy(labelled), "start: images": float(len(labelled))}
    for way in WAYS:
        found[way] = accuracy(np.concatenate([labelled, chosen[way]]))
        found[f"{way}: images"] = float(len(chosen[way]))
        found[f"{way}: pictures"] = float(len(np.unique(pictures[chosen[way]])))
    return found


def table(rounds: Sequence[Mapping[str, float]]) -> list[str]:
    """Returns the table of all rounds: mean accuracies, and gains over `random` with their standard errors."""

    def mean(name: str) -> float:
        return float(np.mean([each[name] for each in rounds]))

    lines = [
        "| labels | images | different pictures | accuracy | more than random |",
        "| --- | --- | --- | --- | --- |",
        f"| none but the first | {mean('start: images'):.0f} | | {mean('start'):.3f} | |",
    ]
    for way in WAYS:
        gains = 100 * np.array([each[way] - each["random"] for each in rounds])
        error = gains.std(ddof=1) / np.sqrt(len(gains))
        gain = "" if way == "random" else f"{gains.mean():+.1f} points (standard error {error:.1f})"
        lines.append(
            f"| {way} | {mean(f'{way}: images'):.0f} | {mean(f'{way}: pictures'):.0f} | {mean(way):.3f} | {gain} |"
        )
    return lines


def main() -> None:
    """Measures and writes the table."""
    settings = tyro.cli(Settings, prog="suggest_gain.py", description=__doc__)
    images, stored = read(settings.run)
    pictures = np.array(stored.readable["picture"].combine_chunks().dictionary_encode().indices)
    rounds = []
    for seed in range(settings.seeds):
        parts = [part for _, part in cut(images, seed, NUM_PARTS)]
        rounds += [measure(images, pictures, parts, settings, number=number, seed=seed) for number in range(NUM_PARTS)]
        print(f"Cut {seed + 1} of {settings.seeds} is done.", flush=True)
    write_goals(
        "suggest_gain",
        "What labels of suggested images are worth",
        f"python benchmarks/suggest_gain.py --run RUN --num-labelled {settings.num_labelled} --count {settings.count} "
        f"--seeds {settings.seeds}",
        goals=[],
        lines=[
            f"{len(images.labels)} images of {len(set(images.groups.tolist()))} groups, {NUM_PARTS} parts measure in "
            f"turn, {settings.seeds} cuts: means of {len(rounds)} rounds.",
            "",
            *table(rounds),
        ],
        out=settings.out,
    )


if __name__ == "__main__":
    main()
