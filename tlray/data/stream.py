"""Ray Data streams of images, which CPU workers read, decode and augment, in order and without loading all into memory.

A stream is a range of row numbers. Each task looks its rows up in the manifest, which is in Ray's object store.
"""

import contextlib
import hashlib
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data import ExecutionOptions, ExecutionResources
from ray.exceptions import RayError

from tlray.config.training import Augmentation
from tlray.data import decoding
from tlray.data.augmentation import augment, augmentation_rng
from tlray.data.row_numbers import RowNumbers
from tlray.data.schedule import EvalSchedule, PlainSchedule, TrainSchedule, ViewSchedule
from tlray.errors import DataError, ImageError, ImageErrorCode, TlrayError
from tlray.files import file_stamps, storage
from tlray.files.read_ahead import read_ahead

ROWS_PER_BLOCK = 32
"""Number of rows in one task's output: 5 MB at 224 px, small enough that a task yields only once. A task that waits for
its consumer between two outputs would hold a CPU."""

MAX_BLOCKS = 2048
"""Maximum number of tasks of one dataset of `image_batches`, approximately. Before the first task starts, Ray Data puts
a block for each into the object store: 1 to 2 s for 2048, 27 s for a million images (2 cores, 2026-11-28)."""

TASK_CPUS = 0.5
"""CPUs that a reading task asks for, as it waits for storage about as long as it decodes. It differs from what
predictors ask for, because otherwise Ray Data would fuse the two, and nothing would be decoded while the model runs."""

READ_THREADS = 8
"""Number of files that one task reads concurrently, which hides an object store's latency. As many wait in memory at
most, each up to `decoding.MAX_FILE_BYTES`."""

CHANGED = "The file has changed since it was first read. Run the same command again."
"""Message of images with `ImageErrorCode.CHANGED`."""

_DECODED = ("uri", "image_id", "sha256")
"""Columns of a manifest that decoding uses, where it has them."""

Schedule = TrainSchedule | EvalSchedule | PlainSchedule | ViewSchedule


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """The part of a cluster that one stream may use.

    Attributes:
        num_cpus: CPUs for the stream's tasks. If it is less than `TASK_CPUS`, a task asks for this many.
        object_store_bytes: Object-store memory for images that wait to be consumed.
    """

    num_cpus: float
    object_store_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pixels:
    """Settings for decoding and augmenting files.

    Attributes:
        size_px: Height and width of the decoded images.
        intensity_range: The pixel values of a 16-bit image that become 0 and 255, see `decoding.decode`.
        augmentation: Ranges of random changes; None: no augmentation.
        seed: Seed of the random changes, which also depend on epoch and image_id.
    """

    size_px: int
    intensity_range: tuple[float, float] | None = None
    augmentation: Augmentation | None = None
    seed: int = 0


def read_file(uri: str, *, sha256: str | None = None) -> bytes:
    """Returns the bytes of an image file.

    Args:
        uri: Location of the file.
        sha256: The sha256 that the file had when it was first read; None: it is not known.

    Raises:
        ImageError: The file cannot be read, or has another sha256; the error's code says which.
    """
    try:
        content = storage.read_bytes(uri, max_bytes=decoding.MAX_FILE_BYTES)
    except FileNotFoundError as error:
        raise ImageError(ImageErrorCode.NOT_FOUND, "There is no such file.") from error
    except ImageError:
        raise
    except Exception as error:  # an unreadable image becomes a row with an error, never a failed job
        raise ImageError(ImageErrorCode.UNREADABLE, f"The file cannot be read: {error}") from error
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise ImageError(ImageErrorCode.CHANGED, CHANGED)
    return content


def known_digests(table: pa.Table) -> list[str | None]:
    """Returns the sha256 that each file of a manifest had when it was first read; None where it is not known."""
    return table["sha256"].to_pylist() if "sha256" in table.column_names else [None] * table.num_rows


def refuse_changed(error_codes: Sequence[str | None], image_ids: Sequence[str]) -> None:
    """Refuses images of a training that have changed since they were first read.

    Their labels, splits and copies are known of the earlier pixels only.

    Args:
        error_codes: The error code of each image; empty or None for none.
        image_ids: Its id.

    Raises:
        DataError: Some images have the code `ImageErrorCode.CHANGED`; the message says how many.
    """
    pairs = zip(image_ids, error_codes, strict=True)
    changed = [image_id for image_id, code in pairs if code == ImageErrorCode.CHANGED]
    if changed:
        raise DataError(
            f"Images have changed since the training first read them ({len(changed)} so far, for example "
            f"'{changed[0]}'). Put them back as they were and continue with --resume, or begin anew with --overwrite."
        )


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
    """Returns a dataset of decoded images in a schedule's order.

    Args:
        manifest: Reference to a table with `uri` and `image_id` in the object store. If it has `sha256`, files that
            have another one by now get `ImageErrorCode.CHANGED`.
        schedule: The order of the images.
        pixels: Settings for decoding and augmentation.
        share: The part of the cluster to use; None: all that is free.
        first_row: Row of the schedule to start at.
        num_rows: Number of rows; None: all from `first_row` on.
        with_stamps: Add the column `file_stamps.COLUMN`, with the stamps of the files before they were read.

    Returns:
        A dataset with the columns `row` (int64, the manifest's row), `image` (uint8 [size, size, 3], zeros on error),
        `epoch` (int64), `weight` (float32), and the strings `sha256`, `error_code` and `error`. Missing strings are
        empty and not null, because a block with nulls only would lose its type.
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
    """Yields the batches of a long stream, which runs as several datasets, one after another.

    Args:
        manifest: See `image_stream`.
        schedule: See `image_stream`.
        pixels: See `image_stream`.
        batch_size: Number of rows in a batch; the last one may have fewer.
        share: See `image_stream`.

    Yields:
        The columns of `image_stream` as NumPy arrays.
    """
    for first_row, num_rows in parts_of(schedule.num_rows, batch_size):
        dataset = image_stream(manifest, schedule, pixels, share=share, first_row=first_row, num_rows=num_rows)
        yield from iterate(dataset, batch_size)


def parts_of(num_rows: int, batch_size: int) -> list[tuple[int, int]]:
    """Divides a stream into parts of whole batches, each of about `MAX_BLOCKS` blocks at most.

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
    rows = schedule.rows(batch["row"] + first_row)
    taken = table.select([name for name in _DECODED if name in table.column_names]).take(rows.index)
    chosen, known = taken.to_pydict(), known_digests(taken)
    decoded = np.zeros((len(rows.index), pixels.size_px, pixels.size_px, 3), dtype=np.uint8)
    digests: list[str] = []
    errors: list[ImageError | None] = []
    # Stamps are taken before the files are read: a file that changes meanwhile gets an older stamp, and is read again.
    stamps = {file_stamps.COLUMN: np.array(file_stamps.stamps(chosen["uri"]))} if with_stamps else {}
    with contextlib.closing(read_each(chosen["uri"])) as contents:
        for place, (content, image_id, before) in enumerate(zip(contents, chosen["image_id"], known, strict=True)):
            error = content if isinstance(content, ImageError) else None
            digests.append("" if isinstance(content, ImageError) else hashlib.sha256(content).hexdigest())
            if not isinstance(content, ImageError):
                try:
                    if before not in (None, digests[-1]):  # also of a file that cannot be decoded any more
                        raise ImageError(ImageErrorCode.CHANGED, CHANGED)
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
    """Returns the bytes of an image file, or the error of `read_file`."""
    try:
        return read_file(uri)
    except ImageError as error:
        return error


def read_each(uris: Iterable[str]) -> Generator[bytes | ImageError]:
    """Yields what `read_or_error` returns for each file, in order; see `read_ahead`. Close it if you stop early."""
    return read_ahead(read_or_error, uris, num_threads=READ_THREADS)


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
    """Returns a dataset made by a function that is called with blocks of row numbers.

    Args:
        num_rows: Number of row numbers, which start at 0.
        function: Called with `{"row": row numbers}` and the arguments. Returns rows for them, as columns of NumPy
            arrays or an Arrow table.
        arguments: Keyword arguments of the function.
        share: The part of the cluster that the dataset may use; None: all that is free.
        rows_per_block: Number of row numbers in a call.
        task_cpus: CPUs that a call asks for; at most those of the share are used.
    """
    num_cpus = task_cpus if share is None else min(task_cpus, share.num_cpus)
    # With the same number of CPUs as the function below, Ray Data fuses the two.
    dataset = ray.data.read_datasource(
        RowNumbers(num_rows, rows_per_block),
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
        dataset: The dataset to run.
        batch_size: Number of rows in a batch, the last one may have fewer; None: the blocks as they come.

    Raises:
        TlrayError: One that an actor or a task has raised, without Ray's wrapper.
    """
    batches = dataset.iter_batches(batch_size=batch_size, batch_format="numpy", prefetch_batches=2)
    try:
        yield from cast("Iterator[dict[str, np.ndarray]]", batches)
    except RayError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, TlrayError):
            cause = getattr(cause, "cause", None) or cause.__cause__
        raise cause or error from None


def configure(dataset: ray.data.Dataset, share: Share | None = None) -> None:
    """Makes a dataset run in order, without a progress bar, and within its share."""
    context = dataset.context
    context.enable_progress_bars = False
    limits = ExecutionResources(object_store_memory=share.object_store_bytes) if share else None
    context.execution_options = ExecutionOptions(preserve_order=True, resource_limits=limits)
