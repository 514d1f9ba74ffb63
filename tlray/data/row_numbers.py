"""Row numbers as a source of Ray Data: the start of every dataset whose tasks look rows up by their numbers."""

import functools
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from ray.data import DataContext, Datasource
from ray.data.block import Block, BlockMetadata
from ray.data.datasource import ReadTask

COLUMN = "row"
"""Name of the column with the row numbers."""

_BYTES_PER_ROW = 8


class RowNumbers(Datasource):
    """The numbers 0 to `num_rows` - 1 in the column `COLUMN`, int64, in blocks of equal size.

    Unlike `ray.data.range`, whose tasks ask for a whole CPU each, it is read with `ray.data.read_datasource`, which
    takes the number of CPUs.

    Args:
        num_rows: Number of rows.
        rows_per_block: Number of rows in a block; the last one may have fewer.
    """

    def __init__(self, num_rows: int, rows_per_block: int) -> None:
        super().__init__()
        self._num_rows = num_rows
        self._rows_per_block = rows_per_block

    def estimate_inmemory_data_size(self) -> int:
        """Returns the size of the numbers in bytes."""
        return _BYTES_PER_ROW * self._num_rows

    def get_read_tasks(
        self,
        parallelism: int,  # noqa: ARG002 (the blocks are as large as the caller said)
        per_task_row_limit: int | None = None,  # noqa: ARG002 (the same)
        data_context: DataContext | None = None,  # noqa: ARG002
    ) -> list[ReadTask]:
        """Returns one task for each block."""
        starts = range(0, self._num_rows, self._rows_per_block)
        return [_read_task(start, min(start + self._rows_per_block, self._num_rows)) for start in starts]


def _read_task(start: int, end: int) -> ReadTask:
    metadata = BlockMetadata(
        num_rows=end - start, size_bytes=_BYTES_PER_ROW * (end - start), input_files=None, exec_stats=None
    )
    return ReadTask(functools.partial(_block, start, end), metadata)


def _block(start: int, end: int) -> Iterator[Block]:
    yield pa.table({COLUMN: np.arange(start, end)})
