"""The features of a training run: computes them, loads them into memory, and fits the linear probe on them."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import ray

from tlray.cluster.capacity import Capacity
from tlray.cluster.plans import ScorePlan
from tlray.config.training import TrainConfig
from tlray.data import prior, stream
from tlray.data import splits as data_splits
from tlray.data.dataset import Dataset
from tlray.errors import ConfigError
from tlray.features import store, update
from tlray.features.cache import FeatureCache
from tlray.features.preparation import Network
from tlray.probe import held_out, learning_curves, regression
from tlray.probe.learning_curves import Point
from tlray.probe.regression import Probe
from tlray.training import model
from tlray.training.judgement_fit import Unseen
from tlray.trust.intervals import mean_interval

ENOUGH_VALIDATION_PATIENTS = 1000
"""Number of patients with validation images that are new to the model from which on these alone calibrate a probe: the
training images would hardly change its calibration then."""

MAX_CACHE_PART = 0.5
"""Maximum share of an object store for cached features. The rest is for data in flight and for Ray itself."""


def check_memory(config: TrainConfig, available: Capacity, images: Dataset, network: Network) -> None:
    """Refuses a probe that does not fit into this node's memory.

    Args:
        config: A resolved config.
        available: Resources of the cluster.
        images: The run's images.
        network: The network that computes their features.

    Raises:
        ConfigError: The probe does not fit; the message lists what is needed and what is available.
    """
    num_images = _num_fitted(config, images)
    (num_features,) = network.shapes[network.names.index(store.POOLED)]
    num_bytes = regression.memory_bytes(num_images, num_features, len(images.classes))
    if num_bytes > available.memory_bytes:
        raise ConfigError(
            f"A linear probe on {num_images} training images with {num_features} features each would take "
            f"{num_bytes / 1e9:.1f} GB, and this node has {available.memory_bytes / 1e9:.1f} GB besides Ray's object "
            "store. Give fewer --depths, fewer images or more memory, or --method fine-tune, which needs no probe."
        )


def _num_fitted(config: TrainConfig, images: Dataset) -> int:
    """Returns the largest number of images that a probe of a run is fitted on: its own, or one of the folds'."""
    num_train, num_valid = (images.split(split).num_rows for split in ("train", "valid"))
    return max(num_train, (num_train + num_valid) * (config.folds - 1) // config.folds)


def fits_cache(config: TrainConfig, available: Capacity, images: Dataset, network: Network) -> bool:
    """Tells whether a run's features fit into every node's object store: a node that reads one holds all."""
    return cache_bytes(config, images, network) <= available.smallest_object_store_bytes * MAX_CACHE_PART


def cache_bytes(config: TrainConfig, images: Dataset, network: Network) -> int:
    """Returns the size in memory of the features of a resolved config, in bytes."""
    return num_cache_rows(config, images) * network.bytes_per_row


def num_cache_rows(config: TrainConfig, images: Dataset) -> int:
    """Returns the number of images and views for which a resolved config needs features."""
    return images.readable.num_rows + (model.num_views(config) - 1) * images.split("train").num_rows


def compute(
    config: TrainConfig,
    directory: str,
    images: Dataset,
    network: Network,
    *,
    plan: ScorePlan,
    views: int,
    title: str = "Computing features",
) -> None:
    """Computes the features of a run's readable images that are not there yet.

    Args:
        config: A resolved config.
        directory: The directory of the features; an interrupted run continues with what it has there.
        images: The run's images.
        network: The network that computes the features.
        plan: The pool of processes that compute them.
        views: Number of views of each training image.
        title: Name of the work in the progress display.

    Raises:
        ConfigError: The directory holds features of another network.
    """
    result = update.update(
        directory,
        images.table,
        network,
        pixels(config, images),
        plan=plan,
        views=views,
        batch_size=config.batch_size,
        overwrite=False,  # another network's features are there only if a run continues with other weights
        keep_most=False,  # the features are the run's own, and follow its images
        quiet=config.quiet,
        title=title,
    )
    for note in result.notes if not config.quiet else ():
        print(note)


def pixels(config: TrainConfig, images: Dataset) -> stream.Pixels:
    """Returns how the image files of a run become pixels."""
    return stream.Pixels(
        size_px=config.image_size_px,
        intensity_range=images.intensity_range,
        augmentation=config.augmentation,
        seed=config.seed,
    )


def read_pooled(directory: str) -> pa.Table:
    """Reads the pooled features of a run's images as they are, not augmented: `image_id`, `view` and `pooled`."""
    return store.read_features(directory, columns=["image_id", "view", "pooled"], view=0)


def fit(config: TrainConfig, images: Dataset, table: pa.Table) -> Probe:
    """Fits a linear probe on the pooled features of the images as they are, not augmented.

    Args:
        config: A resolved config.
        images: The run's images.
        table: Their pooled features, see `read_pooled`.

    Raises:
        DataError: An image that could be read at first has changed or can no longer be read.
    """
    train, valid = images.split("train"), images.split("valid")
    return regression.fit(
        store.look_up(table, train),
        train["class_index"].to_numpy(),
        store.look_up(table, valid),
        valid["class_index"].to_numpy(),
        num_classes=len(images.classes),
        balanced=config.class_weights,
        inverse_penalties=(config.inverse_penalty,) if config.inverse_penalty else regression.INVERSE_PENALTIES,
    )


def has_enough_validation(images: Dataset) -> bool:
    """Tells whether a run has `ENOUGH_VALIDATION_PATIENTS`, and some of each class: then only they calibrate its probe.

    Copies and neighbouring slices count as images of one patient.
    """
    leaked, group_of, valid = images.leaked, images.group_of, images.split("valid")
    rows = zip(*(valid[name].to_pylist() for name in ("image_id", "label")), strict=True)
    new = [(group_of[image_id], label) for image_id, label in rows if image_id not in leaked]
    has_all_classes = {label for _, label in new} == {*images.classes}
    return has_all_classes and len({group for group, _ in new}) >= ENOUGH_VALIDATION_PATIENTS


def out_of_fold(config: TrainConfig, images: Dataset, table: pa.Table, probe: Probe) -> Unseen | None:
    """Returns what probes say about training and validation images that they were not fitted on.

    Args:
        config: A resolved config.
        images: The run's images.
        table: Their pooled features, see `read_pooled`.
        probe: The run's probe, whose penalty they have.

    Returns:
        Their logits. None if a class has too few groups to hold some out.

    Raises:
        DataError: See `fit`.
    """
    group_of = images.group_of
    rows = pa.concat_tables([images.split("train"), images.split("valid")])
    image_ids = rows["image_id"].to_pylist()
    groups = np.array([group_of[image_id] for image_id in image_ids], dtype=str)
    labels = rows["class_index"].to_numpy()
    logits_BK = held_out.logits(
        store.look_up(table, rows),
        labels,
        np.array(data_splits.dividing_groups(rows), dtype=str),
        num_classes=len(images.classes),
        balanced=config.class_weights,
        inverse_penalty=probe.best.inverse_penalty,
        num_folds=config.folds,
        seed=config.seed,
    )
    if logits_BK is None:
        return None
    num_classes = len(images.classes)
    weights = prior.class_weights(labels, num_classes, balanced=config.class_weights)
    return Unseen(
        logits_BK=logits_BK,
        image_ids=image_ids,
        labels=labels,
        groups=groups,
        assumed_shares=prior.class_shares(labels, num_classes, weights[labels]),
        origin="training and validation images, each predicted by a probe that was fitted without it",
    )


def learning_curve(config: TrainConfig, images: Dataset, table: pa.Table) -> tuple[Point, ...]:
    """Returns the learning curve of linear probes on the run's features; takes the arguments of `fit`."""
    train, valid, test = (images.split(split) for split in ("train", "valid", "test"))
    group_of, measured = images.group_of, test if test.num_rows else valid
    groups = np.array([group_of[image_id] for image_id in measured["image_id"].to_pylist()])

    def interval(shares: np.ndarray) -> tuple[float, float]:
        found = mean_interval(shares, groups)
        return found.low, found.high

    return learning_curves.learning_curve(
        store.look_up(table, train),
        train["class_index"].to_numpy(),
        store.look_up(table, valid),
        valid["class_index"].to_numpy(),
        test=store.look_up(table, test),
        test_labels=test["class_index"].to_numpy(),
        interval=interval,
        num_classes=len(images.classes),
        balanced=config.class_weights,
        seed=config.seed,
    )


def load(directory: str, names: list[str], splits: Mapping[str, pa.Table], *, views: int) -> FeatureCache:
    """Loads computed features into the object store, part by part.

    Args:
        directory: The directory of the features.
        names: Names of the features to load.
        splits: Split to the table of its images.
        views: Number of views of each image of the split `train`.

    Raises:
        DataError: An image has no features, or a part is damaged.
    """
    place_of: dict[tuple[str, int], int] = {}
    parts, num_rows = [], []
    for part_name in store.part_names(directory):
        part = store.read_part(directory, part_name, columns=["image_id", "view", *names])
        start = sum(num_rows)
        keys = zip(part["image_id"].to_pylist(), part["view"].to_pylist(), strict=True)
        place_of |= {key: start + place for place, key in enumerate(keys)}
        parts.append(ray.put({name: part[name].combine_chunks().to_numpy_ndarray() for name in names}))
        num_rows.append(part.num_rows)
    rows = {}
    for split, table in splits.items():
        num_views = views if split == "train" else 1
        wanted = [[(image_id, view) for view in range(num_views)] for image_id in table["image_id"].to_pylist()]
        missing = [keys[0][0] for keys in wanted if any(key not in place_of for key in keys)]
        store.check_present(missing)
        rows[split] = np.array([[place_of[key] for key in keys] for keys in wanted], np.int64).reshape(
            len(wanted), num_views
        )
    return FeatureCache(names=names, parts=parts, num_rows=num_rows, rows=rows)
