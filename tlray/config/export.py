"""Settings of `tlray export`, which makes a bundle from a model that was trained elsewhere."""

from dataclasses import dataclass

from tlray.config.training import Outputs, Preprocessing
from tlray.config.values import flag, parse_columns, require


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
    data: str | None = None
    """Labelled images that the model was not trained on: they calibrate its probabilities and set the limits by which
    they are judged. A folder (ROOT/CLASS/*, ROOT/SPLIT/CLASS/*), zip, CSV or Parquet manifest; a path or URI. The split
    valid is used, or without one all images but those of train. Do not give images that the model knows from its
    training: it would seem better than it is. Default: the probabilities stay as the model gives them."""
    class_map: str | None = None
    """With --data: a JSON or two-column CSV file that maps labels to classes."""
    columns: str | None = None
    """With --data: pairs such as uri=path,label=dx for a manifest with other column names; see `tlray train --help`."""
    max_error: float | None = None
    """With --data: predictions that are not marked 'refer' shall be wrong at most this often; see `tlray train
    --help`. Default: 0.05. Not together with --refer-below."""
    refer_below: float | None = None
    """Predictions with a lower confidence are marked 'refer': leave them to a specialist. Default: 0.5; with --data
    chosen by --max-error."""
    intensity_range: str = "0,65535"
    """Values of 16-bit pixels that become 0 and 255: LO,HI."""
    image_size_px: int | None = None
    """Height and width of the input, for a model that accepts any."""
    int8: bool = False
    """Export an int8 model too. Needs --int8-images, and `pip install tlray[int8]`."""
    int8_images: str | None = None
    """Images like those of training that set the ranges of the int8 model: a folder, zip or manifest; a path or URI."""
    overwrite: bool = False
    """Replace an earlier bundle in --out."""
    quiet: bool = False
    """Print errors only."""

    def __post_init__(self) -> None:
        refer_below, max_error, size_px = self.refer_below, self.max_error, self.image_size_px
        require(
            refer_below is None or 0 <= refer_below <= 1, f"--refer-below must lie in [0, 1]. Received: {refer_below}"
        )
        require(max_error is None or 0 < max_error < 1, f"--max-error must lie between 0 and 1. Received: {max_error}")
        require(
            refer_below is None or max_error is None,
            "--refer-below sets the threshold, and --max-error chooses it. Give only one of them.",
        )
        parse_columns(self.columns)
        for name in ("class_map", "columns", "max_error"):
            require(
                self.data is not None or getattr(self, name) is None,
                f"{flag(name)} says how labelled images are used. Give them with --data, or leave it out.",
            )
        require(size_px is None or size_px > 0, f"--image-size-px must be positive. Received: {size_px}")
        has_images = self.int8_images is not None
        require(self.int8 == has_images, "--int8 and --int8-images go together: the images set the ranges. Give both.")
