"""Scores the images of a manifest with a bundle, on a pool of Ray actors that grows and shrinks, in order.

Import it to get batches of scores; `tlray.inference.score` and `tlray.inference.suggest` make tables of them.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from tlray.bundle.spec import BundleSpec
from tlray.cluster.plans import ScorePlan
from tlray.data import stream
from tlray.data.schedule import PlainSchedule
from tlray.engines.kinds import EngineKind
from tlray.errors import BundleError, TlrayError
from tlray.inference.predictor import Predictor

PLACES = "places"
"""Name of the column of scored batches that says where the images lie in the space of the training images."""

_DROPPED = frozenset({"image", "epoch", "weight"})
"""Columns of `stream.image_stream` that a scored batch does not have."""


class _Scorer:
    """An actor of Ray Data's pool that scores batches."""

    def __init__(self, location: str, sha256: str, kind: EngineKind, *, with_places: bool, **options: Any) -> None:
        self._error: TlrayError | None = None
        self._with_places = with_places
        try:
            self.predictor = Predictor(location, engine=kind.engine, precision=kind.precision, **options)
            check_bundle(location, found=self.predictor.bundle.sha256, wanted=sha256)
        except TlrayError as error:  # raised by the first call, as Ray would show an actor's death in many lines
            self._error = error

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self._error is not None:
            raise self._error
        return score_batch(self.predictor, batch, with_places=self._with_places)


def score_batch(predictor: Predictor, batch: Mapping[str, Any], *, with_places: bool) -> dict[str, Any]:
    """Scores a batch of `stream.image_stream`.

    Args:
        predictor: The model.
        batch: The columns of the batch.
        with_places: Give the column `PLACES`, if the bundle has a novelty score.

    Returns:
        The columns of the batch but `image`, `epoch` and `weight`; `probabilities` (float32 [rows, K]) and `ood_score`
        (float32 [rows]); and `PLACES` (float16 [rows, components]), see `Novelty.place`. Values that are not known are
        NaN.
    """
    images, readable = batch["image"], batch["error_code"] == ""
    scores = predictor.score(np.ascontiguousarray(images[readable]))
    probs_BK = np.full((len(images), len(predictor.bundle.spec.classes)), np.nan, dtype=np.float32)
    ood_scores = np.full(len(images), np.nan, dtype=np.float32)
    probs_BK[readable], ood_scores[readable] = scores.probs_BK, scores.ood_scores
    found: dict[str, Any] = {name: values for name, values in batch.items() if name not in _DROPPED}
    found |= {"probabilities": probs_BK, "ood_score": ood_scores}
    if with_places and predictor.novelty is not None:
        places_BC = np.full((len(images), len(predictor.novelty.basis)), np.nan, dtype=np.float16)
        if scores.places_BC is not None:
            places_BC[readable] = scores.places_BC
        found[PLACES] = places_BC
    return found


def score_batches(
    location: str,
    spec: BundleSpec,
    sha256: str,
    table: pa.Table,
    *,
    plan: ScorePlan,
    kind: EngineKind,
    batch_size: int,
    first_row: int = 0,
    with_stamps: bool = False,
    with_places: bool = False,
) -> Iterator[dict[str, np.ndarray]]:
    """Scores the images of a manifest.

    Args:
        location: The bundle's location.
        spec: Its description.
        sha256: Its sha256. Nothing is scored if the bundle has been replaced by another one.
        table: The manifest.
        plan: How the model and its data share the cluster.
        kind: The engine and precision that predict.
        batch_size: Number of images that the model takes at once.
        first_row: The manifest's row to start with; less than its number of rows.
        with_stamps: Give the column `file_stamps.COLUMN` too.
        with_places: See `score_batch`.

    Yields:
        Batches in the manifest's order, see `score_batch`.

    Raises:
        BundleError: The bundle cannot be used, or was replaced.
    """
    pixels = stream.Pixels(size_px=spec.image_size_px, intensity_range=spec.intensity_range)
    schedule = PlainSchedule(num_rows=table.num_rows)
    dataset = stream.image_stream(ray.put(table), schedule, pixels, first_row=first_row, with_stamps=with_stamps)
    options = {"num_threads": plan.num_threads, "use_gpu": bool(plan.gpus_per_actor), "batch_size": batch_size}
    dataset = dataset.map_batches(
        _Scorer,
        fn_constructor_args=(location, sha256, kind),
        fn_constructor_kwargs=options | {"with_places": with_places},
        batch_size=batch_size,
        **plan.pool(),
    )
    stream.configure(dataset)
    yield from stream.iterate(dataset)


def check_bundle(location: str, *, found: str, wanted: str) -> None:
    """Refuses a bundle that is not the one that was asked for.

    Args:
        location: The bundle's location.
        found: Its sha256.
        wanted: The sha256 of the one that was asked for.

    Raises:
        BundleError: They differ.
    """
    if found != wanted:
        raise BundleError(
            f"The bundle '{location}' was replaced: its sha256 is {found[:12]}…, not {wanted[:12]}…. Score with the "
            "present bundle, or give the location of the other one."
        )
