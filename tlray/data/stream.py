"""Ray Data streams of images: read, decode and augment on CPU workers, in order, never the whole data set in memory.

A stream is a range of row numbers; each task looks its rows up in the manifest, which lies in Ray's object store once.
"""

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
from tlray.data import decoding
from tlray.data.augmentation import augment, augmentation_rng
from tlray.data.schedule import EvalSchedule, PlainSchedule, TrainSchedule, ViewSchedule
from tlray.errors import ImageError, ImageErrorCode
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

READ_THREADS = 8
"""Files read at a time in one task: what hides an object store's latency."""


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
    return map_rows(
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
        contents = pool.map(read_or_error, chosen["uri"])
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


def read_or_error(uri: str) -> bytes | ImageError:
    """Reads a file: its bytes, or the error that it met."""
    try:
        return read_file(uri)
    except ImageError as error:
        return error


def _pixels_of(content: bytes, image_id: str, epoch: int, pixels: Pixels) -> np.ndarray:
    image = decoding.decode(content, size_px=pixels.size_px, intensity_range=pixels.intensity_range)
    if pixels.augmentation is not None and epoch >= 0:
        rng = augmentation_rng(seed=pixels.seed, epoch=epoch, image_id=image_id)
        image = augment(image, pixels.augmentation, rng)
    return decoding.to_array(image)


def map_rows(
    num_rows: int,
    function: Any,
    arguments: dict[str, Any],
    share: Share | None,
    *,
    rows_per_block: int = ROWS_PER_BLOCK,
    task_cpus: float = TASK_CPUS,
) -> ray.data.Dataset:
    """Makes a dataset of one row for each row number, by a function that is called with blocks of row numbers.

    Args:
        num_rows: Row numbers run from 0 to below it.
        function: Called with `{"id": row numbers}` and the arguments; returns columns as NumPy arrays.
        arguments: Keyword arguments of the function.
        share: The part of the cluster that the dataset may use; None: what it finds.
        rows_per_block: Rows in a call.
        task_cpus: CPUs that a call asks for, at most those of the share.
    """
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
