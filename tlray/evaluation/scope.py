"""Chooses the images that an evaluation looks at: those that are measured, and those that their model learned from.

The latter are there only if the data set is the one that the model was trained on, with the same splits.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray.bundle.spec import BundleSpec
from tlray.data import manifest, splits
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
    """

    table: pa.Table
    is_measured: np.ndarray
    is_read: np.ndarray
    is_own: bool
    knows_splits: bool = False
    has_learned: bool = False


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
    split_of = _own_splits(spec, listed) if own else {}
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
    )


def _own_splits(spec: BundleSpec, listed: pa.Table) -> dict[str, str]:
    """Returns the split of each labelled image of a model's own data set, by its id; empty if the splits are not known.

    The training gives no split to an image that it cannot read and that has none. Such an image is left out.
    """
    image_ids, labels, given = manifest.column_lists(listed, "image_id", "label", "split")
    if not any(each for each, label in zip(given, labels, strict=True) if label):
        return {}  # all splits were cut by the training
    if manifest.split_fingerprint(listed) != spec.split_fingerprint:  # otherwise it is the manifest of the training
        given = [each or ("train" if label else None) for each, label in zip(given, labels, strict=True)]
        is_cut_again = manifest.split_fingerprint(with_column(listed, "split", given)) != spec.split_fingerprint
        # Where a split is missing, the training has cut it from train. Otherwise its splits must be these.
        if is_cut_again and not splits.missing(listed):
            return {}
    return {name: each for name, each, label in zip(image_ids, given, labels, strict=True) if label and each}
