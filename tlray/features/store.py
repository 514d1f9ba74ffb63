"""Features on disk: Parquet parts that are written whole or not at all, with checksums that reveal damage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
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


def read_features(out: str, *, columns: list[str] | None = None, view: int | None = None) -> pa.Table:
    """Reads finished features.

    Args:
        out: The directory of the features.
        columns: The columns to read; None: all.
        view: The view to read, whose column must be among `columns`; None: all views.

    Raises:
        DataError: The features are not complete, or a part is damaged.
    """
    if not storage.exists(storage.join(out, SUCCESS)):
        raise DataError(f"'{out}' has no {SUCCESS}: the features are not complete. Run `tlray features` again.")
    parts = (read_part(out, name, columns=columns) for name in part_names(out))
    if view is not None:
        parts = (part.take(pa.array(np.flatnonzero(part["view"].to_numpy() == view))) for part in parts)
    return pa.concat_tables(parts)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Which rows of features are stored in a directory of Parquet parts, compared with those that are wanted.

    Attributes:
        kept: Keys of the wanted rows that are there.
        num_rows: Number of rows that are there, wanted or not, without those of damaged parts.
        outdated: Names of the parts that have rows which are not wanted, or labels which are not those of today; with
            the places of the wanted rows, int64 [rows].
        damaged: Names of the damaged parts.
    """

    kept: frozenset[str]
    num_rows: int
    outdated: Mapping[str, np.ndarray]
    damaged: tuple[str, ...]

    @property
    def num_unwanted(self) -> int:
        """Number of rows that are not wanted."""
        return self.num_rows - len(self.kept)


def look(out: str, rows: pa.Table) -> Stored:
    """Finds the wanted rows in the existing parts; changes nothing.

    Args:
        out: The directory of the features.
        rows: The wanted rows, with `KEY` and `COLUMNS`.
    """
    wanted = {key: place for place, key in enumerate(rows[KEY].to_pylist())}
    kept: set[str] = set()
    num_rows = 0
    outdated: dict[str, np.ndarray] = {}
    damaged: list[str] = []
    for name in part_names(out):
        try:
            part = read_part(out, name)
            keys = part[KEY].to_pylist()
        except (DataError, KeyError):
            damaged.append(name)
            continue
        num_rows += part.num_rows
        places = [place for place, key in enumerate(keys) if key in wanted and key not in kept]
        today = rows.take(pa.array([wanted[keys[place]] for place in places], pa.int64()))
        if len(places) < len(keys) or any(not today[column].equals(part[column]) for column in COLUMNS):
            outdated[name] = np.array(places, np.int64)
        kept.update(keys[place] for place in places)
    return Stored(kept=frozenset(kept), num_rows=num_rows, outdated=outdated, damaged=tuple(damaged))


def clear_damage(out: str, stored: Stored) -> list[str]:
    """Deletes damaged parts, and files that a killed writer has left, before their features are computed again.

    Returns:
        Notes for the user.
    """
    for name in storage.list_names(out):
        if name in stored.damaged or name.startswith(".part-"):
            storage.delete(storage.join(out, name))
    return [f"{name} was damaged; its features were computed again." for name in stored.damaged]


def bring_up_to_date(out: str, stored: Stored, rows: pa.Table) -> None:
    """Deletes rows that are not wanted, and gives the others their present labels.

    It is called last: as long as a wanted row is still to be computed, nothing is deleted.

    Args:
        out: The directory of the features.
        stored: The result of `look`.
        rows: The wanted rows, see `look`.
    """
    wanted = {key: place for place, key in enumerate(rows[KEY].to_pylist())}
    for name, places in stored.outdated.items():
        if not len(places):
            storage.delete(storage.join(out, name))
            continue
        part = read_part(out, name).take(pa.array(places))
        today = rows.take(pa.array([wanted[key] for key in part[KEY].to_pylist()], pa.int64()))
        for column in COLUMNS:
            part = part.set_column(part.schema.get_field_index(column), column, today[column])
        write_part(storage.join(out, name), part)


def write_part(location: str, table: pa.Table) -> None:
    """Writes one Parquet part, with checksums."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="lz4", write_page_checksum=True)
    storage.write_bytes(location, sink.getvalue().to_pybytes())


def look_up(table: pa.Table, rows: pa.Table) -> np.ndarray:
    """Returns the pooled features of some images, not augmented.

    Args:
        table: Features with `image_id`, `view` and `pooled`, see `read_features`.
        rows: The images, with a column `image_id`.

    Returns:
        float16 [images, features].

    Raises:
        DataError: An image has none: it has changed since it was first read, or can no longer be read.
    """
    views = zip(table["image_id"].to_pylist(), table["view"].to_pylist(), strict=True)
    place_of = {image_id: place for place, (image_id, view) in enumerate(views) if view == 0}
    missing = [image_id for image_id in rows["image_id"].to_pylist() if image_id not in place_of]
    check_present(missing)
    places = np.array([place_of[image_id] for image_id in rows["image_id"].to_pylist()], np.int64)
    return table["pooled"].combine_chunks().to_numpy_ndarray()[places]


def check_present(missing: Sequence[str]) -> None:
    """Raises a DataError if features of some images, named by their ids, are missing."""
    if missing:
        raise DataError(
            f"{len(missing)} images have changed or can no longer be read, for example '{missing[0]}'. Put them back "
            "as they were and run the command again (train and sweep: with --resume), or begin anew with --overwrite."
        )
