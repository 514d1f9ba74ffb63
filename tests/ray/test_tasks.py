"""Functions that are called in tasks on the cluster."""

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray

from tlray.cluster import connection
from tlray.errors import DataError

pytestmark = pytest.mark.usefixtures("local_ray")


def test_results_come_in_the_order_of_the_functions_from_other_processes():
    def multiply(value: int, by: int) -> tuple[int, int]:
        return value * by, os.getpid()

    found = connection.call_in_tasks([partial(multiply, value, by=10) for value in (3, 1, 2)], task_cpus=1)
    assert [product for product, _ in found] == [30, 10, 20]
    assert os.getpid() not in {pid for _, pid in found}


def test_an_error_of_ours_is_raised_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    started = tmp_path / "started"

    def fail() -> None:
        while not started.exists():  # Ray may lose the cancelling of a task that it is just starting
            time.sleep(0.01)
        raise DataError("There are no images.")

    def sleep() -> None:
        started.touch()
        time.sleep(600)

    ended_before = []
    cancel = ray.cancel

    def record_and_cancel(reference: Any, *, force: bool) -> None:
        ended_before.append(connection.is_done(reference))
        cancel(reference, force=force)

    monkeypatch.setattr(ray, "cancel", record_and_cancel)
    start_s = time.monotonic()
    with pytest.raises(DataError, match=r"^There are no images\.$"):
        connection.call_in_tasks([fail, sleep], task_cpus=1)
    assert ended_before == [False], "Ray may end this process if a task is cancelled that has just ended"
    connection.call_in_tasks([os.getpid], task_cpus=2)  # both CPUs: the other task must have ended
    assert time.monotonic() - start_s < 300
