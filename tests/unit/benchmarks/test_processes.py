"""What the benchmarks know of the processes that they start."""

import os
import subprocess
import sys

from benchmarks import processes


def test_a_family_has_the_children_of_children_and_what_has_ended_is_nobody():
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # both run
        members = processes.family(process.pid)
        known = processes.identities(members)
        assert len(members) == len(known) == 2
        assert members < processes.family(os.getpid())
        assert processes.memory_bytes(process.pid)[0] > 2**20
        process.communicate(b"\n")
    assert not known & processes.identities(members)
