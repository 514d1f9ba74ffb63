"""A run's linear probe: pooled features of its images in, the model files of a classifier out."""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray

from tlray import cluster, features, probe, storage, streams
from tlray.cluster import Capacity
from tlray.config import TrainConfig
from tlray.dataset import Dataset
from tlray.errors import DataError
from tlray.features import Network
from tlray.probe import Probe

FEATURES = "features"


def run(config: TrainConfig, available: Capacity, images: Dataset, network: Network, *, artifact: str) -> Probe:
    """Fits a probe and writes `model.keras` and `saved_model/`.

    The features are kept in the run's directory, so that an interrupted run does not compute them again.

    Args:
        config: A resolved config.
        available: What the cluster has.
        images: The run's images.
        network: From `features.prepare`, with pooled features.
        artifact: Where the model files go, a path or URI.

    Raises:
        DataError: An image that could be read at first cannot be read any more.
    """
    directory = storage.join(config.out, FEATURES)
    features.update(
        directory,
        images.readable,
        network,
        streams.Pixels(size_px=config.image_size_px, intensity_range=images.intensity_range),
        plan=cluster.plan_scoring(available, use_gpu=config.use_gpu),
        views=1,
        batch_size=config.batch_size,
        overwrite=config.overwrite,
        quiet=config.quiet,
    )
    table = features.read_features(directory, columns=["image_id", "pooled"])
    train, valid = images.split("train"), images.split("valid")
    fitted = probe.fit(
        _look_up(table, train),
        train["class_index"].to_numpy(),
        _look_up(table, valid),
        valid["class_index"].to_numpy(),
        num_classes=len(images.classes),
        balanced=config.class_weights,
    )
    cluster.get(cluster.start_here(_export, network, fitted, artifact))
    return fitted


def _look_up(table: pa.Table, rows: pa.Table) -> np.ndarray:
    """Returns the features of some images, float16 [images, features]."""
    place_of = {image_id: place for place, image_id in enumerate(table["image_id"].to_pylist())}
    missing = [image_id for image_id in rows["image_id"].to_pylist() if image_id not in place_of]
    if missing:
        raise DataError(
            f"{len(missing)} images can no longer be read, for example '{missing[0]}', though all could before. Check "
            "the storage, and continue with --resume."
        )
    places = pa.array([place_of[image_id] for image_id in rows["image_id"].to_pylist()])
    column = table["pooled"].combine_chunks()
    return column.to_numpy_ndarray()[places.to_numpy()]


def _export(network: Network, fitted: Probe, artifact: str) -> None:
    """Writes the model files, in a process of its own."""
    from tlray import devices  # noqa: PLC0415 (TensorFlow only in this process)
    from tlray import model as models  # noqa: PLC0415

    devices.use_cpus()
    extractor = models.from_json(network.architecture, ray.get(network.weights))
    classifier = models.with_linear_head(
        extractor, mean=fitted.mean, deviation=fitted.deviation, weights=fitted.weights, bias=fitted.bias
    )
    with tempfile.TemporaryDirectory(prefix="tlray-export-") as temporary:
        models.save_artifact(models.with_probabilities(classifier), Path(temporary))
        storage.copy_tree(temporary, artifact)
