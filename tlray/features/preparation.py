"""Prepares the network that computes features: builds it, converts it for its engine, and keeps it for later runs."""

import dataclasses
import hashlib
import importlib.metadata
import importlib.resources
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from tlray.bundle import store as bundles
from tlray.cluster import connection
from tlray.config.training import PrecisionChoice, TrainConfig
from tlray.data.sample import read_some
from tlray.data.stream import Pixels
from tlray.engines import cache, networks, quantization
from tlray.engines.kinds import EngineKind
from tlray.engines.networks import Packed
from tlray.engines.openvino_engine import OpenVinoNetwork
from tlray.errors import DataError
from tlray.files import storage
from tlray.models.weights import NAMED, has_bundle

_NOT_OF_THE_NETWORK = frozenset({"data", "out", "columns", "class_map", "overwrite", "resume", "timing", "quiet"})
"""Settings that do not change the network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network that computes features, as data that any node can load.

    Attributes:
        packed: The network itself, for the engine and precision that run it.
        names: Names of the features, in the order of the model's outputs.
        shapes: Shapes of the features, without the batch.
        fingerprint: sha256 of architecture, names, shapes, weights, engine and precision.
    """

    packed: Packed
    names: list[str]
    shapes: list[tuple[int, ...]]
    fingerprint: str

    @property
    def bytes_per_row(self) -> int:
        """Size of one image's features as float16, in bytes."""
        return sum(2 * math.prod(shape) for shape in self.shapes)


def prepare(config: TrainConfig, level: str, kind: EngineKind) -> Network:
    """Returns the network of a config that computes `pooled`, `cut` or `both`; run by `connection.start_here`.

    It is built with Keras once. Later runs on this machine with OpenVINO find it in the cache and load no TensorFlow.

    Args:
        config: The settings of the network.
        level: What it computes.
        kind: The engine and precision that it runs in. int8: the network is that for float32; see `quantize`.

    Raises:
        ConfigError: The model or its weights are not available, or do not fit together.
    """
    if kind.precision == "int8":
        kind = EngineKind(kind.engine, "float32")
    recipe = _recipe(config, level)
    return _recalled(recipe, kind) or _built(config, level, kind, recipe)


def _built(config: TrainConfig, level: str, kind: EngineKind, recipe: str) -> Network:
    import keras  # noqa: PLC0415 (TensorFlow only in this process)

    from tlray.models import classifier as models  # noqa: PLC0415
    from tlray.models import devices, trunk  # noqa: PLC0415
    from tlray.models.backbone import application_preprocessing, build_backbone  # noqa: PLC0415

    devices.use_cpus()  # leaves all GPUs to the extractors
    keras.utils.clear_session()  # Keras numbers layers per process, and this one may have built others before
    keras.utils.set_random_seed(config.seed)  # with --weights none every run builds the same network
    preprocessing = config.preprocessing or application_preprocessing(config.backbone)
    backbone = build_backbone(config)
    models.set_trainable(backbone, config)
    extractor, names = trunk.extractor(backbone, preprocessing, pooled=level != "cut", cut=level != "pooled")
    return as_network(extractor, names, kind, recipe=recipe)


def as_network(extractor: Any, names: list[str], kind: EngineKind, *, recipe: str = "") -> Network:
    """Converts a Keras model, from uint8 images to a list of features, into data that any node can load.

    Args:
        extractor: The model.
        names: Names of the features.
        kind: The engine and precision that are to run it.
        recipe: What `prepare` finds the network by in the cache; empty: it is not to be found.
    """
    from tlray.models import classifier as models  # noqa: PLC0415

    extractor.trainable = False  # which layers are trainable matters for the cut only, and that has been made
    architecture, weights = extractor.to_json(), models.get_weights(extractor)
    shapes = [tuple(output.shape[1:]) for output in extractor.outputs]
    digest = hashlib.sha256(json.dumps([_renumbered(architecture), names, shapes]).encode())
    for array in weights:
        digest.update(array.tobytes())
    packed = networks.pack(extractor, kind, fingerprint=digest.hexdigest())
    if recipe:
        cache.note(recipe, {"sha256": digest.hexdigest(), "names": names, "shapes": shapes})
    return _named(packed, names, shapes, digest.hexdigest())


def _named(packed: Packed, names: list[str], shapes: list[tuple[int, ...]], digest: str) -> Network:
    """Returns a network, given the sha256 of what does not depend on the engine."""
    fingerprint = hashlib.sha256(f"{digest} {packed.kind}".encode()).hexdigest()
    return Network(packed=packed, names=names, shapes=shapes, fingerprint=fingerprint)


def _recalled(recipe: str, kind: EngineKind) -> Network | None:
    """Returns the network that an earlier run has built by a recipe; None if the cache does not have it."""
    noted = cache.noted(recipe)
    try:
        packed = networks.kept(noted["sha256"], kind)
        if packed is None:
            return None
        return _named(packed, [*noted["names"]], [tuple(shape) for shape in noted["shapes"]], noted["sha256"])
    except (KeyError, TypeError):  # somebody has changed the note
        return None


def _recipe(config: TrainConfig, level: str) -> str:
    """Returns a sha256 of all that decides how a network is built: settings, files, code and versions."""
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in _NOT_OF_THE_NETWORK}
    files = [_content(location) for location in (config.weights, config.backbone)]
    versions = [importlib.metadata.version(name) for name in ("keras", "tensorflow")]
    code = hashlib.sha256()
    for each in sorted(importlib.resources.files("tlray.models").iterdir(), key=lambda each: each.name):
        if each.name.endswith(".py"):
            code.update(each.read_bytes())
    parts = [settings, level, files, versions, code.hexdigest()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _content(location: str) -> str:
    """Returns the sha256 of a weights file, a bundle or a model's file; the name itself where it names none of them."""
    if location in NAMED or not storage.exists(location):
        return location
    if has_bundle(location):
        with storage.local_copy(location) as path:
            return bundles.load(os.fspath(path)).sha256
    with storage.local_copy(location) as path:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _renumbered(architecture: str) -> str:
    """Returns an architecture (JSON) whose tensors are numbered from 0, whatever Keras has built before."""
    names: dict[str, str] = {}
    return re.sub(
        r"keras_tensor_\d+", lambda found: names.setdefault(found[0], f"keras_tensor_{len(names)}"), architecture
    )


def finish(preparing: "ray.ObjectRef[Network]", table: pa.Table, pixels: Pixels, precision: PrecisionChoice) -> Network:
    """Waits for a network, and quantizes it if it is wanted in int8; raises what `prepare` and `quantize` do.

    Args:
        preparing: Reference of what `prepare` returns.
        table: A manifest with `inspection.INSPECTION_COLUMNS`.
        pixels: How files become pixels.
        precision: The wanted precision.
    """
    network: Network = connection.get(preparing)
    if precision != "int8":
        return network
    readable = table.filter(table["error_code"].is_null())
    return connection.get(connection.start_here(quantize, network, readable, pixels))


def quantize(network: Network, table: pa.Table, pixels: Pixels) -> Network:
    """Returns the int8 version of a network; run by `connection.start_here`.

    Args:
        network: From `prepare`. One that OpenVINO cannot run stays as it is.
        table: A manifest of images that can be read. Its training images, or all of them where there are none, decide
            the ranges of the activations; at most `quantization.MAX_IMAGES` of them.
        pixels: How files become pixels; nothing is augmented.

    Raises:
        ConfigError: NNCF is not installed, or cannot quantize the network.
        DataError: None of the images can be read.
    """
    exact = network.packed.network
    if not isinstance(exact, OpenVinoNetwork):
        return network
    train = table.filter(pa.array([split == "train" for split in table["split"].to_pylist()], pa.bool_()))
    images = read_some(train if train.num_rows else table, pixels, max_images=quantization.MAX_IMAGES)
    if not images:
        raise DataError("None of the images that --precision int8 would measure can be read. Check the storage.")
    images_BHWC = np.stack(list(images.values()))
    digest = hashlib.sha256(f"{network.fingerprint} {quantization.version()}".encode())
    digest.update(images_BHWC.tobytes())
    packed = networks.quantized(exact, images_BHWC, fingerprint=digest.hexdigest())
    return dataclasses.replace(network, packed=packed, fingerprint=digest.hexdigest())
