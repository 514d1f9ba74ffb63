"""Compares what a new model predicts, and how fast, in every engine and precision that this machine has."""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tlray.bundle import agreement
from tlray.bundle.agreement import AccuracyChange, Agreement
from tlray.engines import openvino_engine
from tlray.engines.kinds import REFERENCE, EngineKind, Precision
from tlray.models import outputs as model_outputs

BATCH_SIZE = 16
"""Number of images in a batch. On two cores InceptionV3 takes 0.1 to 0.3 s for one, so that rounds are short."""

MIN_ROUNDS = 5
"""Minimum number of timed rounds, unless they take `MAX_TIMED_S`. In a round each engine and precision runs a batch."""

MIN_TIMED_S = 0.5
"""Minimum seconds of timed rounds for each engine and precision, on average over those that take turns, unless all
together take `MAX_TIMED_S`. Quick networks run more rounds."""

MAX_TIMED_S = 4.0
"""Seconds of timed rounds, of all that take turns together, after which no batch runs again. All batches run once even
if that takes longer."""

MAX_DIFFERENCE = 1e-3
"""Largest difference of a probability with which OpenVINO may replace TensorFlow in float32."""

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
    compare_accuracy: Callable[[np.ndarray, np.ndarray], AccuracyChange],
    decide: Callable[[list[np.ndarray]], np.ndarray],
) -> tuple[dict[EngineKind, Compared], dict[Precision, str]]:
    """Compares OpenVINO's predictions with those of TensorFlow in float32.

    Args:
        directories: By precision, the directory of the model's files for OpenVINO; empty where there are none.
        reference: Returns TensorFlow's outputs for images: probabilities, float32 [batch, classes], and others.
        images_BHWC: uint8 [images, size, size, 3], at least one.
        labels: The true class indices, int [images].
        compare_accuracy: See `agreement.compare`.
        decide: Returns what is decided of each image, [images], given all outputs for them; see
            `judgement.Judgement.decisions`.

    Returns:
        What each engine and precision that this machine's CPU has predicts, the reference first; and why OpenVINO
        cannot run the model in a precision.
    """

    def row(kind: EngineKind, measured: _Measured) -> Compared:
        found = agreement.compare(
            measured.outputs[0],
            expected[0],
            labels,
            compare_accuracy=compare_accuracy,
            engine=kind.engine,
            precision=kind.precision,
            num_referrals_changed=int(np.sum(decide(measured.outputs) != decide(expected))),
            images_per_s=measured.images_per_s,
            cpu=cpu,
        )
        return Compared(probs_BK=measured.outputs[0], agreement=found)

    cpu, available = openvino_engine.cpu_name(), openvino_engine.cpu_precisions()
    runs: dict[EngineKind, _Run] = {}
    failed: dict[Precision, str] = {}
    # First: another process may remove a directory from the cache while the reference runs.
    for precision, directory in directories.items():
        if precision not in available:
            continue
        try:
            engine = openvino_engine.OpenVinoEngine(directory, precision=precision)
        except openvino_engine.ConversionError as error:
            failed[precision] = str(error)
        else:
            runs[EngineKind("openvino", precision)] = engine.run
    # By itself: threads of TensorFlow that are still awake would slow the precision that runs next.
    measured, _ = _measure({REFERENCE: reference}, images_BHWC)
    expected = measured[REFERENCE].outputs
    if runs:
        by_openvino, more = _measure(runs, images_BHWC)
        measured |= by_openvino
        failed |= {kind.precision: why for kind, why in more.items()}
    return {kind: row(kind, each) for kind, each in measured.items()}, failed


def trial_images(size_px: int) -> np.ndarray:
    """Returns the images for `check`, uint8 [4, size, size, 3]: a gradient and noise, the same in every process."""
    return model_outputs.trial_images(size_px)[-4:]


def check(directory: str, images_BHWC: np.ndarray, expected: Sequence[np.ndarray]) -> None:
    """Checks that OpenVINO computes in float32 what TensorFlow does, with a network that was just converted.

    Args:
        directory: The network's files for OpenVINO.
        images_BHWC: uint8 [images, size, size, 3], see `trial_images`.
        expected: TensorFlow's outputs for them, float32 [images, ...] each.

    Raises:
        ConversionError: OpenVINO cannot run the network, or an output differs by more than `MAX_DIFFERENCE`. If an
            output has values beyond -1 to 1, as features do, it may differ by this share of the largest one.
    """
    found = openvino_engine.OpenVinoEngine(directory, precision="float32").run(images_BHWC)
    differences = [
        np.abs(values - wanted).max() / max(1.0, np.abs(wanted).max())
        for values, wanted in zip(found, expected, strict=True)
    ]
    difference = float(np.max(differences))
    if not difference <= MAX_DIFFERENCE:  # also where it is not a number
        raise openvino_engine.ConversionError(
            f"its outputs differ from TensorFlow's by up to {difference:.3g}, and the limit is {MAX_DIFFERENCE:g}"
        )


_Run = Callable[[np.ndarray], list[np.ndarray]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """The outputs of an engine and precision for all images, and its speed."""

    outputs: list[np.ndarray]
    images_per_s: float


def _measure(
    runs: Mapping[EngineKind, _Run], images_BHWC: np.ndarray
) -> tuple[dict[EngineKind, _Measured], dict[EngineKind, str]]:
    """Runs engines on all images, in turns after each batch, and then again until their speeds are known.

    The first batch, which prepares the engines, is not timed, nor is a smaller one at the end. See `MIN_ROUNDS`,
    `MIN_TIMED_S` and `MAX_TIMED_S` for how long it takes.

    Returns:
        What each engine computes, and how fast; and the errors of engines that cannot run.
    """
    running, failed = dict(runs), {}
    outputs: dict[EngineKind, list[list[np.ndarray]]] = {kind: [] for kind in runs}
    durations_s: dict[EngineKind, list[float]] = {kind: [] for kind in runs}
    batches = list(_batches(images_BHWC))
    whole = [batch for batch in batches if len(batch) == len(batches[0])]
    for number, batch in enumerate(itertools.chain(batches, itertools.cycle(whole))):
        if number >= len(batches) and _is_enough([durations_s[kind] for kind in running]):
            break
        for kind, run in [*running.items()]:
            start_s = time.perf_counter()
            try:
                found = run(batch)
            except openvino_engine.ConversionError as error:
                failed[kind] = str(error)
                del running[kind]
                continue
            duration_s = time.perf_counter() - start_s
            if number < len(batches):
                outputs[kind].append(found)
            if number and len(batch) == len(whole[0]):
                durations_s[kind].append(duration_s)
    seconds = _typical([durations_s[kind] for kind in running])
    measured = {
        kind: _Measured(
            outputs=[np.concatenate(arrays) for arrays in zip(*outputs[kind], strict=True)],
            images_per_s=len(whole[0]) / duration_s,
        )
        for kind, duration_s in zip(running, seconds, strict=True)
    }
    return measured, failed


def _is_enough(durations_s: Sequence[Sequence[float]]) -> bool:
    """Tells whether these durations in seconds [engines][rounds] are enough to know the engines' speeds."""
    num_rounds = min(map(len, durations_s), default=MIN_ROUNDS)
    timed_s = sum(map(sum, durations_s))
    is_known = num_rounds >= MIN_ROUNDS and timed_s >= MIN_TIMED_S * len(durations_s)
    return is_known or timed_s >= MAX_TIMED_S


def _typical(durations_s: Sequence[Sequence[float]]) -> list[float]:
    """Returns the typical duration of a batch for each engine, in seconds, given all durations [engines][rounds].

    It is the median of the engine's shares in the rounds' durations, times the median of the rounds' durations. Another
    process that is busy for longer than a round slows all engines alike, and so changes no share.
    """
    rounds_s = [sum(each) for each in zip(*durations_s, strict=True)]
    return [
        statistics.median(part_s / round_s for part_s, round_s in zip(parts_s, rounds_s, strict=True))
        * statistics.median(rounds_s)
        for parts_s in durations_s
    ]


def _batches(images_BHWC: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(images_BHWC), BATCH_SIZE):
        yield images_BHWC[start : start + BATCH_SIZE]
