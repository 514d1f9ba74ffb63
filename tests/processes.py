"""Other processes: which are there, and waiting until they have done something."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

DEADLINE_S = 120.0


def wait_until(condition: Callable[[], bool]) -> bool:
    """Looks every 20 ms whether a condition holds; False: not before the deadline."""
    deadline, pause = time.monotonic() + DEADLINE_S, threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            return False
        pause.wait(0.02)
    return True


def processes_with(mark: str) -> dict[int, str]:
    """Returns the ids and commands of all processes that have inherited a mark in their environment."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes():
                found[int(process.name)] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it has just ended, or is somebody else's
            continue
    return found
