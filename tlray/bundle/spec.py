"""Names of a bundle's files, and `BundleSpec`, the content of its `bundle.json`.

A bundle is a directory with an exported model and everything that describes it. `bundle.json` is written last, so a
directory without it is not a bundle. `tlray.bundle.store` reads and writes bundles.
"""

import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tlray import __version__
from tlray.bundle.agreement import Agreement
from tlray.bundle.judgement import Limits
from tlray.data.decoding import DECODING
from tlray.data.drift import TrainingImages, ValidationPredictions

SCHEMA_VERSION = 3
BUNDLE_JSON = "bundle.json"
MODEL_FILE = "model.keras"
SAVED_MODEL_DIR = "saved_model"
OPENVINO_DIR = "openvino"
INT8_DIR = "openvino-int8"
MODEL_CARD = "model_card.md"
REPORT = "report.html"
NOVELTY = "novelty.npz"
LOOKALIKES = "lookalikes.npz"
NAMES = frozenset(
    {BUNDLE_JSON, MODEL_FILE, SAVED_MODEL_DIR, OPENVINO_DIR, INT8_DIR, MODEL_CARD, REPORT, NOVELTY, LOOKALIKES}
)

_LIBRARIES = ("ray", "tensorflow", "keras", "openvino", "numpy", "pillow", "pyarrow")


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleSpec:
    """The content of `bundle.json`, which describes a model.

    Attributes:
        classes: Class names in the order of the model's outputs.
        image_size_px: Height and width of the input.
        preprocessing: How the model scales the 8-bit pixels. The model does it by itself; a training that starts from
            the bundle's network scales them so, too.
        intensity_range: The pixel values of a 16-bit image that become 0 and 255; None: (0, 65535), for images that use
            it, see `decoding.decode`.
        decoding: The version of `tlray.data.decoding.DECODING` that read the training images; see
            `tlray.bundle.decodings`.
        temperature: The calibration temperature, which the model applies by itself; 1.0: not calibrated.
        thresholds: Thresholds by name: `refer_below`, and `max_ood_score` where it is known; see `limits`.
        set_thresholds: The thresholds of prediction sets, see `judgement.Limits`; None: there are no sets.
        trust: How temperature and thresholds were found, and what they are worth, see `tlray.training.judgement_fit`;
            its `data` is that of `verdicts.about_data`, which models that were trained elsewhere do not have. Empty in
            bundles of earlier versions, and of models that were exported without labelled images.
        backbone: Name of the architecture.
        weights: The weights that training started from; the file of an own backbone that has its own weights.
        data_fingerprint: See `manifest.fingerprint`; None if the data is not known.
        split_fingerprint: See `manifest.split_fingerprint`; None if the data is not known.
        id_fingerprint: See `manifest.id_fingerprint`; None also in bundles of earlier versions.
        given_split_fingerprint: That of the splits before the training cut the missing ones, see
            `tlray.data.fingerprints.of_given_splits`; None also in bundles of earlier versions.
        file_fingerprints: Fingerprints of the files by split, see `tlray.data.fingerprints.of_files`; empty if the data
            is not known, and in bundles of earlier versions.
        prior: Class shares that the probabilities assume, in the order of the classes; None: they are not known.
        training_images: Distributions of the training images' grey levels; None if they are not known.
        validation_predictions: Distribution of the model's predictions for validation images that are new to it; None
            if there are no such images, or it is not known.
        metrics: Metrics by split, see `tlray.evaluation.measurement.with_leak_free`.
        measured_with: The engine and precision that these metrics were measured with; empty: nothing was measured.
        leaks: Reasons why these metrics may be too good, see `audit.leak_warnings`; empty if no leak is known.
        shortcuts: What tells the classes without the anatomy, see `tlray.trust.finding_warnings.shortcut_warnings`;
            empty if nothing is known to.
        engines: How the model's other engines and precisions agree with the one that it was trained in, on validation
            images; empty if they were not compared.
        library_versions: Versions of Python and of the libraries that made the bundle.
        files: The sha256 of every other file, by its path in the bundle.
        schema_version: Version of the format of `bundle.json`.
    """

    classes: tuple[str, ...]
    image_size_px: int
    preprocessing: str
    intensity_range: tuple[float, float] | None = None
    decoding: int = DECODING
    temperature: float = 1.0
    thresholds: Mapping[str, float] = field(default_factory=dict)
    set_thresholds: tuple[float, ...] | None = None
    trust: Mapping[str, Any] = field(default_factory=dict)
    backbone: str
    weights: str
    data_fingerprint: str | None = None
    split_fingerprint: str | None = None
    id_fingerprint: str | None = None
    given_split_fingerprint: str | None = None
    file_fingerprints: Mapping[str, str] = field(default_factory=dict)
    prior: tuple[float, ...] | None = None
    training_images: TrainingImages | None = None
    validation_predictions: ValidationPredictions | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    measured_with: str = ""
    leaks: tuple[str, ...] = ()
    shortcuts: tuple[str, ...] = ()
    engines: tuple[Agreement, ...] = ()
    library_versions: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def refer_below(self) -> float:
        """The confidence below which a prediction is marked `refer`."""
        return self.thresholds.get("refer_below", 0.0)

    @property
    def limits(self) -> Limits:
        """The limits by which predictions are judged."""
        return Limits(
            refer_below=self.refer_below,
            max_ood_score=self.thresholds.get("max_ood_score"),
            set_thresholds=self.set_thresholds,
        )


def library_versions() -> dict[str, str]:
    """Returns the versions of tlray, Python and the libraries that can change a result."""
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {"tlray": __version__, "python": platform.python_version(), **versions}
