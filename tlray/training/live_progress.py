"""Live progress of a training run, posted by rank 0 and Ray Train and shown by the driver."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
import ray.train

from tlray.config.training import TrainConfig
from tlray.progress import Progress

LOOK_INTERVAL_S = 0.5
"""Seconds between two looks at the board."""


class Board:
    """The state of an actor that holds what rank 0 (progress) and Ray Train's controller (failures) post."""

    def __init__(self) -> None:
        self._latest: dict[str, Any] = {}
        self._failures: list[str] = []

    def post(self, latest: dict[str, Any]) -> None:
        """Replaces the latest progress: `epoch` (from 1), `step` (in the epoch), and `history`, one row per epoch.

        Adds `first_epoch`, the epoch of the first post; it is later than 1 where a run is continued.
        """
        self._latest = {"first_epoch": self._latest.get("first_epoch", latest["epoch"])} | latest

    def post_failure(self, failure: str) -> None:
        """Adds a failure after which training continues."""
        self._failures.append(failure)

    def read(self) -> tuple[dict[str, Any], list[str]]:
        """Returns the latest progress, empty before the first post, and all failures so far."""
        return self._latest, self._failures


def start() -> Any:
    """Starts a `Board` actor that reserves no CPU, and returns its handle."""
    return ray.remote(Board).options(num_cpus=0).remote()


class FailurePoster(ray.train.UserCallback):
    """Posts failures that Ray Train recovers from by itself to the board, for the driver."""

    def __init__(self, board: Any) -> None:
        self._board = board

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        """Posts the failure of the first worker; those of the others follow from it."""
        for rank, error in list(worker_exceptions.items())[:1]:
            self._board.post_failure.remote(f"worker {rank} failed: {_last_line(error)}")


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


@contextmanager
def shown(board: Any, config: TrainConfig, *, steps_per_epoch: int) -> Iterator[None]:
    """Shows the progress and failures posted to a board for as long as the block runs."""
    stopped = threading.Event()
    progress = Progress("Training", config.epochs * steps_per_epoch, unit="steps", quiet=config.quiet)

    def watch() -> None:
        num_said = num_failures = 0
        while True:
            is_last = stopped.wait(LOOK_INTERVAL_S)
            latest, failures = ray.get(board.read.remote())
            for failure in failures[num_failures:]:
                progress.say(
                    f"{failure}\nTraining continues from the last checkpoint, at most {config.max_failures} times."
                )
            num_failures = len(failures)
            if latest:
                if not num_said and latest["first_epoch"] > 1:
                    progress.say(f"Continuing after epoch {latest['first_epoch'] - 1}. The epochs before:")
                progress.update((latest["epoch"] - 1) * steps_per_epoch + latest["step"])
                for row in latest["history"][num_said:]:
                    progress.say(_epoch_line(row, config.epochs))
                num_said = len(latest["history"])
            if is_last:
                return

    watcher = threading.Thread(target=watch, daemon=True)
    with progress:
        watcher.start()
        try:
            yield
        finally:
            stopped.set()
            watcher.join()


def _epoch_line(row: Mapping[str, float], num_epochs: int) -> str:
    name = f"epoch {row['epoch']}/{num_epochs}" if row["epoch"] else "probe"
    return (
        f"{name}  loss {row['loss']:.4f}  accuracy {row['accuracy']:.3f}  "
        f"valid_loss {row['valid_loss']:.4f}  valid_accuracy {row['valid_accuracy']:.3f}  "
        f"rate {row['learning_rate']:.2g}  {row['time_s']:.0f} s"
    )
