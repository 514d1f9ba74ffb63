"""The private state of a scoring, in the folder `_state` of its output.

It holds the identity of the scoring (bundle and images), its progress, and the stamps of the files that were read.
Readers of Parquet pass over names that begin with an underscore.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tlray.errors import ImageError
from tlray.files import file_stamps, storage

FOLDER = "_state"
"""Name of the folder within an output."""

IDENTITY = "scoring.json"
PROGRESS = "progress.json"
STAMPS = "stamps"

PROGRESS_INTERVAL_S = 2.0
"""Minimum time between two versions of `progress.json`, in seconds. Object stores accept one per second of a file."""

MAX_PROGRESS_BYTES = 1024
"""Maximum size of `progress.json` in bytes; it has some 150. A larger file was not written by tlray and is not read."""

COUNTS = ("done", "failed", "total")


def write_identity(out: str, identity: Mapping[str, str]) -> None:
    """Writes the identity of a scoring, its bundle and images, so that `--resume` continues no other scoring.

    Args:
        out: The output.
        identity: Names and values that must be the same when the scoring is continued.
    """
    storage.write_text(storage.join(out, FOLDER, IDENTITY), json.dumps(identity, indent=2) + "\n")


def read_identity(out: str) -> Any:
    """Returns the identity that `write_identity` wrote; None where the output has none."""
    try:
        return json.loads(storage.read_bytes(storage.join(out, FOLDER, IDENTITY)))
    except (FileNotFoundError, NotADirectoryError):
        return None


def write_progress(
    tables: Iterator[pa.Table], out: str, *, job: str | None, num_images: int, num_done: int = 0, num_failed: int = 0
) -> Iterator[pa.Table]:
    """Passes predictions on and writes their progress to `progress.json`, for other processes to read.

    The file has `job`, `done`, `failed` (those of `done` with an error), `total`, and `waiting`: no new prediction has
    come yet, because a model is being loaded or waits for a free CPU.

    Args:
        tables: The predictions.
        out: The output.
        job: See `connection.job_name`.
        num_images: The number of all rows.
        num_done: The number of rows that were there before.
        num_failed: The number of those rows with an error.
    """

    def write(*, waiting: bool = False) -> None:
        now = {"job": job, "done": num_done, "failed": num_failed, "total": num_images, "waiting": waiting}
        storage.write_text(storage.join(out, FOLDER, PROGRESS), json.dumps(now) + "\n")

    write(waiting=num_done < num_images)
    written_s = -PROGRESS_INTERVAL_S
    for table in tables:
        num_done += table.num_rows
        num_failed += table.num_rows - table["error_code"].null_count
        if time.monotonic() - written_s >= PROGRESS_INTERVAL_S:
            write()
            written_s = time.monotonic()
        yield table
    write()


def read_progress(out: str) -> dict[str, Any] | None:
    """Returns the progress that `write_progress` has written last; None: nothing yet.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file was not written by `write_progress`.
    """
    try:
        content = storage.read_bytes(storage.join(out, FOLDER, PROGRESS), max_bytes=MAX_PROGRESS_BYTES)
        progress = json.loads(content)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ImageError, RecursionError) as error:
        raise ValueError(str(error)) from error
    is_sound = (
        isinstance(progress, dict)
        and all(type(progress.get(name)) is int for name in COUNTS)
        and type(progress.get("waiting")) is bool
    )
    if not is_sound:
        raise ValueError(f"{PROGRESS} must have the fields {', '.join(COUNTS)} and waiting.")
    return progress


def write_stamps(out: str, part: str, stamps: Sequence[str]) -> None:
    """Stores the stamps of the files of one Parquet part.

    Args:
        out: The output.
        part: The name of the part.
        stamps: The stamps, see `file_stamps.stamps`.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({file_stamps.COLUMN: pa.array(stamps, pa.string())}), sink)
    storage.write_bytes(storage.join(out, FOLDER, STAMPS, part), sink.getvalue().to_pybytes())


def read_stamps(out: str, part: str, *, num_rows: int) -> list[str]:
    """Returns the stamps of the files of one Parquet part, empty texts where they are not known.

    Args:
        out: The output.
        part: The name of the part.
        num_rows: The number of rows in the part.
    """
    try:
        content = storage.read_bytes(storage.join(out, FOLDER, STAMPS, part))
        stamps = pq.read_table(pa.BufferReader(content))[file_stamps.COLUMN].to_pylist()
    except (OSError, pa.ArrowException, KeyError):
        return [""] * num_rows
    return stamps if len(stamps) == num_rows else [""] * num_rows
