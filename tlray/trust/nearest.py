"""Finds the nearest rows of each row exactly, in blocks of matrix products.

scikit-learn's brute-force search does the same. It computes float32 in float64: for 100,000 rows of 96 values it took
75 s, this took 20 s (2 cores of an Intel Xeon, 2026-11-30), and a data set is searched five times. Threads share the
queries, and each multiplies on one core; that takes a sixth less than products by all cores, whose results one core
searches. (Of NumPy from conda, BLAS may not obey: each thread then multiplies on all cores, with the same results.)
"""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

_BLOCK_ROWS = 256  # rows of which first only the nearest is looked at
_MAX_QUERIES = 128  # queries at once; more are no faster
_MAX_THREADS = 8  # with more, each would have few queries at once, and products of few are slow
_MAX_PRODUCTS = 2**26  # products of queries and rows at once, in all threads: 256 MB


def find_nearest(queries: np.ndarray, rows: np.ndarray, num_nearest: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows with the smallest Euclidean distance to each query.

    A block's nearest row decides whether the block can have one of the nearest rows, so most rows are not sorted.

    Args:
        queries: float32 [queries, values], of a length around 1: distances are exact to some 1e-3 near 0.
        rows: float32 [rows, values], of a length around 1; at least one row.
        num_nearest: Number of rows for each query, at least 1; at most all rows are found.

    Returns:
        Distances, float32 [queries, nearest], ascending; and the indices of these rows, int64 [queries, nearest].
    """
    num_rows, num_nearest = len(rows), min(num_nearest, len(rows))
    num_blocks = -(-num_rows // _BLOCK_ROWS)
    chosen_blocks = min(num_nearest, num_blocks)
    # A query's product with a row, less half of the row's squared length, is largest for the nearest row.
    padded = np.zeros((num_blocks * _BLOCK_ROWS, rows.shape[1] + 1), np.float32)
    padded[:num_rows, :-1] = rows
    padded[:num_rows, -1] = -np.einsum("rv,rv->r", rows, rows) / 2
    padded[num_rows:, -1] = np.finfo(np.float32).min
    columns = np.ascontiguousarray(padded.T)
    del padded
    num_threads = min(_count_threads(), _MAX_THREADS)
    num_at_once = min(_MAX_QUERIES, max(1, _MAX_PRODUCTS // num_threads // columns.shape[1]))
    distances = np.empty((len(queries), num_nearest), np.float32)
    indices = np.empty((len(queries), num_nearest), np.int64)

    stopped = threading.Event()

    def search(starts: Sequence[int]) -> None:
        products = np.empty((num_at_once, columns.shape[1]), np.float32)
        for start in starts:
            if stopped.is_set():
                return
            chunk = queries[start : start + num_at_once]
            each = np.arange(len(chunk))[:, None]
            extended = np.concatenate([chunk, np.ones((len(chunk), 1), np.float32)], axis=1)
            near = np.matmul(extended, columns, out=products[: len(chunk)]).reshape(len(chunk), num_blocks, _BLOCK_ROWS)
            blocks = _largest(near.max(axis=2), chosen_blocks)
            candidates = (blocks[:, :, None] * _BLOCK_ROWS + np.arange(_BLOCK_ROWS)).reshape(len(chunk), -1)
            values = near[each, blocks].reshape(len(chunk), -1)
            places = _largest(values, num_nearest)
            places = places[each, np.argsort(-values[each, places], axis=1, kind="stable")]
            squares = np.einsum("qv,qv->q", chunk, chunk)[:, None] - 2 * values[each, places]
            distances[start : start + len(chunk)] = np.sqrt(np.maximum(squares, 0))
            indices[start : start + len(chunk)] = candidates[each, places]

    starts = range(0, len(queries), num_at_once)
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(num_threads, "nearest") as pool:
        try:
            searches = [pool.submit(search, starts[number::num_threads]) for number in range(num_threads)]
            for ended in as_completed(searches):
                ended.result()
        except BaseException:  # such as Ctrl-C, which the threads do not see
            stopped.set()
            raise
    return distances, indices


def _count_threads() -> int:
    """Returns the number of threads that a matrix product would take."""
    return max((each["num_threads"] or 1 for each in threadpool_info() if each["user_api"] == "blas"), default=1)


def _largest(values: np.ndarray, number: int) -> np.ndarray:
    """Returns the places of the largest values of each row, in any order, int64 [rows, number]."""
    first = values.shape[1] - number
    return np.argpartition(values, first, axis=1)[:, first:]
