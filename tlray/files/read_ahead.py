"""Reads files in threads, a few ahead of their consumer, so that no more than these few are in memory."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def read_ahead(read: Callable[[str], T], locations: Iterable[str], *, num_threads: int) -> Generator[T]:
    """Calls a function in threads with each location, and yields the results in order.

    While the consumer has a result, `num_threads` calls for the next ones run or have ended. Another call begins only
    when the consumer takes the next result. To stop early, close the generator; this waits for the calls that run.

    Args:
        read: The function. Several threads may call it at a time.
        locations: Locations of the files.
        num_threads: Number of threads, at least 1.

    Yields:
        The result for each location.

    Raises:
        Exception: What a call has raised, when its result is due.
    """
    rest = iter(locations)
    with ThreadPoolExecutor(num_threads, "read-ahead") as pool:
        window = deque(pool.submit(read, location) for location in islice(rest, num_threads))
        while window:
            wait([window[0]])
            window.extend(pool.submit(read, location) for location in islice(rest, 1))
            yield window.popleft().result()
