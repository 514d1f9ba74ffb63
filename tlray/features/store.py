"""Features on disk: Parquet parts that are written whole or not at all, with checksums that reveal damage."""

import pyarrow as pa
import pyarrow.parquet as pq

from tlray.errors import DataError
from tlray.files import storage

ROWS_PER_PART = 256
PART_BYTES = 64 * 2**20
"""Approximate maximum size of one Parquet part, in bytes; `ROWS_PER_PART` is the maximum number of rows. An interrupted
run loses only the parts that it was computing."""

# Readers of Parquet folders pass over names that begin with an underscore.
NETWORK = "_network.json"
MANIFEST = "_manifest.parquet"
SUCCESS = "_SUCCESS"

NAMES = frozenset({NETWORK, MANIFEST, SUCCESS, "part-*.parquet"})

POOLED = "pooled"
"""Name of the feature with the global averages. The other features, `cut_0` and on, are feature maps, numbered anew in
each network."""

KEY = "key"
COLUMNS = ("image_id", "label", "split", "group_id")
"""Columns that features take over from the manifest; `view` and `key` are added to them."""


def read_features(out: str, *, columns: list[str] | None = None) -> pa.Table:
    """Reads finished features.

    Raises:
        DataError: The features are not complete, or a part is damaged.
    """
    if not storage.exists(storage.join(out, SUCCESS)):
        raise DataError(f"'{out}' has no {SUCCESS}: the features are not complete. Run `tlray features` again.")
    return pa.concat_tables([read_part(out, name, columns=columns) for name in part_names(out)])


def part_names(out: str) -> list[str]:
    """Returns the names of the Parquet parts."""
    return [name for name in storage.list_names(out) if name.startswith("part-") and name.endswith(".parquet")]


def read_part(out: str, name: str, *, columns: list[str] | None = None) -> pa.Table:
    """Reads one Parquet part.

    Raises:
        DataError: The part is damaged.
    """
    location = storage.join(out, name)
    try:
        source = pa.BufferReader(storage.read_bytes(location))
        return pq.read_table(source, columns=columns, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"'{location}' is damaged: {error}. Run `tlray features` again.") from error


def keep(out: str, rows: pa.Table) -> tuple[set[str], list[str]]:
    """Updates the existing parts: keeps wanted rows, with their present labels; deletes other rows and damaged parts.

    Returns:
        The keys of the rows that stay, and notes for the user.
    """
    wanted = {key: place for place, key in enumerate(rows[KEY].to_pylist())}
    kept: set[str] = set()
    notes: list[str] = []
    for name in storage.list_names(out):
        if name.startswith(".part-"):  # what a killed writer has left
            storage.delete(storage.join(out, name))
    for name in part_names(out):
        location = storage.join(out, name)
        try:
            part = read_part(out, name)
            keys = part[KEY].to_pylist()
        except (DataError, KeyError):
            notes.append(f"{name} was damaged; its features were computed again.")
            storage.delete(location)
            continue
        places = [place for place, key in enumerate(keys) if key in wanted and key not in kept]
        current = part.take(pa.array(places, pa.int64()))
        today = rows.take(pa.array([wanted[keys[place]] for place in places], pa.int64()))
        for column in COLUMNS:
            current = current.set_column(current.schema.get_field_index(column), column, today[column])
        if not places:
            storage.delete(location)
        elif not current.equals(part):
            write_part(location, current)
        kept.update(keys[place] for place in places)
    return kept, notes


def write_part(location: str, table: pa.Table) -> None:
    """Writes one Parquet part, with checksums."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="lz4", write_page_checksum=True)
    storage.write_bytes(location, sink.getvalue().to_pybytes())
