"""Settings of the commands that make something of images or models: they define the options and help texts."""

from dataclasses import dataclass, field
from typing import Literal

from tlray.config.training import (
    MAX_TRAINABLE_TAIL_LAYERS,
    Augmentation,
    EngineChoice,
    PrecisionChoice,
    Preprocessing,
    TrainConfig,
)
from tlray.config.values import MAX_ERROR, TRAIN_PRIOR, check_seed, flag, parse_columns, require


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditConfig:
    """Look for what would spoil a result: copies, patients in several splits, files that tell the classes or splits.

    Training does this too, as its first step. It changes no image.
    """

    data: str
    """The images: a folder (ROOT/CLASS/*, ROOT/SPLIT/CLASS/*), zip, CSV or Parquet manifest; a path or URI."""
    out: str
    """The output directory for audit.json, report.html and manifest.parquet; a path or URI."""
    fix: bool = False
    """Also write fixed.csv, a manifest for --data: without images that cannot be read and pictures with conflicting
    labels, copies and neighbouring slices in one group, and groups that are in several splits in train."""
    weights: str | None = None
    """Weights of a network whose features find more copies and labels that are likely wrong (suspect_labels.csv), and
    tell what a look-up of the most similar training image is worth: 'imagenet' (downloaded), a Keras weights file, or a
    bundle of tlray. Default: no network is used."""
    backbone: str = "InceptionV3"
    """With --weights: name of a model of keras.applications, or path of your own .keras file."""
    preprocessing: Preprocessing | None = None
    """With --weights: pixels that the backbone expects; see `tlray train --help`. Default: those of the bundle if
    --weights is one, else those of keras.applications. Required for a .keras backbone."""
    image_size_px: int = 224
    """With --weights: height and width that every image is resized to."""
    engine: EngineChoice = "auto"
    """With --weights: the library that runs the network. auto: openvino, if it knows the network."""
    precision: PrecisionChoice = "auto"
    """With --weights: numbers that the network computes with; see `tlray features --help`."""
    class_map: str | None = None
    """A JSON or two-column CSV file that maps folder names (or labels) to classes."""
    columns: str | None = None
    """Pairs such as uri=path,label=dx for a CSV or Parquet manifest with other column names than uri (relative to it),
    label, split (train, valid or test), group_id (the patient) and image_id. All but uri are optional."""
    seed: int = 0
    """Seed of the cross-validations that look for files that tell the classes, and for wrong labels."""
    thumbnails: bool = True
    """Show some copies, neighbouring slices, and images whose labels are likely wrong in the report. --no-thumbnails:
    for private data."""
    overwrite: bool = False
    """Replace an earlier audit in --out."""
    quiet: bool = False
    """Print errors only."""

    def __post_init__(self) -> None:
        parse_columns(self.columns)
        check_seed(self.seed)
        require(self.image_size_px > 0, f"--image-size-px must be positive. Received: {self.image_size_px}")
        require(
            self.weights != "none", "--weights none: features of random weights are of no use. Give other --weights."
        )
        self.features()

    def features(self) -> "FeaturesConfig | None":
        """Returns the config of the features that are wanted; None without weights.

        Raises:
            ConfigError: A setting of the network cannot work.
        """
        if self.weights is None:
            return None
        shared = ("data", "out", "weights", "backbone", "preprocessing", "image_size_px", "seed", "quiet")
        shared += ("engine", "precision")
        return FeaturesConfig(**{name: getattr(self, name) for name in shared})


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyConfig:
    """Check that a finished training run is still as it was when it ended. `tlray verify RUN` does the same.

    The metrics of each split, of the cross-validation and of the calibration are computed again, from the stored
    predictions, the manifest and the bundle's limits. The predictions must be of the manifest's images, with their
    splits and labels, and the manifest must have the fingerprints that the bundle and evidence.json name. The report,
    its figures and pictures, the other files that people read, and each file of the bundle, with its model card, are
    compared with the checksums that the run wrote. It needs no images and no Ray.

    It cannot tell whether the predictions are those of this model for these images: `tlray evaluate` can. Somebody who
    changes evidence.json too can hide a change: keep the sha256 of that file, which is shown, in another place.

    Exit codes: 0 everything is as the run says, 1 something is not and is named, 2 there is no finished training run,
    evidence.json is damaged, or a file cannot be used though its checksum is right.
    """

    run: str
    """The directory of the run, which was its --out; a path or URI."""
    quiet: bool = False
    """Print errors only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeaturesConfig:
    """Compute features of images with a pretrained network, and write them as Parquet files for any other tool.

    Features in --out that are still valid are kept: the same command continues an interrupted run, and after images
    have changed it computes only theirs (int8: see --precision).
    """

    data: str
    """The images: a folder (ROOT/CLASS/*, ROOT/SPLIT/CLASS/*, or without classes), zip, CSV or Parquet manifest."""
    out: str
    """The output directory for the features (Parquet parts, and _SUCCESS, written last); a path or URI."""

    level: Literal["pooled", "cut", "both"] = "pooled"
    """pooled: averages over height and width at five depths of the network, one vector per image. cut: the feature maps
    that are the input of its last --trainable-layers layers. both: pooled and cut, in one pass."""
    views: int = 1
    """Rows per training image: view 0 is the image as it is, view N is augmented as in epoch N of a training."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """Random changes of the training images in all views but the first."""

    weights: str = "imagenet"
    """The network's weights: 'imagenet' (downloaded), a Keras weights file, or an earlier bundle of tlray."""
    backbone: str = "InceptionV3"
    """Name of a model of keras.applications, or path of your own .keras file."""
    cut: str | None = None
    """With a .keras backbone: the layer whose output is the last one used (default: the last with height and width)."""
    preprocessing: Preprocessing | None = None
    """Preprocessing that the backbone expects; see `tlray train --help`. Default: that of the bundle if --weights is
    one, else that of keras.applications. Required for a .keras backbone."""
    image_size_px: int = 224
    """Height and width that every image is resized to."""
    trainable_layers: int = MAX_TRAINABLE_TAIL_LAYERS
    """With --level cut or both: how many of the network's last layers will be trained on the features."""

    seed: int = 0
    """Seed of the augmentation, and of the splits where the data has none."""
    class_map: str | None = None
    """A JSON or two-column CSV file that maps folder names (or labels) to classes."""
    columns: str | None = None
    """Pairs such as uri=path,label=dx for a CSV or Parquet manifest with other column names than uri (relative to it),
    label, split (train, valid or test), group_id (the patient) and image_id. All but uri are optional."""
    intensity_range: str = "auto"
    """Values of 16-bit pixels that become 0 and 255: LO,HI, or auto (0.1 and 99.9 percentiles of the training images;
    of the others if only these have 16 bits)."""
    batch_size: int = 32
    """Number of images in a batch of the model."""
    use_gpu: bool = False
    """Compute on GPUs."""
    engine: EngineChoice = "auto"
    """The library that runs the network. auto: openvino on CPUs, tensorflow on GPUs."""
    precision: PrecisionChoice = "auto"
    """Numbers that the network computes with. auto: bfloat16 on CPUs that have it, float32 on others and on GPUs. int8:
    faster still, and coarser; needs `pip install tlray[int8]`. Up to 300 of the training images set its ranges: if one
    of these changes, also because images are added or removed, all features are computed anew, with --overwrite."""
    overwrite: bool = False
    """Replace features of another network in --out, and delete most of the stored features if they are not wanted any
    more (other images, --views or --seed)."""
    quiet: bool = False
    """Print errors only."""

    def __post_init__(self) -> None:
        for name in ("views", "batch_size"):
            require(getattr(self, name) > 0, f"{flag(name)} must be positive. Received: {getattr(self, name)}")
        require(
            self.weights != "none", "--weights none: features of random weights are of no use. Give other --weights."
        )
        require(
            self.views == 1 or self.augmentation != Augmentation(),
            f"--views {self.views} without augmentation would compute the same image {self.views} times. Give an "
            "augmentation, such as --augmentation.zoom 0.1, or --views 1.",
        )
        _require_views(self.views, self.augmentation)
        self.training()

    def training(self) -> TrainConfig:
        """Returns the config (resolved) of a training with the same images and backbone.

        Raises:
            ConfigError: A setting cannot work.
        """
        shared = ("data", "out", "weights", "backbone", "cut", "preprocessing", "image_size_px", "trainable_layers")
        shared += ("seed", "class_map", "columns", "intensity_range", "augmentation", "use_gpu", "overwrite", "quiet")
        return TrainConfig(**{name: getattr(self, name) for name in shared}).resolved()


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepConfig:
    """Try many settings on features that a pretrained network computes once; train and export the best.

    Each trial fits a linear probe (settings: depths of the network, penalty) and fine-tunes from it (settings: hidden
    layers of the head, last layers of the network, learning rate, dropout, views), cross-validated over training and
    validation images. After one epoch of fine-tuning, only about the best quarter of the trials continues.
    """

    data: str
    """The labelled images: a folder, zip, CSV or Parquet manifest; a path or URI."""
    out: str
    """The sweep's directory: trials.csv, trials.png, and the training of the best settings in OUT/best."""

    num_trials: int = 40
    """Number of settings to try. The first are roughly those of the recipe standard, the others are random."""
    num_folds: int = 3
    """Number of folds of the cross-validation. Images of a patient, copies of an image and neighbouring slices are in
    the same fold."""
    epochs: int = 4
    """Maximum number of epochs of fine-tuning in a trial."""
    trainable_layers: int = MAX_TRAINABLE_TAIL_LAYERS
    """Maximum number of last layers that are fine-tuned; 0, a third and two thirds of it are tried too."""
    hidden_units: int = 512
    """Width of the hidden layers (relu) beside the linear layer of a head; none, one and two are tried."""
    views: int = 1
    """Maximum number of views of each training image: the image as it is, and augmented ones."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """Random changes of the training images in all views but the first."""

    weights: str = "imagenet"
    """The network's weights: 'imagenet' (downloaded), a Keras weights file, or an earlier bundle of tlray."""
    backbone: str = "InceptionV3"
    """Name of a model of keras.applications, or path of your own .keras file."""
    cut: str | None = None
    """With a .keras backbone: the layer whose output is the last one used (default: the last with height and width)."""
    preprocessing: Preprocessing | None = None
    """Preprocessing that the backbone expects; see `tlray train --help`. Default: that of the bundle if --weights is
    one, else that of keras.applications. Required for a .keras backbone."""
    image_size_px: int = 224
    """Height and width that every image is resized to."""
    batch_size: int = 32
    """Number of images in a batch."""

    seed: int = 0
    """Seed of the folds, the settings, the augmentation, and of the splits where the data has none."""
    class_map: str | None = None
    """A JSON or two-column CSV file that maps folder names (or labels) to classes."""
    columns: str | None = None
    """Pairs such as uri=path,label=dx for a CSV or Parquet manifest with other column names than uri (relative to it),
    label, split (train, valid or test), group_id (the patient) and image_id. All but uri are optional."""
    intensity_range: str = "auto"
    """Values of 16-bit pixels that become 0 and 255: LO,HI, or auto (0.1 and 99.9 percentiles of the training images;
    of the others if only these have 16 bits)."""
    max_error: float = MAX_ERROR
    """Predictions that are not marked 'refer' shall be wrong at most this often; see `tlray train --help`."""
    refer_below: float | None = None
    """The confidence below which predictions are marked 'refer'. Default: chosen by --max-error."""
    prior: str = TRAIN_PRIOR
    """Class shares that the exported probabilities assume; see `tlray train --help`. Losses of trials assume train."""
    use_gpu: bool = False
    """Compute on GPUs, one for each trial that runs."""
    inference_precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Numbers that features are computed with, and that the best model is measured with; see `tlray train --help`."""
    int8: bool = False
    """Export an int8 model of the best settings too; see `tlray train --help`."""
    thumbnails: bool = True
    """Keep small pictures of training images in the bundle, and show images in the report; --no-thumbnails: for
    private data."""
    resume: bool = False
    """Continue the sweep in --out: only trials without a result are run. Give the other options as before."""
    overwrite: bool = False
    """Replace an earlier sweep in --out."""
    timing: bool = False
    """Show how long each phase took, of the trials and of the training of the best settings."""
    quiet: bool = False
    """Print errors only."""

    def __post_init__(self) -> None:
        for name in ("num_trials", "epochs", "trainable_layers", "hidden_units", "views"):
            require(getattr(self, name) > 0, f"{flag(name)} must be positive. Received: {getattr(self, name)}")
        require(self.num_folds > 1, f"--num-folds must be at least 2. Received: {self.num_folds}")
        require(
            self.weights != "none", "--weights none: features of random weights are of no use. Give other --weights."
        )
        _require_views(self.views, self.augmentation)
        self.training()

    def training(self) -> TrainConfig:
        """Returns the config (resolved) of the training whose settings the trials vary.

        Raises:
            ConfigError: A setting cannot work.
        """
        shared = ("data", "out", "weights", "backbone", "cut", "preprocessing", "image_size_px", "trainable_layers")
        shared += ("seed", "class_map", "columns", "intensity_range", "augmentation", "use_gpu", "overwrite", "quiet")
        shared += ("views", "batch_size", "max_error", "refer_below", "prior", "resume", "inference_precision")
        shared += ("int8", "thumbnails", "timing")
        return TrainConfig(
            method="lp-ft", class_weights=True, **{name: getattr(self, name) for name in shared}
        ).resolved()


def _require_views(views: int, augmentation: Augmentation) -> None:
    """Raises a ConfigError if an augmentation would change nothing, because there is only the image as it is."""
    require(
        views > 1 or augmentation == Augmentation(),
        "--augmentation changes nothing with --views 1, the image as it is. Give --views 2 or more, or leave the "
        "augmentation out.",
    )
