"""Calibrates a model that was trained elsewhere, on labelled images that it was not trained on.

Import it to choose these images, to calibrate on them as a training does, and to show what was found.
"""

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import special

from tlray.bundle.wording import estimate, percent
from tlray.config.export import ExportConfig
from tlray.config.values import MAX_ERROR, parse_columns
from tlray.data import inspection, splits
from tlray.data.drift import ValidationPredictions
from tlray.data.labels import match_classes, read_class_map, tell
from tlray.data.listing import list_images
from tlray.data.manifest import with_column
from tlray.data.prior import class_shares
from tlray.data.sample import NUM_READERS, spread_by_class
from tlray.data.stream import Pixels, read_or_error
from tlray.errors import DataError, ImageError, counted, some
from tlray.files import storage
from tlray.progress import Progress
from tlray.training import judgement_fit, logits
from tlray.training.export import GROUP
from tlray.training.judgement_fit import REFER_BELOW, Judging, Unseen, Wanted
from tlray.training.logits import Outputs
from tlray.trust import pictures

MAX_IMAGES = 5000
"""Maximum number of images that are compared with one another and shown to the model, so that neither takes long."""

SEED = 0
"""Seed of the folds with which the probabilities are calibrated."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judged:
    """Calibration and limits of a model that was trained elsewhere, and its predictions for the images that set them.

    Attributes:
        judging: How its predictions are calibrated and judged.
        prior: Class shares that its calibrated probabilities assume; None: they are not known, as no class bias could
            be fitted.
        predictions: Its calibrated predictions for the images, to detect drift.
    """

    judging: Judging
    prior: tuple[float, ...] | None
    predictions: ValidationPredictions


def choose_images(config: ExportConfig, classes: tuple[str, ...]) -> pa.Table:
    """Lists the labelled images of --data that the model was not trained on.

    These are the images of the split valid. Without one they are all images that are not in the split train; if some
    images have a split, those without one are in train, as in a training. An image is left out if train has an image of
    its patient, or the same file, and if it cannot be read. At most `MAX_IMAGES` are chosen, from each class its share.
    They are compared with one another by their pictures: patients with copies or neighbouring slices are one group. If
    there is a split train, all files are read once more before, to find equal ones. Warnings count what is left out.

    Args:
        config: The settings, with `data`.
        classes: The model's classes.

    Returns:
        A manifest, with the columns `class_index` (int32), `splits.PICTURE`, `splits.SERIES` and `export.GROUP`.

    Raises:
        DataError: There are no such images, none of them can be read, or their labels fit no class.
    """
    listed = list_images(storage.absolute(config.data or ""), columns=parse_columns(config.columns)).table
    if listed["split"].null_count < len(listed):
        listed = with_column(listed, "split", [split or "train" for split in listed["split"].to_pylist()])
    split = pc.field("split")
    is_labelled = pc.field("label").is_valid()
    found = listed.filter(is_labelled & (split == "valid"))
    if not found.num_rows:
        found = listed.filter(is_labelled & (split.is_null() | (split != "train")))
    if not found.num_rows:
        why = "All of its labelled images are in the split train." if listed["label"].null_count < len(listed) else ""
        raise DataError(
            f"'{config.data}' has no labelled image that the model was not trained on. {why or 'None has a label.'} "
            "Give a folder with class folders (ROOT/CLASS/*), or a manifest with a column 'label'."
        )
    found, class_of = match_classes(found, classes, read_class_map(config.class_map) if config.class_map else None)
    tell(class_of, quiet=config.quiet)
    is_new = _is_new(listed.filter(split == "train"), found, quiet=config.quiet)
    if not is_new.any():
        raise DataError(f"The split train of '{config.data}' has the patients of all other images. Add other patients.")
    if not is_new.all():
        _LOG.warning(
            "%s of %s are left out: the split train has images of the same patients, or the same files.",
            int((~is_new).sum()),
            counted(len(is_new), "image"),
        )
    index = {name: number for number, name in enumerate(classes)}
    numbers = pa.array([index[label] for label in found["label"].to_pylist()], pa.int32())
    found = found.append_column("class_index", numbers).filter(pa.array(is_new))
    chosen = found.take(pa.array(spread_by_class(found["class_index"].to_numpy(), MAX_IMAGES)))
    if len(chosen) < len(found):
        _LOG.warning("%s of %s images are used, from each class its share.", len(chosen), len(found))
    return _with_groups(chosen, config)


def _is_new(learned: pa.Table, table: pa.Table, *, quiet: bool) -> np.ndarray:
    """Tells which images are of other patients than those of train, and other files; bool [images].

    Args:
        learned: The images of train.
        table: The other images.
        quiet: Show no progress.
    """
    if not learned.num_rows:
        return np.ones(table.num_rows, bool)
    together = pa.concat_tables([learned, table])
    together = with_column(together, "sha256", _digests(together["uri"].to_pylist(), quiet=quiet))
    names = ["train"] * learned.num_rows + ["valid"] * table.num_rows
    return ~splits.in_learned_group(splits.image_groups(together), names)[learned.num_rows :]


def _digests(uris: list[str], *, quiet: bool) -> list[str | None]:
    """Returns the sha256 of each file; None for files that cannot be read."""

    def digest(uri: str) -> str | None:
        content = read_or_error(uri)
        return None if isinstance(content, ImageError) else hashlib.sha256(content).hexdigest()

    found: list[str | None] = []
    with (
        Progress("Looking for files of train", len(uris), unit="files", quiet=quiet) as progress,
        ThreadPoolExecutor(NUM_READERS) as pool,
    ):
        for each in pool.map(digest, uris):
            found.append(each)
            progress.update(len(found))
    return found


def _with_groups(table: pa.Table, config: ExportConfig) -> pa.Table:
    """Looks at images as a training does, and returns those that can be read, with their groups.

    Raises:
        DataError: None of the images can be read.
    """
    seen = inspection.inspect_here(table, quiet=config.quiet)
    readable = seen.filter(seen["error_code"].is_null())
    if not readable.num_rows:
        raise DataError(
            f"None of the {counted(len(table), 'labelled image')} of '{config.data}' can be read. "
            f"'{seen['uri'][0]}': {seen['error'][0]}"
        )
    if len(readable) < len(seen):
        unreadable = seen.filter(seen["error_code"].is_valid())["image_id"].to_pylist()
        _LOG.warning(
            "%s of %s cannot be read and are left out: %s.",
            len(unreadable),
            counted(len(seen), "image"),
            some(unreadable, limit=3),
        )
    readable = pictures.look(readable, task_cpus=None, quiet=config.quiet).table
    return readable.append_column(GROUP, pa.array(splits.independent_groups(readable), pa.string()))


def judge_on(
    run: Callable[[np.ndarray], list[Any]],
    table: pa.Table,
    pixels: Pixels,
    config: ExportConfig,
    *,
    classes: Sequence[str],
) -> Judged:
    """Calibrates a model, and sets the limits by which its predictions are judged; see `judgement_fit.fit`.

    The model is taken to assume the class shares of the images. If the images are enough to fit a bias for each class,
    it does not matter what it assumes.

    Args:
        run: The model from images to logits, see `trunk.as_function`.
        table: The images, see `choose_images`.
        pixels: How files become pixels.
        config: The settings.
        classes: The model's classes.

    Raises:
        DataError: None of the images can be read any more, or the model gives logits that are not finite.
    """
    found = _outputs(run, table, pixels, quiet=config.quiet)
    if found is None:
        raise DataError(f"None of the {counted(len(table), 'image')} of '{config.data}' can be read any more.")
    num_classes = len(classes)
    read = table.take(pa.array(found.places))
    labels = read["class_index"].to_numpy()
    has_all = len(np.unique(labels)) == num_classes
    shares = class_shares(labels, num_classes) if has_all else np.full(num_classes, 1 / num_classes)
    unseen = Unseen(
        logits_BK=found.logits_BK,
        image_ids=read["image_id"].to_pylist(),
        labels=labels,
        groups=np.array(read[GROUP].to_pylist(), dtype=str),
        assumed_shares=shares,
        origin="labelled images that the model was not trained on, as the user of tlray export says",
    )
    max_error = MAX_ERROR if config.max_error is None else config.max_error
    refer_below = REFER_BELOW if config.refer_below is None and not has_all else config.refer_below
    wanted = Wanted(assumed_shares=shares, shares=shares, refer_below=refer_below, max_error=max_error)
    judging = judgement_fit.fit(unseen, wanted, seed=SEED)
    if not has_all:
        lacking = some([name for label, name in enumerate(classes) if label not in labels])
        warning = (
            f"There is no readable image of {lacking}, so no threshold is chosen and there are no prediction sets. "
            "Give --data images of every class."
        )
        judging = dataclasses.replace(judging, warnings=(warning, *judging.warnings))
    probs_BK = special.softmax((found.logits_BK + judging.shift) / judging.temperature, axis=1)
    not_known = np.full(len(labels), np.nan, np.float32)
    return Judged(
        judging=judging,
        prior=None if judging.about["calibration"]["note"] else tuple(shares.tolist()),
        predictions=ValidationPredictions.of(probs_BK, not_known, unseen.groups),
    )


def _outputs(run: Callable[[np.ndarray], list[Any]], table: pa.Table, pixels: Pixels, *, quiet: bool) -> Outputs | None:
    """Returns a model's outputs for images, see `judge_on`; None if none of them can be read any more."""
    with Progress("Predicting", len(table), quiet=quiet) as progress:
        num_done = 0

        def run_next(images_BHWC: np.ndarray) -> list[Any]:
            nonlocal num_done
            outputs = run(images_BHWC)
            num_done += len(images_BHWC)
            progress.update(num_done)
            return outputs

        return logits.of_images(run_next, {"valid": table}, pixels, max_images=len(table)).get("valid")


def table_rows(judging: Judging) -> list[tuple[str, str]]:
    """Returns what was found, for the terminal: a name and a text for each row.

    Args:
        judging: See `judge_on`.
    """
    about = judging.about
    fitted, chosen, sets = about["calibration"], about["referral"], about["sets"]
    images = (
        f"{counted(about['num_images'], 'image')} of {counted(about['num_groups'], 'group')} (patients, copies, series)"
    )
    return [
        ("calibrated on", images),
        ("temperature", f"{judging.temperature:.3g}{' (' + fitted['note'] + ')' if fitted['note'] else ''}"),
        ("expected calibration error", _before_and_after(fitted, "ece")),
        ("Brier score", _before_and_after(fitted, "brier")),
        ("refer below", f"{judging.refer_below:.3g}, which accepts {percent(chosen['coverage'])} of the images"),
        ("prediction sets", f"{sets['mean_size']:.2f} classes on average" if sets else "none"),
        ("ood_score", "none: the features of a model of one's own are not known"),
    ]


def _before_and_after(fitted: Mapping[str, Any], name: str) -> str:
    before, after = (estimate(fitted[each], fitted[f"{each}_ci95"]) for each in (f"{name}_before", name))
    return f"{before} before, {after} after"
