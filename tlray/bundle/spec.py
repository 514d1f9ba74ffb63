"""The bundle: an exported model as a directory, complete, self-describing and verified.

`bundle.json` is written last: a directory without it is no bundle.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
import re
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tlray import __version__
from tlray.data.drift import TrainingImages, ValidationPredictions
from tlray.errors import BundleError
from tlray.files import storage

SCHEMA_VERSION = 1
BUNDLE_JSON = "bundle.json"
MODEL_FILE = "model.keras"
SAVED_MODEL_DIR = "saved_model"
MODEL_CARD = "model_card.md"
REPORT = "report.html"
NAMES = frozenset({BUNDLE_JSON, MODEL_FILE, SAVED_MODEL_DIR, MODEL_CARD, REPORT})

_LIBRARIES = ("ray", "tensorflow", "keras", "numpy", "pillow", "pyarrow")


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleSpec:
    """What `bundle.json` says of a model.

    Attributes:
        classes: Class names in the order of the model's outputs.
        image_size_px: Height and width of the input.
        preprocessing: What the artifact does to the 8-bit pixels (for the reader: it is part of the artifact).
        intensity_range: The values of a 16-bit image that become 0 and 255; None: (0, 65535).
        temperature: The calibrating temperature, part of the artifact; 1.0: not calibrated.
        thresholds: `refer_below`: a prediction of lower confidence is marked `refer`.
        backbone: The architecture's name.
        weights: Where training started.
        data_fingerprint: See `manifest.fingerprint`; None where nothing is known of the data.
        split_fingerprint: See `manifest.split_fingerprint`.
        id_fingerprint: See `manifest.id_fingerprint`; None in bundles of earlier versions.
        prior: Class shares that the probabilities assume, in the order of the classes; None: they are not known.
        training_images: What they were like; None where nothing is known of them.
        validation_predictions: What it predicts for validation images; None where there are none, or it is not known.
        metrics: By split, as `metrics.evaluate_predictions` returns them.
        leaks: Why these metrics are too good, see `audit.leak_warnings`; empty where nothing is known to leak.
        library_versions: What the bundle was made with.
        files: sha256 of every other file by its path in the bundle.
        schema_version: Of this description.
    """

    classes: tuple[str, ...]
    image_size_px: int
    preprocessing: str
    intensity_range: tuple[float, float] | None = None
    temperature: float = 1.0
    thresholds: Mapping[str, float] = field(default_factory=dict)
    backbone: str
    weights: str
    data_fingerprint: str | None = None
    split_fingerprint: str | None = None
    id_fingerprint: str | None = None
    prior: tuple[float, ...] | None = None
    training_images: TrainingImages | None = None
    validation_predictions: ValidationPredictions | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    leaks: tuple[str, ...] = ()
    library_versions: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def refer_below(self) -> float:
        """The confidence under which a prediction is marked `refer`, in [0, 1]."""
        return self.thresholds.get("refer_below", 0.0)


class _TemporaryCopy:
    """A directory for a remote bundle's files, deleted with this object: TemporaryDirectory would warn of that."""

    def __init__(self) -> None:
        self.directory = tempfile.mkdtemp(prefix="tlray-bundle-")
        weakref.finalize(self, shutil.rmtree, self.directory, ignore_errors=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A verified bundle on this node's disk.

    Attributes:
        spec: What `bundle.json` says.
        directory: Where its files lie.
        sha256: Of `bundle.json`: the name of this exact model.
    """

    spec: BundleSpec
    directory: Path
    sha256: str
    _copy: "_TemporaryCopy | None" = None

    @property
    def model_path(self) -> Path:
        """The Keras model."""
        return self.directory / MODEL_FILE

    @property
    def saved_model_path(self) -> Path:
        """The SavedModel directory."""
        return self.directory / SAVED_MODEL_DIR


def library_versions() -> dict[str, str]:
    """Returns the versions of Python and of the libraries that decide a result."""
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {"tlray": __version__, "python": platform.python_version(), **versions}


def seal(location: str, spec: BundleSpec) -> str:
    """Makes a directory with model files a bundle: checksums all its files and writes `bundle.json`, last.

    Args:
        location: The directory, with `model.keras` and `saved_model/` in it.
        spec: `files` and `library_versions` are filled in here.

    Returns:
        The bundle's sha256.
    """
    files = {
        name: hashlib.sha256(storage.read_bytes(storage.join(location, name))).hexdigest()
        for name in storage.walk(location)
        if name not in (BUNDLE_JSON, storage.MARK)
    }
    sealed = dataclasses.replace(spec, files=files, library_versions=library_versions())
    content = json.dumps(dataclasses.asdict(sealed), indent=2).encode() + b"\n"
    storage.write_bytes(storage.join(location, BUNDLE_JSON), content)
    return hashlib.sha256(content).hexdigest()


def read_spec(location: str) -> tuple[BundleSpec, str]:
    """Reads `bundle.json` alone.

    Returns:
        The description and the bundle's sha256.

    Raises:
        BundleError: There is no bundle, or its description cannot be read.
    """
    try:
        content = storage.read_bytes(storage.join(location, BUNDLE_JSON))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(
            f"'{location}' is no bundle: it has no {BUNDLE_JSON}. Give the bundle/ directory of a finished training "
            "run, or make one of your own model with `tlray export`."
        ) from error
    try:
        raw = json.loads(content)
        version = raw["schema_version"]
        if version != SCHEMA_VERSION:
            raise BundleError(
                f"The bundle '{location}' has schema version {version}; this tlray reads {SCHEMA_VERSION}. "
                "Export it again, or use the tlray that made it."
            )
        if not isinstance(raw["classes"], list) or not isinstance(raw["files"], dict):
            raise TypeError("classes must be a list and files an object")
        limits, shares = raw["intensity_range"], raw.get("prior")
        images, predictions = raw.get("training_images"), raw.get("validation_predictions")
        parsed = {
            "classes": tuple(raw["classes"]),
            "intensity_range": tuple(limits) if limits else None,
            "leaks": tuple(raw.get("leaks", ())),
            "prior": tuple(map(float, shares)) if shares is not None else None,
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
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{BUNDLE_JSON} of '{location}' is damaged: {error}. Restore the bundle.") from error
    return spec, hashlib.sha256(content).hexdigest()


def load(location: str) -> Bundle:
    """Opens a bundle and verifies the checksum of every file.

    Args:
        location: The bundle's directory; a remote one is copied to this node for as long as the result lives.

    Raises:
        BundleError: It is missing, incomplete, or was changed after its export.
    """
    spec, sha256 = read_spec(location)
    copy = None
    directory = Path(storage.open_location(location)[1])
    if not storage.is_local(location):
        copy = _TemporaryCopy()
        directory = Path(copy.directory)
        storage.copy_tree(location, copy.directory)
    for name, wanted in spec.files.items():
        path = (directory / name).resolve()
        if not path.is_relative_to(directory.resolve()):
            raise BundleError(f"The bundle '{location}' lists a file outside of itself: {name}. Do not use it.")
        if not path.is_file():
            raise BundleError(f"The bundle '{location}' lacks its file {name}. Restore it or export it again.")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != wanted:
            raise BundleError(
                f"The bundle '{location}' was changed after its export: sha256 of {name} is {found[:12]}…, "
                f"{BUNDLE_JSON} says {wanted[:12]}…. Restore it or export it again."
            )
    missing = {MODEL_FILE, f"{SAVED_MODEL_DIR}/saved_model.pb"} - set(spec.files)
    if missing:
        raise BundleError(f"{BUNDLE_JSON} of '{location}' does not list {', '.join(sorted(missing))}.")
    return Bundle(spec=spec, directory=directory, sha256=sha256, _copy=copy)


def _inert(text: str) -> str:
    """Returns text that Markdown shows as it is: a file's name may look like HTML or a link."""
    return text if re.fullmatch(r"[\w.,:()\[\] +-]*", text) and "](" not in text else _code(text)


def _code(text: str) -> str:
    """Returns a name as a code span, whatever is in it (https://spec.commonmark.org/0.31.2/#code-spans)."""
    text = " ".join(text.split())  # an empty line would end the span
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"


def model_card(spec: BundleSpec) -> str:
    """Returns a short Markdown description of the model, for people."""
    results = [
        f"| {split} | {metrics['num_images']} | {metrics['accuracy']:.3f} | {metrics['balanced_accuracy']:.3f} |"
        for split, metrics in spec.metrics.items()
    ]
    table = ["| split | images | accuracy | balanced accuracy |", "| --- | --- | --- | --- |", *results]
    leaks = ["> **The metrics below are too good.**", *(f"> {leak}" for leak in spec.leaks), ""] if spec.leaks else []
    low, high = spec.intensity_range or (0, 65535)
    facts = {
        "Backbone": spec.backbone,
        "Starting weights": spec.weights,
        "Input": f"uint8 [batch, {spec.image_size_px}, {spec.image_size_px}, 3], RGB",
        "Preprocessing (in the model)": spec.preprocessing,
        "16-bit pixels shown as 0 to 255": f"{low:g} to {high:g}",
        "Temperature": spec.temperature,
        "Class shares that the probabilities assume": _describe_prior(spec),
        "Refer when confidence is below": spec.refer_below,
        "Data fingerprint": spec.data_fingerprint or "unknown",
    }
    return "\n".join(
        [
            "# Model card",
            "",
            *leaks,
            "A classifier of chest-CT images made with tlray. **Research only: no medical device, not for diagnosis.**",
            "",
            "Classes, in the order of the outputs: " + ", ".join(_code(name) for name in spec.classes),
            "",
            *[f"- {name}: {_inert(str(value))}" for name, value in facts.items()],
            "",
            *(table if results else ["It has not been evaluated."]),
            "",
            "Metrics hold for images like those of its data set. Other scanners, protocols or patients need a new "
            "evaluation (`tlray evaluate`).",
            "",
        ]
    )


def _describe_prior(spec: BundleSpec) -> str:
    if spec.prior is None:
        return "unknown"
    return ", ".join(f"{name} {share:.3g}" for name, share in zip(spec.classes, spec.prior, strict=True))
