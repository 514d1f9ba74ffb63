"""Inspects all files of a data set in parallel: checksum, stamp, what they show, and range of 16-bit intensities.

`inspect_here` inspects some thousand files without Ray.
"""

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray
import ray.data

from tlray.data import decoding, inspected, looks
from tlray.data.stream import READ_THREADS, iterate, map_rows, read_each, read_file, read_or_error
from tlray.errors import DataError, ImageError
from tlray.files import file_stamps
from tlray.progress import Progress

ROWS_PER_INSPECTION = 64
"""Number of files that one task inspects, which takes half a second."""

ROWS_PER_LOOK = 1024
"""Number of files in one task that only looks up their size and time of change."""

INSPECTION_COLUMNS = ("sha256", "error_code", "error", "width_px", "height_px", "is_16_bit")
"""Names of the columns of a manifest that an inspection fills in, besides those of `looks.SCHEMA`."""


def inspect_images(table: pa.Table, *, known: pa.Table | None = None, task_cpus: float = 1.0) -> Iterator[pa.Table]:
    """Reads and decodes every file once, in the table's order.

    Args:
        table: A manifest.
        known: Earlier results with `INSPECTED_SCHEMA`, a row for each row of the manifest. A file whose stamp is still
            the same is not read again. None: there are none.
        task_cpus: CPUs that a task asks for; a task keeps one CPU busy.

    Yields:
        Tables with `INSPECTED_SCHEMA`, which together have a row for each row of the manifest, in its order. A row
        describes the file, or says why it cannot be used.
    """
    arguments = {"uris": [ray.put(table["uri"])], "known": [] if known is None else [ray.put(known)]}
    dataset = map_rows(
        table.num_rows, _inspect_rows, arguments, None, rows_per_block=ROWS_PER_INSPECTION, task_cpus=task_cpus
    )
    yield from cast("Iterator[pa.Table]", dataset.iter_batches(batch_size=None, batch_format="pyarrow"))


_INSPECTION_SCHEMA = pa.schema(
    [
        ("sha256", pa.string()),
        ("error_code", pa.string()),
        ("error", pa.string()),
        ("width_px", pa.int32()),
        ("height_px", pa.int32()),
        ("is_16_bit", pa.bool_()),
    ]
)

INSPECTED_SCHEMA = pa.schema([*_INSPECTION_SCHEMA, *looks.SCHEMA, (file_stamps.COLUMN, pa.string())])
"""Schema of an inspection's results: the `INSPECTION_COLUMNS`, what `looks` saw, and the file's stamp, see
`inspected.stamps`."""


def inspect_here(table: pa.Table, *, quiet: bool) -> pa.Table:
    """Reads and decodes every file once, in threads of this process: for some thousand files at most.

    Args:
        table: A manifest.
        quiet: Show no progress.

    Returns:
        The manifest with the columns of an inspection, see `with_results`, in its order.
    """
    rows: list[dict[str, Any]] = []
    with (
        Progress("Reading images", table.num_rows, quiet=quiet) as progress,
        ThreadPoolExecutor(READ_THREADS) as pool,
    ):
        for row in pool.map(lambda uri: _inspect(read_or_error(uri)), table["uri"].to_pylist()):
            rows.append(row)
            progress.update(len(rows))
    return with_results(table, pa.Table.from_pylist(rows, schema=pa.schema([*_INSPECTION_SCHEMA, *looks.SCHEMA])))


def with_results(table: pa.Table, found: pa.Table) -> pa.Table:
    """Returns a manifest with the results of an inspection: `INSPECTION_COLUMNS` and the columns of `looks.SCHEMA`.

    Args:
        table: The manifest.
        found: The results, with a row for each row of the manifest, in its order.
    """
    table = table.drop_columns(["sha256"])
    for name in (*INSPECTION_COLUMNS, *looks.SCHEMA.names):
        table = table.append_column(name, found[name])
    return table


def _inspect_rows(
    batch: Mapping[str, np.ndarray],
    uris: list["ray.ObjectRef[pa.ChunkedArray]"],
    known: list["ray.ObjectRef[pa.Table]"],
) -> pa.Table:
    chosen = ray.get(uris[0]).take(batch["row"]).to_pylist()
    before = ray.get(known[0]).take(batch["row"]).to_pylist() if known else [{}] * len(chosen)
    # Stamps are taken before the files are read: if a file changes meanwhile, its stamp is out of date, and the next
    # inspection reads it again.
    stamps = inspected.stamps(chosen)
    is_same = [bool(stamp) and row.get(file_stamps.COLUMN) == stamp for stamp, row in zip(stamps, before, strict=True)]
    with contextlib.closing(read_each(uri for uri, same in zip(chosen, is_same, strict=True) if not same)) as contents:
        rows = [
            row if same else _inspect(next(contents)) | {file_stamps.COLUMN: stamp}
            for row, stamp, same in zip(before, stamps, is_same, strict=True)
        ]
    return pa.Table.from_pylist(rows, schema=INSPECTED_SCHEMA)


def _inspect(content: bytes | ImageError) -> dict[str, Any]:
    if isinstance(content, ImageError):
        return {"error_code": content.code.value, "error": content.message}
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        seen = looks.look(content)
    except ImageError as error:
        return {"sha256": sha256, "error_code": error.code.value, "error": error.message}
    return {"sha256": sha256, **dataclasses.asdict(seen.info), **seen.as_row()}


def digests(uris: pa.ChunkedArray) -> Iterator[list[str]]:
    """Reads files and yields lists with the sha256 of each, in order; empty strings for files that cannot be read."""
    dataset = map_rows(len(uris), _digest_rows, {"uris": [ray.put(uris)]}, None, rows_per_block=ROWS_PER_INSPECTION)
    for batch in iterate(dataset):
        yield batch["sha256"].tolist()


def _digest_rows(
    batch: Mapping[str, np.ndarray], uris: list["ray.ObjectRef[pa.ChunkedArray]"]
) -> dict[str, np.ndarray]:
    chosen = ray.get(uris[0]).take(batch["row"]).to_pylist()
    with contextlib.closing(read_each(chosen)) as contents:
        digests = ["" if isinstance(each, ImageError) else hashlib.sha256(each).hexdigest() for each in contents]
    return {"sha256": np.array(digests)}


def stamps(uris: pa.ChunkedArray) -> Iterator[list[str]]:
    """Yields lists with the stamp of each file, in order, without reading the files; see `file_stamps.stamps`."""
    dataset = map_rows(len(uris), _stamp_rows, {"uris": [ray.put(uris)]}, None, rows_per_block=ROWS_PER_LOOK)
    for batch in iterate(dataset):
        yield batch[file_stamps.COLUMN].tolist()


def _stamp_rows(batch: Mapping[str, np.ndarray], uris: list["ray.ObjectRef[pa.ChunkedArray]"]) -> dict[str, np.ndarray]:
    chosen = ray.get(uris[0]).take(batch["row"]).to_pylist()
    return {file_stamps.COLUMN: np.array(file_stamps.stamps(chosen))}


def intensity_range(uris: pa.ChunkedArray) -> tuple[float, float]:
    """Returns the 0.1 and 99.9 percentiles of the pixel values of 16-bit images, all pixels together.

    Args:
        uris: Locations of at least one 16-bit image. Images that can no longer be read are skipped.

    Raises:
        DataError: None of the images can be read any more, or see `decoding.percentile_range`.
    """
    dataset = map_rows(len(uris), _histogram_rows, {"uris": [ray.put(uris)]}, None)
    total = np.zeros(decoding.NUM_BINS, dtype=np.int64)
    for batch in iterate(dataset):
        total += batch["histogram"].sum(axis=0)
    if not total.any():
        raise DataError(
            f"None of the {len(uris)} 16-bit images can be read any more. Check the storage, and run the same command "
            "again."
        )
    return decoding.percentile_range(total)


def _histogram_rows(
    batch: Mapping[str, np.ndarray], uris: list["ray.ObjectRef[pa.ChunkedArray]"]
) -> dict[str, np.ndarray]:
    chosen = ray.get(uris[0]).take(batch["row"]).to_pylist()
    histogram = np.zeros(decoding.NUM_BINS, dtype=np.int64)
    for uri in chosen:
        with contextlib.suppress(ImageError):  # the file has vanished since it was inspected; the others suffice
            histogram += decoding.intensity_histogram(read_file(uri))
    return {"histogram": histogram[None]}
