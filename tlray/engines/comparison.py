"""Compares what a new model predicts in every engine and precision of this machine, on the same images."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from tlray.bundle import agreement
from tlray.bundle.agreement import Agreement
from tlray.engines import openvino_engine
from tlray.engines.kinds import REFERENCE, Engine, EngineKind, Precision

BATCH_SIZE = 32

MAX_IMAGES = 256
"""Number of validation images that are compared at most: some seconds for InceptionV3 on two cores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """The predictions of one engine and precision.

    Attributes:
        probs_BK: The probabilities, float32 [images, classes].
        agreement: How they agree with those of the reference.
    """

    probs_BK: np.ndarray
    agreement: Agreement


def compare(
    directories: dict[Precision, str],
    reference: Callable[[np.ndarray], np.ndarray],
    images_BHWC: np.ndarray,
    labels: np.ndarray,
    *,
    refer_below: float,
) -> tuple[dict[EngineKind, Compared], dict[Precision, str]]:
    """Compares OpenVINO's predictions with those of TensorFlow in float32.

    Args:
        directories: By precision, the directory of the model's files for OpenVINO; empty where there are none.
        reference: Returns TensorFlow's probabilities, float32 [batch, classes], for images.
        images_BHWC: uint8 [images, size, size, 3], at least one.
        labels: The true class indices, int [images].
        refer_below: The confidence below which a prediction is marked `refer`.

    Returns:
        What each engine and precision that this machine's CPU has predicts, the reference first; and why OpenVINO
        cannot run the model in a precision.
    """

    def row(kind: EngineKind, probs_BK: np.ndarray, images_per_s: float) -> Compared:
        found = agreement.compare(
            probs_BK,
            expected_BK,
            labels,
            engine=kind.engine,
            precision=kind.precision,
            refer_below=refer_below,
            images_per_s=images_per_s,
            cpu=cpu,
        )
        return Compared(probs_BK=probs_BK, agreement=found)

    cpu = openvino_engine.cpu_name()
    expected_BK, images_per_s = _timed(reference, images_BHWC)
    rows = {REFERENCE: row(REFERENCE, expected_BK, images_per_s)}
    available = openvino_engine.cpu_precisions()
    failed: dict[Precision, str] = {}
    for precision, directory in directories.items():
        if precision not in available:
            continue
        kind = EngineKind("openvino", precision)
        try:
            engine = openvino_engine.OpenVinoEngine(directory, precision=precision)
            rows[kind] = row(kind, *_timed(partial(_run, engine), images_BHWC))
        except openvino_engine.ConversionError as error:
            failed[precision] = str(error)
    return rows, failed


def _run(engine: Engine, images_BHWC: np.ndarray) -> np.ndarray:
    (probs_BK,) = engine.run(images_BHWC)
    return probs_BK


def _timed(predict: Callable[[np.ndarray], np.ndarray], images_BHWC: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns the predictions for all images, and images per second.

    The first batch, which prepares the engine, does not count, nor does a smaller one at the end. Where no other is
    left, the first one runs again.
    """
    batches = list(_batches(images_BHWC))
    found = [predict(batches[0])]
    num_timed, duration_s = 0, 0.0
    for batch in batches[1:]:
        start_s = time.perf_counter()
        found.append(predict(batch))
        if len(batch) == BATCH_SIZE:
            num_timed, duration_s = num_timed + len(batch), duration_s + time.perf_counter() - start_s
    if not num_timed:
        start_s = time.perf_counter()
        num_timed = len(predict(batches[0]))
        duration_s = time.perf_counter() - start_s
    return np.concatenate(found), num_timed / duration_s


def _batches(images_BHWC: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(images_BHWC), BATCH_SIZE):
        yield images_BHWC[start : start + BATCH_SIZE]
