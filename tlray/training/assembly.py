"""Tasks that build a run's Keras model before training and export it afterwards, each in a process of its own."""

import contextlib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tlray.cluster import connection
from tlray.cluster.connection import Capacity
from tlray.config.training import TrainConfig
from tlray.data import dataset, decoding, stream
from tlray.data.dataset import Dataset
from tlray.data.listing import Listing
from tlray.data.stream import Pixels
from tlray.errors import ImageError
from tlray.features.cache import FeatureCache, FeatureReader
from tlray.features.extraction import Network, as_network
from tlray.features.store import POOLED
from tlray.files import storage
from tlray.probe.regression import Probe

PREDICT_BATCH = 256

NUM_CHECKED_IMAGES = 16
MAX_DIFFERENCE = 0.02
"""Maximum difference between a probability of the exported model and the one computed from float16 features."""

NOT_COMPARED = (
    "The exported model could not be checked, as none of the images for the check can be read any more: the metrics "
    "were computed from stored features. Check the storage, and measure the bundle with `tlray evaluate`."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A classifier before training, with the network that computes its features.

    It holds arrays, not references to the object store: an object there is lost when the process that put it ends, and
    the process that builds models may end at any time. A process that passes the arrays on puts them there itself.

    Attributes:
        architecture: The classifier (uint8 in, logits out, float32) as JSON.
        weights: The classifier's weights.
        preprocessing: The pixel preprocessing that the backbone expects.
        network: Computes the features for a probe or for training on a cache; None where no features are needed.
        depth_sizes: Number of columns of the pooled features from each depth, the last depth last.
        tail_layers: Names of the backbone's last layers, as many as are trained, in order.
        tail: The part of the classifier that is trained on features, as JSON; None where it is trained on images.
        tail_weights: The tail's weights; None without a tail.
    """

    architecture: str
    weights: list[np.ndarray]
    preprocessing: str
    network: Network | None = None
    depth_sizes: tuple[int, ...] = ()
    tail_layers: tuple[str, ...] = ()
    tail: str | None = None
    tail_weights: list[np.ndarray] | None = None

    @property
    def tail_inputs(self) -> list[str]:
        """The names of the features that the tail takes, in order."""
        names = self.network.names if self.network else []
        return [name for name in names if name != POOLED] or names


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The result of training a classifier.

    Attributes:
        probe: The linear probe that is the head, or that the head started from; None where none was fitted.
        weights: The best weights of the part that was trained, tail or classifier; None where only a probe was fitted.
    """

    probe: Probe | None = None
    weights: list[np.ndarray] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """The predictions of an exported model that were computed from stored features.

    Attributes:
        probs: Split to its probabilities, float32 [images, classes]. Empty without stored features, or where the
            exported model gives other probabilities than they do; then the model has to be measured on images.
        warnings: Warnings to the user about these probabilities.
    """

    probs: Mapping[str, np.ndarray] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def read_and_prepare(
    config: TrainConfig,
    source: Dataset | Listing,
    available: Capacity,
    *,
    kind: str,
    refuse: Callable[[Dataset, Prepared], None],
) -> tuple[Dataset, Prepared]:
    """Reads the images of a run while its model is built.

    Args:
        config: A resolved config.
        source: The run's images, listed or already read.
        available: Resources of the cluster.
        kind: See `dataset.read_images`.
        refuse: Raises an error where the images and the model do not go together. It is called as soon as the model is
            built, with the images as they are listed, and again with those that could be read.

    Raises:
        ConfigError: The model cannot be built. Raised as soon as that is known.
        DataError: The images cannot be trained on.
    """
    num_classes = max(2, len(source.table["label"].drop_null().unique()))
    preparing = connection.start_here(prepare, config, num_classes)
    if isinstance(source, Listing):
        listed = dataset.as_listed(config, source)

        @cache  # `check` is called after every part of the images
        def check_listed() -> None:
            prepared = connection.get(preparing)
            if listed is not None:
                refuse(listed, prepared)

        def check() -> None:
            if connection.is_done(preparing):
                check_listed()

        source = dataset.read_dataset(config, source, kind=kind, task_cpus=available.task_cpus, meanwhile=check)
    prepared = connection.get(preparing)
    refuse(source, prepared)
    return source, prepared


def prepare(config: TrainConfig, num_classes: int) -> Prepared:
    """Builds the classifier of a resolved config and the network of its features; run by `connection.start_here`."""
    import keras  # noqa: PLC0415 (TensorFlow only in this process)

    from tlray.models import classifier as models  # noqa: PLC0415
    from tlray.models import devices, trunk  # noqa: PLC0415
    from tlray.models.backbone import application_preprocessing, build_backbone  # noqa: PLC0415

    devices.use_cpus()  # leaves all GPUs to the workers
    keras.utils.clear_session()  # Keras numbers layers per process, and this one may have built others before
    keras.utils.set_random_seed(config.seed)
    preprocessing = config.preprocessing or application_preprocessing(config.backbone)
    backbone = build_backbone(config)
    models.set_trainable(backbone, config)
    if config.method == "probe":
        backbone.trainable = False
    if config.method == "fine-tune":
        classifier = models.build_classifier(backbone, config, preprocessing=preprocessing, num_classes=num_classes)
        weights = models.get_weights(classifier)
        return Prepared(architecture=classifier.to_json(), weights=weights, preprocessing=preprocessing)
    extractor, _ = trunk.extractor(backbone, preprocessing, pooled=True, cut=False, depths=config.depths)
    is_tuned = config.method == "lp-ft"
    classifier = models.with_linear_head(
        extractor, num_classes=num_classes, dropout=config.dropout if is_tuned else 0.0
    )
    if is_tuned:
        classifier = models.with_hidden_layers(classifier, hidden_units=config.hidden_units, dropout=config.dropout)
    prepared = Prepared(
        architecture=classifier.to_json(), weights=models.get_weights(classifier), preprocessing=preprocessing
    )
    first, tail = trunk.split(classifier)
    pooled = trunk.up_to(tail, models.STANDARDISATION_LAYER)(first.outputs)
    if config.method == "probe" or (is_cached(config) and config.trainable_layers == 0):
        outputs = {POOLED: pooled}
    elif is_cached(config):
        outputs = {POOLED: pooled} | {f"cut_{number}": tensor for number, tensor in enumerate(first.outputs)}
    else:
        network = as_network(keras.Model(first.inputs[0], [pooled]), [POOLED])
        return replace(prepared, network=network)
    tail_architecture = tail.to_json()  # before its layers, which the network shares, are frozen
    return replace(
        prepared,
        depth_sizes=tuple(trunk.level_sizes(backbone)[-config.depths :]),
        tail_layers=tuple(layer.name for layer in models.trained_layers(backbone, config)),
        tail=tail_architecture,
        tail_weights=models.get_weights(tail),
        network=as_network(keras.Model(first.inputs[0], list(outputs.values())), list(outputs)),
    )


def is_cached(config: TrainConfig) -> bool:
    """Tells whether a resolved config trains on features instead of images, if they fit into memory."""
    return config.method == "lp-ft" and config.cache == "auto" and config.trainable_layers != "all"


def num_views(config: TrainConfig) -> int:
    """Returns the number of views of each training image for which a resolved config needs features."""
    return config.views if is_cached(config) else 1


def export(
    prepared: Prepared,
    trained: Trained,
    artifact: str,
    *,
    logit_shift: np.ndarray,
    cache: FeatureCache | None,
    tables: Mapping[str, pa.Table],
    pixels: Pixels,
) -> Exported:
    """Writes `model.keras` and `saved_model/` of a trained classifier; run by `connection.start_here`.

    Args:
        prepared: The classifier before training.
        trained: The result of training it.
        artifact: Path or URI of the directory to write to.
        logit_shift: Constants that are added to the trained logits, [classes]; see `prior.logit_shift`.
        cache: The features that the tail takes, if they are in memory.
        tables: Split to the table of its images, in the order of `cache.rows`.
        pixels: How files become pixels.

    Returns:
        The probabilities computed from the cache; none without a cache, and none where the written model gives others.
    """
    from tlray.models import classifier as models  # noqa: PLC0415
    from tlray.models import devices, trunk  # noqa: PLC0415 (TensorFlow only in this process)
    from tlray.models.files import save_artifact  # noqa: PLC0415

    devices.use_cpus()
    classifier = models.from_json(prepared.architecture, prepared.weights)
    tail = trunk.split(classifier)[1] if prepared.tail else classifier
    if trained.weights is not None:
        tail.set_weights(trained.weights)
    elif trained.probe is not None:
        models.set_linear_head(tail, **trained.probe.arrays())
    models.shift_logits(classifier, logit_shift)  # the tail has the same layers
    with tempfile.TemporaryDirectory(prefix="tlray-export-") as temporary:
        predict = save_artifact(models.with_probabilities(classifier), Path(temporary))
        storage.copy_tree(temporary, artifact)
    if cache is None:
        return Exported()
    return _checked(_predict_cached(models.with_probabilities(tail), cache, tables), predict, tables, pixels)


def _predict_cached(tail: Any, cache: FeatureCache, tables: Mapping[str, pa.Table]) -> dict[str, np.ndarray]:
    reader = FeatureReader(cache)
    probs = {}
    for split in tables:
        rows = cache.rows[split][:, 0]
        batches = [rows[start : start + PREDICT_BATCH] for start in range(0, len(rows), PREDICT_BATCH)]
        probs[split] = np.concatenate([np.asarray(tail(reader.take(batch), training=False)) for batch in batches])
    return probs


def _checked(probs: Mapping[str, np.ndarray], predict: Any, tables: Mapping[str, pa.Table], pixels: Pixels) -> Exported:
    """Compares the exported model, on some images, with the probabilities computed from their features."""
    split = next(iter(tables))
    arrays: dict[int, np.ndarray] = {}
    uris = tables[split]["uri"].to_pylist()  # class by class
    for place in sorted({int(place) for place in np.linspace(0, len(uris) - 1, NUM_CHECKED_IMAGES)} if uris else ()):
        with contextlib.suppress(ImageError):  # an image that has gone since training must not fail a finished run
            content = stream.read_file(uris[place])
            image = decoding.decode(content, size_px=pixels.size_px, intensity_range=pixels.intensity_range)
            arrays[place] = decoding.to_array(image)
    if not arrays:
        return Exported(probs=probs, warnings=(NOT_COMPARED,))
    found = predict(np.stack(list(arrays.values()))).numpy()
    difference = float(np.abs(found - probs[split][list(arrays)]).max())
    if difference <= MAX_DIFFERENCE:
        return Exported(probs=probs)
    warning = (
        f"The exported model's probabilities differ by up to {difference:.3f} from those of the stored features, so "
        "the metrics were measured with the exported model on the images. If no image file has changed since the run "
        "began, please report this; --cache off fine-tunes without stored features."
    )
    return Exported(warnings=(warning,))
