"""Progress display for long work: a bar in a terminal; in a log a line at the start, and one every few seconds."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

LINE_INTERVAL_S = 10.0
"""Minimum seconds between two progress lines where standard error is not a terminal."""


class Progress:
    """Shows on standard error how much of some work is done and how much time is left.

    Args:
        description: Name of the work, for example "Scoring".
        total: Number of units to do.
        unit: Name of what is counted, in the plural.
        quiet: Show nothing.
    """

    def __init__(self, description: str, total: int, *, unit: str = "images", quiet: bool = False) -> None:
        self.description = description
        self.total = total
        self.unit = unit
        self._quiet = quiet
        self._start_s = self._last_line_s = time.monotonic()
        self._first: int | None = None
        self._is_starting = False
        console = Console(stderr=True)
        self._bar = None
        if not quiet and sys.stderr.isatty():
            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(unit),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task(description, total=total)

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        elif self.total:
            unit = self.unit.removesuffix("s") if self.total == 1 else self.unit
            self.say(f"{self.description}: {self.total} {unit}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, completed: int) -> None:
        """Shows that `completed` units are done in all."""
        if self._bar is not None:
            self._bar.update(self._task, completed=completed)
            return
        now_s = time.monotonic()
        if self._first is None:
            self._first, self._start_s = completed, now_s
        if self._quiet or (now_s - self._last_line_s < LINE_INTERVAL_S):
            return
        self._last_line_s = now_s
        done = completed - self._first
        if done <= 0:
            if not self._is_starting:
                self.say(f"{self.description}: starting")
            self._is_starting = True
            return
        left_s = (now_s - self._start_s) / done * (self.total - completed)
        self.say(f"{self.description}: {completed} of {self.total} {self.unit}, {_duration(left_s)} left")

    def say(self, line: str) -> None:
        """Prints a separate line, above the bar if there is one."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False)
        else:
            print(line, file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
