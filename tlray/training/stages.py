"""The data classes that the stages of a training run pass to one another, and the names of its files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray

from tlray.cluster.capacity import Capacity
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
    """The result of a training run.

    Attributes:
        out: The run's directory.
        bundle: Location of the exported bundle.
        num_epochs: Number of epochs that were trained.
        best_epoch: The epoch whose weights were exported, from 1; 0: the probe.
        metrics: Split to its metrics, see `metrics.evaluate_predictions`.
        warnings: Warnings about the metrics, the model and the data, the gravest first.
    """

    out: str
    bundle: str
    num_epochs: int
    best_epoch: int
    metrics: Mapping[str, Mapping[str, Any]]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The inputs of a training run's stages: settings, resources, images and model."""

    config: TrainConfig
    available: Capacity
    plan: TrainPlan
    images: Dataset
    prepared: Prepared
    measuring: "ray.ObjectRef[TrainingImages | None]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """The result of the learning stage, before export.

    Attributes:
        trained: The fitted probe and the trained weights.
        history: One row per epoch, empty for a probe.
        cache: The features that were trained on, if they are kept in memory.
        learning_curve: The learning curve of the probe, empty where none is wanted.
    """

    trained: Trained
    history: list[dict[str, float]] = field(default_factory=list)
    cache: FeatureCache | None = None
    learning_curve: tuple[Point, ...] = ()
