"""Settings of the commands that use a bundle: dataclasses that define the options and help texts."""

from dataclasses import dataclass
from typing import Literal

from tlray.config.training import EngineChoice, PrecisionChoice
from tlray.config.values import parse_columns, require


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """Score the images of one split with a bundle and compare the predictions with the labels.

    Copies of a picture count as one image. Images that the model knows from its training are left out of the figures
    to quote, as far as they are found: by the pictures in the bundle, or in the data that it was trained on. Shortcuts
    that the training found in its data are repeated as a warning. In other data shortcuts are looked for, and controls
    measured that see no anatomy.
    """

    bundle: str
    """The exported model: a directory, a path or URI."""
    data: str
    """The labelled images: a folder, zip, CSV or Parquet manifest; a path or URI."""
    out: str
    """The output directory for metrics.json, report.html, figures/, predictions/ and predictions.csv; a path or URI."""
    split: Literal["train", "valid", "test", "all"] = "test"
    """The split to evaluate; all for data without splits."""
    check_overlays: int = 0
    """Number of images on which to measure whether Grad-CAM overlays point at what decides a prediction; 0: none. 32
    are usually enough. Each takes 57 predictions, and all of them a process with TensorFlow."""
    class_map: str | None = None
    """A JSON or two-column CSV file that maps folder names (or labels) to the bundle's classes."""
    columns: str | None = None
    """Pairs such as uri=path,label=dx for a CSV or Parquet manifest with other column names than uri (relative to it),
    label, split (train, valid or test), group_id (the patient) and image_id. All but uri are optional."""
    batch_size: int = 32
    """Number of images in a batch of the model."""
    use_gpu: bool = False
    """Predict on GPUs."""
    engine: EngineChoice = "auto"
    """The library that runs the model. auto: openvino on CPUs, tensorflow on GPUs."""
    precision: PrecisionChoice = "auto"
    """Numbers that the model computes with. auto: the fastest that changed no clear prediction of the bundle's
    validation images and that the CPU has; float32: the same result on every machine."""
    thumbnails: bool = True
    """Show some images in the report, each beside the most similar training images, if the bundle keeps these, and
    copies of pictures and neighbouring slices. --no-thumbnails: for private data."""
    overwrite: bool = False
    """Replace an earlier evaluation in --out."""
    quiet: bool = False
    """Print errors only."""

    def __post_init__(self) -> None:
        parse_columns(self.columns)
        require(self.batch_size > 0, f"--batch-size must be positive. Received: {self.batch_size}")
        require(self.check_overlays >= 0, f"--check-overlays must be 0 or positive. Received: {self.check_overlays}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareConfig:
    """Compare two bundles on the same labelled images: which of the two is more often right, and how sure that is.

    Copies of a picture count as one image. Images that one of the bundles knows from its training are left out, as far
    as they are found: by the pictures in the bundles, or in the data that they were trained on.
    """

    bundle: str
    """The exported model to compare: a directory, a path or URI."""
    reference: str
    """The exported model to compare it with, which has the same classes: a directory, a path or URI."""
    data: str
    """The labelled images: a folder, zip, CSV or Parquet manifest; a path or URI."""
    out: str
    """The output directory for comparison.json and comparison.csv; a path or URI."""
    split: Literal["train", "valid", "test", "all"] = "test"
    """The split to compare on; all for data without splits."""
    class_map: str | None = None
    """A JSON or two-column CSV file that maps folder names (or labels) to the bundles' classes."""
    columns: str | None = None
    """Pairs such as uri=path,label=dx for a CSV or Parquet manifest with other column names than uri (relative to it),
    label, split (train, valid or test), group_id (the patient) and image_id. All but uri are optional."""
    batch_size: int = 32
    """Number of images in a batch of the model."""
    use_gpu: bool = False
    """Predict on GPUs."""
    engine: EngineChoice = "auto"
    """The library that runs both models. auto: openvino on CPUs, tensorflow on GPUs."""
    precision: PrecisionChoice = "auto"
    """Numbers that the models compute with. auto: for each model the fastest that changed no clear prediction of its
    validation images and that the CPU has; float32: the same result on every machine."""
    overwrite: bool = False
    """Replace an earlier comparison in --out."""
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
    engine: EngineChoice = "auto"
    """The library that runs the model. auto: openvino on CPUs, tensorflow on GPUs."""
    precision: PrecisionChoice = "auto"
    """Numbers that the model computes with. auto: the fastest that changed no clear prediction of the bundle's
    validation images and that the CPU has; float32: the same result on every machine."""
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
class SuggestConfig:
    """Suggest which unlabelled images to label next: those that a model is least certain about and that differ.

    Images that are unlike the training images are left out. So are copies of suggested ones, and copies of training
    images, as far as the bundle keeps pictures of them.
    """

    bundle: str
    """The exported model: a directory, a path or URI."""
    input: str
    """The images: a file, folder, glob, zip, CSV or Parquet manifest; a path or URI. Images that have a label are left
    out."""
    out: str
    """The output directory for suggestions.csv, suggestions.png and suggestions.json, written last; a path or URI."""
    count: int = 50
    """Number of images to suggest."""
    columns: str | None = None
    """Pairs such as uri=path,label=dx for a CSV or Parquet manifest with other column names than uri (relative to it),
    label, split (train, valid or test), group_id (the patient) and image_id. All but uri are optional."""
    batch_size: int = 32
    """Number of images in a batch of the model."""
    use_gpu: bool = False
    """Predict on GPUs."""
    engine: EngineChoice = "auto"
    """The library that runs the model. auto: openvino on CPUs, tensorflow on GPUs."""
    precision: PrecisionChoice = "auto"
    """Numbers that the model computes with. auto: the fastest that changed no clear prediction of the bundle's
    validation images and that the CPU has; float32: the same result on every machine."""
    overwrite: bool = False
    """Replace earlier suggestions in --out."""
    quiet: bool = False
    """Print errors only."""

    def __post_init__(self) -> None:
        parse_columns(self.columns)
        require(self.count > 0, f"--count must be positive. Received: {self.count}")
        require(self.batch_size > 0, f"--batch-size must be positive. Received: {self.batch_size}")


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
    engine: EngineChoice = "auto"
    """The library that runs the model. auto: openvino on CPUs, tensorflow on GPUs."""
    precision: PrecisionChoice = "auto"
    """Numbers that the model computes with. auto: the fastest that changed no clear prediction of the bundle's
    validation images and that the CPU has; float32: the same result on every machine."""
    quiet: bool = False
    """Print errors only."""

    def __post_init__(self) -> None:
        require(0 < self.port < 2**16, f"--port must lie in [1, 65535]. Received: {self.port}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginesConfig:
    """Show how a bundle's engines and precisions agree, and which one predicts on this machine.

    Without --data the table is the one that the bundle's export wrote. With --data everything is measured now.
    """

    bundle: str
    """The exported model: a directory, a path or URI."""
    data: str | None = None
    """Labelled images to measure on: a folder, zip, CSV or Parquet manifest; a path or URI."""
    split: Literal["train", "valid", "test", "all"] = "valid"
    """The split to measure on; all for data without splits."""
    num_images: int = 256
    """Maximum number of images to measure on."""
    class_map: str | None = None
    """A JSON or two-column CSV file that maps folder names (or labels) to the bundle's classes."""
    columns: str | None = None
    """Pairs such as uri=path,label=dx for a CSV or Parquet manifest with other column names than uri (relative to it),
    label, split (train, valid or test), group_id (the patient) and image_id. All but uri are optional."""
    quiet: bool = False
    """Print errors only."""

    def __post_init__(self) -> None:
        parse_columns(self.columns)
        require(self.num_images > 0, f"--num-images must be positive. Received: {self.num_images}")
