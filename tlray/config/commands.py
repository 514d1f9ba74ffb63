"""Settings of all commands except `train`: frozen dataclasses that define the options and their help texts."""

from dataclasses import dataclass, field
from typing import Literal

from tlray.config.training import (
    MAX_TRAINABLE_TAIL_LAYERS,
    TRAIN_PRIOR,
    Augmentation,
    Outputs,
    Preprocessing,
    TrainConfig,
    flag,
    parse_columns,
    require,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeaturesConfig:
    """Compute features of images with a pretrained network, and write them as Parquet files for any other tool.

    Features in --out that are still valid are kept: the same command continues an interrupted run, and after images
    have changed it computes only theirs.
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
    """Preprocessing that the backbone expects; see `tlray train --help`. Required for a .keras backbone."""
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
    """Values of 16-bit pixels that become 0 and 255: LO,HI, or auto (0.1 and 99.9 percentiles in training images)."""
    batch_size: int = 32
    """Number of images in a batch of the model."""
    use_gpu: bool = False
    """Compute on GPUs."""
    overwrite: bool = False
    """Replace features of another network in --out."""
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
    """Number of folds of the cross-validation. Images of a patient, and copies of an image, are in the same fold."""
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
    """Preprocessing that the backbone expects; see `tlray train --help`. Required for a .keras backbone."""
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
    """Values of 16-bit pixels that become 0 and 255: LO,HI, or auto (0.1 and 99.9 percentiles in training images)."""
    refer_below: float = 0.5
    """Predictions with a lower confidence are marked 'refer': leave them to a specialist."""
    prior: str = TRAIN_PRIOR
    """Class shares that the exported probabilities assume; see `tlray train --help`. Losses of trials assume train."""
    use_gpu: bool = False
    """Compute on GPUs, one for each trial that runs."""
    resume: bool = False
    """Continue the sweep in --out: only trials without a result are run. Give the other options as before."""
    overwrite: bool = False
    """Replace an earlier sweep in --out."""
    quiet: bool = False
    """Print errors only."""

    def __post_init__(self) -> None:
        for name in ("num_trials", "epochs", "trainable_layers", "hidden_units", "views"):
            require(getattr(self, name) > 0, f"{flag(name)} must be positive. Received: {getattr(self, name)}")
        require(self.num_folds > 1, f"--num-folds must be at least 2. Received: {self.num_folds}")
        require(
            self.weights != "none", "--weights none: features of random weights are of no use. Give other --weights."
        )
        self.training()

    def training(self) -> TrainConfig:
        """Returns the config (resolved) of the training whose settings the trials vary.

        Raises:
            ConfigError: A setting cannot work.
        """
        shared = ("data", "out", "weights", "backbone", "cut", "preprocessing", "image_size_px", "trainable_layers")
        shared += ("seed", "class_map", "columns", "intensity_range", "augmentation", "use_gpu", "overwrite", "quiet")
        shared += ("views", "batch_size", "refer_below", "prior", "resume")
        return TrainConfig(
            method="lp-ft", class_weights=True, **{name: getattr(self, name) for name in shared}
        ).resolved()


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """Score the images of one split with a bundle and compare the predictions with the labels."""

    bundle: str
    """The exported model: a directory, a path or URI."""
    data: str
    """The labelled images: a folder, zip, CSV or Parquet manifest; a path or URI."""
    out: str
    """The output directory for metrics.json, report.html, figures/, predictions/ and predictions.csv; a path or URI."""
    split: Literal["train", "valid", "test", "all"] = "test"
    """The split to evaluate; all for data without splits."""
    class_map: str | None = None
    """A JSON or two-column CSV file that maps folder names (or labels) to the bundle's classes."""
    columns: str | None = None
    """Pairs such as uri=path,label=dx for a CSV or Parquet manifest with other column names than uri (relative to it),
    label, split (train, valid or test), group_id (the patient) and image_id. All but uri are optional."""
    batch_size: int = 32
    """Number of images in a batch of the model."""
    use_gpu: bool = False
    """Predict on GPUs."""
    overwrite: bool = False
    """Replace an earlier evaluation in --out."""
    quiet: bool = False
    """Print errors only."""

    def __post_init__(self) -> None:
        parse_columns(self.columns)
        require(self.batch_size > 0, f"--batch-size must be positive. Received: {self.batch_size}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreConfig:
    """Score a file, folder, glob, zip or manifest of images. Every file gets a row, even if it cannot be read."""

    bundle: str
    """The exported model: a directory, a path or URI."""
    input: str
    """The images: a file, folder, glob, zip, CSV or Parquet manifest; a path or URI."""
    out: str
    """The output directory for predictions/ (Parquet), predictions.csv and _SUCCESS, written last; a path or URI."""
    columns: str | None = None
    """Pairs such as uri=path,label=dx for a CSV or Parquet manifest with other column names than uri (relative to it),
    label, split (train, valid or test), group_id (the patient) and image_id. All but uri are optional."""
    batch_size: int = 32
    """Number of images in a batch of the model."""
    use_gpu: bool = False
    """Predict on GPUs."""
    bundle_sha256: str | None = None
    """The sha256 of the bundle's bundle.json. Nothing is scored if the bundle has been replaced by another one."""
    roots: tuple[str, ...] = ()
    """Folders or URIs below which all images must lie. If a manifest or a symbolic link leads elsewhere, nothing is
    scored. Without any, images may lie anywhere."""
    resume: bool = False
    """Continue an interrupted scoring in --out. Images that have changed since they were scored are scored again; they
    are found by the size and time of their files."""
    verify: bool = False
    """With --resume: find changed images by reading every scored image again, not by sizes and times."""
    overwrite: bool = False
    """Replace an earlier output in --out."""
    quiet: bool = False
    """Print errors only."""

    def __post_init__(self) -> None:
        parse_columns(self.columns)
        require(self.batch_size > 0, f"--batch-size must be positive. Received: {self.batch_size}")
        both = self.resume and self.overwrite
        require(not both, "--resume continues an earlier scoring and --overwrite deletes it. Give only one of them.")
        require(self.resume or not self.verify, "--verify checks what --resume continues. Give --resume too.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """Serve a bundle over HTTP until Ctrl-C, on a local Ray or on the one that RAY_ADDRESS names.

    API keys are read from the environment: TLRAY_API_KEYS (keys separated by commas) or TLRAY_API_KEYS_FILE (path of a
    file with one key per line). To serve on several machines, use `serve deploy serve_app/config.yaml`.
    """

    bundle: str
    """The exported model: a directory, a path or URI."""
    name: str = "chest-ct"
    """The model's name in addresses such as /v1/models/NAME."""
    host: str = "127.0.0.1"
    """The address to listen on. 0.0.0.0 means all addresses of this machine, and needs keys or --open-without-keys."""
    port: int = 8000
    """The port to listen on."""
    open_without_keys: bool = False
    """If there are no keys, answer other machines too: anyone who reaches the port can use the model."""
    cors_origins: tuple[str, ...] = ()
    """Origins of other sites whose pages may use the model, such as https://scans.example."""
    input_roots: tuple[str, ...] = ()
    """Folders or URIs below which bulk scoring (POST /v1/batches) may read. Without any, bulk scoring is off."""
    output_roots: tuple[str, ...] = ()
    """Folders or URIs below which bulk scoring may write. Without any, bulk scoring is off."""
    max_batch_size: int = 32
    """Maximum number of images in a batch of the model."""
    max_replicas: int = 1
    """Maximum number of model replicas; there is one without load. With more than 1, each takes 4 CPUs, or a GPU."""
    use_gpu: bool = False
    """Predict on GPUs."""
    quiet: bool = False
    """Print errors only."""

    def __post_init__(self) -> None:
        require(0 < self.port < 2**16, f"--port must lie in [1, 65535]. Received: {self.port}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig:
    """Make a bundle from a trained Keras model, which can then be evaluated, used for scoring and served."""

    model: str
    """The trained model, a .keras file: images in, class probabilities or logits out."""
    classes: str
    """A text file with the class names, one per line, in the order of the model's outputs."""
    out: str
    """The bundle's directory, a path or URI."""
    preprocessing: Preprocessing
    """Pixels that the model was trained on: unit [0, 1], symmetric [-1, 1], imagenet, caffe, raw [0, 255]."""
    outputs: Outputs | None = None
    """Kind of the model's outputs. Default: found out with trial images; the command says if that does not work."""
    refer_below: float = 0.5
    """Predictions with a lower confidence are marked 'refer': leave them to a specialist."""
    intensity_range: str = "0,65535"
    """Values of 16-bit pixels that become 0 and 255: LO,HI."""
    image_size_px: int | None = None
    """Height and width of the input, for a model that accepts any."""
    overwrite: bool = False
    """Replace an earlier bundle in --out."""
    quiet: bool = False
    """Print errors only."""

    def __post_init__(self) -> None:
        require(0 <= self.refer_below <= 1, f"--refer-below must lie in [0, 1]. Received: {self.refer_below}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PhantomConfig:
    """Make a synthetic data set of chest-CT-like images for trying things out."""

    out: str
    """The data set's folder: OUT/CLASS/PATIENT/*."""
    task: Literal["cancer-type", "nodules"] = "cancer-type"
    """cancer-type: three types of cancer, and none. nodules: a calcified granuloma, metastases, and none."""
    patients_per_class: int = 50
    """Number of patients of each class. Each has its own anatomy."""
    slices_per_patient: int = 4
    """Number of readable images of each patient."""
    image_size_px: int = 96
    """Height and width of the images."""
    num_unreadable: int = 4
    """Number of further files that cannot be read, as real data sets have some."""
    seed: int = 0
    """The same seed makes the same files."""
    first_patient: int = 0
    """Lowest number in a patient's name. Patients with the same name in two splits count as the same patient."""
    overwrite: bool = False
    """Replace an earlier data set in --out."""
    quiet: bool = False
    """Print errors only."""

    def __post_init__(self) -> None:
        for name in ("patients_per_class", "slices_per_patient", "image_size_px"):
            value = getattr(self, name)
            require(value > 0, f"{flag(name)} must be positive. Received: {value}")
        for name in ("num_unreadable", "first_patient"):
            value = getattr(self, name)
            require(value >= 0, f"{flag(name)} must not be negative. Received: {value}")
