"""What is a model's word worth? Calibration, thresholds, prediction sets and foreign images, in cross-validation.

    python benchmarks/trust.py --run RUN --foreign NAME=FEATURES NAME=FEATURES

RUN is a finished `tlray train probe`; its features and its manifest are all that is used. Its readable images are cut
into five stratified parts, with patients and copies together. Each part is held out in turn: a probe is fitted to the
rest, calibrated and given its limits as a training does it, and measured on the part. This is repeated with other cuts.
FEATURES are directories of `tlray features` of other images, with the same weights and settings; the score is to tell
them. It prints tables and writes them as `trust_DATE.md` into --out. No figure makes it fail.
"""

import datetime
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from scipy import special
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

sys.path.insert(0, str(Path(__file__).parent))
from train_step import machine

from tlray.bundle.judgement import Limits, judge
from tlray.data import dataset, prior
from tlray.data.dataset import Dataset
from tlray.errors import DataError
from tlray.features import store
from tlray.probe import regression
from tlray.training import judging
from tlray.training.judging import Unseen, Wanted
from tlray.trust import calibration, novelty
from tlray.trust.intervals import share_interval

NUM_PARTS = 5
MAX_ERROR = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Measure what a model says about its own errors."""

    run: str = ""
    """A finished `tlray train probe`."""
    foreign: tuple[str, ...] = ()
    """NAME=DIRECTORY pairs: features of images that are to be told from those of the run."""
    seeds: int = 3
    """How often the images are cut anew."""
    out: str = "benchmarks/results"
    """The folder for the results."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """Labelled images with their pooled features.

    Attributes:
        pooled_BD: float16 [images, features].
        labels: int [images].
        groups: str [images].
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
        labels: int [images].
        groups: str [images].
        before_BK: Probabilities without calibration, float [images, K].
        after_BK: Calibrated ones.
        reasons: Why each image is referred; empty where it is not.
        sets_BK: Prediction sets, bool [images, K]; None: there are none.
        ood_scores: float [images].
        foreign_scores: By name of the foreign images, their scores.
        max_ood_score: The limit of these scores.
    """

    labels: np.ndarray
    groups: np.ndarray
    before_BK: np.ndarray
    after_BK: np.ndarray
    reasons: Sequence[str]
    sets_BK: np.ndarray | None
    ood_scores: np.ndarray
    foreign_scores: dict[str, np.ndarray]
    max_ood_score: float


def read(run: str) -> tuple[Images, Dataset]:
    """Reads the images of a run."""
    images = dataset.stored_dataset(run)
    if images is None:
        sys.exit(f"{run} is no finished run. Give that of `tlray train probe`.")
    readable = images.readable
    found = store.read_features(f"{run}/features", columns=["image_id", "view", "pooled"], view=0)
    group_of, index = images.group_of, {name: number for number, name in enumerate(images.classes)}
    return (
        Images(
            pooled_BD=store.look_up(found, readable),
            labels=np.array([index[label] for label in readable["label"].to_pylist()]),
            groups=np.array([group_of[image_id] for image_id in readable["image_id"].to_pylist()], dtype=str),
        ),
        images,
    )


def read_foreign(pairs: Sequence[str]) -> dict[str, np.ndarray]:
    """Reads the features of foreign images, float16 [images, features] by name."""
    found = {}
    for pair in pairs:
        name, _, directory = pair.partition("=")
        table = store.read_features(directory, columns=["pooled"])
        found[name] = table["pooled"].combine_chunks().to_numpy_ndarray()
    return found


def cut(images: Images, seed: int, num_parts: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the rows that are left and the rows of each stratified part, groups together."""
    splitter = StratifiedGroupKFold(num_parts, shuffle=True, random_state=seed)
    yield from splitter.split(images.labels, images.labels, images.groups)


def hold_out(rest: Images, part: Images, foreign: dict[str, np.ndarray], *, num_classes: int, seed: int) -> Held:
    """Fits a probe with its calibration and limits to the rest, as a training does, and asks it about a part."""
    train_rows, valid_rows = next(cut(rest, seed, NUM_PARTS))
    train, valid = rest.take(train_rows), rest.take(valid_rows)
    probe = regression.fit(
        train.pooled_BD, train.labels, valid.pooled_BD, valid.labels, num_classes=num_classes, balanced=True
    )
    logits_BK = regression.out_of_fold(
        rest.pooled_BD, rest.labels, rest.groups, num_classes=num_classes, balanced=True,
        inverse_penalty=probe.best.inverse_penalty, num_folds=5, seed=seed,
    )  # fmt: skip
    if logits_BK is None:
        raise DataError("A class has too few groups.")
    equal = np.full(num_classes, 1 / num_classes)
    unseen = Unseen(
        logits_BK=logits_BK,
        image_ids=[""] * len(rest.labels),
        labels=rest.labels,
        groups=rest.groups,
        assumed_shares=equal,
        origin="the rest",
    )
    wanted = Wanted(
        assumed_shares=equal,
        shares=prior.class_shares(train.labels, num_classes),
        refer_below=None,
        max_error=MAX_ERROR,
    )
    judged = judging.fit(unseen, wanted, seed=seed)
    space = novelty.fit(train.pooled_BD, train.groups.tolist(), valid_BD=valid.pooled_BD, seed=seed)
    own_BK = (part.pooled_BD.astype(np.float32) - probe.mean) / probe.deviation @ probe.weights + probe.bias
    after_BK = special.softmax((own_BK + judged.shift) / judged.temperature, axis=1)
    ood_scores = space.score(part.pooled_BD)
    limits = Limits(refer_below=judged.refer_below, max_ood_score=space.threshold, set_thresholds=judged.set_thresholds)
    found = judge(after_BK, ood_scores, limits)
    return Held(
        labels=part.labels,
        groups=part.groups,
        before_BK=special.softmax(own_BK + prior.logit_shift(equal, wanted.shares), axis=1),
        after_BK=after_BK,
        reasons=found.reasons,
        sets_BK=found.sets_BK,
        ood_scores=ood_scores,
        foreign_scores={name: space.score(pooled_BD) for name, pooled_BD in foreign.items()},
        max_ood_score=space.threshold,
    )


def measure(parts: Sequence[Held]) -> dict[str, str]:
    """Returns the figures of one cut, each image held out once, as text by name."""
    labels, groups = (np.concatenate([getattr(each, name) for each in parts]) for name in ("labels", "groups"))
    before_BK, after_BK = (
        np.concatenate([getattr(each, name) for each in parts]) for name in ("before_BK", "after_BK")
    )
    reasons = np.array([reason for each in parts for reason in each.reasons])
    is_right, is_accepted = after_BK.argmax(axis=1) == labels, reasons == ""
    error = share_interval(~is_right[is_accepted], groups[is_accepted])
    found = {
        "accuracy": f"{is_right.mean():.3f}",
        "ECE before": f"{calibration.expected_calibration_error(before_BK, labels):.3f}",
        "ECE after": f"{calibration.expected_calibration_error(after_BK, labels):.3f}",
        "Brier before": f"{calibration.brier_score(before_BK, labels):.3f}",
        "Brier after": f"{calibration.brier_score(after_BK, labels):.3f}",
        "accepted": f"{is_accepted.mean():.3f}",
        "wrong among them": f"{error.value:.3f} ({error.low:.3f} to {error.high:.3f})",
    }
    found |= {f"referred, {reason}": str(int(np.sum(reasons == reason))) for reason in sorted(set(reasons) - {""})}
    with_sets = [each for each in parts if each.sets_BK is not None]
    if with_sets:
        covered = [
            each.sets_BK[np.arange(len(each.labels)), each.labels] for each in with_sets if each.sets_BK is not None
        ]
        share = share_interval(np.concatenate(covered), np.concatenate([each.groups for each in with_sets]))
        found["truth in the set"] = f"{share.value:.3f} ({share.low:.3f} to {share.high:.3f})"
    inside = np.concatenate([each.ood_scores <= each.max_ood_score for each in parts])
    found["not foreign"] = f"{inside.mean():.3f}"
    for name in parts[0].foreign_scores:
        aurocs = [
            roc_auc_score(
                np.r_[np.zeros(len(each.ood_scores)), np.ones(len(each.foreign_scores[name]))],
                np.r_[each.ood_scores, each.foreign_scores[name]],
            )
            for each in parts
        ]
        accepted = np.mean([np.mean(each.foreign_scores[name] <= each.max_ood_score) for each in parts])
        found[f"{name}: AUROC"] = f"{np.mean(aurocs):.4f}"
        found[f"{name}: accepted"] = f"{accepted:.3f}"
    return found


def main() -> None:
    """Measures and writes the table."""
    settings = tyro.cli(Settings)
    images, stored = read(settings.run)
    foreign = read_foreign(settings.foreign)
    columns = []
    for seed in range(settings.seeds):
        parts = [
            hold_out(images.take(rest), images.take(part), foreign, num_classes=len(stored.classes), seed=seed)
            for rest, part in cut(images, seed, NUM_PARTS)
        ]
        columns.append(measure(parts))
    names = list(dict.fromkeys(name for column in columns for name in column))
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    counted = ", ".join(f"{len(values)} {name}" for name, values in foreign.items())
    lines = [
        f"# What a model says about its own errors, {today}",
        "",
        f"{len(images.labels)} images of {len(set(images.groups))} groups, {NUM_PARTS} parts held out in turn, "
        f"{settings.seeds} cuts. Foreign images: {counted or 'none'}.",
        "",
        f"| figure | {' | '.join(f'cut {number + 1}' for number in range(settings.seeds))} |",
        "| --- |" + " --- |" * settings.seeds,
        *(f"| {name} | {' | '.join(column.get(name, '') for column in columns)} |" for name in names),
        "",
        f"Machine: {machine()}",
        "",
    ]
    text = "\n".join(lines)
    print(text)
    Path(settings.out).mkdir(parents=True, exist_ok=True)
    Path(settings.out, f"trust_{today}.md").write_text(text)


if __name__ == "__main__":
    main()
