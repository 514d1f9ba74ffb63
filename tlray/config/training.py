"""Settings of a training run: frozen dataclasses that define the options of `tlray train` and their help texts."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from tlray.config.values import (
    MAX_ERROR,
    TRAIN_PRIOR,
    check_seed,
    flag,
    parse_columns,
    parse_intensity_range,
    parse_prior,
    require,
)

Preprocessing = Literal["unit", "symmetric", "imagenet", "caffe", "raw"]
"""Names of the ways to turn 8-bit pixels into a backbone's input; see `tlray.models.backbone.preprocess`."""

Outputs = Literal["logits", "probabilities"]
"""Kinds of outputs that a trained Keras model may have; see `tlray.models.outputs`."""

EngineChoice = Literal["auto", "openvino", "tensorflow"]
"""Names of the engines that run a network, see `tlray.engines`."""
PrecisionChoice = Literal["auto", "float32", "bfloat16", "int8"]
"""Names of the precisions in which an engine computes."""

MAX_TRAINABLE_TAIL_LAYERS = 15
"""How many of the backbone's last layers are trained by default (the article's choice for InceptionV3)."""

ARTICLE_HIDDEN_UNITS = (512, 512)
"""Widths of the hidden layers of the recipe `article`. They may stand where nothing uses them, as with
`article --method probe`: the user did not choose them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """Random changes of a training image, drawn anew in every epoch. With all values 0 there are none."""

    rotation_deg: float = 0.0
    """Rotate by an angle from [-x, x]."""
    shear_deg: float = 0.0
    """Shear by an angle from [-x, x]."""
    zoom: float = 0.0
    """Scale height and width, each by a factor from [1 - x, 1 + x]."""
    shift: float = 0.0
    """Shift vertically and horizontally, each by a fraction of the height or width from [-x, x]."""
    brightness: float = 0.0
    """Multiply all pixels by a factor from [1 - x, 1 + x]."""
    contrast: float = 0.0
    """Scale the distance of all pixels from their mean by a factor from [1 - x, 1 + x]."""
    horizontal_flip: bool = False
    """Mirror left and right with probability 0.5."""

    def __post_init__(self) -> None:
        for name in ("zoom", "shift", "brightness", "contrast"):
            value = getattr(self, name)
            require(0 <= value < 1, f"{flag(f'augmentation.{name}')} must lie in [0, 1). Received: {value}")
        rotation, shear = self.rotation_deg, self.shear_deg
        require(0 <= rotation <= 180, f"--augmentation.rotation-deg must lie in [0, 180]. Received: {rotation}")
        require(0 <= shear < 90, f"--augmentation.shear-deg must lie in [0, 90). Received: {shear}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Everything that decides the result of a training run. A recipe fills in the defaults."""

    data: str
    """The images: a folder (ROOT/CLASS/* or ROOT/CLASS/PATIENT/*, or either of them below ROOT/train, ROOT/valid and
    ROOT/test), a zip of such a folder, or a CSV or Parquet manifest; a path or URI."""
    out: str
    """The run's directory, a path or URI: report, metrics, checkpoints, and the exported model in OUT/bundle."""

    method: Literal["fine-tune", "probe", "lp-ft"] = "fine-tune"
    """fine-tune: train a new head and the backbone's last layers. probe: run the backbone once over all images and fit
    a logistic regression on its features from --depths depths; epochs, learning rate and augmentation are not used.
    lp-ft: linear probing, then fine-tuning from such a probe; with --weights none it is the same as fine-tune."""
    weights: str = "imagenet"
    """Initial weights of the backbone: 'imagenet' (downloaded), 'none' (random, and all layers are trained), a Keras
    weights file, or an earlier bundle of tlray. With your own .keras --backbone the default stands for the weights in
    that file, and 'none' is refused."""
    backbone: str = "InceptionV3"
    """Name of a model of keras.applications, or path of your own .keras file."""
    cut: str | None = None
    """With a .keras backbone: the layer whose output is used (default: the last one with height and width)."""
    preprocessing: Preprocessing | None = None
    """Preprocessing of the pixels that the backbone expects: unit [0, 1], symmetric [-1, 1], imagenet (minus the mean,
    divided by the standard deviation), caffe (BGR minus the mean), raw [0, 255]. Default: that of the bundle if
    --weights is one, else that of keras.applications for this backbone; required for a .keras backbone. Another one
    than the bundle's is refused."""
    image_size_px: int = 224
    """Height and width that every image is resized to."""
    trainable_layers: int | Literal["all"] | None = None
    """How many of the backbone's last layers are trained. Default: 15, or all with --weights none."""
    batch_norm: Literal["frozen", "synchronized", "local"] | None = None
    """Statistics that BatchNormalization uses in training. frozen: the stored ones. synchronized: those of the global
    batch, so that the number of workers makes no difference. local: those of each worker's own batch, averaged after
    each epoch; faster with several workers on CPUs. Default: frozen, or synchronized with --weights none."""
    batch_norm_momentum: float | None = None
    """Momentum of the moving statistics of BatchNormalization, where --batch-norm is not frozen. Default: that of the
    backbone, or 0.9 with --weights none."""
    hidden_units: tuple[int, ...] = ()
    """Widths of the head's hidden layers (relu), each followed by dropout; not with --method probe. With --method lp-ft
    and pretrained --weights they are a branch beside the linear probe: the logits of both are added."""
    dropout: float = 0.3
    """Dropout rate in the head, in fine-tuning."""

    depths: int = 5
    """With a probe: number of depths of the backbone that its features come from; 1: from the last feature map only."""
    inverse_penalty: float | None = None
    """With a probe: inverse strength of the penalty (C in scikit-learn's LogisticRegression). Default: the one of 13
    values that has the lowest validation loss."""
    folds: int = 5
    """With a probe: number of folds of its cross-validation on training and validation images; patients, copies and
    neighbouring slices together. It calibrates the probe if that is exported, finds suspect labels, and stands beside
    the test split where that is small."""
    learning_curve: bool = False
    """With a probe: show in the report how accuracy grows with the number of training images, by probes on 5, 10, 20,
    50 and all images of each class."""
    cache: Literal["auto", "off"] = "auto"
    """With --method lp-ft. auto: run the frozen layers once over the --views of all images and train the others on the
    stored result, if it fits into Ray's object store. off: read, augment and run all images anew in every epoch."""
    views: int = 1
    """With --method lp-ft and --cache auto: number of views of each training image. The first is the image as it is,
    the others are augmented; each epoch uses the next one."""
    epochs: int = 30
    """Maximum number of epochs to train."""
    batch_size: int = 32
    """Number of images in a global batch, which the workers share."""
    learning_rate: float | None = None
    """Adam's initial learning rate. Default: 0.001, or 0.0001 with --method lp-ft and pretrained --weights."""
    reduce_lr_patience: int | None = None
    """Multiply the learning rate by --reduce-lr-factor after this many epochs without a better validation loss."""
    reduce_lr_factor: float = 0.3
    """Factor of the learning rate; see --reduce-lr-patience."""
    early_stopping_patience: int | None = None
    """Stop after this many epochs without a better validation loss."""
    class_weights: bool = False
    """In training, weight each image by the inverse frequency of its class. The exported probabilities assume --prior
    all the same."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """Random changes of the training images. Not used with --method probe, nor with --method lp-ft and --cache auto
    (recipe standard) as long as --views is 1: training is on stored features of the images as they are."""
    seed: int = 0
    """Seed of the splits, the order of images, augmentation, initial weights and dropout."""

    class_map: str | None = None
    """A JSON or two-column CSV file that maps folder names (or labels) to classes."""
    columns: str | None = None
    """Pairs such as uri=path,label=dx, which rename the columns of a CSV or Parquet manifest. tlray reads the columns
    uri (relative to the manifest), label, split (train, valid or test), group_id (the patient) and image_id; all but
    uri are optional."""
    intensity_range: str = "auto"
    """Values of 16-bit pixels that become 0 and 255: LO,HI, or auto (0.1 and 99.9 percentiles of the training
    images; of the others if only these have 16 bits)."""
    max_error: float = MAX_ERROR
    """Predictions that are not marked 'refer' shall be wrong at most this often. The confidence below which they are
    marked, to be left to a specialist, is chosen on images that the model was not trained on. The limit holds for class
    shares like theirs, also where --prior assumes others."""
    refer_below: float | None = None
    """The confidence below which predictions are marked 'refer'. Default: chosen by --max-error."""
    prior: str = TRAIN_PRIOR
    """Class shares that the exported probabilities assume: train (those of the training images, also with
    --class-weights), uniform, or CLASS=SHARE,... with a share for every class, such as those expected in use."""

    num_workers: int = 1
    """Number of training workers: processes on CPUs, or one per GPU with --use-gpu."""
    use_gpu: bool = False
    """Train on GPUs, one for each worker."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the computations in training. auto: bfloat16 on GPUs, float32 on CPUs."""
    inference_precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Numbers that features are computed with and the exported model is measured with. auto: bfloat16 on CPUs that have
    it, if the exported model is fit for it. float32: the same result on every machine."""
    int8: bool = False
    """Export an int8 model too, with training images to set its ranges. Needs `pip install tlray[int8]`."""
    thumbnails: bool = True
    """Keep small pictures of training images in the bundle, to be shown beside predictions for images that are like
    them, and show images in the report. --no-thumbnails: for private data; neither bundle nor report has images."""
    max_failures: int = 3
    """Maximum number of times that training continues from its last checkpoint after it has lost a worker."""

    resume: bool = False
    """Continue the run in --out from its last checkpoint; give the other options as before."""
    overwrite: bool = False
    """Replace an earlier run in --out."""
    timing: bool = False
    """Show how long each phase took, which metrics.json tells too."""
    quiet: bool = False
    """Print errors only."""

    def __post_init__(self) -> None:
        parse_columns(self.columns)
        parse_intensity_range(self.intensity_range)
        parse_prior(self.prior)
        rate = self.learning_rate
        require(rate is None or 0 < rate < math.inf, f"--learning-rate must be a positive number. Received: {rate}")
        positive = ("image_size_px", "epochs", "batch_size", "num_workers", "views")
        for name in positive:
            value = getattr(self, name)
            require(value > 0, f"{flag(name)} must be positive. Received: {value}")
        require(1 <= self.depths <= 5, f"--depths must lie in [1, 5]. Received: {self.depths}")
        require(
            self.inverse_penalty is None or 0 < self.inverse_penalty < math.inf,
            f"--inverse-penalty must be a positive number. Received: {self.inverse_penalty}",
        )
        require(self.folds > 1, f"--folds must be at least 2. Received: {self.folds}")
        for name in ("reduce_lr_patience", "early_stopping_patience"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{flag(name)} must be positive. Received: {value}")
        require(0 <= self.dropout < 1, f"--dropout must lie in [0, 1). Received: {self.dropout}")
        factor = self.reduce_lr_factor
        require(0 < factor < 1, f"--reduce-lr-factor must lie in (0, 1). Received: {factor}")
        limit = self.refer_below
        require(limit is None or 0 <= limit <= 1, f"--refer-below must lie in [0, 1]. Received: {limit}")
        require(0 < self.max_error < 1, f"--max-error must lie between 0 and 1. Received: {self.max_error}")
        check_seed(self.seed)
        require(self.max_failures >= 0, f"--max-failures must not be negative. Received: {self.max_failures}")
        widths = self.hidden_units
        require(all(units > 0 for units in widths), f"--hidden-units must be positive. Received: {widths}")
        momentum = self.batch_norm_momentum
        require(
            momentum is None or 0 <= momentum < 1, f"--batch-norm-momentum must lie in [0, 1). Received: {momentum}"
        )
        require(
            not isinstance(self.trainable_layers, int) or self.trainable_layers >= 0,
            f"--trainable-layers must not be negative. Received: {self.trainable_layers}",
        )
        require(
            self.batch_size % self.num_workers == 0,
            f"--batch-size {self.batch_size} must be divisible by --num-workers {self.num_workers}, which share it. "
            f"Try --batch-size {-(-self.batch_size // self.num_workers) * self.num_workers}, or fewer workers.",
        )
        require(
            not (self.resume and self.overwrite),
            "--resume continues a run and --overwrite deletes it. Give only one of them.",
        )
        own_model = self.backbone.endswith(".keras")
        require(
            not own_model or self.preprocessing is not None,
            f"--backbone {self.backbone} is your own model, so tlray does not know the pixels that it was trained on. "
            "Give --preprocessing (unit: [0, 1], symmetric: [-1, 1], imagenet, caffe, raw: [0, 255]).",
        )
        require(
            own_model or self.cut is None,
            f"--cut works with your own .keras --backbone only. Leave it out with {self.backbone}.",
        )
        require(
            not own_model or self.weights != "none",
            f"--weights none is for random weights, but your own network keeps its weights: those in {self.backbone}. "
            "Leave --weights out; --trainable-layers all trains all of its layers.",
        )
        defaults = {each.name: each.default for each in dataclasses.fields(self)}
        for name, remedy in self.unused().items():
            untouched = [defaults[name], *([ARTICLE_HIDDEN_UNITS] if name == "hidden_units" else [])]
            require(getattr(self, name) in untouched, f"{flag(name)} {remedy}")
        require(
            self.views == 1 or self.augmentation != Augmentation(),
            f"--views {self.views} without augmentation would compute the same image {self.views} times. Give an "
            "augmentation, such as --augmentation.zoom 0.1, or --views 1.",
        )
        require(
            self.weights != "none" or self.trainable_layers in (None, "all"),
            f"--trainable-layers {self.trainable_layers} with --weights none would freeze layers with random weights, "
            "which are of no use. Leave --trainable-layers out, or give pretrained --weights.",
        )
        require(
            self.weights != "none" or self.batch_norm != "frozen",
            "--batch-norm frozen needs the stored statistics of pretrained weights. Leave it out with --weights none.",
        )

    def unused(self) -> dict[str, str]:
        """Returns settings that would change nothing beside the others: their names, each with what to do.

        They are those with which somebody may believe to have changed the result. Settings of fine-tuning such as the
        number of epochs are not among them.
        """
        has_probe = self.method == "probe" or (self.method == "lp-ft" and self.weights != "none")
        is_streamed = self.method != "lp-ft" or self.weights == "none" or self.cache == "off"
        found = {}
        if not has_probe:
            remedy = "needs a linear probe. Give --method probe, or --method lp-ft with pretrained --weights."
            found |= dict.fromkeys(("learning_curve", "folds", "depths", "inverse_penalty"), remedy)
        if is_streamed or self.trainable_layers == "all":
            found["views"] = (
                "is for fine-tuning on stored features. Give --method lp-ft with pretrained --weights, --cache auto "
                "and a number of --trainable-layers, or leave --views out."
            )
        if self.batch_norm == "frozen" or (self.batch_norm is None and self.weights != "none"):
            found["batch_norm_momentum"] = (
                "changes nothing while BatchNormalization is frozen. Give --batch-norm synchronized or local, or leave "
                "it out."
            )
        if self.method == "probe":
            remedy = "is for fine-tuning. Leave it out with --method probe, or give --method lp-ft."
            found |= dict.fromkeys(("hidden_units", "dropout"), remedy)
        return found

    def streamed(self) -> "TrainConfig":
        """Returns this config without stored features: training reads and augments the images in every epoch."""
        return dataclasses.replace(self, cache="off", views=1)

    @property
    def initial_learning_rate(self) -> float:
        """Adam's learning rate at the start."""
        starts_well = self.method == "lp-ft" and self.weights != "none"
        return self.learning_rate or (1e-4 if starts_well else 1e-3)

    def resolved(self) -> "TrainConfig":
        """Returns the config with every default that depends on another setting filled in."""
        from_scratch = self.weights == "none"
        method = "fine-tune" if from_scratch and self.method == "lp-ft" else self.method
        default_layers: int | Literal["all"] = "all" if from_scratch else MAX_TRAINABLE_TAIL_LAYERS
        return dataclasses.replace(
            self,
            method=method,
            learning_rate=self.initial_learning_rate,
            trainable_layers=default_layers if self.trainable_layers is None else self.trainable_layers,
            batch_norm=self.batch_norm or ("synchronized" if from_scratch else "frozen"),
            # With Keras' 0.99 the initial statistics fade over some 500 steps, more than a small data set has.
            batch_norm_momentum=0.9 if from_scratch and self.batch_norm_momentum is None else self.batch_norm_momentum,
            precision=("bfloat16" if self.use_gpu else "float32") if self.precision == "auto" else self.precision,
        )


def to_json(config: Any) -> str:
    """Returns a config as indented JSON."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"
