"""Saves the results of reading a data set in the output directory, so that an interrupted reading can continue.

A file that has not changed since is not read again. The saved results are deleted once all files have been read.
"""

import time
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from tlray.data import decoding, looks
from tlray.files import file_stamps, storage
from tlray.files.storage import UNFINISHED

INTERVAL_S = 10.0
"""Minimum seconds between writing two parts. An interruption loses about this much work."""


def stamps(uris: Sequence[str]) -> list[str]:
    """Returns a stamp for each file, which changes when the file, or the way in which images are decoded, changes.

    Args:
        uris: The files, or members of zip archives.

    Returns:
        A string for each file: `decoding.DECODING`, `looks.VERSION` and the stamp of `file_stamps.stamps`; empty if
        that is not known.
    """
    return [f"{decoding.DECODING}:{looks.VERSION}:{stamp}" if stamp else "" for stamp in file_stamps.stamps(uris)]


def known_rows(out: str, uris: pa.ChunkedArray, schema: pa.Schema) -> pa.Table | None:
    """Returns the results that an interrupted reading has saved in an output directory, a row for each file.

    Args:
        out: The output directory.
        uris: The files.
        schema: The wanted columns, including `file_stamps.COLUMN`. Saved parts with other columns (of another version)
            are ignored.

    Returns:
        A table with those columns and a row for each of `uris`, null for files without a result; None if nothing was
        saved.
    """
    parts = [part for part in _read_parts(out) if part.schema.equals(_with_uri(schema))]
    if not parts:
        return None
    kept = pa.concat_tables(parts)
    place_of = {uri: place for place, uri in enumerate(kept["uri"].to_pylist())}  # the last one wins
    places = pa.array([place_of.get(uri) for uri in uris.to_pylist()], pa.int64())
    return kept.select(schema.names).take(places)


def _with_uri(schema: pa.Schema) -> pa.Schema:
    return pa.schema([*schema, ("uri", pa.string())])


def _read_parts(out: str) -> Iterator[pa.Table]:
    """Yields the undamaged parts in the order in which they were written."""
    directory = storage.join(out, UNFINISHED)
    for name in storage.list_names(directory):
        if not name.startswith("part-"):  # a temporary file that a killed process has left
            continue
        try:
            yield pq.read_table(pa.BufferReader(storage.read_bytes(storage.join(directory, name))))
        except (OSError, pa.ArrowException):  # a damaged part: its files are read again
            continue


class Keeper:
    """Saves the results of reading a data set in its output directory, at most every `INTERVAL_S` seconds.

    Args:
        out: The output directory. It is created and marked with its kind when the first part is written.
        kind: Kind of output, see `storage.check_output`.
        uris: The files, in the order in which they are read.
        known: Results that are saved already, from `known_rows`.
    """

    def __init__(self, out: str, kind: str, uris: pa.ChunkedArray, known: pa.Table | None) -> None:
        self._out = out
        self._kind = kind
        self._uris = uris
        self._before = [None] * len(uris) if known is None else known[file_stamps.COLUMN].to_pylist()
        self._waiting: list[pa.Table] = []
        self._num_seen = 0
        self._written_s = time.monotonic()

    def add(self, rows: pa.Table) -> None:
        """Adds the results of the next files, and writes a part if the last one is at least `INTERVAL_S` old.

        Args:
            rows: A row for each file, with the columns of `known_rows`. The files follow those of the last call.
        """
        start, self._num_seen = self._num_seen, self._num_seen + rows.num_rows
        columns = rows[file_stamps.COLUMN].to_pylist(), rows["sha256"].to_pylist(), self._before[start : self._num_seen]
        # A file without a checksum could not be read at all: the next reading tries again.
        is_new = [bool(now and sha256) and now != before for now, sha256, before in zip(*columns, strict=True)]
        uris = self._uris.slice(start, rows.num_rows)
        new = rows.append_column("uri", uris).filter(pa.array(is_new, pa.bool_()))
        if new.num_rows:
            self._waiting.append(new)
        if self._waiting and time.monotonic() - self._written_s >= INTERVAL_S:
            self._write()

    def _write(self) -> None:
        storage.mark_output(self._out, kind=self._kind)
        directory = storage.join(self._out, UNFINISHED)
        sink = pa.BufferOutputStream()
        pq.write_table(pa.concat_tables(self._waiting), sink)
        name = f"part-{len(storage.list_names(directory)):06d}.parquet"
        storage.write_bytes(storage.join(directory, name), sink.getvalue().to_pybytes())
        self._waiting = []
        self._written_s = time.monotonic()


def forget(out: str) -> None:
    """Deletes the saved results; to be called once the output itself contains them."""
    storage.delete(storage.join(out, UNFINISHED))
