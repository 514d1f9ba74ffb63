"""What a sweep hands to its trials, as data: apart from the trial, which brings TensorFlow."""

from dataclasses import dataclass

import numpy as np
import ray

from tlray.features.cache import FeatureCache


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrialTask:
    """What all trials share.

    Attributes:
        cache: The features, `pooled` first, then what the tail takes.
        rows: int64 [images, views], rows of the cache; view 0 is the image as it is.
        labels: Class indices, int [images].
        groups: Numbers from 0 of the patients (images that must not be told apart), int [images].
        folds: Training and held-out images of each fold, indices into `rows`.
        num_classes: At least 2.
        depth_sizes: Columns of `pooled` from each depth, the last depth last.
        tail: The architecture of what is fine-tuned, as JSON.
        tail_weights: Its weights, in the object store (in a list, so that Ray hands over the reference).
        hidden_units: The width of a hidden layer in the head.
        tail_layers: The names of the backbone's last layers, the most that are trained, in order; see
            `model.set_trainable`, which counts them alike.
        batch_size: Images in a batch.
        epochs: The most epochs of fine-tuning.
        use_gpu: Whether the trial has a GPU.
    """

    cache: FeatureCache
    rows: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    folds: tuple[tuple[np.ndarray, np.ndarray], ...]
    num_classes: int
    depth_sizes: tuple[int, ...]
    tail: str
    tail_weights: "list[ray.ObjectRef[list[np.ndarray]]]"
    hidden_units: int
    tail_layers: tuple[str, ...]
    batch_size: int
    epochs: int
    use_gpu: bool
