"""The values that the steps of a training run pass to one another: what is begun, prepared, learned, and its result."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray

from tlray.cluster.capacity import Capacity
from tlray.cluster.plans import TrainPlan
from tlray.config.training import TrainConfig
from tlray.data.dataset import Dataset
from tlray.data.drift import TrainingImages
from tlray.data.listing import Listing
from tlray.features.cache import FeatureCache
from tlray.probe.learning_curves import Point
from tlray.training.export import Trained
from tlray.training.judgement_fit import Unseen
from tlray.training.model import Untrained
from tlray.training.paths import RunPaths


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """The result of a training run.

    Attributes:
        out: The run's directory.
        bundle: Location of the exported bundle.
        num_epochs: Number of epochs that were trained.
        best_epoch: The epoch whose weights were exported, from 1; 0: the probe.
        metrics: Split to its metrics, see `metrics.evaluate_predictions`.
        cross_validation: Metrics of the cross-validation of the probe; None: there was none.
        warnings: Warnings about the metrics, the model and the data, the gravest first.
        timing_s: Phase of the run to its seconds; empty where nothing was done.
    """

    out: str
    bundle: str
    num_epochs: int
    best_epoch: int
    metrics: Mapping[str, Mapping[str, Any]]
    cross_validation: Mapping[str, Any] | None
    warnings: tuple[str, ...]
    timing_s: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A training run whose settings and files were checked, as far as this needs no Ray.

    Attributes:
        config: The settings, resolved; the cache is off if the run to continue had no room for it.
        paths: The files of its directory.
        source: The images: as the run to continue has stored them, or as they are listed.
        before: The stored settings of the run to continue; None: it begins anew.
    """

    config: TrainConfig
    paths: RunPaths
    source: Dataset | Listing
    before: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A training run that is ready to learn.

    Attributes:
        config: The settings, resolved; the cache is off if the features do not fit into memory.
        paths: The files of its directory.
        available: Resources of the cluster.
        plan: How the workers and their data share the cluster.
        images: The images, read and audited.
        model: The classifier before training.
        is_cached: Its features are kept in memory. This is decided once: later the splits may have other sizes.
        measuring: A task that measures the grey levels of the training images.
    """

    config: TrainConfig
    paths: RunPaths
    available: Capacity
    plan: TrainPlan
    images: Dataset
    model: Untrained
    is_cached: bool
    measuring: "ray.ObjectRef[TrainingImages | None]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """The result of learning, before export.

    Attributes:
        trained: The fitted probe and the trained weights.
        history: One row per epoch, empty for a probe.
        cache: The features that were trained on, if they are kept in memory.
        learning_curve: The learning curve of the probe, empty where none is wanted.
        unseen: What probes say about images that they were not fitted on; None where there are none.
    """

    trained: Trained
    history: list[dict[str, float]] = field(default_factory=list)
    cache: FeatureCache | None = None
    learning_curve: tuple[Point, ...] = ()
    unseen: Unseen | None = None
