"""Other processes: which are there, and waiting until they have done something."""

import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

DEADLINE_S = 400.0  # what is waited for takes up to two minutes on a slow machine under load


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


def output_at_end(process: "subprocess.Popen[str]", *, timeout_s: float) -> str:
    """Returns what a process has printed by its end.

    A process that does not end is aborted and fails the test. Started with PYTHONFAULTHANDLER=1, it first prints what
    each of its threads was doing.
    """
    try:
        return process.communicate(timeout=timeout_s)[0]
    except subprocess.TimeoutExpired:
        had_ended = process.poll() is not None  # then a child of it holds its output open
        process.send_signal(signal.SIGABRT)
        try:
            output, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            process.kill()
            output = str(error.stdout)
        raise AssertionError(f"No end within {timeout_s:g} s, process ended: {had_ended}. Output:\n{output}") from None
