"""What is a model's word worth? Calibration, thresholds, prediction sets and foreign images, in cross-validation.

    python benchmarks/trust.py --run RUN --foreign FEATURES

RUN is a finished `tlray train probe`; only its features and its manifest are used. Its readable images are cut into
five stratified parts, with patients and copies together. Each part is held out in turn: a probe is fitted to the rest,
calibrated and given its limits as a training does it, and measured on the part. This is repeated with other cuts.

FEATURES are directories of `tlray features` with the weights and settings of the run: `NAME=DIRECTORY`, or a DIRECTORY
of images with labels, each label a set of its own. `foreign_images.py` makes such images. A set that was made of the
run's own slices is a little harder than new slices would be: the originals of most of them are in training.

It prints tables and writes them as `trust_DATE.md` into --out. No figure makes it fail.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import tyro
from scipy import special
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

sys.path.insert(0, str(Path(__file__).parent))
from result_page import Goal, write_goals

from tlray.bundle.judgement import Limits, judge
from tlray.data import dataset, prior
from tlray.data.dataset import Dataset
from tlray.errors import DataError
from tlray.features import store
from tlray.probe import held_out, regression
from tlray.training import judgement_fit
from tlray.training.judgement_fit import Unseen, Wanted
from tlray.trust import calibration, novelty_fit
from tlray.trust.intervals import Interval, share_interval

NUM_PARTS = 5
NUM_DRAWS = 200
"""Number of sets of labels that are drawn to find the calibration error of probabilities that are right."""

MAX_ECE_RATIO = 0.5
COVERAGE_RANGE = (0.88, 0.92)
MIN_AUROC, MAX_FOREIGN_ACCEPTED = 0.99, 0.03
ACCEPTED = 0.95
"""Share of the held-out images of the run at which foreign ones are counted."""

Figure: TypeAlias = float | Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Measure what a model says about its own errors."""

    run: str = ""
    """A finished `tlray train probe`."""
    foreign: tuple[str, ...] = ()
    """Features of images that are to be told from those of the run: NAME=DIRECTORY, or a DIRECTORY with labels."""
    max_errors: tuple[float, ...] = (0.05, 0.1, 0.2)
    """Wished error rates of the predictions that are not referred."""
    seeds: int = 3
    """How often the images are cut anew."""
    out: str = "benchmarks/results"
    """The folder for the results."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """Labelled images with their pooled features.

    Attributes:
        pooled_BD: float16 [images, features].
        labels: Class indices, int [images].
        groups: Patient, joined with those that have copies, str [images].
    """

    pooled_BD: np.ndarray
    labels: np.ndarray
    groups: np.ndarray

    def take(self, rows: np.ndarray) -> "Images":
        """Returns some of the images."""
        return Images(pooled_BD=self.pooled_BD[rows], labels=self.labels[rows], groups=self.groups[rows])


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What was found on the images of a part that was held out.

    Attributes:
        labels: Class indices, int [images].
        groups: See `Images`.
        uncorrected_BK: Softmax of the probe's logits, without a prior and with temperature 1, float [images, K].
        prior_BK: The same for the class shares of the training images.
        after_BK: Calibrated probabilities.
        is_accepted: By wished error rate, which images are not referred, bool [images]; left out where no threshold
            was found.
        sets_BK: Prediction sets, bool [images, K]; None: there are none.
        ood_scores: float [images].
        foreign_scores: By name of the foreign images, their scores.
        max_ood_score: The limit of these scores.
    """

    labels: np.ndarray
    groups: np.ndarray
    uncorrected_BK: np.ndarray
    prior_BK: np.ndarray
    after_BK: np.ndarray
    is_accepted: Mapping[float, np.ndarray]
    sets_BK: np.ndarray | None
    ood_scores: np.ndarray
    foreign_scores: Mapping[str, np.ndarray]
    max_ood_score: float


def read(run: str) -> tuple[Images, Dataset]:
    """Reads the images of a run."""
    images = dataset.stored_dataset(run) if run else None
    if images is None:
        sys.exit(f"'{run}' is no finished run. Give that of `tlray train probe` as --run.")
    readable = images.readable
    found = store.read_features(f"{run}/features", columns=["image_id", "view", store.POOLED], view=0)
    group_of, index = images.group_of, {name: number for number, name in enumerate(images.classes)}
    return (
        Images(
            pooled_BD=store.look_up(found, readable),
            labels=np.array([index[label] for label in readable["label"].to_pylist()]),
            groups=np.array([group_of[image_id] for image_id in readable["image_id"].to_pylist()], dtype=str),
        ),
        images,
    )


def read_foreign(given: Sequence[str], run: str, num_features: int) -> dict[str, np.ndarray]:
    """Reads the features of foreign images, float16 [images, features] by name.

    Args:
        given: See `Settings.foreign`.
        run: The run whose features they are compared with.
        num_features: Number of features of its images.
    """
    found: dict[str, np.ndarray] = {}
    for each in given:
        name, is_named, directory = each.partition("=") if "=" in each else ("", "", each)
        table = store.read_features(directory, columns=["label", "view", store.POOLED], view=0)
        pooled_BD = table[store.POOLED].combine_chunks().to_numpy_ndarray()
        if pooled_BD.shape[1] != num_features:
            sys.exit(f"'{directory}' has {pooled_BD.shape[1]} features an image, and the run {num_features}.")
        networks = [json.loads(Path(place, store.NETWORK).read_text()) for place in (f"{run}/features", directory)]
        if networks[0] != networks[1]:
            print(f"'{directory}' is of another network, engine or precision than the run: {networks}.")
        if is_named:
            found[name] = pooled_BD
            continue
        labels = np.array(table["label"].fill_null("no label").to_pylist(), dtype=str)
        found |= {str(label): pooled_BD[labels == label] for label in np.unique(labels)}
    return found


def cut(images: Images, seed: int, num_parts: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the rows that are left and the rows of each stratified part, groups together."""
    splitter = StratifiedGroupKFold(num_parts, shuffle=True, random_state=seed)
    yield from splitter.split(np.zeros((len(images.labels), 1)), images.labels, images.groups)


def hold_out(
    rest: Images,
    part: Images,
    foreign: Mapping[str, np.ndarray],
    *,
    num_classes: int,
    max_errors: Sequence[float],
    seed: int,
) -> Held:
    """Fits a probe with its calibration and limits to the rest, as a training does, and asks it about a part."""
    train_rows, valid_rows = next(cut(rest, seed, NUM_PARTS))
    train, valid = rest.take(train_rows), rest.take(valid_rows)
    probe = regression.fit(
        train.pooled_BD, train.labels, valid.pooled_BD, valid.labels, num_classes=num_classes, balanced=True
    )
    logits_BK = held_out.logits(
        rest.pooled_BD,
        rest.labels,
        rest.groups,
        num_classes=num_classes,
        balanced=True,
        inverse_penalty=probe.best.inverse_penalty,
        num_folds=NUM_PARTS,
        seed=seed,
    )
    if logits_BK is None:
        raise DataError("A class has images of too few patients to hold some out. Add patients.")
    equal, shares = np.full(num_classes, 1 / num_classes), prior.class_shares(train.labels, num_classes)
    unseen = Unseen(
        logits_BK=logits_BK,
        image_ids=[""] * len(rest.labels),
        labels=rest.labels,
        groups=rest.groups,
        assumed_shares=equal,
        origin="the rest",
    )
    judged = {
        max_error: judgement_fit.fit(
            unseen, Wanted(assumed_shares=equal, shares=shares, refer_below=None, max_error=max_error), seed=seed
        )
        for max_error in max_errors
    }
    first = judged[max_errors[0]]  # they differ in the threshold only
    space = novelty_fit.fit(train.pooled_BD, train.groups.tolist(), valid_BD=valid.pooled_BD, seed=seed)
    own_BK = (part.pooled_BD.astype(np.float32) - probe.mean) / probe.deviation @ probe.weights + probe.bias
    after_BK = special.softmax((own_BK + first.shift) / first.temperature, axis=1)
    ood_scores = space.score(part.pooled_BD)
    found = {
        max_error: judge(
            after_BK,
            ood_scores,
            Limits(refer_below=each.refer_below, max_ood_score=space.threshold, set_thresholds=each.set_thresholds),
        )
        for max_error, each in judged.items()
    }
    return Held(
        labels=part.labels,
        groups=part.groups,
        uncorrected_BK=special.softmax(own_BK, axis=1),
        prior_BK=special.softmax(own_BK + prior.logit_shift(equal, shares), axis=1),
        after_BK=after_BK,
        # The note says that no threshold was found.
        is_accepted={
            max_error: ~found[max_error].refer
            for max_error, each in judged.items()
            if not each.about["referral"]["note"]
        },
        sets_BK=found[max_errors[0]].sets_BK,
        ood_scores=ood_scores,
        foreign_scores={name: space.score(pooled_BD) for name, pooled_BD in foreign.items()},
        max_ood_score=space.threshold,
    )


def right_by_chance(probs_BK: np.ndarray, seed: int, groups: np.ndarray | None = None) -> float:
    """Returns the mean calibration error if the probabilities were right: labels are drawn from them.

    It is above 0, since the images of a bin are few. No calibration can be shown to be better.

    Args:
        probs_BK: Probabilities, floating point [images, K].
        seed: Seed of the draws.
        groups: Images of one group are right and wrong together: they share a random number, [images]. Their errors
            then depend on one another as much as they can. None: each image is drawn alone.
    """
    rng = np.random.default_rng(seed)
    up_to_BK = np.cumsum(probs_BK, axis=1)[:, :-1]
    index = np.unique(np.arange(len(probs_BK)) if groups is None else groups, return_inverse=True)[1]
    num_groups = int(index.max()) + 1
    drawn = [(rng.random(num_groups)[index, None] > up_to_BK).sum(axis=1) for _ in range(NUM_DRAWS)]
    return float(np.mean([calibration.expected_calibration_error(probs_BK, labels) for labels in drawn]))


def mean_over_groups(values: np.ndarray, groups: np.ndarray) -> Interval:
    """Returns the mean over groups of their means, with its 95 % interval by the normal distribution."""
    index = np.unique(groups, return_inverse=True)[1]
    means_G = np.bincount(index, values) / np.bincount(index)
    mean, half = float(means_G.mean()), float(1.96 * means_G.std(ddof=1) / np.sqrt(len(means_G)))
    return Interval(value=mean, low=mean - half, high=mean + half)


def measure(parts: Sequence[Held], max_errors: Sequence[float], seed: int) -> dict[str, Figure]:
    """Returns the figures of one cut by name; each image was held out once."""
    labels, groups = (np.concatenate([getattr(each, name) for each in parts]) for name in ("labels", "groups"))
    uncorrected_BK, prior_BK, after_BK = (
        np.concatenate([getattr(each, name) for each in parts]) for name in ("uncorrected_BK", "prior_BK", "after_BK")
    )
    before, after = (calibration.expected_calibration_error(each, labels) for each in (uncorrected_BK, after_BK))
    found: dict[str, Figure] = {
        "accuracy before": share_interval(uncorrected_BK.argmax(axis=1) == labels, groups),
        "accuracy": share_interval(after_BK.argmax(axis=1) == labels, groups),
        "ECE before: temperature 1, no prior": before,
        "ECE with the prior only": calibration.expected_calibration_error(prior_BK, labels),
        "ECE after": after,
        "ECE after / before": after / before,
        "ECE if these probabilities were right, each image for itself": right_by_chance(after_BK, seed),
        "the same, and the images of a group right or wrong together": right_by_chance(after_BK, seed, groups),
        "Brier score before": calibration.brier_score(uncorrected_BK, labels),
        "Brier score with the prior only": calibration.brier_score(prior_BK, labels),
        "Brier score after": calibration.brier_score(after_BK, labels),
    }
    for max_error in max_errors:
        found |= _measure_accepted([each for each in parts if max_error in each.is_accepted], max_error)
    with_sets = [each for each in parts if each.sets_BK is not None]
    found["models with prediction sets"] = float(len(with_sets))
    if with_sets:
        sets_BK = np.concatenate([each.sets_BK for each in with_sets if each.sets_BK is not None])
        of_sets, groups_of_sets = (
            np.concatenate([getattr(each, name) for each in with_sets]) for name in ("labels", "groups")
        )
        covered = sets_BK[np.arange(len(of_sets)), of_sets]
        found["sets with the true class, by group"] = mean_over_groups(covered, groups_of_sets)
        found["sets with the true class, by image"] = share_interval(covered, groups_of_sets)
        found["mean size of a set"] = float(sets_BK.sum(axis=1).mean())
    return found | measure_foreign([(each.ood_scores, each.foreign_scores, each.max_ood_score) for each in parts])


def _measure_accepted(parts: Sequence[Held], max_error: float) -> dict[str, Figure]:
    """Returns what became of a wished error rate on the parts whose models have a threshold for it."""
    start = f"--max-error {max_error:g}: "
    found: dict[str, Figure] = {f"{start}models with a threshold": float(len(parts))}
    if not parts:
        return found
    labels, groups = (np.concatenate([getattr(each, name) for each in parts]) for name in ("labels", "groups"))
    is_accepted = np.concatenate([each.is_accepted[max_error] for each in parts])
    is_wrong = np.concatenate([each.after_BK.argmax(axis=1) for each in parts]) != labels
    return found | {
        f"{start}share accepted": float(is_accepted.mean()),
        f"{start}wrong among them": share_interval(is_wrong[is_accepted], groups[is_accepted]),
    }


def measure_foreign(parts: Sequence[tuple[np.ndarray, Mapping[str, np.ndarray], float]]) -> dict[str, Figure]:
    """Returns how well foreign images are told from the held-out ones; a mean over the parts.

    Args:
        parts: For each part the scores of its images, float [images], the scores of foreign images by name, and the
            limit of the scores.
    """
    within = [own <= limit for own, _, limit in parts]
    found: dict[str, Figure] = {"own images within the limit": float(np.mean(np.concatenate(within)))}
    for name in parts[0][1]:
        scores = [(own, foreign[name], limit) for own, foreign, limit in parts]
        found[f"{name}: AUROC"] = float(
            np.mean([roc_auc_score(np.repeat([0, 1], [len(a), len(b)]), np.r_[a, b]) for a, b, _ in scores])
        )
        found[f"{name}: accepted at {ACCEPTED:.0%} of the own"] = float(
            np.mean([np.mean(b <= np.quantile(a, ACCEPTED, method="higher")) for a, b, _ in scores])
        )
        found[f"{name}: within the limit"] = float(np.mean([np.mean(b <= limit) for _, b, limit in scores]))
    return found


def judge_figures(cuts: Sequence[Mapping[str, Figure]], names: Sequence[str], settings: Settings) -> list[Goal]:
    """Compares the means over cuts with what was wanted."""
    ratio, coverage = mean_of(cuts, "ECE after / before"), mean_of(cuts, "sets with the true class, by group")
    goals = [
        Goal(
            wanted=f"ECE after / before: at most {MAX_ECE_RATIO:g}",
            found=text_of(ratio),
            is_met=None if ratio is None else ratio <= MAX_ECE_RATIO,
        ),
        Goal(
            wanted=f"coverage of prediction sets by group: {COVERAGE_RANGE[0]:g} to {COVERAGE_RANGE[1]:g}",
            found=text_of(coverage),
            is_met=None if coverage is None else COVERAGE_RANGE[0] <= coverage <= COVERAGE_RANGE[1],
        ),
    ]
    for max_error in settings.max_errors:
        start = f"--max-error {max_error:g}: "
        wrong = [each.get(f"{start}wrong among them") for each in cuts]
        given = [each for each in wrong if isinstance(each, Interval)]
        num_found = sum(round(mean_of([each], f"{start}models with a threshold") or 0) for each in cuts)
        found = (
            f"{'; '.join(map(text_of, given)) or 'none'} (thresholds in {num_found} of {NUM_PARTS * len(cuts)} models)"
        )
        goals.append(
            Goal(
                wanted=f"wrong among the accepted: not surely above {max_error:g}",
                found=found,
                is_met=all(each.low <= max_error for each in given) if given else None,
            )
        )
    for name in names:
        auroc, accepted = (
            mean_of(cuts, f"{name}: AUROC"),
            mean_of(cuts, f"{name}: accepted at {ACCEPTED:.0%} of the own"),
        )
        if auroc is not None and accepted is not None:
            goals.append(
                Goal(
                    wanted=f"{name}: AUROC at least {MIN_AUROC:g}, at most {MAX_FOREIGN_ACCEPTED:g} accepted",
                    found=f"{auroc:.4f}, {accepted:.3f}",
                    is_met=auroc >= MIN_AUROC and accepted <= MAX_FOREIGN_ACCEPTED,
                )
            )
    return goals


def mean_of(cuts: Sequence[Mapping[str, Figure]], name: str) -> float | None:
    """Returns the mean of a figure over the cuts that have it; None: none has."""
    given = [each[name] for each in cuts if name in each]
    values = [each.value if isinstance(each, Interval) else each for each in given]
    return float(np.mean(values)) if values else None


def text_of(figure: Figure | None) -> str:
    """Returns a figure for a table; empty for None."""
    if isinstance(figure, Interval):
        return f"{figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f})"
    return "" if figure is None else f"{figure:.4g}"


def main() -> None:
    """Measures and writes the tables."""
    settings = tyro.cli(Settings, prog="trust.py", description=__doc__)
    images, stored = read(settings.run)
    foreign = read_foreign(settings.foreign, settings.run, images.pooled_BD.shape[1])
    cuts = []
    for seed in range(settings.seeds):
        parts = [
            hold_out(
                images.take(rest),
                images.take(part),
                foreign,
                num_classes=len(stored.classes),
                max_errors=settings.max_errors,
                seed=seed,
            )
            for rest, part in cut(images, seed, NUM_PARTS)
        ]
        cuts.append(measure(parts, settings.max_errors, seed))
        print(f"Cut {seed + 1} of {settings.seeds} is done.", flush=True)
    names = list(dict.fromkeys(name for each in cuts for name in each))
    counted = ", ".join(f"{len(values)} {name}" for name, values in foreign.items())
    lines = [
        f"{len(images.labels)} images of {len(set(images.groups.tolist()))} groups, {NUM_PARTS} parts held out in "
        f"turn, {settings.seeds} cuts. Foreign images: {counted or 'none'}. In brackets: 95 % intervals over groups.",
        "",
        f"| figure | mean | {' | '.join(f'cut {number + 1}' for number in range(len(cuts)))} |",
        "| --- | --- |" + " --- |" * len(cuts),
        *(
            f"| {name} | {text_of(mean_of(cuts, name))} | {' | '.join(text_of(each.get(name)) for each in cuts)} |"
            for name in names
        ),
    ]
    write_goals(
        "trust",
        "What a model says about its own errors",
        f"python benchmarks/trust.py --run RUN --foreign FEATURES --seeds {settings.seeds}",
        goals=judge_figures(cuts, list(foreign), settings),
        lines=lines,
        out=settings.out,
    )


if __name__ == "__main__":
    main()
