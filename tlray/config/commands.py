"""The knobs of the commands beside training: frozen dataclasses, from which the command line is made."""

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
    """Run a pretrained network once over images and keep what it sees in them, as Parquet for any other tool.

    What is in --out already and still right is kept: the same command goes on with an interrupted run, and after a
    change of the images it computes only what changed.
    """

    data: str
    """The images: a folder (ROOT/CLASS/*, ROOT/SPLIT/CLASS/*, or without classes), zip, CSV or Parquet manifest."""
    out: str
    """Where the features go (Parquet parts, then _SUCCESS); a path or URI."""

    level: Literal["pooled", "cut", "both"] = "pooled"
    """pooled: global averages at five depths of the network, one vector an image. cut: the feature maps that its last
    --trainable-layers are fed with. both: in one pass."""
    views: int = 1
    """Rows of each training image: view 0 as it is, view 1, 2, ... augmented as a training does in epoch 1, 2, ..."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """Random changes of the training images in the views after the first."""

    weights: str = "imagenet"
    """The network's weights: 'imagenet' (downloaded), a Keras weights file, or an earlier bundle of tlray."""
    backbone: str = "InceptionV3"
    """A model of keras.applications by its name, or the path of your own .keras file."""
    cut: str | None = None
    """With a .keras backbone: the layer whose output is the last one used (default: the last with height and width)."""
    preprocessing: Preprocessing | None = None
    """Pixels as the backbone wants them; see `tlray train --help`. A .keras backbone must name it."""
    image_size_px: int = 224
    """Height and width that every image is resized to."""
    trainable_layers: int = MAX_TRAINABLE_TAIL_LAYERS
    """With --level cut: how many of the last layers will be trained on the features."""

    seed: int = 0
    """Decides splits that the data does not give, and augmentation."""
    class_map: str | None = None
    """A JSON or two-column CSV file that maps folder names (or labels) to classes."""
    columns: str | None = None
    """With a CSV or Parquet manifest: its names for the columns uri (relative to it), label, split (train, valid or
    test), group_id (the patient) and image_id, all but uri optional, such as uri=path,label=dx."""
    intensity_range: str = "auto"
    """How 16-bit pixels become 8-bit ones: LO,HI, or auto (0.1 and 99.9 percentiles of the training images)."""
    batch_size: int = 32
    """Images that the model takes at once."""
    use_gpu: bool = False
    """Compute on GPUs."""
    overwrite: bool = False
    """Replace features of another network in --out."""
    quiet: bool = False
    """Print errors only."""

    def __post_init__(self) -> None:
        for name in ("views", "batch_size"):
            require(getattr(self, name) > 0, f"{flag(name)} must be positive. Received: {getattr(self, name)}")
        require(self.weights != "none", "--weights none: a network of random weights has no features. Give weights.")
        require(
            self.views == 1 or self.augmentation != Augmentation(),
            f"--views {self.views} without an --augmentation would be the same image {self.views} times.",
        )
        self.training()

    def training(self) -> TrainConfig:
        """Returns the training whose images and backbone these are (resolved).

        Raises:
            ConfigError: A setting cannot work.
        """
        shared = ("data", "out", "weights", "backbone", "cut", "preprocessing", "image_size_px", "trainable_layers")
        shared += ("seed", "class_map", "columns", "intensity_range", "augmentation", "use_gpu", "overwrite", "quiet")
        return TrainConfig(**{name: getattr(self, name) for name in shared}).resolved()


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepConfig:
    """Try many settings on features that a pretrained network computes once; train and export the best.

    A trial is a linear probe (how many depths of the network, which penalty) and fine-tuning from it (hidden layers of
    the head, last layers of the network, rate, dropout, views), cross-validated over training and validation images.
    After an epoch of it only about the best quarter goes on.
    """

    data: str
    """The labelled images: a folder, zip, CSV or Parquet manifest; a path or URI."""
    out: str
    """The sweep's directory: trials.csv, trials.png, and in OUT/best the training of the best settings."""

    num_trials: int = 40
    """Settings to try, the first ones about those of the recipe standard, the others at random."""
    num_folds: int = 3
    """Folds of the cross-validation; the images of a patient, and copies of an image, are in one fold."""
    epochs: int = 4
    """The most epochs of fine-tuning in a trial."""
    trainable_layers: int = MAX_TRAINABLE_TAIL_LAYERS
    """The most last layers that are fine-tuned; none, a third and two thirds of them are tried too."""
    hidden_units: int = 512
    """Width of the hidden layers (relu) that a trial's head may have beside the linear one: none, one or two of
    one width."""
    views: int = 1
    """The most views of each training image, the first as it is, the others augmented."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """Random changes of the training images in the views after the first."""

    weights: str = "imagenet"
    """The network's weights: 'imagenet' (downloaded), a Keras weights file, or an earlier bundle of tlray."""
    backbone: str = "InceptionV3"
    """A model of keras.applications by its name, or the path of your own .keras file."""
    cut: str | None = None
    """With a .keras backbone: the layer whose output is the last one used (default: the last with height and width)."""
    preprocessing: Preprocessing | None = None
    """Pixels as the backbone wants them; see `tlray train --help`. A .keras backbone must name it."""
    image_size_px: int = 224
    """Height and width that every image is resized to."""
    batch_size: int = 32
    """Images in a batch."""

    seed: int = 0
    """Decides splits that the data does not give, folds, settings and augmentation."""
    class_map: str | None = None
    """A JSON or two-column CSV file that maps folder names (or labels) to classes."""
    columns: str | None = None
    """With a CSV or Parquet manifest: its names for the columns uri (relative to it), label, split (train, valid or
    test), group_id (the patient) and image_id, all but uri optional, such as uri=path,label=dx."""
    intensity_range: str = "auto"
    """How 16-bit pixels become 8-bit ones: LO,HI, or auto (0.1 and 99.9 percentiles of the training images)."""
    refer_below: float = 0.5
    """A prediction whose confidence is lower is marked 'refer': leave it to a specialist."""
    prior: str = TRAIN_PRIOR
    """Class shares that the exported probabilities assume; see `tlray train --help`. Trials are compared with train."""
    use_gpu: bool = False
    """Compute on GPUs, one for each trial at a time."""
    resume: bool = False
    """Continue the sweep in --out: only trials without a result are run; give the other options as before."""
    overwrite: bool = False
    """Replace an earlier sweep in --out."""
    quiet: bool = False
    """Print errors only."""

    def __post_init__(self) -> None:
        for name in ("num_trials", "epochs", "trainable_layers", "hidden_units", "views"):
            require(getattr(self, name) > 0, f"{flag(name)} must be positive. Received: {getattr(self, name)}")
        require(self.num_folds > 1, f"--num-folds must be at least 2. Received: {self.num_folds}")
        require(self.weights != "none", "--weights none: a network of random weights has no features. Give weights.")
        self.training()

    def training(self) -> TrainConfig:
        """Returns the training that the trials change (resolved).

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
    """Score the images of one split with a bundle and measure the result against their labels."""

    bundle: str
    """The exported model: a directory, a path or URI."""
    data: str
    """The labelled images: a folder, zip, CSV or Parquet manifest; a path or URI."""
    out: str
    """Output for metrics.json, report.html, figures/, predictions/ (Parquet) and predictions.csv; a path or URI."""
    split: Literal["train", "valid", "test", "all"] = "test"
    """The split to evaluate. Data without splits of its own: all."""
    class_map: str | None = None
    """A JSON or two-column CSV file that maps folder names (or labels) to the bundle's classes."""
    columns: str | None = None
    """With a CSV or Parquet manifest: its names for the columns uri (relative to it), label, split (train, valid or
    test), group_id (the patient) and image_id, all but uri optional, such as uri=path,label=dx."""
    batch_size: int = 32
    """Images that the model takes at once."""
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
    """Score a file, folder, glob, zip or manifest of images: one row for every file, whatever is wrong with it."""

    bundle: str
    """The exported model: a directory, a path or URI."""
    input: str
    """The images: a file, folder, glob, zip, CSV or Parquet manifest; a path or URI."""
    out: str
    """Output for predictions/ (Parquet parts), predictions.csv and, last, _SUCCESS; a path or URI."""
    columns: str | None = None
    """With a CSV or Parquet manifest: its names for the columns uri (relative to it), label, split (train, valid or
    test), group_id (the patient) and image_id, all but uri optional, such as uri=path,label=dx."""
    batch_size: int = 32
    """Images that the model takes at once."""
    use_gpu: bool = False
    """Predict on GPUs."""
    bundle_sha256: str | None = None
    """Score with this very bundle (the sha256 of its bundle.json) and not with another one that took its place."""
    roots: tuple[str, ...] = ()
    """Read images only below these folders or URIs; a manifest or a symbolic link may lead elsewhere, and nothing is
    scored then. Without any: anywhere."""
    resume: bool = False
    """Continue an interrupted scoring in --out. Images whose files have changed are scored again, by size and time."""
    verify: bool = False
    """With --resume: read every scored image again, and do not trust sizes and times."""
    overwrite: bool = False
    """Replace an earlier output in --out."""
    quiet: bool = False
    """Print errors only."""

    def __post_init__(self) -> None:
        parse_columns(self.columns)
        require(self.batch_size > 0, f"--batch-size must be positive. Received: {self.batch_size}")
        require(not (self.resume and self.overwrite), "--resume continues and --overwrite deletes: give one.")
        require(self.resume or not self.verify, "--verify looks at what --resume continues: give both.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """Serve a bundle over HTTP until Ctrl-C: on a local Ray, or on the one that RAY_ADDRESS names.

    Keys come from the environment: TLRAY_API_KEYS (separated by commas) or TLRAY_API_KEYS_FILE (one a line). For more
    than this machine: `serve deploy serve_app/config.yaml`.
    """

    bundle: str
    """The exported model: a directory, a path or URI."""
    name: str = "chest-ct"
    """The model's name in addresses such as /v1/models/NAME."""
    host: str = "127.0.0.1"
    """The address to listen on; 0.0.0.0 for all of this machine's, which needs keys."""
    port: int = 8000
    """The port to listen on."""
    open_without_keys: bool = False
    """Answer other machines without keys, too: anyone who reaches the port may use the model."""
    cors_origins: tuple[str, ...] = ()
    """Sites whose pages may use the model, as browsers name them: https://scans.example."""
    input_roots: tuple[str, ...] = ()
    """Folders or URIs below which bulk scoring (POST /v1/batches) may read; without any there is none."""
    output_roots: tuple[str, ...] = ()
    """Folders or URIs below which bulk scoring may write."""
    max_batch_size: int = 32
    """Images that the model takes at once."""
    max_replicas: int = 1
    """Model replicas under load; one at rest. More than one: each has 4 CPUs, or a GPU, of its own."""
    use_gpu: bool = False
    """Predict on GPUs."""
    quiet: bool = False
    """Print errors only."""

    def __post_init__(self) -> None:
        require(0 < self.port < 2**16, f"--port must lie in [1, 65535]. Received: {self.port}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig:
    """Make a bundle of an already trained Keras model, to be evaluated, scored with and served like any other."""

    model: str
    """The trained model, a .keras file: images in, class probabilities or logits out."""
    classes: str
    """A text file with the class names, one a line, in the order of the model's outputs."""
    out: str
    """The bundle's directory, a path or URI."""
    preprocessing: Preprocessing
    """The pixels that the model was trained on: unit [0, 1], symmetric [-1, 1], imagenet, caffe, raw [0, 255]."""
    outputs: Outputs | None = None
    """Kind of the model's outputs. Default: found out by its outputs for some images; where these do not tell, the
    command asks for this option."""
    refer_below: float = 0.5
    """A prediction whose confidence is lower is marked 'refer': leave it to a specialist."""
    intensity_range: str = "0,65535"
    """How 16-bit pixels become 8-bit ones: LO,HI."""
    image_size_px: int | None = None
    """Height and width of the input, for a model that leaves them open."""
    overwrite: bool = False
    """Replace an earlier bundle in --out."""
    quiet: bool = False
    """Print errors only."""

    def __post_init__(self) -> None:
        require(0 <= self.refer_below <= 1, f"--refer-below must lie in [0, 1]. Received: {self.refer_below}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PhantomConfig:
    """Make a synthetic data set of chest-CT-like images, to try things on: several classes, several patients each."""

    out: str
    """The data set's folder: OUT/CLASS/PATIENT/*."""
    task: Literal["cancer-type", "nodules"] = "cancer-type"
    """cancer-type: three types of cancer, and none. nodules: a calcified granuloma, metastases, and none."""
    patients_per_class: int = 50
    """Patients of each class, each with an anatomy of its own."""
    slices_per_patient: int = 4
    """Images of each patient."""
    image_size_px: int = 96
    """Height and width of the images."""
    num_unreadable: int = 4
    """Files among them that cannot be read, as in life."""
    seed: int = 0
    """The same seed makes the same files."""
    first_patient: int = 0
    """The lowest number in a patient's name. For splits of one data set made one by one: a patient of one name in two
    splits is taken for one."""
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
