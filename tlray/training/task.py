"""The data that the driver passes to every training worker; separate from the loop, which imports TensorFlow."""

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
    """The inputs of a training worker.

    Attributes:
        config: A resolved config.
        architecture: The model to train, as JSON: the classifier (uint8 in, logits out), or its tail with a cache.
        initial_weights: The model's weights, in the object store (in a list, so that Ray passes the reference).
        start: The probe that the head starts from.
        checkpoint: Location of the checkpoint to continue from where Ray Train knows none; see `fit.lost_checkpoint`.
        cache: Features to train the tail on, in place of images.
        train_table: `uri`, `image_id`, `sha256`, `class_index` of the readable training images, in the object store.
        valid_table: The same for the validation images.
        num_train: Rows of `train_table`.
        num_valid: Rows of `valid_table`.
        class_weights: A factor of the loss for each class.
        logit_shift: Constants that are added to the logits for the accuracies and the validation loss, so that they
            assume the class shares of the training images, whatever `class_weights`.
        intensity_range: See `decoding.decode`.
        share: The part of the cluster for this rank's streams.
        board: Handle of an actor with a method `post(dict)`, for progress; see `live_progress.Board`.
        history_file: Where rank 0 keeps `history.csv` up to date.
    """

    config: TrainConfig
    architecture: str
    initial_weights: list["ray.ObjectRef[list[np.ndarray]]"]
    start: Probe | None
    checkpoint: str | None
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
