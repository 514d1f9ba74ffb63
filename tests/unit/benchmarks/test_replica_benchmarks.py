"""What the benchmarks of replicas read from Serve's log, and how they judge it; no replica is started."""

import datetime
import json

import pytest

from benchmarks import many_replicas, replica_start
from benchmarks.replica_start import Start

MESSAGE = (
    "Replica(id='rt7bdmqb', deployment='Ingress', app='tlray') started successfully on node '4de2068a' after 2.5s "
    "(PID: 11683). Replica constructor, reconfigure method, and initial health check took 0.2s."
)
TIME = "2026-11-30 13:27:16,112"


@pytest.mark.parametrize(
    "line",
    [f"INFO {TIME} controller 8697 -- {MESSAGE}", json.dumps({"asctime": TIME, "message": MESSAGE, "process": 8697})],
    ids=["text", "json"],
)
def test_the_log_tells_when_a_replica_was_asked_for(line):
    log = f"INFO 2026-11-30 13:27:13,000 controller 8697 -- Adding 1 replica to Deployment\n{line}\n"
    found = replica_start.read_log(log)
    assert found is not None
    logged_s = datetime.datetime(2026, 11, 30, 13, 27, 16, 112_000).astimezone().timestamp()
    assert found[0] == pytest.approx(logged_s - 2.5)
    assert found[1:] == (2.5, 11683, 0.2)


def test_a_replica_that_has_not_started_is_waited_for():
    assert replica_start.read_log("INFO 2026-11-30 13:27:13,000 controller 8697 -- Adding 1 replica\n") is None


def start(answered_s: float, memory_mib: float) -> Start:
    return Start(answered_s=answered_s, ready_s=1.0, constructor_s=0.5, memory_mib=memory_mib)


def test_a_start_is_judged_by_medians_until_the_first_answer_and_only_beside_another_tree():
    this = [start(2.0, 390), start(2.5, 410), start(9.0, 5000)]
    other = [start(10.0, 2000), start(10.0, 2000), start(11.0, 2100)]
    found = replica_start.goals(this, other)
    assert [(goal.found, goal.is_met) for goal in found] == [("0.25", True), ("0.20", False)]  # 410 of 2000
    assert replica_start.goals(this, []) == []
    assert replica_start.rows("this", this)[-1] == "| this | median | 2.5 | 1.0 | 0.5 | 410 |"
    assert len(replica_start.rows("this", this[:1])) == 1


@pytest.mark.parametrize(
    ("num_replicas", "gib", "is_met"), [(8, 24.0, True), (8, 24.1, False), (2, 3.0, None), (2, 25.0, False)]
)
def test_fewer_replicas_than_are_wanted_do_not_meet_the_goal(num_replicas, gib, is_met):
    assert many_replicas.goal(num_replicas, gib).is_met is is_met
