"""The start of Ray in this process, in ways that `ray.init` has no options for."""

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
"""Variable that, set to "1", lets `ray.init` name variables that the Ray job names, too."""


def init(**options: Any) -> None:
    """Connects this process to a Ray, or starts one.

    A Ray that is started listens on loopback only, at ports of its own: see `localray`.

    Args:
        options: Those of `ray.init`.

    Raises:
        ConnectionError: The Ray that RAY_ADDRESS names cannot be reached.
    """
    _check_address(os.environ.get("RAY_ADDRESS", ""))
    is_ours = local_ray.is_to_be_started()
    with local_ray.alone() if is_ours else contextlib.nullcontext(), _quiet_driver(), _overriding_variables():
        ray.init("local" if is_ours else None, **options)


def _check_address(address: str) -> None:
    """Raises ConnectionError where nobody listens at an address HOST:PORT: Ray itself would try for many minutes."""
    found = re.fullmatch(r"([^/:]+|\[[^/]+\]):(\d+)", address)
    if found:
        try:
            socket.create_connection((found[1].strip("[]"), int(found[2])), timeout=CONNECT_S).close()
        except (OSError, OverflowError) as error:
            raise ConnectionError(f"nobody answers at {address} ({error})") from error


@contextlib.contextmanager
def _overriding_variables() -> Iterator[None]:
    """Has `ray.init` take a variable that the job's runtime_env sets, too; without this it raises a ValueError."""
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
    """Has Ray's C++ part in this process tell fatal errors only; that of the node's processes has its own log files.

    It tells of each pool of actors of Ray Data that it could not be restarted if objects were lost that it keeps.
    """
    module: Any = ray_worker
    original = module.connect

    def connect_quietly(*arguments: Any, **named: Any) -> Any:
        if LOG_LEVEL_VARIABLE in os.environ:
            return original(*arguments, **named)
        os.environ[LOG_LEVEL_VARIABLE] = "fatal"
        stderr = os.dup(STDERR)
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), STDERR)  # where it tells that it has been told so
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
