"""Ray Data streams of images: read, decode and augment on CPU workers, in order, never the whole data set in memory.

A stream is a range of row numbers; each task looks its rows up in the manifest, which lies in Ray's object store once.
"""

import contextlib
import hashlib
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data import ExecutionOptions, ExecutionResources
from ray.data._internal.datasource.range_datasource import RangeDatasource
from ray.data._internal.execution.execution_callback import ExecutionCallback

from tlray.config.training import Augmentation
from tlray.data import decoding, inspected
from tlray.data.schedule import EvalSchedule, PlainSchedule, TrainSchedule, ViewSchedule
from tlray.errors import DataError, ImageError, ImageErrorCode
from tlray.files import file_stamps, storage

ROWS_PER_BLOCK = 32
"""Rows in one task's output: at 224 px 5 MB, so that a task yields once and a waiting consumer never holds a CPU."""

MAX_BLOCKS = 2048
"""Tasks of a dataset of `image_batches`. Ray Data puts a block for each task into the object store before the first one
begins: 1 to 2 s for so many, 27 s for those of a million images (2 cores, 2026-11-28)."""

TASK_CPUS = 0.5
"""What a reading task asks for: it waits for storage about as long as it decodes. (Ray Data also fuses tasks into the
predictors' actors where both ask for the same, and then nothing is decoded while the model runs.)"""

ROUND_S, TRAINING_ROUND_S = 0.005, 0.05
"""The least time between two rounds of a stream's scheduling loop, and of one in a process that trains."""

ROWS_PER_INSPECTION = 64
"""Rows in one task that only looks at files: it takes a tenth of a second."""

ROWS_PER_LOOK = 1024
"""Number of files in one task that only asks for their size and time."""

READ_THREADS = 8
"""Files read at a time in one task: what hides an object store's latency."""

INSPECTION_COLUMNS = ("sha256", "error_code", "error", "width_px", "height_px", "is_16_bit")


Schedule = TrainSchedule | EvalSchedule | PlainSchedule | ViewSchedule


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """The part of a cluster that one stream may use.

    Attributes:
        num_cpus: CPUs that are left for its tasks; where that is less than `TASK_CPUS` a task asks for no more.
        object_store_bytes: Memory for images that wait to be consumed.
    """

    num_cpus: float
    object_store_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pixels:
    """How files become the model's pixels.

    Attributes:
        size_px: Height and width.
        intensity_range: The values of a 16-bit image that become 0 and 255, see `images.decode`.
        augmentation: Random changes; None: as they are.
        seed: Decides the changes, with epoch and image_id.
    """

    size_px: int
    intensity_range: tuple[float, float] | None = None
    augmentation: Augmentation | None = None
    seed: int = 0


def read_file(uri: str) -> bytes:
    """Reads an image file.

    Raises:
        ImageError: With the code that says why not.
    """
    try:
        return storage.read_bytes(uri, max_bytes=decoding.MAX_FILE_BYTES)
    except FileNotFoundError as error:
        raise ImageError(ImageErrorCode.NOT_FOUND, "There is no such file.") from error
    except ImageError:
        raise
    except Exception as error:  # one unreadable image is a row, whatever its store or archive raised
        raise ImageError(ImageErrorCode.UNREADABLE, f"The file cannot be read: {error}") from error


def image_stream(
    manifest: "ray.ObjectRef[pa.Table]",
    schedule: Schedule,
    pixels: Pixels,
    *,
    share: Share | None = None,
    first_row: int = 0,
    num_rows: int | None = None,
    with_stamps: bool = False,
) -> ray.data.Dataset:
    """Streams decoded images in a schedule's order.

    Args:
        manifest: A table with `uri` and `image_id`, in the object store.
        schedule: Says which row comes when.
        pixels: How files become pixels.
        share: The part of the cluster to use; None: what is free.
        first_row: Where to start in the schedule.
        num_rows: How many rows to stream; None: all from there on.
        with_stamps: Give the column `filestamps.COLUMN` too: what `filestamps.stamps` said before the file was read.

    Returns:
        A dataset with the columns `row` (int64, the manifest's row), `image` (uint8 [size, size, 3], zeros on error),
        `epoch` (int64), `weight` (float32), and the strings `sha256`, `error_code` and `error`, empty for none: a block
        of nulls alone would lose its type on the way.
    """
    return _map_rows(
        schedule.num_rows - first_row if num_rows is None else num_rows,
        _decode_rows,
        {
            "manifest": [manifest],
            "schedule": schedule,
            "pixels": pixels,
            "first_row": first_row,
            "with_stamps": with_stamps,
        },
        share,
    )


def image_batches(
    manifest: "ray.ObjectRef[pa.Table]", schedule: Schedule, pixels: Pixels, *, batch_size: int, share: Share
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the batches of a long stream, which is run as one dataset after another.

    Args:
        manifest: See `image_stream`.
        schedule: See there.
        pixels: See there.
        batch_size: Rows in a batch; the last one may have fewer.
        share: See `image_stream`.

    Yields:
        The columns of `image_stream` as arrays.
    """
    for first_row, num_rows in parts_of(schedule.num_rows, batch_size):
        dataset = image_stream(manifest, schedule, pixels, share=share, first_row=first_row, num_rows=num_rows)
        yield from iterate(dataset, batch_size)


def parts_of(num_rows: int, batch_size: int) -> list[tuple[int, int]]:
    """Cuts a stream into parts of whole batches, each of about `MAX_BLOCKS` blocks at most.

    Returns:
        First row and number of rows of each part, in order.
    """
    part_size = max(1, MAX_BLOCKS * ROWS_PER_BLOCK // batch_size) * batch_size
    return [(first_row, min(part_size, num_rows - first_row)) for first_row in range(0, num_rows, part_size)]


def _decode_rows(
    batch: Mapping[str, np.ndarray],
    manifest: list["ray.ObjectRef[pa.Table]"],
    schedule: Schedule,
    pixels: Pixels,
    first_row: int,
    *,
    with_stamps: bool = False,
) -> dict[str, Any]:
    table = ray.get(manifest[0])
    rows = schedule.rows(batch["id"] + first_row)
    chosen = table.select(["uri", "image_id"]).take(rows.index).to_pydict()
    decoded = np.zeros((len(rows.index), pixels.size_px, pixels.size_px, 3), dtype=np.uint8)
    digests: list[str] = []
    errors: list[ImageError | None] = []
    # Before the files are read: a file that changes meanwhile is known by an older stamp, and read again.
    stamps = {file_stamps.COLUMN: np.array(file_stamps.stamps(chosen["uri"]))} if with_stamps else {}
    with ThreadPoolExecutor(READ_THREADS) as pool:
        contents = pool.map(_read_or_error, chosen["uri"])
        for place, (content, image_id) in enumerate(zip(contents, chosen["image_id"], strict=True)):
            error = content if isinstance(content, ImageError) else None
            digests.append("" if isinstance(content, ImageError) else hashlib.sha256(content).hexdigest())
            if not isinstance(content, ImageError):
                try:
                    decoded[place] = _pixels_of(content, image_id, int(rows.epoch[place]), pixels)
                except ImageError as caught:
                    error = caught
            errors.append(error)
    return {
        "row": rows.index,
        "image": decoded,
        "epoch": rows.epoch,
        "weight": rows.weight,
        "sha256": np.array(digests),
        "error_code": np.array([error.code.value if error else "" for error in errors]),
        "error": np.array([error.message if error else "" for error in errors]),
        **stamps,
    }


def _read_or_error(uri: str) -> bytes | ImageError:
    try:
        return read_file(uri)
    except ImageError as error:
        return error


def _pixels_of(content: bytes, image_id: str, epoch: int, pixels: Pixels) -> np.ndarray:
    image = decoding.decode(content, size_px=pixels.size_px, intensity_range=pixels.intensity_range)
    if pixels.augmentation is not None and epoch >= 0:
        rng = decoding.augmentation_rng(seed=pixels.seed, epoch=epoch, image_id=image_id)
        image = decoding.augment(image, pixels.augmentation, rng)
    return decoding.to_array(image)


def inspect_images(table: pa.Table, *, known: pa.Table | None = None, task_cpus: float = 1.0) -> Iterator[pa.Table]:
    """Reads and decodes every file once, in the table's order.

    Args:
        table: A manifest.
        known: A row of `INSPECTED_SCHEMA` for each of its rows: a file that has the same stamp still is not read again.
        task_cpus: CPUs that a task asks for, of which it keeps one busy.

    Yields:
        Tables, one after another with a row for each row of the manifest, of the `INSPECTED_SCHEMA`: what the file
        is, or why it cannot be used.
    """
    arguments = {"uris": [ray.put(table["uri"])], "known": [] if known is None else [ray.put(known)]}
    dataset = _map_rows(
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


INSPECTED_SCHEMA = pa.schema([*_INSPECTION_SCHEMA, (file_stamps.COLUMN, pa.string())])
"""The `INSPECTION_COLUMNS`, and what tells whether a file is still the same; see `inspected.stamps`."""


def _inspect_rows(
    batch: Mapping[str, np.ndarray],
    uris: list["ray.ObjectRef[pa.ChunkedArray]"],
    known: list["ray.ObjectRef[pa.Table]"],
) -> pa.Table:
    chosen = ray.get(uris[0]).take(batch["id"]).to_pylist()
    before = ray.get(known[0]).take(batch["id"]).to_pylist() if known else [{}] * len(chosen)
    with ThreadPoolExecutor(READ_THREADS) as pool:
        # Before the files are read: of one that changes meanwhile the stamp is out of date, and it is read again.
        stamps = inspected.stamps(chosen)
        is_same = [
            bool(stamp) and row.get(file_stamps.COLUMN) == stamp for stamp, row in zip(stamps, before, strict=True)
        ]
        contents = pool.map(_read_or_error, [uri for uri, same in zip(chosen, is_same, strict=True) if not same])
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
        info = decoding.inspect(content)
    except ImageError as error:
        return {"sha256": sha256, "error_code": error.code.value, "error": error.message}
    return {
        "sha256": sha256,
        "width_px": info.width_px,
        "height_px": info.height_px,
        "is_16_bit": info.is_16_bit,
    }


def digests(uris: pa.ChunkedArray) -> Iterator[list[str]]:
    """Reads some files; yields the sha256 of each, in order, empty where it cannot be read."""
    dataset = _map_rows(len(uris), _digest_rows, {"uris": [ray.put(uris)]}, None, rows_per_block=ROWS_PER_INSPECTION)
    for batch in iterate(dataset):
        yield batch["sha256"].tolist()


def _digest_rows(
    batch: Mapping[str, np.ndarray], uris: list["ray.ObjectRef[pa.ChunkedArray]"]
) -> dict[str, np.ndarray]:
    chosen = ray.get(uris[0]).take(batch["id"]).to_pylist()
    with ThreadPoolExecutor(READ_THREADS) as pool:
        contents = pool.map(_read_or_error, chosen)
        digests = ["" if isinstance(each, ImageError) else hashlib.sha256(each).hexdigest() for each in contents]
    return {"sha256": np.array(digests)}


def stamps(uris: pa.ChunkedArray) -> Iterator[list[str]]:
    """Looks at some files without reading them; yields the stamp of each, in order, see `filestamps.stamps`."""
    dataset = _map_rows(len(uris), _stamp_rows, {"uris": [ray.put(uris)]}, None, rows_per_block=ROWS_PER_LOOK)
    for batch in iterate(dataset):
        yield batch[file_stamps.COLUMN].tolist()


def _stamp_rows(batch: Mapping[str, np.ndarray], uris: list["ray.ObjectRef[pa.ChunkedArray]"]) -> dict[str, np.ndarray]:
    chosen = ray.get(uris[0]).take(batch["id"]).to_pylist()
    return {file_stamps.COLUMN: np.array(file_stamps.stamps(chosen))}


def intensity_range(uris: pa.ChunkedArray) -> tuple[float, float]:
    """Finds the 0.1 and 99.9 percentiles of all pixels of some 16-bit images.

    Args:
        uris: At least one 16-bit image. Those that can no longer be read are passed over.

    Raises:
        DataError: None of them can be read any more.
    """
    dataset = _map_rows(len(uris), _histogram_rows, {"uris": [ray.put(uris)]}, None)
    total = np.zeros(decoding.NUM_BINS, dtype=np.int64)
    for batch in iterate(dataset):
        total += batch["histogram"].sum(axis=0)
    if not total.any():
        raise DataError(
            f"None of the {len(uris)} images of 16 bits can be read any more. Check the storage, and run the same "
            "command again."
        )
    return decoding.percentile_range(total)


def _histogram_rows(
    batch: Mapping[str, np.ndarray], uris: list["ray.ObjectRef[pa.ChunkedArray]"]
) -> dict[str, np.ndarray]:
    chosen = ray.get(uris[0]).take(batch["id"]).to_pylist()
    histogram = np.zeros(decoding.NUM_BINS, dtype=np.int64)
    for uri in chosen:
        with contextlib.suppress(ImageError):  # a file that has gone since it was inspected: the others tell the range
            histogram += decoding.intensity_histogram(read_file(uri))
    return {"histogram": histogram[None]}


def _map_rows(
    num_rows: int,
    function: Any,
    arguments: dict[str, Any],
    share: Share | None,
    *,
    rows_per_block: int = ROWS_PER_BLOCK,
    task_cpus: float = TASK_CPUS,
) -> ray.data.Dataset:
    num_cpus = task_cpus if share is None else min(task_cpus, share.num_cpus)
    # `ray.data.range`, whose tasks ask for a whole CPU each: with the same request they become one with what follows.
    dataset = ray.data.read_datasource(
        RangeDatasource(n=num_rows, block_format="arrow", column_name="id"),
        num_cpus=num_cpus,
        override_num_blocks=max(1, -(-num_rows // rows_per_block)),
    )
    dataset = dataset.map_batches(
        function, fn_kwargs=arguments, batch_size=rows_per_block, num_cpus=num_cpus, zero_copy_batch=True
    )
    configure(dataset, share)
    return dataset


def iterate(dataset: ray.data.Dataset, batch_size: int | None = None) -> Iterator[dict[str, np.ndarray]]:
    """Yields a dataset's batches, in order, as NumPy arrays.

    Args:
        dataset: What to run.
        batch_size: Rows in a batch, the last may have fewer; None: as they come.
    """
    batches = dataset.iter_batches(batch_size=batch_size, batch_format="numpy", prefetch_batches=2)
    yield from cast("Iterator[dict[str, np.ndarray]]", batches)


class _Paced(ExecutionCallback):
    """Lets a stream's scheduling loop rest between its rounds.

    When everything that may be decoded ahead has been, Ray Data's loop has no task to wait for and spins.
    """

    round_s = ROUND_S

    def on_execution_step(self, executor: Any) -> None:  # noqa: ARG002
        time.sleep(self.round_s)


class _PacedForTraining(_Paced):
    """Rests longer, in the very process that trains: measured, a step took twice its time without."""

    round_s = TRAINING_ROUND_S


def configure(dataset: ray.data.Dataset, share: Share | None = None) -> None:
    """Makes a dataset run in order, without a progress bar, and within its share."""
    context = dataset.context
    context.enable_progress_bars = False
    context.custom_execution_callback_classes = [_PacedForTraining if share else _Paced]
    limits = ExecutionResources(object_store_memory=share.object_store_bytes) if share else None
    context.execution_options = ExecutionOptions(preserve_order=True, resource_limits=limits)
