"""What is a fine-tuned model's word worth? As `trust.py`, but every model is trained by a whole `tlray train`.

    python benchmarks/trust_fine_tuned.py --run RUN --weights FILE --foreign DIR

RUN is a finished `tlray train` on the images: its manifest tells which belong together (patients, copies, neighbouring
slices). The images are cut into five stratified parts of such groups. Each part is held out in turn: `tlray train
RECIPE` learns from the rest, of which one part in five is its validation split, and `tlray score` predicts the held-out
part and the images of DIR, a folder for each set of foreign ones (`foreign_images.py`).

It prints a table and writes it as `trust_RECIPE_DATE.md` into --out. No figure makes it fail.
"""

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import tyro

sys.path.insert(0, str(Path(__file__).parent))
from result_page import write_goals
from time_to_accuracy import run_process
from trust import NUM_PARTS, Figure, Images, cut, mean_over_groups, measure_foreign, read, right_by_chance, text_of

from tlray.bundle.spec import BUNDLE_JSON
from tlray.trust import calibration
from tlray.trust.intervals import share_interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Measure what fine-tuned models say about their own errors."""

    run: str
    """A finished `tlray train` on the images."""
    weights: str
    """A weights file of InceptionV3 without its top."""
    foreign: str = ""
    """A local folder with a folder for each set of foreign images; empty: none."""
    recipe: str = "article"
    """The recipe of the trainings: article, standard or full."""
    max_error: float = 0.2
    """The trainings' `--max-error`."""
    seed: int = 0
    """Seed of the cut and of the trainings."""
    keep: str = ""
    """A local folder where the runs and scores of each part stay; empty: they are deleted."""
    out: str = "benchmarks/results"
    """The folder for the results."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a model says of the part that was held out, and of foreign images.

    Attributes:
        labels: Class indices, int [images].
        groups: See `trust.Images`.
        probs_BK: Calibrated probabilities, float [images, K].
        is_accepted: Which images are not referred, bool [images].
        has_truth: Whether the prediction set has the true class, bool [images]; None: the model has no sets.
        ood_scores: float [images].
        foreign_scores: By set of foreign images, their scores.
        max_ood_score: The bundle's limit of these scores.
        about: The bundle's `trust`, `tlray.training.judgement_fit.Judging.about`.
        num_epochs: Number of epochs of fine-tuning whose weights were exported; 0: a probe was.
    """

    labels: np.ndarray
    groups: np.ndarray
    probs_BK: np.ndarray
    is_accepted: np.ndarray
    has_truth: np.ndarray | None
    ood_scores: np.ndarray
    foreign_scores: dict[str, np.ndarray]
    max_ood_score: float
    about: dict
    num_epochs: int


def link(paths: Sequence[str], places: Sequence[str], root: Path) -> None:
    """Makes links to files.

    Args:
        paths: The files.
        places: For each, the folder below `root` for its link. A link's name is the file's place in `paths`.
        root: The folder for all of them.
    """
    for number, (path, place) in enumerate(zip(paths, places, strict=True)):
        (root / place).mkdir(parents=True, exist_ok=True)
        (root / place / f"{number:05d}{Path(path).suffix}").symlink_to(Path(path).resolve())


def hold_out(
    images: Images, part: np.ndarray, settings: Settings, *, uris: Sequence[str], classes: Sequence[str], scratch: Path
) -> Held:
    """Trains a model on all images but those of a part, and asks it about the part and about foreign images.

    Args:
        images: All images.
        part: The rows of the part.
        settings: What runs.
        uris: The files of the images.
        classes: The names of the classes.
        scratch: An empty folder.
    """
    rest = np.setdiff1d(np.arange(len(uris)), part)
    valid = rest[next(cut(images.take(rest), settings.seed, NUM_PARTS))[1]]
    split_of = np.full(len(uris), "train", dtype=object)
    split_of[valid], split_of[part] = "valid", "test"
    link(uris, [f"{split_of[row]}/{classes[images.labels[row]]}" for row in range(len(uris))], scratch / "data")
    options = ["--weights", settings.weights, "--max-error", settings.max_error, "--seed", settings.seed, "--quiet"]
    run_process(
        f"tlray train {settings.recipe}",
        ["-m", "tlray", "train", settings.recipe, "--data", scratch / "data", "--out", scratch / "run", *options],
        scratch,
    )
    uris_of_part = [str(uris[row]) for row in part]
    link(uris_of_part, ["own"] * len(part), scratch / "asked")
    foreign = sorted(path for path in Path(settings.foreign).rglob("*") if path.is_file()) if settings.foreign else []
    link([str(path) for path in foreign], [f"foreign/{path.parent.name}" for path in foreign], scratch / "asked")
    bundle = scratch / "run" / "bundle"
    options = ["--input", scratch / "asked", "--out", scratch / "scores", "--quiet"]
    run_process("tlray score", ["-m", "tlray", "score", "--bundle", bundle, *options], scratch)
    table = pq.read_table(scratch / "scores" / "predictions").sort_by("image_id")
    if table["error_code"].null_count < len(table):
        sys.exit(f"{len(table) - table['error_code'].null_count} images were not scored.")
    names = np.array(table["image_id"].to_pylist(), dtype=str)
    is_own = np.char.startswith(names, "own/")
    scores = table["ood_score"].to_numpy()
    sets_of = np.array([name.split("/")[1] for name in names])
    labels = images.labels[part]
    sets = [each for each, own in zip(table["prediction_set"].to_pylist(), is_own, strict=True) if own]
    about = json.loads((bundle / BUNDLE_JSON).read_text())
    if "max_ood_score" not in about["thresholds"] or "calibration" not in about["trust"]:
        sys.exit("The bundle has no novelty score, or no validation image was new to it. Give a run on more patients.")
    return Held(
        labels=labels,
        groups=images.groups[part],
        probs_BK=np.stack([table[f"p_{name}"].to_numpy()[is_own] for name in about["classes"]], axis=1),
        is_accepted=~table["refer"].to_numpy()[is_own],
        has_truth=None
        if about["set_thresholds"] is None
        else np.array([classes[label] in each for label, each in zip(labels, sets, strict=True)]),
        ood_scores=scores[is_own],
        foreign_scores={str(name): scores[~is_own & (sets_of == name)] for name in np.unique(sets_of[~is_own])},
        max_ood_score=about["thresholds"]["max_ood_score"],
        about=about["trust"],
        num_epochs=json.loads((scratch / "run" / "metrics.json").read_text())["best_epoch"],
    )


def is_calibrated(found: Mapping[str, Any]) -> bool:
    """Tells whether a calibration changes anything; `found` has the fields of `tlray.trust.calibration.Calibration`."""
    return found["temperature"] != 1 or any(found["biases"])


def measure(parts: Sequence[Held], settings: Settings) -> dict[str, Figure]:
    """Returns the figures by name; each image was held out once."""
    labels, groups = (np.concatenate([getattr(each, name) for each in parts]) for name in ("labels", "groups"))
    probs_BK = np.concatenate([each.probs_BK for each in parts])
    is_right = probs_BK.argmax(axis=1) == labels
    is_accepted = np.concatenate([each.is_accepted for each in parts])
    before, after = (float(np.mean([e.about["calibration"][name] for e in parts])) for name in ("ece_before", "ece"))
    with_threshold = [each for each in parts if not each.about["referral"]["note"]]
    found: dict[str, Figure] = {
        "models that were fine-tuned, not probes": float(sum(each.num_epochs > 0 for each in parts)),
        "models that were calibrated": float(sum(is_calibrated(each.about["calibration"]) for each in parts)),
        "accuracy": share_interval(is_right, groups),
        "ECE before calibration, on the images that it was fitted on": before,
        "ECE after it, on the same, each by a calibration without its group": after,
        "ECE after it, on the held-out images": calibration.expected_calibration_error(probs_BK, labels),
        "the same if these probabilities were right, each image for itself": right_by_chance(probs_BK, settings.seed),
        "the same, and the images of a group right or wrong together": right_by_chance(probs_BK, settings.seed, groups),
        "Brier score, on the held-out images": calibration.brier_score(probs_BK, labels),
        f"models with a threshold for --max-error {settings.max_error:g}": float(len(with_threshold)),
        "share accepted, by all models": float(is_accepted.mean()),
        "wrong among them": share_interval(~is_right[is_accepted], groups[is_accepted]),
    }
    with_sets = [each for each in parts if each.has_truth is not None]
    found["models with prediction sets"] = float(len(with_sets))
    if with_sets:
        covered = np.concatenate([each.has_truth for each in with_sets if each.has_truth is not None])
        found["sets with the true class, by group"] = mean_over_groups(
            covered, np.concatenate([each.groups for each in with_sets])
        )
    return found | measure_foreign([(each.ood_scores, each.foreign_scores, each.max_ood_score) for each in parts])


def main() -> None:
    """Trains, measures and writes the table."""
    settings = tyro.cli(Settings, prog="trust_fine_tuned.py", description=__doc__)
    images, stored = read(settings.run)
    uris = stored.readable["uri"].to_pylist()
    parts = []
    for number, (_, part) in enumerate(cut(images, settings.seed, NUM_PARTS)):
        with tempfile.TemporaryDirectory(prefix="tlray-benchmark-") as temporary:
            scratch = Path(settings.keep, f"part-{number + 1}") if settings.keep else Path(temporary)
            scratch.mkdir(parents=True, exist_ok=True)
            parts.append(hold_out(images, part, settings, uris=uris, classes=stored.classes, scratch=scratch))
        right = np.mean(parts[-1].probs_BK.argmax(axis=1) == parts[-1].labels)
        print(f"Part {number + 1} of {NUM_PARTS}: {right:.3f} right, {parts[-1].num_epochs} epochs.", flush=True)
    counted = ", ".join(f"{len(scores)} {name}" for name, scores in parts[0].foreign_scores.items())
    write_goals(
        f"trust_{settings.recipe}",
        f"What models of `tlray train {settings.recipe}` say about their own errors",
        f"python benchmarks/trust_fine_tuned.py --run RUN --weights FILE --foreign DIR --recipe {settings.recipe}",
        goals=[],
        lines=[
            f"{len(images.labels)} images of {len(set(images.groups.tolist()))} groups, {NUM_PARTS} parts held out in "
            f"turn. Foreign images: {counted or 'none'}. In brackets: 95 % intervals over groups. ECE: expected "
            "calibration error in 10 bins.",
            "",
            "| figure | value |",
            "| --- | --- |",
            *(f"| {name} | {text_of(figure)} |" for name, figure in measure(parts, settings).items()),
        ],
        out=settings.out,
    )


if __name__ == "__main__":
    main()
