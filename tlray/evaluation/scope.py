"""Chooses the images that an evaluation looks at: those that are measured, and those that their model learned from.

The latter are there only if the data set is the one that the model was trained on, with the same splits. Ids tell
whether it is, and fingerprints of the files whether these are still the same: someone may have cropped them since.
"""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray.bundle.spec import BundleSpec
from tlray.data import fingerprints, manifest, splits
from tlray.data.manifest import SCHEMA, with_column

MAX_LEARNED = 4000
"""Maximum number of images that the model learned from which are read in addition to those that are measured, where
these are of the same data set. It takes one to two minutes on two cores."""

LEARNED_FROM = {**splits.LEARNED_FROM, "train": ("train",), "all": ("train", "valid")}
"""The splits of its own data that a model has learned from, by the split that it is measured on."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scope:
    """The images whose relations matter.

    Attributes:
        table: Labelled images with `manifest.SCHEMA`: the measured ones, and, of the data set that the model was
            trained on, all others, without their labels. `split` is that of the training; null for another data set,
            or where it is not known.
        is_measured: Which of them are measured, bool [images].
        is_read: Which of them are looked at, the measured ones among them, bool [images].
        is_own: The data set is the one that the model was trained on, to judge by the ids of its images.
        knows_splits: It is known which of the images the model learned from, as `split` tells.
        has_learned: All images that the model learned from are looked at.
        whole_splits: The splits that have the same images as in the training. If it has cut others from train, train is
            not among them.
        has_own_files: The files of the model's own data set are those that its training read. None: it is not known,
            as before they are read (see `with_files`), or it is another data set.
    """

    table: pa.Table
    is_measured: np.ndarray
    is_read: np.ndarray
    is_own: bool
    knows_splits: bool = False
    has_learned: bool = False
    whole_splits: frozenset[str] = frozenset()
    has_own_files: bool | None = None


def is_own(spec: BundleSpec, listed: pa.Table) -> bool:
    """Tells whether images have the same ids as those that a bundle's model was trained and measured on.

    Args:
        spec: The bundle's description. Bundles of earlier versions have a fingerprint of ids only together with splits.
        listed: The manifest of all images, as it was listed.
    """
    if spec.id_fingerprint is None:
        return manifest.split_fingerprint(listed) == spec.split_fingerprint
    return manifest.id_fingerprint(listed) == spec.id_fingerprint


def choose(spec: BundleSpec, listed: pa.Table, chosen: pa.Table, split: str) -> Scope:
    """Returns the images whose relations matter for an evaluation.

    Args:
        spec: The bundle's description.
        listed: The manifest of all images, as it was listed.
        chosen: Its rows in the split, labelled with the bundle's classes.
        split: Name of the split, or `all`.
    """
    measured = chosen.select(SCHEMA.names).filter(pc.field("label").is_valid())
    own = is_own(spec, listed)
    split_of, whole_splits = _own_splits(spec, listed) if own else _UNKNOWN
    if not split_of:
        table = with_column(measured, "split", [None] * measured.num_rows)
        everything = np.ones(measured.num_rows, dtype=bool)
        return Scope(table=table, is_measured=everything, is_read=everything, is_own=own)
    rest = listed.select(SCHEMA.names).filter(pc.field("label").is_valid())
    rest = rest.filter(~pc.field("image_id").isin(measured["image_id"].combine_chunks()))
    table = pa.concat_tables([measured, with_column(rest, "label", [None] * rest.num_rows)])
    given = [split_of.get(image_id) for image_id in table["image_id"].to_pylist()]
    is_measured = np.arange(table.num_rows) < measured.num_rows
    is_learned = np.array([each in LEARNED_FROM[split] for each in given], dtype=bool)
    has_learned = bool((is_learned & ~is_measured).sum() <= MAX_LEARNED)
    return Scope(
        table=with_column(table, "split", given),
        is_measured=is_measured,
        is_read=is_measured | is_learned if has_learned else is_measured,
        is_own=True,
        knows_splits=True,
        has_learned=has_learned,
        whole_splits=whole_splits,
    )


def with_files(images: Scope, spec: BundleSpec, seen: pa.Table, split: str) -> Scope:
    """Returns a scope that tells whether its files are those that the model's training read, see `has_own_files`.

    Args:
        images: The scope.
        spec: The bundle's description. Bundles of earlier versions have no fingerprints of the files.
        seen: What was read, with `image_id` and `sha256`: the images of the scope that are looked at, and perhaps
            others.
        split: Name of the measured split, or `all`.
    """
    if not images.is_own:
        return images
    ids, of_split = images.table["image_id"], np.array(images.table["split"].to_pylist(), dtype=object)
    is_in = {name: of_split == name for name in images.whole_splits}
    if split == fingerprints.ALL:
        is_in = {split: images.is_measured}
    known = spec.file_fingerprints
    is_in = {name: rows for name, rows in is_in.items() if name in known and images.is_read[rows].all()}
    if split not in is_in:
        return images
    files = seen.select(["image_id", "sha256"])
    found = {
        name: manifest.file_fingerprint(files.filter(pc.field("image_id").isin(ids.filter(rows).combine_chunks())))
        for name, rows in is_in.items()
    }
    return replace(images, has_own_files=all(each == known[name] for name, each in found.items()))


_UNKNOWN: tuple[dict[str, str], frozenset[str]] = ({}, frozenset())
"""Splits by image id, and the whole splits, of data whose splits are not known to be those of the training: none."""


def _own_splits(spec: BundleSpec, listed: pa.Table) -> tuple[dict[str, str], frozenset[str]]:
    """Returns the split of each labelled image of a model's own data set, by its id, and `Scope.whole_splits`.

    Both are empty if the splits are not known to be those of the training, as it ended with them or as they were before
    it cut the missing ones. The training gives no split to an image that it cannot read and that has none. Such an
    image is left out.
    """
    image_ids, labels, given = manifest.column_lists(listed, "image_id", "label", "split")
    if not any(each for each, label in zip(given, labels, strict=True) if label):
        return _UNKNOWN  # all splits were cut by the training
    is_cut_again = False
    if manifest.split_fingerprint(listed) != spec.split_fingerprint:  # otherwise it is the manifest of the training
        given = [each or ("train" if label else None) for each, label in zip(given, labels, strict=True)]
        is_cut_again = manifest.split_fingerprint(with_column(listed, "split", given)) != spec.split_fingerprint
        if is_cut_again and fingerprints.of_given_splits(listed) != spec.given_split_fingerprint:
            return _UNKNOWN
    split_of = {name: each for name, each, label in zip(image_ids, given, labels, strict=True) if label and each}
    return split_of, frozenset(split_of.values()) - ({"train"} if is_cut_again else set())
