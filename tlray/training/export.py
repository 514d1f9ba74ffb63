"""Writes the model files of a trained classifier, and its predictions from stored features; in a process of its own."""

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import special

from tlray.bundle import spec
from tlray.bundle.agreement import Agreement
from tlray.bundle.judgement import Limits, judge
from tlray.bundle.lookalikes import KeptImages
from tlray.bundle.novelty import Novelty, scores_of
from tlray.config.training import PrecisionChoice
from tlray.data.sample import read_some
from tlray.data.stream import Pixels
from tlray.engines import choice, comparison, converted, quantization
from tlray.engines.comparison import Compared
from tlray.engines.kinds import REFERENCE, EngineKind, Precision
from tlray.errors import DataError
from tlray.features.cache import FeatureCache
from tlray.files import storage
from tlray.probe.regression import Probe
from tlray.training import judgement_fit, logits, lookalikes
from tlray.training.judgement_fit import Judging, Unseen, Wanted
from tlray.training.logits import Outputs
from tlray.training.model import Untrained
from tlray.trust import novelty_fit
from tlray.trust.paired_models import compare_accuracy

GROUP, IS_NEW = "group", "is_new"
"""Names of columns: the group of an image (see `tlray.data.splits.independent_groups`), and whether it is new to the
model."""

MAX_DIFFERENCE = 0.02
"""Maximum difference between a probability of the exported model and the one computed from float16 features."""


NOT_COMPARED = (
    "The exported model could not be checked, as all images for the check have changed or can no longer be read: the "
    "metrics were computed from stored features. Check the storage, and measure the bundle with `tlray evaluate`."
)

DIFFERS = (
    "OpenVINO computes other probabilities than TensorFlow does in the same precision, so TensorFlow will predict. "
    "Please report this, with the backbone."
)

INT8_NOT_COMPARED = (
    "The int8 model was not compared with the others, as this CPU has no instructions for int8, so it is never taken "
    "by itself. `tlray engines --data` compares it on another machine; `--precision int8` takes it there."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The result of training a classifier.

    Attributes:
        probe: The linear probe that is the head, or that the head started from; None where none was fitted.
        weights: The best weights of the part that was trained, tail or classifier; None where only a probe was fitted.
        out_of_fold: What probes that were fitted without them say about training and validation images; only where
            the exported model is a probe. None: the validation images are used.
    """

    probe: Probe | None = None
    weights: list[np.ndarray] | None = None
    out_of_fold: Unseen | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """An exported model's engines, its predictions from stored features, and warnings.

    Attributes:
        engines: How the engines that can run it agree, on validation images; empty where none can be read as it was.
        kind: The engine and precision that it predicts with on this machine, if nothing else is wanted.
        probs: Split to its probabilities, float32 [images, classes], from stored features. Empty without these, or
            where the exported model gives other probabilities than they do; then it has to be measured on images.
        ood_scores: The same for the scores of how foreign the images are, float32 [images]; NaN where not known.
        judging: How its predictions are calibrated and judged.
        max_ood_score: Score above which an image is foreign; None: the score could not be fitted.
        warnings: Warnings to the user about the model and its probabilities.
    """

    engines: tuple[Agreement, ...] = ()
    kind: EngineKind = REFERENCE
    probs: Mapping[str, np.ndarray] = field(default_factory=dict)
    ood_scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    judging: Judging
    max_ood_score: float | None = None
    warnings: tuple[str, ...] = ()


def export(
    prepared: Untrained,
    trained: Trained,
    artifact: str,
    *,
    cache: FeatureCache | None,
    tables: Mapping[str, pa.Table],
    pixels: Pixels,
    wanted: Wanted,
    precision: PrecisionChoice,
    calibration: pa.Table | None,
    use_gpu: bool,
    thumbnails: Mapping[str, bytes] | None,
    seed: int,
) -> Exported:
    """Writes the model files of a trained classifier, and compares its engines; run by `connection.start_here`.

    Args:
        prepared: The classifier before training.
        trained: The result of training it.
        artifact: Path or URI of the directory to write to.
        cache: The features that the tail takes, if they are in memory.
        tables: Split to the table of its images, in the order of `cache.rows`: `train`, and `valid` and `test` where
            they have images. They have the columns `GROUP` and `IS_NEW`.
        pixels: How files become pixels.
        wanted: What the user wants of the predictions.
        precision: The precision to measure the model in; see `choice.choose`.
        calibration: Training images to set the ranges of an int8 model with; None: no such model is wanted.
        use_gpu: The model will predict on GPUs.
        thumbnails: Known pictures of training images, see `lookalikes.collect`; the bundle keeps pictures, to be shown
            beside predictions. None: it keeps none.
        seed: Seed of the folds with which the predictions are calibrated.
    """
    from tlray.models import classifier as models  # noqa: PLC0415
    from tlray.models import devices, trunk  # noqa: PLC0415 (TensorFlow only in this process)
    from tlray.models.artifact import save_artifact  # noqa: PLC0415
    from tlray.models.layers import set_weights  # noqa: PLC0415

    devices.use_cpus()
    classifier = models.from_json(prepared.architecture, prepared.weights)
    tail = trunk.split(classifier)[1] if prepared.tail else classifier
    if trained.weights is not None:
        set_weights(tail, trained.weights)
    elif trained.probe is not None:
        models.set_linear_head(tail, **trained.probe.arrays())
    if cache is None:
        found = _outputs_again(trunk.as_function(trunk.with_features(classifier)), tables, pixels)
    else:
        found = logits.of_features(trunk.with_features(tail), tables, cache)
    unseen = trained.out_of_fold or _unseen(found.get("valid"), tables, wanted)
    judged = judgement_fit.fit(unseen, wanted, seed=seed)
    foreign, notes = _novelty(found, tables, seed=seed)
    limits = Limits(
        refer_below=judged.refer_below,
        max_ood_score=foreign.threshold if foreign else None,
        set_thresholds=judged.set_thresholds,
    )
    measured = [split for split in tables if split != "train"]
    compared_split = measured[0]  # the validation images, where there are any
    images = read_some(tables[compared_split], pixels, max_images=comparison.MAX_IMAGES)
    models.shift_logits(classifier, judged.shift)  # the tail has the same layers
    with tempfile.TemporaryDirectory(prefix="tlray-export-") as temporary:
        predict = save_artifact(models.with_probabilities(classifier, temperature=judged.temperature), Path(temporary))
        if foreign:
            _save(Path(temporary, spec.NOVELTY), foreign)
            if thumbnails is not None:
                kept = lookalikes.collect(found["train"], tables["train"], foreign, pixels, thumbnails)
                _save(Path(temporary, spec.LOOKALIKES), kept)
        directories, more = _convert(temporary, calibration, pixels)
        compared, failed = compare_engines(
            directories, predict, images, tables[compared_split], foreign=foreign, limits=limits
        )
        directories, not_working = converted.keep_working(directories, failed)
        storage.copy_tree(temporary, artifact)
    engines = tuple(each.agreement for each in compared.values())
    about_engines = engine_warnings(compared, directories)
    is_there = precision in ("auto", *directories) and DIFFERS not in about_engines
    kind = choice.choose(
        "auto",
        precision if is_there else "auto",  # where it cannot be had, the warnings say so
        use_gpu=use_gpu,
        agreements=engines,
        converted_to=[*directories],
        flag="--inference-precision",
    )
    of_features = prepared.network.packed.kind if prepared.network else kind
    if cache is not None and not images:
        kind = of_features  # nothing can be measured on images
    exported = Exported(
        engines=engines,
        kind=kind,
        judging=judged,
        max_ood_score=limits.max_ood_score,
        warnings=(*judged.warnings, *notes, *more, *not_working, *about_engines),
    )
    if cache is None:
        return exported
    probs = {name: _softmax((found[name].logits_BK + judged.shift) / judged.temperature) for name in measured}
    expected_BK = compared[of_features].probs_BK if of_features in compared else None
    exported = _checked(exported, probs, expected_BK, probs[compared_split][list(images)])
    if of_features != kind:  # features in another precision do not tell what the model predicts in this one
        return dataclasses.replace(exported, probs={})
    return dataclasses.replace(exported, ood_scores={name: scores_of(found[name].arrays, foreign) for name in measured})


def _convert(
    artifact: str, calibration: pa.Table | None, pixels: Pixels
) -> tuple[dict[Precision, str], tuple[str, ...]]:
    """Converts an exported model for OpenVINO, to int8 too if there are images for that; see `converted.add_to`."""
    directories, notes = converted.add_to(artifact)
    if calibration is None or not directories:
        return directories, notes
    images = read_some(calibration, pixels, max_images=quantization.MAX_IMAGES)
    added, more = converted.try_int8(artifact, [*images.values()])
    return directories | added, (*notes, *more)


def _outputs_again(
    run: Callable[[np.ndarray], list[Any]], tables: Mapping[str, pa.Table], pixels: Pixels
) -> dict[str, Outputs]:
    """Returns a model's outputs for some training and validation images; see `logits.of_images`.

    The validation images are drawn among those that are new to the model, as the others are of no use.
    """
    rows_of = {"valid": np.flatnonzero(tables["valid"][IS_NEW].to_numpy())} if "valid" in tables else None
    return logits.of_images(run, tables, pixels, rows_of=rows_of)


def _unseen(found: Outputs | None, tables: Mapping[str, pa.Table], wanted: Wanted) -> Unseen | None:
    """Returns the validation images that are new to the model."""
    if found is None:
        return None
    table = tables["valid"].take(pa.array(found.places))
    is_new = table[IS_NEW].to_numpy()
    return Unseen(
        logits_BK=found.logits_BK[is_new],
        image_ids=table.filter(table[IS_NEW])["image_id"].to_pylist(),
        labels=table["class_index"].to_numpy()[is_new],
        groups=np.array(table[GROUP].to_pylist(), dtype=str)[is_new],
        assumed_shares=wanted.assumed_shares,
        origin="validation images that the model does not know from its training",
    )


def _novelty(
    found: Mapping[str, Outputs], tables: Mapping[str, pa.Table], *, seed: int
) -> tuple[Novelty | None, tuple[str, ...]]:
    """Fits the score of foreign images; returns it, or a warning why there is none."""
    train, valid = found.get("train"), found.get("valid")
    if train is None or train.features_BD is None:
        return None, ()
    groups = tables["train"].take(pa.array(train.places))[GROUP].to_pylist()
    valid_BD = None
    if valid is not None and valid.features_BD is not None:
        valid_BD = valid.features_BD[tables["valid"].take(pa.array(valid.places))[IS_NEW].to_numpy()]
    try:
        return novelty_fit.fit(train.features_BD, groups, valid_BD=valid_BD, seed=seed), ()
    except DataError as error:
        return None, (f"Images that are not like those of training will not be told: {error}",)


def _save(path: Path, content: Novelty | KeptImages | None) -> None:
    """Writes arrays into an .npz file; no file where there is nothing to write."""
    if content is not None:
        np.savez(path, **content.arrays())  # pyright: ignore[reportArgumentType]


def _softmax(logits_BK: np.ndarray) -> np.ndarray:
    return special.softmax(logits_BK.astype(np.float32), axis=1)


def compare_engines(
    directories: dict[Precision, str],
    predict: Any,
    images: Mapping[int, np.ndarray],
    table: pa.Table,
    *,
    foreign: Novelty | None,
    limits: Limits,
) -> tuple[dict[EngineKind, Compared], dict[Precision, str]]:
    """Compares an exported model's engines on labelled images; see `comparison.compare`.

    Args:
        directories: See `comparison.compare`.
        predict: The exported model, see `artifact.save_artifact`.
        images: Row of the table to pixels, uint8 [size, size, 3]; if empty, nothing is compared.
        table: The images, with the columns `class_index` and `GROUP`.
        foreign: The model's score of foreign images; None: it has none.
        limits: The limits by which its predictions are judged.
    """
    if not images:
        return {}, {}
    rows = table.take(pa.array(list(images)))
    labels, groups = rows["class_index"].to_numpy(), np.array(rows[GROUP].to_pylist(), dtype=str)
    return comparison.compare(
        directories,
        lambda batch_BHWC: [output.numpy() for output in predict(batch_BHWC)],
        np.stack(list(images.values())),
        labels,
        compare_accuracy=partial(compare_accuracy, labels=labels, groups=groups),
        decide=lambda found: judge(found[0], scores_of(found, foreign), limits).decisions,
    )


def engine_warnings(compared: Mapping[EngineKind, Compared], directories: Mapping[Precision, str]) -> list[str]:
    """Returns warnings about engines that will not be taken, though the bundle has files for them."""
    exact = compared.get(EngineKind("openvino", "float32"))
    if exact is not None and not exact.agreement.is_fit:
        return [DIFFERS]
    is_compared = not compared or EngineKind("openvino", "int8") in compared
    return [INT8_NOT_COMPARED] if "int8" in directories and not is_compared else []


def _checked(
    exported: Exported, probs: Mapping[str, np.ndarray], found_BK: np.ndarray | None, expected_BK: np.ndarray
) -> Exported:
    """Compares the exported model, on some images, with the probabilities computed from their features.

    Args:
        exported: What is known of the exported model.
        probs: The probabilities from features, by split.
        found_BK: The probabilities of the exported model for some images; None where none could be read.
        expected_BK: Those from the features of these images.
    """
    if found_BK is None:
        return dataclasses.replace(exported, probs=probs, warnings=(*exported.warnings, NOT_COMPARED))
    difference = float(np.abs(found_BK - expected_BK).max())
    if difference <= MAX_DIFFERENCE:
        return dataclasses.replace(exported, probs=probs)
    warning = (
        f"The exported model's probabilities differ by up to {difference:.3f} from those of the stored features, so "
        "the metrics were measured with the exported model on the images. Please report this; --cache off fine-tunes "
        "without stored features."
    )
    return dataclasses.replace(exported, warnings=(*exported.warnings, warning))
