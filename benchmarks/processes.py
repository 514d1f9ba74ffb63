"""The processes below one, and what they take of the machine. Linux only; elsewhere there are none."""

import os
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

PARTS = (
    (re.compile(r"(\S*/)?haproxy "), "HAProxy"),
    (re.compile(r"ray::ServeReplica:[^:]*:([\w-]+)"), r"replica \1"),
    (re.compile(r"ray::ServeController"), "Serve controller"),
    (re.compile(r"ray::(HAProxyManager|ProxyActor)"), r"Serve \1"),
    (re.compile(r"\S*/(raylet|gcs_server) "), "raylet and GCS"),
    (re.compile(r"ray::|ray-dashboard|.*(/site-packages/ray/|\bray\.(util|dashboard)\b)"), "rest of Ray"),
)
"""Patterns of the beginning of a process's command line or title, and the names of the parts of a server; the first
match counts."""

SAMPLES, SAMPLES_PAUSE_S = 25, 0.2
"""How often `num_running` looks at the machine, and the seconds between two looks."""


def family(pid: int) -> set[int]:
    """Returns the ids of a process and of all below it."""
    parents = {each: int(fields[1]) for each in _all_ids() if (fields := _stat(each))}
    members = {pid}
    while more := {child for child, parent in parents.items() if parent in members} - members:
        members |= more
    return members


def identities(pids: Iterable[int]) -> set[tuple[int, str]]:
    """Returns the processes of these ids that have not ended, each with the time of its start: ids are used again."""
    return {(pid, fields[19]) for pid in pids if (fields := _stat(pid)) and fields[0] not in "ZX"}


def _all_ids() -> list[int]:
    return [int(directory.name) for directory in Path("/proc").glob("[0-9]*")]


def _stat(pid: int) -> list[str]:
    """Returns the fields of /proc/PID/stat from the third one on, proc_pid_stat(5); none: it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def memory_bytes(pid: int) -> tuple[int, int]:
    """Returns the memory of a process and all below it, and its part in shared memory, which is Ray's object store.

    What several processes share counts once.
    """
    total_kib = store_kib = 0
    for member in family(pid):
        try:
            rollup = Path(f"/proc/{member}/smaps_rollup").read_text()
        except OSError:
            continue
        kib = {line.split(":")[0]: int(line.split()[1]) for line in rollup.splitlines()[1:]}
        total_kib += kib.get("Pss", 0)
        store_kib += kib.get("Pss_Shmem", 0)
    return total_kib * 1024, store_kib * 1024


def has_mapped(pid: int, text: str) -> bool:
    """Tells whether a process or one below it has a file in its address space whose path contains a text."""
    for member in family(pid):
        with suppress(OSError):  # it has ended
            if text in Path(f"/proc/{member}/maps").read_text():
                return True
    return False


def cpu_times(pid: int) -> dict[tuple[int, str], float]:
    """Returns the processor time in seconds of a process and of each below it, by its id and start.

    Those that have ended are left out.
    """
    ticks = {(each, fields[19]): int(fields[11]) + int(fields[12]) for each in family(pid) if (fields := _stat(each))}
    return {identity: value / os.sysconf("SC_CLK_TCK") for identity, value in ticks.items()}


def cpu_by_part(pid: int, before: Mapping[tuple[int, str], float]) -> dict[str, float]:
    """Returns the processor time in seconds that each part of a server has taken since an earlier time.

    The parts are those of `PARTS`, "main process", and "child 1", "child 2", ... in the order of their start. Processes
    that have ended since are left out.

    Args:
        pid: The server's first process.
        before: The `cpu_times` of the earlier time.
    """
    found: defaultdict[str, float] = defaultdict(float)
    num_children = 0
    now = cpu_times(pid)
    for identity in sorted(now, key=lambda each: (int(each[1]), each[0])):
        command = _command(identity[0])
        name = "main process" if identity[0] == pid else part_of(command)
        if not command:  # it has ended meanwhile, so that its name is not known
            continue
        if not name:
            num_children += 1
            name = f"child {num_children}"
        found[name] += now[identity] - before.get(identity, 0.0)
    return dict(found)


def part_of(command: str) -> str:
    """Returns the part of a server that a process is, by its command line or title; empty: none of `PARTS`."""
    for pattern, name in PARTS:
        if found := pattern.match(command):
            return found.expand(name)
    return ""


def _command(pid: int) -> str:
    """Returns a process's command line or title; empty: it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def num_running() -> float:
    """Returns how many tasks run or wait for a CPU of this machine, on average over five seconds, besides this one.

    Unlike the load average over a minute it does not count what the caller has started and ended just before. Without
    /proc it is that load average.
    """
    path = Path("/proc/loadavg")
    if not path.exists():
        return os.getloadavg()[0]
    total = 0
    for _ in range(SAMPLES):
        total += max(0, int(path.read_text().split()[3].partition("/")[0]) - 1)
        time.sleep(SAMPLES_PAUSE_S)
    return total / SAMPLES
