"""Fingerprints of a training's images, by which an evaluation tells whether it has the same splits and the same files.

A bundle keeps them: see `BundleSpec`. `tlray.data.manifest` has the fingerprints of a whole manifest.
"""

from collections.abc import Collection

import pyarrow as pa
import pyarrow.compute as pc

from tlray.data import manifest
from tlray.data.manifest import SPLITS, with_column

ALL = "all"
"""Name of the images of all splits, and of those without a split."""


def of_files(table: pa.Table) -> dict[str, str]:
    """Returns the `manifest.file_fingerprint` of the labelled images of each split, and of `ALL`.

    Args:
        table: A manifest whose files have been read. Splits without a labelled image are left out.
    """
    labelled = table.filter(pc.field("label").is_valid())
    tables = {split: labelled.filter(pc.field("split") == split) for split in SPLITS}
    return {name: manifest.file_fingerprint(each) for name, each in {**tables, ALL: labelled}.items() if each.num_rows}


def of_given_splits(table: pa.Table, cut: Collection[str] = ()) -> str:
    """Returns a sha256 that identifies the splits that a data set gives to its labelled images.

    It is the `manifest.split_fingerprint` of these images. Those without a split count as train.

    Args:
        table: A manifest; it may have the column `error_code`.
        cut: The splits that tlray has cut from train: their readable images count as train, as they were given.
    """
    labelled = table.filter(pc.field("label").is_valid())
    is_readable = [True] * labelled.num_rows  # those that are not were never moved
    if "error_code" in labelled.column_names:
        is_readable = labelled["error_code"].is_null().to_pylist()
    given = [
        "train" if split is None or (readable and split in cut) else split
        for split, readable in zip(labelled["split"].to_pylist(), is_readable, strict=True)
    ]
    return manifest.split_fingerprint(with_column(labelled, "split", given))
