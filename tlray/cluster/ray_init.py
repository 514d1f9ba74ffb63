"""Wraps `ray.init`: checks the address first, isolates a local Ray, and keeps Ray's C++ log quiet."""

import contextlib
import os
import re
import socket
from collections.abc import Iterator
from typing import Any

import ray
import ray._private.worker as ray_worker

from tlray.cluster import local_ray

LOG_LEVEL_VARIABLE = "RAY_BACKEND_LOG_LEVEL"
STDERR = 2

CONNECT_S = 10.0
"""Seconds to wait for a TCP connection to a Ray node."""

OVERRIDE_VARIABLE = "RAY_OVERRIDE_JOB_RUNTIME_ENV"
"""Environment variable that, set to "1", lets the runtime_env of `ray.init` set variables that the Ray job sets too."""


def init(**options: Any) -> None:
    """Connects this process to a running Ray cluster, or starts a local one.

    A local Ray listens on loopback addresses only, at ports of its own; see `local_ray`.

    Args:
        options: Options of `ray.init`.

    Raises:
        ConnectionError: The Ray that RAY_ADDRESS names cannot be reached.
    """
    _check_address(os.environ.get("RAY_ADDRESS", ""))
    is_ours = local_ray.is_to_be_started()
    with local_ray.alone() if is_ours else contextlib.nullcontext(), _quiet_driver(), _overriding_variables():
        ray.init("local" if is_ours else None, **options)


def _check_address(address: str) -> None:
    """Raises a ConnectionError if nothing listens at an address HOST:PORT; Ray itself would try for many minutes."""
    found = re.fullmatch(r"([^/:]+|\[[^/]+\]):(\d+)", address)
    if found:
        try:
            socket.create_connection((found[1].strip("[]"), int(found[2])), timeout=CONNECT_S).close()
        except (OSError, OverflowError) as error:
            raise ConnectionError(f"nobody answers at {address} ({error})") from error


@contextlib.contextmanager
def _overriding_variables() -> Iterator[None]:
    """Lets `ray.init` set a variable that the job's runtime_env sets too; without this it raises a ValueError."""
    before = os.environ.get(OVERRIDE_VARIABLE)
    os.environ[OVERRIDE_VARIABLE] = "1"
    try:
        yield
    finally:
        del os.environ[OVERRIDE_VARIABLE]
        if before is not None:
            os.environ[OVERRIDE_VARIABLE] = before


@contextlib.contextmanager
def _quiet_driver() -> Iterator[None]:
    """Makes Ray's C++ code in this process log fatal errors only; the node's other processes have log files.

    Otherwise it warns for each actor pool of Ray Data that the pool could not be restarted if its objects were lost.
    """
    module: Any = ray_worker
    original = module.connect

    def connect_quietly(*arguments: Any, **named: Any) -> Any:
        if LOG_LEVEL_VARIABLE in os.environ:
            return original(*arguments, **named)
        os.environ[LOG_LEVEL_VARIABLE] = "fatal"
        stderr = os.dup(STDERR)
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), STDERR)  # Ray writes a message about the changed log level there
        try:
            return original(*arguments, **named)
        finally:
            os.dup2(stderr, STDERR)
            os.close(stderr)
            del os.environ[LOG_LEVEL_VARIABLE]

    module.connect = connect_quietly
    try:
        yield
    finally:
        module.connect = original
