"""Compares the files, images, fingerprints and figures of a training run with what it says: steps of `tlray verify`."""

import hashlib
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow import fs

from tlray.data.manifest import column_lists
from tlray.data.splits import LEARNED_FROM
from tlray.errors import counted, some
from tlray.files import storage

TOLERANCE = 1e-6
"""Largest difference of a figure that is computed again: other versions of libraries may round differently."""

LATER = frozenset(
    {"referred_share", "referred_share_ci95", "ece_ci95", "brier_ci95", "mean_set_size_ci95"}
    | {"precision_ci95", "f1_ci95", "roc_auc_ci95"}
)
"""Names of figures that runs of earlier versions do not have. They are not compared for a run without any of them."""

_COUNTED = "subgroups.num_worse"
"""End of the name of a count that runs of earlier versions do not have, though they may have the figures of `LATER`."""

_MEASURED = tuple(LEARNED_FROM)
"""The splits that a training run measures: valid and test."""

_MAX_NAMED = 3
"""Maximum number of images that the detail of a check names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was verified.

    Attributes:
        name: What it is, such as a file or a figure.
        is_right: It is as the run says.
        detail: What was found; empty where all is well.
    """

    name: str
    is_right: bool
    detail: str = ""


SAME = Check(name="the run", is_right=True)
"""The check of a run in which nothing was changed."""


def sha256_of(location: str) -> str:
    """Returns the sha256 of a file.

    Raises:
        OSError: The file is missing or cannot be read.
    """
    return hashlib.sha256(storage.read_bytes(location)).hexdigest()


def check_file(run: str, name: str, wanted: str | None, *, where: str) -> Check:
    """Compares a file with its checksum.

    Args:
        run: The run's directory.
        name: Name of the file in it.
        wanted: The sha256 that the file should have; None: the run does not tell.
        where: The file that has the checksums.

    Raises:
        OSError: The file is there and cannot be read.
    """
    if wanted is None:
        return Check(name=name, is_right=False, detail=f"{where} has no checksum of it.")
    try:
        found = sha256_of(storage.join(run, name))
    except FileNotFoundError:
        return Check(name=name, is_right=False, detail="The file is missing.")
    except OSError:
        if storage.file_info(storage.join(run, name)).type != fs.FileType.Directory:
            raise
        return Check(name=name, is_right=False, detail="It is a directory, not a file.")
    detail = "" if found == wanted else f"The file was changed: its sha256 is {_short(found)}, not {_short(wanted)}."
    return Check(name=name, is_right=found == wanted, detail=detail)


def check_images(predicted: pa.Table, images: pa.Table, classes: Sequence[str]) -> Iterator[Check]:
    """Compares the images of predictions, and their labels, with the manifest: two checks for each split.

    Images of the manifest that have no prediction are passed over unless a split has no prediction at all. A training
    run counts them as `num_failed`.

    Args:
        predicted: The predictions, with the columns `split`, `image_id` and `label` (class index).
        images: The readable, labelled images of the manifest, see `Dataset.readable`.
        classes: The K class names in the order of the model's outputs.
    """
    wanted: dict[str | None, dict[str, str]] = defaultdict(dict)
    for split, image_id, label in zip(*column_lists(images, "split", "image_id", "label"), strict=True):
        if split in _MEASURED:
            wanted[split][image_id] = label
    found = images_of(predicted, "split", classes)
    for split in dict.fromkeys((*found, *wanted)):
        yield from compare_images(str(split), found.get(split, []), wanted[split], where="in this split")


def images_of(
    predicted: pa.Table, column: str, classes: Sequence[str]
) -> dict[str | None, list[tuple[str | None, str]]]:
    """Returns the id and the class of each prediction's image, by the values of a column.

    Args:
        predicted: The predictions, with the columns `image_id` and `label` (class index).
        column: Name of the column, such as `split`.
        classes: The K class names in the order of the model's outputs.
    """
    names = dict(enumerate(classes))
    found: dict[str | None, list[tuple[str | None, str]]] = defaultdict(list)
    for value, image_id, index in zip(*column_lists(predicted, column, "image_id", "label"), strict=True):
        found[value].append((image_id, names.get(index, "no class")))
    return dict(found)


def compare_images(
    name: str,
    found: Sequence[tuple[str | None, str]],
    wanted: Mapping[str, str],
    *,
    where: str,
    all_needed: bool = False,
) -> Iterator[Check]:
    """Compares the images of some predictions, and their labels, with those that the manifest has for them.

    Args:
        name: Name of the predictions, such as `test`.
        found: Id and class of each prediction's image.
        wanted: Id of each image that they may have to its class.
        where: Where the manifest has these images, for people, such as `in this split`.
        all_needed: Each of these images must have a prediction.
    """
    yield _check_ids(f"images of {name}", [image_id for image_id, _ in found], wanted, where, all_needed=all_needed)
    other = {
        f"{image_id} ({label}, not {wanted[image_id]})"
        for image_id, label in found
        if image_id is not None and image_id in wanted and label != wanted[image_id]
    }
    detail = f"{counted(len(other), 'image')} with another label than in the manifest: {some(other, _MAX_NAMED)}."
    yield Check(name=f"labels of {name}", is_right=not other, detail=detail if other else "")


def _check_ids(
    name: str, image_ids: Sequence[str | None], wanted: Collection[str], where: str, *, all_needed: bool
) -> Check:
    """Checks that predictions are of images that they may have, of each one once, and that there are some.

    Args:
        name: Name of the check.
        image_ids: The id of each prediction's image.
        wanted: Ids of the images that they may have.
        where: See `compare_images`.
        all_needed: See `compare_images`.
    """
    foreign = {str(image_id) for image_id in image_ids if image_id not in wanted}
    repeated = {str(image_id) for image_id, count in Counter(image_ids).items() if count > 1}
    missing = set(wanted).difference(image_ids) if all_needed else set[str]()
    found = []
    if not image_ids:
        found.append(f"The manifest has {counted(len(wanted), 'image')} {where}, none of which was measured.")
    if foreign:
        found.append(
            f"{counted(len(foreign), 'measured image')} that the manifest does not have {where}: "
            f"{some(foreign, _MAX_NAMED)}."
        )
    if repeated:
        found.append(f"{counted(len(repeated), 'image')} measured more than once: {some(repeated, _MAX_NAMED)}.")
    if missing:
        found.append(f"{counted(len(missing), 'image')} without a prediction: {some(missing, _MAX_NAMED)}.")
    return Check(name=name, is_right=not found, detail=" ".join(found))


def check_values(
    found: Mapping[str, Any], told: Mapping[str, Any], where: str, *, is_older: bool = False
) -> Iterator[Check]:
    """Compares all values of two mappings, one of which may have values that the other one lacks.

    Args:
        found: The values that were computed again, such as figures or fingerprints.
        told: The values that the run tells; `_COUNTED` may be missing.
        where: The file that has them.
        is_older: The run may lack the figures of `LATER`. It may also have an interval where there is none any more,
            such as that of the specificity of a class without images.
    """
    computed, expected = dict(leaves(found)), dict(leaves(told))
    for name in dict.fromkeys((*computed, *expected)):
        if name not in expected and ((is_older and is_later(name)) or name.endswith(_COUNTED)):
            continue
        if is_older and "_ci95." in name and name in computed and computed[name] is None:
            continue
        both = name in computed and name in expected
        is_right = both and _is_same(computed[name], expected[name])
        says, is_really = _short(expected.get(name, "nothing")), _short(computed.get(name, "not known"))
        yield Check(
            name=name, is_right=is_right, detail="" if is_right else f"{where} says {says}, and it is {is_really}."
        )


def is_later(name: str) -> bool:
    """Tells whether a leaf, such as test.ece_ci95.0, belongs to a figure of `LATER`."""
    return not LATER.isdisjoint(name.split("."))


def leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the name, such as test.per_class.normal.recall, and the value of every leaf."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from leaves(value, f"{prefix}{key}.")
    elif isinstance(values, list | tuple):
        for number, value in enumerate(values):
            yield from leaves(value, f"{prefix}{number}.")
    else:
        yield prefix.removesuffix("."), values


def _is_same(value: Any, other: Any) -> bool:
    if isinstance(value, float) and isinstance(other, int | float) and abs(other) <= sys.float_info.max:
        return math.isclose(value, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return value == other


def _short(value: Any) -> Any:
    """Returns the start of a sha256, and other values as they are."""
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == hashlib.sha256().digest_size * 2 else value
