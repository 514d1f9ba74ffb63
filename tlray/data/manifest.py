"""The manifest: one row an image, with its label, split and group. Every later step reads its images from one."""

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
"""The columns of a manifest. `sha256` is null until the file has been read; later steps append columns of their own."""

SPLITS = ("train", "valid", "test")
"""The values of the column `split`, besides null."""


def normal_form(name: str) -> str:
    """Returns a name in Unicode's composed form (NFC), in which labels, groups and ids are compared.

    macOS and some archives have `e` and an accent where others have `é`.
    """
    return unicodedata.normalize("NFC", name)


def refuse_repeated(values: Iterable[str], what: str) -> None:
    """Raises a DataError about `what` if a value occurs more than once."""
    repeated = [value for value, count in Counter(values).items() if count > 1]
    if repeated:
        raise DataError(
            f"{what} must be unique; {len(repeated)} occur more than once: {some(repeated)}. Remove the repetitions."
        )


def with_column(table: pa.Table, name: str, values: Sequence[str | None]) -> pa.Table:
    """Returns a manifest with other values in one of its columns."""
    return table.set_column(table.schema.get_field_index(name), SCHEMA.field(name), pa.array(values, pa.string()))


def column_lists(table: pa.Table, *names: str) -> list[list]:
    """Returns the values of some columns as Python lists."""
    return [table[name].to_pylist() for name in names]


def fingerprint(table: pa.Table) -> str:
    """Returns the sha256 that identifies the images and their labels: over the sorted (image_id, sha256, label)."""
    return _fingerprint(table, "image_id", "sha256", "label")


def split_fingerprint(table: pa.Table) -> str:
    """Returns the sha256 that identifies who is in which split: over the sorted (image_id, split)."""
    return _fingerprint(table, "image_id", "split")


def id_fingerprint(table: pa.Table) -> str:
    """Returns the sha256 that identifies a data set by the names of its images: over the sorted image_id.

    It is the same before and after images are read, labels are mapped and splits are cut.
    """
    return _fingerprint(table, "image_id")


def _fingerprint(table: pa.Table, *names: str) -> str:
    lines = sorted(json.dumps(row) for row in zip(*column_lists(table, *names), strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def write_manifest(table: pa.Table, location: str) -> None:
    """Writes a manifest, with whatever columns it has beyond `SCHEMA`, as a Parquet file that appears whole."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    storage.write_bytes(location, sink.getvalue().to_pybytes())


def read_manifest(location: str) -> pa.Table:
    """Reads what `write_manifest` wrote.

    Raises:
        DataError: The file is missing, damaged, or has not all columns of `SCHEMA`.
    """
    try:
        table = pq.read_table(pa.BufferReader(storage.read_bytes(location)))
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"Cannot read the manifest '{location}': {error}. Build it again.") from error
    absent = [name for name in SCHEMA.names if name not in table.column_names]
    if absent:
        raise DataError(f"The manifest '{location}' lacks the columns {some(absent)}. Build it again.")
    return table


def labels_by_split(table: pa.Table) -> dict[str, set[str]]:
    """Returns the labels of each split that has any; a null split counts as train."""
    names: dict[str, set[str]] = defaultdict(set)
    for pair in table.select(["split", "label"]).group_by(["split", "label"]).aggregate([]).to_pylist():
        if pair["label"] is not None:
            names[pair["split"] or "train"].add(pair["label"])
    return names
