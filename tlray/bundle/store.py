"""Writes and reads bundles: `seal` adds checksums once all files are there, `load` verifies them."""

import dataclasses
import functools
import hashlib
import json
import shutil
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from tlray.bundle import lookalikes, novelty
from tlray.bundle.agreement import Agreement
from tlray.bundle.lookalikes import KeptImages
from tlray.bundle.novelty import Novelty
from tlray.bundle.spec import (
    BUNDLE_JSON,
    LOOKALIKES,
    MODEL_FILE,
    NOVELTY,
    SAVED_MODEL_DIR,
    SCHEMA_VERSION,
    BundleSpec,
    library_versions,
)
from tlray.data.drift import TrainingImages, ValidationPredictions
from tlray.errors import BundleError
from tlray.files import storage

T = TypeVar("T")


class _TemporaryCopy:
    """A temporary directory for a remote bundle's files, deleted when this object is garbage-collected.

    `tempfile.TemporaryDirectory` would give a warning then.
    """

    def __init__(self) -> None:
        self.directory = tempfile.mkdtemp(prefix="tlray-bundle-")
        weakref.finalize(self, shutil.rmtree, self.directory, ignore_errors=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A verified bundle on this node's disk.

    Attributes:
        spec: The content of `bundle.json`.
        directory: The directory with the bundle's files.
        sha256: The sha256 of `bundle.json`, which identifies this exact model.
    """

    spec: BundleSpec
    directory: Path
    sha256: str
    _copy: "_TemporaryCopy | None" = None

    @property
    def model_path(self) -> Path:
        """Path of the Keras model file."""
        return self.directory / MODEL_FILE

    @property
    def saved_model_path(self) -> Path:
        """Path of the SavedModel directory."""
        return self.directory / SAVED_MODEL_DIR

    def novelty(self) -> Novelty | None:
        """Reads the score of how foreign an image is; None: the bundle has none.

        Raises:
            BundleError: Its file is damaged.
        """
        threshold = self.spec.limits.max_ood_score
        if NOVELTY not in self.spec.files or threshold is None:
            return None
        return self._read_arrays(NOVELTY, functools.partial(novelty.from_arrays, threshold=threshold))

    def lookalikes(self) -> KeptImages | None:
        """Reads the training images that may be shown beside a prediction; None: the bundle has none.

        Raises:
            BundleError: Their file is damaged, or does not fit that of `novelty`.
        """
        if LOOKALIKES not in self.spec.files:
            return None
        space = self.novelty()
        build = functools.partial(
            lookalikes.from_arrays,
            num_classes=len(self.spec.classes),
            num_components=None if space is None else len(space.basis),
        )
        return self._read_arrays(LOOKALIKES, build)

    def _read_arrays(self, name: str, build: Callable[[Mapping[str, np.ndarray]], T]) -> T:
        """Returns what a function makes of the arrays in an .npz file."""
        try:
            with (self.directory / name).open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                return build(arrays)
        # A DataError is a ValueError; np.load gives an array, which is no context, for a file with one.
        except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise BundleError(f"{name} of the bundle cannot be read: {error} Restore the bundle.") from error


def seal(location: str, spec: BundleSpec, *, known: Mapping[str, str] | None = None) -> str:
    """Turns a directory with model files into a bundle: computes the checksums of all files and writes `bundle.json`.

    Args:
        location: The directory, with `model.keras` and `saved_model/` in it.
        spec: Description of the model. Its `files` and `library_versions` are replaced.
        known: Checksums by file of an earlier call; these files have not changed since, and are not read again.

    Returns:
        The bundle's sha256, see `Bundle`.
    """
    before = known or {}
    files = {
        name: before.get(name) or hashlib.sha256(storage.read_bytes(storage.join(location, name))).hexdigest()
        for name in storage.walk(location)
        if name not in (BUNDLE_JSON, storage.MARK)
    }
    sealed = dataclasses.replace(spec, files=files, library_versions=library_versions())
    content = json.dumps(dataclasses.asdict(sealed), indent=2).encode() + b"\n"
    storage.write_bytes(storage.join(location, BUNDLE_JSON), content)
    return hashlib.sha256(content).hexdigest()


def load(location: str) -> Bundle:
    """Opens a bundle and verifies the checksum of every file.

    Args:
        location: The bundle's directory, a path or a URI. Of a remote bundle `bundle.json` and the files that it lists
            are copied to this node; the copy is deleted together with the returned object.

    Raises:
        BundleError: The bundle is missing, incomplete, or was changed after its export.
    """
    spec, sha256 = read_spec(location)
    copy = None if storage.is_local(location) else _TemporaryCopy()
    directory = Path(copy.directory if copy else storage.open_location(location)[1])
    for name in spec.files:
        if not (directory / name).resolve().is_relative_to(directory.resolve()):
            raise BundleError(
                f"{BUNDLE_JSON} of '{location}' lists a file outside of the bundle: {name}. Do not use it."
            )
    if copy:
        storage.copy_tree(location, copy.directory, {BUNDLE_JSON, *spec.files})
    for name, wanted in spec.files.items():
        path = directory / name
        if not path.is_file():
            raise BundleError(
                f"The bundle '{location}' has no file {name}, which its {BUNDLE_JSON} lists. "
                "Restore it or export it again."
            )
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != wanted:
            raise BundleError(
                f"The bundle '{location}' was changed after its export: the sha256 of {name} is {found[:12]}…, not "
                f"{wanted[:12]}… as in {BUNDLE_JSON}. Restore it or export it again."
            )
    missing = {MODEL_FILE, f"{SAVED_MODEL_DIR}/saved_model.pb"} - set(spec.files)
    if missing:
        raise BundleError(
            f"{BUNDLE_JSON} of '{location}' does not list {', '.join(sorted(missing))}. Restore it or export it again."
        )
    return Bundle(spec=spec, directory=directory, sha256=sha256, _copy=copy)


def read_spec(location: str) -> tuple[BundleSpec, str]:
    """Reads the `bundle.json` of a bundle, without verifying the other files.

    Returns:
        The description and the bundle's sha256.

    Raises:
        BundleError: There is no bundle, or its `bundle.json` is damaged or of another schema version.
    """
    try:
        content = storage.read_bytes(storage.join(location, BUNDLE_JSON))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(
            f"'{location}' is not a bundle: it has no {BUNDLE_JSON}. Give the bundle/ directory of a finished training "
            "run, or make a bundle from your own model with `tlray export`."
        ) from error
    try:
        raw = json.loads(content)
        version = raw["schema_version"]
        if version not in range(1, SCHEMA_VERSION + 1):  # bundles of version 1 have no files for OpenVINO
            raise BundleError(
                f"The bundle '{location}' has schema version {version}, but this tlray reads 1 to {SCHEMA_VERSION}. "
                "Export it again, or use the version of tlray that made it."
            )
        if not isinstance(raw["classes"], list) or not isinstance(raw["files"], dict):
            raise TypeError("classes must be a list and files an object")
        limits, shares, set_thresholds = raw["intensity_range"], raw.get("prior"), raw.get("set_thresholds")
        images, predictions = raw.get("training_images"), raw.get("validation_predictions")
        parsed = {
            "classes": tuple(raw["classes"]),
            "intensity_range": tuple(limits) if limits else None,
            # Decoding 2 is older than schema version 2, and both are older than this field.
            "decoding": int(raw.get("decoding", 1 if version == 1 else 2)),
            "leaks": tuple(raw.get("leaks", ())),
            "shortcuts": tuple(raw.get("shortcuts", ())),
            "engines": tuple(Agreement(**each) for each in raw.get("engines", ())),
            "prior": tuple(map(float, shares)) if shares is not None else None,
            "set_thresholds": tuple(map(float, set_thresholds)) if set_thresholds is not None else None,
            "training_images": TrainingImages.from_json(images) if images is not None else None,
            "validation_predictions": (
                ValidationPredictions.from_json(predictions) if predictions is not None else None
            ),
        }
        spec = BundleSpec(**raw | parsed)
        predicted = spec.validation_predictions
        if predicted is not None and len(predicted.class_counts) != len(spec.classes):
            raise ValueError("validation_predictions must have a count for each class")
        if spec.prior is not None and len(spec.prior) != len(spec.classes):
            raise ValueError("prior must have a share for each class")
        if spec.set_thresholds is not None and len(spec.set_thresholds) != len(spec.classes):
            raise ValueError("set_thresholds must have a value for each class")
        if not all(isinstance(each, dict) for each in (spec.thresholds, spec.trust, spec.file_fingerprints)):
            raise TypeError("thresholds, trust and file_fingerprints must be objects")
        if not all(isinstance(value, int | float) for value in spec.thresholds.values()):
            raise TypeError("thresholds must be numbers")
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{BUNDLE_JSON} of '{location}' is damaged: {error}. Restore the bundle.") from error
    return spec, hashlib.sha256(content).hexdigest()
