"""The files in the directory of a training run."""

from dataclasses import dataclass

from tlray.data import dataset
from tlray.evaluation import evaluate, evidence, out_of_fold, suspect_labels
from tlray.files import storage
from tlray.training.resume import CONFIG

KIND = "training"
"""Kind of output that a training run's directory is marked as; see `storage.check_output`."""

HISTORY, CHECKPOINTS, FEATURES, BUNDLE, PARTIAL_BUNDLE = (
    "history.csv",
    "checkpoints",
    "features",
    "bundle",
    "bundle.partial",
)

NAMES = evaluate.NAMES | {
    *(CONFIG, dataset.MANIFEST, dataset.AUDIT, dataset.GALLERY, HISTORY, CHECKPOINTS, BUNDLE, PARTIAL_BUNDLE, FEATURES),
    *(suspect_labels.FILE, evidence.EVIDENCE, evidence.EVALUATED, out_of_fold.FILE),
}
"""Names of everything that a training run writes into its directory."""

SHOWN = (evaluate.REPORT_HTML, dataset.AUDIT, dataset.GALLERY, suspect_labels.FILE, HISTORY, CONFIG)
"""Names of files that people read, beside the metrics and figures: `tlray verify` compares them with checksums."""


@dataclass(frozen=True, slots=True)
class RunPaths:
    """Locations of the files in a training run's directory, paths or URIs.

    Attributes:
        out: The directory.
    """

    out: str

    @property
    def config(self) -> str:
        """The settings of the run, JSON."""
        return storage.join(self.out, CONFIG)

    @property
    def metrics(self) -> str:
        """The metrics, JSON; written last, so that a run without it is not finished."""
        return storage.join(self.out, evaluate.METRICS_JSON)

    @property
    def report(self) -> str:
        """The report, HTML."""
        return storage.join(self.out, evaluate.REPORT_HTML)

    @property
    def history(self) -> str:
        """The history of fine-tuning, CSV with one row per epoch."""
        return storage.join(self.out, HISTORY)

    @property
    def checkpoints(self) -> str:
        """The directory of Ray Train's checkpoints."""
        return storage.join(self.out, CHECKPOINTS)

    @property
    def features(self) -> str:
        """The directory of the features of the run's images."""
        return storage.join(self.out, FEATURES)

    @property
    def bundle(self) -> str:
        """The directory of the exported bundle."""
        return storage.join(self.out, BUNDLE)

    @property
    def partial_bundle(self) -> str:
        """The directory of a bundle that is not finished."""
        return storage.join(self.out, PARTIAL_BUNDLE)
