"""Writes the model files of a trained classifier, and its predictions from stored features; in a process of its own."""

import contextlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tlray.data import decoding, stream
from tlray.data.stream import Pixels
from tlray.errors import ImageError
from tlray.features.cache import FeatureCache, FeatureReader
from tlray.files import storage
from tlray.probe.regression import Probe
from tlray.training.model import Untrained

PREDICT_BATCH = 256


NUM_CHECKED_IMAGES = 16


MAX_DIFFERENCE = 0.02
"""Maximum difference between a probability of the exported model and the one computed from float16 features."""


NOT_COMPARED = (
    "The exported model could not be checked, as none of the images for the check can be read any more: the metrics "
    "were computed from stored features. Check the storage, and measure the bundle with `tlray evaluate`."
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
    """The predictions of an exported model that were computed from stored features.

    Attributes:
        probs: Split to its probabilities, float32 [images, classes]. Empty without stored features, or where the
            exported model gives other probabilities than they do; then the model has to be measured on images.
        warnings: Warnings to the user about these probabilities.
    """

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
) -> Exported:
    """Writes `model.keras` and `saved_model/` of a trained classifier; run by `connection.start_here`.

    Args:
        prepared: The classifier before training.
        trained: The result of training it.
        artifact: Path or URI of the directory to write to.
        logit_shift: Constants that are added to the trained logits, [classes]; see `prior.logit_shift`.
        cache: The features that the tail takes, if they are in memory.
        tables: Split to the table of its images, in the order of `cache.rows`.
        pixels: How files become pixels.

    Returns:
        The probabilities computed from the cache; none without a cache, and none where the written model gives others.
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
        storage.copy_tree(temporary, artifact)
    if cache is None:
        return Exported()
    return _checked(_predict_cached(models.with_probabilities(tail), cache, tables), predict, tables, pixels)


def _predict_cached(tail: Any, cache: FeatureCache, tables: Mapping[str, pa.Table]) -> dict[str, np.ndarray]:
    reader = FeatureReader(cache)
    probs = {}
    for split in tables:
        rows = cache.rows[split][:, 0]
        batches = [rows[start : start + PREDICT_BATCH] for start in range(0, len(rows), PREDICT_BATCH)]
        probs[split] = np.concatenate([np.asarray(tail(reader.take(batch), training=False)) for batch in batches])
    return probs


def _checked(probs: Mapping[str, np.ndarray], predict: Any, tables: Mapping[str, pa.Table], pixels: Pixels) -> Exported:
    """Compares the exported model, on some images, with the probabilities computed from their features."""
    split = next(iter(tables))
    arrays: dict[int, np.ndarray] = {}
    uris = tables[split]["uri"].to_pylist()  # class by class
    for place in sorted({int(place) for place in np.linspace(0, len(uris) - 1, NUM_CHECKED_IMAGES)} if uris else ()):
        with contextlib.suppress(ImageError):  # an image that has gone since training must not fail a finished run
            content = stream.read_file(uris[place])
            image = decoding.decode(content, size_px=pixels.size_px, intensity_range=pixels.intensity_range)
            arrays[place] = decoding.to_array(image)
    if not arrays:
        return Exported(probs=probs, warnings=(NOT_COMPARED,))
    found = predict(np.stack(list(arrays.values()))).numpy()
    difference = float(np.abs(found - probs[split][list(arrays)]).max())
    if difference <= MAX_DIFFERENCE:
        return Exported(probs=probs)
    warning = (
        f"The exported model's probabilities differ by up to {difference:.3f} from those of the stored features, so "
        "the metrics were measured with the exported model on the images. If no image file has changed since the run "
        "began, please report this; --cache off fine-tunes without stored features."
    )
    return Exported(warnings=(warning,))
