"""The processes below one, and what they take of the machine. Linux only; elsewhere there are none."""

import os
from collections.abc import Iterable
from pathlib import Path


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


def cpu_s(pid: int) -> float:
    """Returns the processor time that a process and all below it have taken, without those that have ended."""
    ticks = sum(int(fields[11]) + int(fields[12]) for each in family(pid) if (fields := _stat(each)))
    return ticks / os.sysconf("SC_CLK_TCK")
