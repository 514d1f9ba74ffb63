"""Writes the model files of a trained classifier, and its predictions from stored features; in a process of its own."""

import dataclasses
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tlray.bundle.agreement import Agreement
from tlray.config.training import PrecisionChoice
from tlray.data.sample import read_some
from tlray.data.stream import Pixels
from tlray.engines import choice, comparison, converted, quantization
from tlray.engines.comparison import Compared
from tlray.engines.kinds import REFERENCE, EngineKind, Precision
from tlray.features.cache import FeatureCache, FeatureReader
from tlray.files import storage
from tlray.probe.regression import Probe
from tlray.training.model import Untrained

PREDICT_BATCH = 256

MAX_DIFFERENCE = 0.02
"""Maximum difference between a probability of the exported model and the one computed from float16 features."""


NOT_COMPARED = (
    "The exported model could not be checked, as none of the images for the check can be read any more: the metrics "
    "were computed from stored features. Check the storage, and measure the bundle with `tlray evaluate`."
)

DIFFERS = (
    "OpenVINO computes other probabilities than TensorFlow does in the same precision, so TensorFlow will predict. "
    "Please report this, with the backbone."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The result of training a classifier.

    Attributes:
        probe: The linear probe that is the head, or that the head started from; None where none was fitted.
        weights: The best weights of the part that was trained, tail or classifier; None where only a probe was fitted.
    """

    probe: Probe | None = None
    weights: list[np.ndarray] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """An exported model's engines, its predictions from stored features, and warnings.

    Attributes:
        engines: How the engines that can run it agree, on validation images; empty where none can be read.
        kind: The engine and precision that it predicts with on this machine, if nothing else is wanted.
        probs: Split to its probabilities, float32 [images, classes], from stored features. Empty without these, or
            where the exported model gives other probabilities than they do; then it has to be measured on images.
        warnings: Warnings to the user about the model and its probabilities.
    """

    engines: tuple[Agreement, ...] = ()
    kind: EngineKind = REFERENCE
    probs: Mapping[str, np.ndarray] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def export(
    prepared: Untrained,
    trained: Trained,
    artifact: str,
    *,
    logit_shift: np.ndarray,
    cache: FeatureCache | None,
    tables: Mapping[str, pa.Table],
    pixels: Pixels,
    refer_below: float,
    precision: PrecisionChoice,
    calibration: pa.Table | None,
    use_gpu: bool,
) -> Exported:
    """Writes the model files of a trained classifier, and compares its engines; run by `connection.start_here`.

    Args:
        prepared: The classifier before training.
        trained: The result of training it.
        artifact: Path or URI of the directory to write to.
        logit_shift: Constants that are added to the trained logits, [classes]; see `prior.logit_shift`.
        cache: The features that the tail takes, if they are in memory.
        tables: Split to the table of its images, in the order of `cache.rows`.
        pixels: How files become pixels.
        refer_below: The confidence below which a prediction is marked `refer`.
        precision: The precision to measure the model in; see `choice.choose`.
        calibration: Training images to set the ranges of an int8 model with; None: no such model is wanted.
        use_gpu: The model will predict on GPUs.
    """
    from tlray.models import classifier as models  # noqa: PLC0415
    from tlray.models import devices, trunk  # noqa: PLC0415 (TensorFlow only in this process)
    from tlray.models.files import save_artifact  # noqa: PLC0415

    devices.use_cpus()
    classifier = models.from_json(prepared.architecture, prepared.weights)
    tail = trunk.split(classifier)[1] if prepared.tail else classifier
    if trained.weights is not None:
        tail.set_weights(trained.weights)
    elif trained.probe is not None:
        models.set_linear_head(tail, **trained.probe.arrays())
    models.shift_logits(classifier, logit_shift)  # the tail has the same layers
    with tempfile.TemporaryDirectory(prefix="tlray-export-") as temporary:
        predict = save_artifact(models.with_probabilities(classifier), Path(temporary))
        directories, notes = converted.add_to(temporary)
        if calibration is not None and directories:
            found = read_some(calibration, pixels, max_images=quantization.MAX_IMAGES)
            added, more = converted.try_int8(temporary, [*found.values()])
            directories, notes = directories | added, (*notes, *more)
        split = next(iter(tables))  # the validation images, where there are any
        images = read_some(tables[split], pixels, max_images=comparison.MAX_IMAGES)
        compared, failed = _compare_engines(directories, predict, images, tables[split], refer_below=refer_below)
        directories, more = converted.keep_working(directories, failed)
        notes = (*notes, *more)
        storage.copy_tree(temporary, artifact)
    engines = tuple(each.agreement for each in compared.values())
    if not directories:
        precision = "auto"  # what was wanted cannot be had, and `notes` say so
    kind = choice.choose(
        "auto",
        precision,
        use_gpu=use_gpu,
        agreements=engines,
        converted_to=[*directories],
        flag="--inference-precision",
    )
    if any(row.engine == "openvino" and row.precision == "float32" and not row.is_fit for row in engines):
        notes = (*notes, DIFFERS)
    of_features = prepared.network.packed.kind if prepared.network else kind
    if cache is not None and not images:
        kind = of_features  # nothing can be measured on images
    exported = Exported(engines=engines, kind=kind, warnings=notes)
    if cache is None:
        return exported
    probs = _predict_cached(models.with_probabilities(tail), cache, tables)
    found = compared[of_features].probs_BK if of_features in compared else None
    exported = _checked(exported, probs, found, probs[split][list(images)])
    # Features in another precision do not tell what the model predicts in this one.
    return exported if of_features == kind else dataclasses.replace(exported, probs={})


def _predict_cached(tail: Any, cache: FeatureCache, tables: Mapping[str, pa.Table]) -> dict[str, np.ndarray]:
    reader = FeatureReader(cache)
    probs = {}
    for split in tables:
        rows = cache.rows[split][:, 0]
        batches = [rows[start : start + PREDICT_BATCH] for start in range(0, len(rows), PREDICT_BATCH)]
        probs[split] = np.concatenate([np.asarray(tail(reader.take(batch), training=False)) for batch in batches])
    return probs


def _compare_engines(
    directories: dict[Precision, str],
    predict: Any,
    images: Mapping[int, np.ndarray],
    table: pa.Table,
    *,
    refer_below: float,
) -> tuple[dict[EngineKind, Compared], dict[Precision, str]]:
    if not images:
        return {}, {}
    return comparison.compare(
        directories,
        lambda batch_BHWC: predict(batch_BHWC).numpy(),
        np.stack(list(images.values())),
        table["class_index"].to_numpy()[list(images)],
        refer_below=refer_below,
    )


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
        "the metrics were measured with the exported model on the images. If no image file has changed since the run "
        "began, please report this; --cache off fine-tunes without stored features."
    )
    return dataclasses.replace(exported, warnings=(*exported.warnings, warning))
