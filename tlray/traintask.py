"""What the driver hands to every training worker, as data: apart from the loop, which brings TensorFlow."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from tlray.config import TrainConfig
from tlray.streams import Share


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainTask:
    """All that a worker needs.

    Attributes:
        config: A resolved config.
        architecture: The classifier (uint8 in, logits out) as JSON, for training.
        export_architecture: The same in float32, for the exported artifact.
        initial_weights: In the object store (in a list, so that Ray hands over the reference): the model's weights.
        train_table: In the object store: `uri`, `image_id`, `class_index` of the readable training images.
        valid_table: The same of the validation images.
        num_train: Rows of `train_table`.
        num_valid: Rows of `valid_table`.
        class_weights: A factor of the loss for each class.
        intensity_range: See `images.decode`.
        share: The part of the cluster for this rank's streams.
        board: An actor with a method `post(dict)`, for progress.
        artifact: Where rank 0 writes the exported model, a path or URI.
        history_file: Where rank 0 keeps `history.csv` up to date.
    """

    config: TrainConfig
    architecture: str
    export_architecture: str
    initial_weights: list["ray.ObjectRef[list[np.ndarray]]"]
    train_table: list["ray.ObjectRef[pa.Table]"]
    valid_table: list["ray.ObjectRef[pa.Table]"]
    num_train: int
    num_valid: int
    class_weights: tuple[float, ...]
    intensity_range: tuple[float, float] | None
    share: Share
    board: Any
    artifact: str
    history_file: str
