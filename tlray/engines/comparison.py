"""Compares what a new model predicts in every engine and precision of this machine, on the same images."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from tlray.bundle import agreement
from tlray.bundle.agreement import Agreement
from tlray.engines import openvino_engine
from tlray.engines.kinds import REFERENCE, EngineKind, Precision

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
    reference: Callable[[np.ndarray], list[np.ndarray]],
    images_BHWC: np.ndarray,
    labels: np.ndarray,
    *,
    decide: Callable[[list[np.ndarray]], np.ndarray],
) -> tuple[dict[EngineKind, Compared], dict[Precision, str]]:
    """Compares OpenVINO's predictions with those of TensorFlow in float32.

    Args:
        directories: By precision, the directory of the model's files for OpenVINO; empty where there are none.
        reference: Returns TensorFlow's outputs for images: probabilities, float32 [batch, classes], and others.
        images_BHWC: uint8 [images, size, size, 3], at least one.
        labels: The true class indices, int [images].
        decide: Returns what is decided of each image, [images], given all outputs for them; see
            `judgement.Judgement.decisions`.

    Returns:
        What each engine and precision that this machine's CPU has predicts, the reference first; and why OpenVINO
        cannot run the model in a precision.
    """

    def row(kind: EngineKind, outputs: list[np.ndarray], images_per_s: float) -> Compared:
        found = agreement.compare(
            outputs[0],
            expected[0],
            labels,
            engine=kind.engine,
            precision=kind.precision,
            num_referrals_changed=int(np.sum(decide(outputs) != decide(expected))),
            images_per_s=images_per_s,
            cpu=cpu,
        )
        return Compared(probs_BK=outputs[0], agreement=found)

    cpu = openvino_engine.cpu_name()
    expected, images_per_s = _timed(reference, images_BHWC)
    rows = {REFERENCE: row(REFERENCE, expected, images_per_s)}
    available = openvino_engine.cpu_precisions()
    failed: dict[Precision, str] = {}
    for precision, directory in directories.items():
        if precision not in available:
            continue
        kind = EngineKind("openvino", precision)
        try:
            engine = openvino_engine.OpenVinoEngine(directory, precision=precision)
            rows[kind] = row(kind, *_timed(engine.run, images_BHWC))
        except openvino_engine.ConversionError as error:
            failed[precision] = str(error)
    return rows, failed


def _timed(run: Callable[[np.ndarray], list[np.ndarray]], images_BHWC: np.ndarray) -> tuple[list[np.ndarray], float]:
    """Returns the outputs for all images, and images per second.

    The first batch, which prepares the engine, does not count, nor does a smaller one at the end. Where no other is
    left, the first one runs again.
    """
    batches = list(_batches(images_BHWC))
    found = [run(batches[0])]
    num_timed, duration_s = 0, 0.0
    for batch in batches[1:]:
        start_s = time.perf_counter()
        found.append(run(batch))
        if len(batch) == BATCH_SIZE:
            num_timed, duration_s = num_timed + len(batch), duration_s + time.perf_counter() - start_s
    if not num_timed:
        start_s = time.perf_counter()
        run(batches[0])
        num_timed, duration_s = len(batches[0]), time.perf_counter() - start_s
    return [np.concatenate(arrays) for arrays in zip(*found, strict=True)], num_timed / duration_s


def _batches(images_BHWC: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(images_BHWC), BATCH_SIZE):
        yield images_BHWC[start : start + BATCH_SIZE]
