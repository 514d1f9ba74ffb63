"""Prepares the network that computes features: builds it, converts it for its engine, and keeps it for later runs."""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from tlray.bundle import store as bundles
from tlray.cluster import connection, locations
from tlray.config.commands import FeaturesConfig
from tlray.config.training import PrecisionChoice, TrainConfig
from tlray.data.sample import read_some
from tlray.data.stream import Pixels
from tlray.engines import cache, choice, networks, quantization
from tlray.engines.kinds import EngineKind
from tlray.engines.networks import Packed
from tlray.engines.openvino_engine import OpenVinoNetwork
from tlray.errors import ConfigError, DataError
from tlray.files import storage
from tlray.models.weights import NAMED, has_bundle, trained_preprocessing

_NOT_OF_THE_NETWORK = frozenset(
    {"data", "out", "columns", "class_map", "intensity_range", "augmentation"}
    | {"overwrite", "resume", "timing", "quiet"}
)
"""Settings that do not change the network."""

_CODE = (*cache.CODE, "tlray.features")
"""Packages whose code builds and converts networks."""

_KERAS_DEFAULTS = {
    "floatx": "float32",
    "epsilon": 1e-7,
    "backend": "tensorflow",
    "image_data_format": "channels_last",
}
"""Settings of Keras that decide how it builds networks, and the values of those that its file does not have.

Keras writes its file where there is none, so that a first run would differ from the second by the file's content.
"""

_SHA256 = re.compile("[0-9a-f]{64}")


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


def start(config: FeaturesConfig, kind: EngineKind) -> "ray.ObjectRef[Network]":
    """Starts `prepare` in a process of its own, and returns its reference at once.

    Args:
        config: The settings of the network.
        kind: The engine and precision that are to run it, see `choice.for_features`.
    """
    wish = choice.wish_for_openvino(config.engine, config.precision)
    return connection.start_here(prepare, locations.absolute(config.training()), config.level, kind, wish)


def prepare(config: TrainConfig, level: str, kind: EngineKind, wish: str = "") -> Network:
    """Returns the network of a config that computes `pooled`, `cut` or `both`; run by `connection.start_here`.

    It is built with Keras once. Later runs on this machine with OpenVINO find it in the cache and load no TensorFlow.

    Args:
        config: The settings of the network.
        level: What it computes.
        kind: The engine and precision that it runs in. int8: the network is that for float32; see `quantize`.
        wish: The user's options that only OpenVINO can fulfil. Without one, TensorFlow computes what OpenVINO cannot.

    Raises:
        ConfigError: The model or its weights are not available, or do not fit together; or OpenVINO cannot run the
            network, against the wish.
    """
    if kind.precision == "int8":
        kind = EngineKind(kind.engine, "float32")
    recipe = _recipe(config, level) if kind.engine == "openvino" else None  # others cannot be recalled
    found = None if recipe is None else _recalled(recipe, kind)
    if found is not None:
        return found
    network, noted = _built(config, level, kind)
    if wish and network.packed.kind != kind:
        raise ConfigError(
            f"{wish}: OpenVINO cannot run this model. Without {wish}, TensorFlow computes in float32. OpenVINO says: "
            f"{network.packed.why_not.strip()}"
        )
    if recipe is not None and recipe == _recipe(config, level):  # else a file has changed while the network was built
        cache.note(recipe, noted)
    return network


def _built(config: TrainConfig, level: str, kind: EngineKind) -> tuple[Network, Mapping[str, Any]]:
    """Returns a network that Keras builds, and what `_recalled` needs to know of it."""
    import keras  # noqa: PLC0415 (TensorFlow only in this process)

    from tlray.models import classifier as models  # noqa: PLC0415
    from tlray.models import devices, trunk  # noqa: PLC0415
    from tlray.models.backbone import application_preprocessing, build_backbone  # noqa: PLC0415

    devices.use_cpus()  # leaves all GPUs to the extractors
    keras.utils.clear_session()  # Keras numbers layers per process, and this one may have built others before
    keras.utils.set_random_seed(config.seed)  # with --weights none every run builds the same network
    of_weights = trained_preprocessing(config.weights)
    preprocessing = config.preprocessing or of_weights or application_preprocessing(config.backbone)
    backbone = build_backbone(config)
    models.set_trainable(backbone, config)
    extractor, names = trunk.extractor(backbone, preprocessing, pooled=level != "cut", cut=level != "pooled")
    return _packed(extractor, names, kind)


def as_network(extractor: Any, names: list[str], kind: EngineKind) -> Network:
    """Converts a Keras model, from uint8 images to a list of features, into data that any node can load.

    Args:
        extractor: The model.
        names: Names of the features.
        kind: The engine and precision that are to run it.
    """
    return _packed(extractor, names, kind)[0]


def _packed(extractor: Any, names: list[str], kind: EngineKind) -> tuple[Network, Mapping[str, Any]]:
    """Does what `as_network` does; returns the network, and what `_recalled` needs to know of it."""
    from tlray.models import classifier as models  # noqa: PLC0415

    extractor.trainable = False  # which layers are trainable matters for the cut only, and that has been made
    architecture, weights = extractor.to_json(), models.get_weights(extractor)
    shapes = [tuple(output.shape[1:]) for output in extractor.outputs]
    digest = hashlib.sha256(json.dumps([_renumbered(architecture), names, shapes]).encode())
    for array in weights:
        digest.update(array.tobytes())
    packed = networks.pack(extractor, kind, fingerprint=digest.hexdigest())
    noted = {"sha256": digest.hexdigest(), "names": names, "shapes": shapes}
    return _named(packed, names, shapes, digest.hexdigest()), noted


def _named(packed: Packed, names: list[str], shapes: list[tuple[int, ...]], digest: str) -> Network:
    """Returns a network, given the sha256 of what does not depend on the engine."""
    fingerprint = hashlib.sha256(f"{digest} {packed.kind}".encode()).hexdigest()
    return Network(packed=packed, names=names, shapes=shapes, fingerprint=fingerprint)


def _recalled(recipe: str, kind: EngineKind) -> Network | None:
    """Returns the network that an earlier run has built by a recipe; None if the cache does not have it."""
    noted = cache.noted(recipe)
    digest, names, shapes = (noted.get(name) for name in ("sha256", "names", "shapes"))
    if not (isinstance(digest, str) and isinstance(names, list) and isinstance(shapes, list)):
        return None  # there is no note
    if not _SHA256.fullmatch(digest) or not 0 < len(names) == len(shapes):
        return None  # somebody has changed it
    packed = networks.kept(digest, kind)
    return None if packed is None else _named(packed, names, [tuple(shape) for shape in shapes], digest)


def _recipe(config: TrainConfig, level: str) -> str | None:
    """Returns a sha256 of all that decides how a network is built: settings, files, code, versions and Keras' settings.

    None where a file cannot be read, or is one of several: the network must be built then.
    """
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in _NOT_OF_THE_NETWORK}
    if config.weights != "none":
        settings.pop("seed")
    try:
        files = [_weights(config.weights), _backbone(config.backbone), _keras_settings()]
    except OSError:
        return None
    if None in files:
        return None
    versions = [importlib.metadata.version(name) for name in ("keras", "tensorflow")]
    parts = [settings, level, files, versions, cache.code_digest(_CODE)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _weights(location: str) -> str | None:
    """Returns what tells weights from all others; None where the named file only lists the files that have them."""
    if location in NAMED:
        return location
    if has_bundle(location):
        return bundles.read_spec(location)[1]
    return None if location.endswith(".json") else _content(location)


def _backbone(name: str) -> str:
    """Returns what tells a backbone from all others."""
    return _content(name) if name.endswith(".keras") else name


def _content(location: str) -> str:
    """Returns the sha256 of a file.

    Raises:
        OSError: It cannot be read, as it is a directory, or there is none.
    """
    digest = hashlib.sha256()
    file_system, path = storage.open_location(location)
    with file_system.open_input_stream(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _keras_settings() -> dict[str, Any]:
    """Returns the settings with which Keras builds networks, read from its file as Keras does, which is not imported.

    Raises:
        OSError: The file is there, and cannot be read.
    """
    if "KERAS_HOME" in os.environ:
        directory = os.environ["KERAS_HOME"]
    else:
        home = os.path.expanduser("~")
        directory = os.path.join(home if os.access(home, os.W_OK) else "/tmp", ".keras")  # noqa: S108 (Keras looks there)
    path = os.path.expanduser(os.path.join(directory, "keras.json"))
    try:
        found = json.loads(Path(path).read_bytes()) if os.path.exists(path) else {}
    except ValueError:  # Keras takes the defaults then
        found = {}
    given = found if isinstance(found, dict) else {}
    settings = {name: given.get(name, default) for name, default in _KERAS_DEFAULTS.items()}
    if backend := os.environ.get("KERAS_BACKEND"):
        settings["backend"] = backend
    return settings


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
        network: From `prepare`, for OpenVINO in float32.
        table: A manifest of images that can be read. Its training images, or all of them where there are none, decide
            the ranges of the activations; at most `quantization.MAX_IMAGES` of them.
        pixels: How files become pixels; nothing is augmented.

    Raises:
        ConfigError: NNCF is not installed, or cannot quantize the network.
        DataError: One of these images can no longer be read.
    """
    exact = network.packed.network
    assert isinstance(exact, OpenVinoNetwork)  # noqa: S101 (`prepare` refuses others if int8 is wanted)
    train = table.filter(pa.array([split == "train" for split in table["split"].to_pylist()], pa.bool_()))
    chosen = train if train.num_rows else table
    images = read_some(chosen, pixels, max_images=quantization.MAX_IMAGES)
    num_wanted = min(chosen.num_rows, quantization.MAX_IMAGES)
    if len(images) < num_wanted:  # others would give another network
        raise DataError(
            f"Of {num_wanted} images that --precision int8 measures, {num_wanted - len(images)} can no longer be read. "
            "Check the storage, and run the command again."
        )
    images_BHWC = np.stack(list(images.values()))
    digest = hashlib.sha256(f"{network.fingerprint} {quantization.version()}".encode())
    digest.update(images_BHWC.tobytes())
    small = networks.quantized(exact, images_BHWC, fingerprint=digest.hexdigest())
    packed = Packed(network=small, kind=EngineKind("openvino", "int8"))
    # Another version of OpenVINO, or another CPU, may round otherwise: the result tells, not what it was made from.
    result = hashlib.sha256(f"{network.fingerprint} {packed.kind}".encode())
    result.update(small.weights.tobytes())
    return dataclasses.replace(network, packed=packed, fingerprint=result.hexdigest())
