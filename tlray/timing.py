"""Measures how long each phase of a command takes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Timing:
    """Adds up the seconds of a command by phase.

    Attributes:
        seconds: Phase to its seconds, in the order in which the phases began.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time of a `with` block to a phase, also if the block raises."""
        start_s = time.monotonic()
        self.seconds.setdefault(name, 0.0)
        try:
            yield
        finally:
            self.seconds[name] += time.monotonic() - start_s
