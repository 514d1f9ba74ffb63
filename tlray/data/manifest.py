"""The manifest, a table with the location, label, split and group of each image: its schema, files and fingerprints."""

import hashlib
import json
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from tlray.errors import DataError, some
from tlray.files import storage

SCHEMA = pa.schema([(name, pa.string()) for name in ("image_id", "uri", "label", "split", "group_id", "sha256")])
"""Columns of a manifest. `sha256` is null until the file has been read; later steps append columns of their own."""

FURTHER = "given_"
"""Start of the names of columns with what else a table says of its images, such as `given_scanner`."""

SPLITS = ("train", "valid", "test")
"""Values of the column `split`, besides null."""


def normal_form(name: str) -> str:
    """Returns a name in Unicode's composed form (NFC), so that labels, groups and ids can be compared.

    macOS and some archives write `é` as two characters, `e` and an accent.
    """
    return unicodedata.normalize("NFC", name)


def refuse_repeated(values: Iterable[str], what: str) -> None:
    """Raises a DataError if a value occurs more than once; its message starts with `what`."""
    repeated = [value for value, count in Counter(values).items() if count > 1]
    if repeated:
        raise DataError(
            f"{what} must be unique; {len(repeated)} occur more than once: {some(repeated)}. Remove the repetitions."
        )


def with_column(table: pa.Table, name: str, values: Sequence[str | None]) -> pa.Table:
    """Returns a manifest with the values of one column replaced."""
    return table.set_column(table.schema.get_field_index(name), SCHEMA.field(name), pa.array(values, pa.string()))


def column_lists(table: pa.Table, *names: str) -> list[list]:
    """Returns the values of some columns as Python lists."""
    return [table[name].to_pylist() for name in names]


def fingerprint(table: pa.Table) -> str:
    """Returns a sha256 that identifies the images and their labels: that of the sorted (image_id, sha256, label)."""
    return _fingerprint(table, "image_id", "sha256", "label")


def split_fingerprint(table: pa.Table) -> str:
    """Returns a sha256 that identifies which image is in which split: that of the sorted (image_id, split)."""
    return _fingerprint(table, "image_id", "split")


def file_fingerprint(table: pa.Table) -> str:
    """Returns a sha256 that identifies images and their files: that of the sorted (image_id, sha256).

    It does not change when labels are mapped. The sha256 of a file that cannot be read is null.
    """
    return _fingerprint(table, "image_id", "sha256")


def id_fingerprint(table: pa.Table) -> str:
    """Returns a sha256 that identifies a data set by the ids of its images: that of the sorted image_id.

    It does not change when images are read, labels are mapped or splits are assigned.
    """
    return _fingerprint(table, "image_id")


def _fingerprint(table: pa.Table, *names: str) -> str:
    lines = sorted(json.dumps(row) for row in zip(*column_lists(table, *names), strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def write_manifest(table: pa.Table, location: str) -> None:
    """Writes a manifest, including columns beyond `SCHEMA`, as a Parquet file, atomically."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    storage.write_bytes(location, sink.getvalue().to_pybytes())


def read_manifest(location: str) -> pa.Table:
    """Reads a manifest that `write_manifest` wrote.

    Raises:
        DataError: The file is missing, damaged, or lacks a column of `SCHEMA`.
    """
    try:
        table = pq.read_table(pa.BufferReader(storage.read_bytes(location)))
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"Cannot read the manifest '{location}': {error}. Begin anew with --overwrite.") from error
    absent = [name for name in SCHEMA.names if name not in table.column_names]
    if absent:
        raise DataError(f"The manifest '{location}' lacks the columns {some(absent)}. Begin anew with --overwrite.")
    return table


def labels_by_split(table: pa.Table) -> dict[str, set[str]]:
    """Returns the labels in each split that has labelled images; a null split counts as train."""
    names: dict[str, set[str]] = defaultdict(set)
    for pair in table.select(["split", "label"]).group_by(["split", "label"]).aggregate([]).to_pylist():
        if pair["label"] is not None:
            names[pair["split"] or "train"].add(pair["label"])
    return names
