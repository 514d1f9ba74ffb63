"""The data that a sweep passes to its trials; separate from the trial, which imports TensorFlow."""

from dataclasses import dataclass

import numpy as np
import ray

from tlray.features.cache import FeatureCache


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrialTask:
    """The data that all trials of a sweep share.

    Attributes:
        cache: The features: `pooled` first, then those that the tail takes.
        rows: Rows of the cache, int64 [images, views]; view 0 is the image as it is.
        labels: Class indices, int [images].
        groups: Number of each image's group (patient), from 0, int [images]; a group stays in one fold.
        folds: Indices into `rows` of the training images and of the held-out images of each fold.
        num_classes: At least 2.
        depth_sizes: Number of columns of `pooled` from each depth, the last depth last.
        tail: The part of the classifier that is fine-tuned, as JSON.
        tail_weights: The tail's weights, in the object store (in a list, so that Ray passes the reference).
        hidden_units: Width of each hidden layer in the head.
        tail_layers: Names of the backbone's last layers, as many as a trial may train at most, in order; see
            `classifier.trained_layers`, which counts them in the same way.
        batch_size: Number of images in a batch.
        epochs: Maximum number of fine-tuning epochs.
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
