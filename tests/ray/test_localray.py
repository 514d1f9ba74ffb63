"""A Ray that a command starts for itself: who reaches it, and whom it reaches. In processes of their own."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.listening import addresses_of
from tests.processes import processes_with

MARK = "TLRAY_TEST_MARK"

PROGRAM = """
import json, sys
import ray
from tlray.cluster import connection
connection.connect(with_jobs=True)
context = ray.get_runtime_context()
print(json.dumps({"gcs": context.gcs_address, "session": context.get_session_name()}), flush=True)
sys.stdin.read()
ray.shutdown(wait_for_processes=True)
"""


@contextmanager
def started() -> Iterator[tuple[Mapping[str, Any], str]]:
    """Starts a Ray as a command does; gives what it says of itself, and the mark of its processes."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TLRAY_"))}
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env=environment | {MARK: mark, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline()), mark
    finally:
        process.communicate(timeout=120)


def test_two_of_them_listen_on_loopback_at_ports_of_their_own():
    with started() as (first, first_mark), started() as (second, second_mark):
        assert first["session"] != second["session"]
        assert first["gcs"] != second["gcs"]
        found = [addresses_of(processes_with(mark)) for mark in (first_mark, second_mark)]
    for addresses in found:
        assert len(addresses) > 5
        assert {host for host, _ in addresses} == {"127.0.0.1"}, addresses
    assert found[0].isdisjoint(found[1])
