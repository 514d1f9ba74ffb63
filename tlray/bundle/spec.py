"""The bundle: an exported model as a directory, complete, self-describing and verified.

`bundle.json` is written last: a directory without it is no bundle.
"""

import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tlray import __version__
from tlray.data.drift import TrainingImages, ValidationPredictions

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


def library_versions() -> dict[str, str]:
    """Returns the versions of Python and of the libraries that decide a result."""
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {"tlray": __version__, "python": platform.python_version(), **versions}
