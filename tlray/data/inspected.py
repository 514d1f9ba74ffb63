"""Results of reading a data set so far, kept in the output directory until all files have been read.

An interrupted reading goes on from there: a file that has not changed since is not read again.
"""

import time
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from tlray.data import decoding
from tlray.files import file_stamps, storage
from tlray.files.storage import UNFINISHED

INTERVAL_S = 10.0
"""Seconds to wait after a part before the next one is written. An interruption loses about as much work."""


def stamps(uris: Sequence[str]) -> list[str]:
    """Returns a text for each file that is another one once the file, or how images are read, has changed.

    Args:
        uris: The files, or members of zip archives.

    Returns:
        See `filestamps.stamps`; empty where nothing is known of a file.
    """
    return [f"{decoding.DECODING}:{stamp}" if stamp else "" for stamp in file_stamps.stamps(uris)]


def known_rows(out: str, uris: pa.ChunkedArray, schema: pa.Schema) -> pa.Table | None:
    """Returns what an interrupted reading has left in an output, a row for each of some files.

    Args:
        out: The output directory.
        uris: The files.
        schema: The columns that are wanted, `filestamps.COLUMN` among them. Parts with others (of another version) do
            not count.

    Returns:
        A table with those columns, null where nothing is known of a file; None where nothing is known of any.
    """
    parts = [part for part in _read_parts(out) if part.schema.equals(_with_uri(schema))]
    if not parts:
        return None
    kept = pa.concat_tables(parts)
    place_of = {uri: place for place, uri in enumerate(kept["uri"].to_pylist())}  # of several the last one
    places = pa.array([place_of.get(uri) for uri in uris.to_pylist()], pa.int64())
    return kept.select(schema.names).take(places)


def _with_uri(schema: pa.Schema) -> pa.Schema:
    return pa.schema([*schema, ("uri", pa.string())])


def _read_parts(out: str) -> Iterator[pa.Table]:
    """Yields the parts that are whole, in the order in which they were written."""
    directory = storage.join(out, UNFINISHED)
    for name in storage.list_names(directory):
        if not name.startswith("part-"):  # what a killed writer has left
            continue
        try:
            yield pq.read_table(pa.BufferReader(storage.read_bytes(storage.join(directory, name))))
        except (OSError, pa.ArrowException):  # a damaged part: its files are read again
            continue


class Keeper:
    """Writes what has been read of a data set into its output, now and then.

    Args:
        out: The output directory. It is made, with the mark of its kind, when the first part is written.
        kind: See `storage.prepare_output`.
        uris: The files, in the order in which they are read.
        known: See `known_rows`: what is there already.
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
        """Takes the results of the next files that were read; writes a part if the last one is `INTERVAL_S` old.

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
    """Deletes what was kept, once the output itself tells all of it."""
    storage.delete(storage.join(out, UNFINISHED))
