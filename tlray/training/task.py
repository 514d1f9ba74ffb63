"""What the driver hands to every training worker, as data: apart from the loop, which brings TensorFlow."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from tlray.config.training import TrainConfig
from tlray.data.stream import Share
from tlray.features.cache import FeatureCache
from tlray.probe.regression import Probe


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainTask:
    """All that a worker needs.

    Attributes:
        config: A resolved config.
        architecture: What is trained, as JSON: the classifier (uint8 in, logits out), or its tail with a cache.
        initial_weights: In the object store (in a list, so that Ray hands over the reference): its weights.
        start: The probe that its head starts from.
        cache: What the tail is trained on, in place of images.
        train_table: In the object store: `uri`, `image_id`, `class_index` of the readable training images.
        valid_table: The same of the validation images.
        num_train: Rows of `train_table`.
        num_valid: Rows of `valid_table`.
        class_weights: A factor of the loss for each class.
        logit_shift: Constants that are added to the logits where they are validated, so that they assume the class
            shares of the training images, whatever `class_weights`.
        intensity_range: See `images.decode`.
        share: The part of the cluster for this rank's streams.
        board: An actor with a method `post(dict)`, for progress.
        history_file: Where rank 0 keeps `history.csv` up to date.
    """

    config: TrainConfig
    architecture: str
    initial_weights: list["ray.ObjectRef[list[np.ndarray]]"]
    start: Probe | None
    cache: FeatureCache | None
    train_table: list["ray.ObjectRef[pa.Table]"]
    valid_table: list["ray.ObjectRef[pa.Table]"]
    num_train: int
    num_valid: int
    class_weights: tuple[float, ...]
    logit_shift: tuple[float, ...]
    intensity_range: tuple[float, float] | None
    share: Share
    board: Any
    history_file: str
