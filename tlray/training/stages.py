"""What the stages of a training run hand to one another, and the names of its files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray

from tlray.cluster.connection import Capacity
from tlray.cluster.plans import TrainPlan
from tlray.config.training import TrainConfig
from tlray.data import dataset
from tlray.data.dataset import Dataset
from tlray.data.drift import TrainingImages
from tlray.evaluation import evaluate
from tlray.features.cache import FeatureCache
from tlray.probe.learning_curves import Point
from tlray.training import fit, probing
from tlray.training.assembly import Prepared, Trained
from tlray.training.resume import CONFIG

KIND = "training"
BUNDLE = "bundle"


PARTIAL_BUNDLE = "bundle.partial"
NAMES = evaluate.NAMES | {
    CONFIG,
    dataset.MANIFEST,
    dataset.AUDIT,
    fit.HISTORY,
    fit.CHECKPOINTS,
    BUNDLE,
    PARTIAL_BUNDLE,
    probing.FEATURES,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What a training run came to.

    Attributes:
        out: The run's directory.
        bundle: The exported model.
        num_epochs: Epochs that were trained.
        best_epoch: The exported one, from 1; 0: the probe.
        metrics: By split, see `metrics.evaluate_predictions`.
        warnings: What a careful reader must know of the figures, the model and the data, the gravest first.
    """

    out: str
    bundle: str
    num_epochs: int
    best_epoch: int
    metrics: Mapping[str, Mapping[str, Any]]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What training works with."""

    config: TrainConfig
    available: Capacity
    plan: TrainPlan
    images: Dataset
    prepared: Prepared
    measuring: "ray.ObjectRef[TrainingImages | None]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What training came to.

    Attributes:
        trained: The classifier's weights.
        history: One row an epoch, empty for a probe.
        cache: The features that were learned from, if they are kept in memory.
        learning_curve: Of the probe, empty where none is wanted.
    """

    trained: Trained
    history: list[dict[str, float]] = field(default_factory=list)
    cache: FeatureCache | None = None
    learning_curve: tuple[Point, ...] = ()
