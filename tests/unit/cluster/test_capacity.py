"""What a cluster has, what is free, and what its autoscaler may add; without a running Ray."""

import json
from types import SimpleNamespace

import pytest
import ray

from tests.unit.cluster.test_node_types import as_on_aws, write_bootstrap
from tests.unit.cluster.test_plans import MIB
from tlray.cluster import capacity, plans, ray_internals
from tlray.cluster.capacity import Node

HEAD = {"object_store_memory": 400.0 * MIB, "memory": 900.0 * MIB}
WORKER = {"CPU": 8.0, "GPU": 1.0, "object_store_memory": 1000.0 * MIB, "memory": 3000.0 * MIB}


@pytest.fixture
def a_ray(monkeypatch, tmp_path):
    """Makes Ray tell of some nodes, the driver's first, of what is free on them; `ray up` has said what may come."""
    monkeypatch.setenv("HOME", str(tmp_path))

    def tell(nodes, free=None, head=None, workers=(), max_workers=100):
        alive = {f"node{number}": node for number, node in enumerate(nodes)}
        listed = [{"NodeID": name, "Alive": True, "Resources": node, "Labels": {}} for name, node in alive.items()]
        listed.append({"NodeID": "gone", "Alive": False, "Resources": {"CPU": 64.0}, "Labels": {}})
        if head is not None:
            listed[0]["Labels"] = {"ray.io/node-group": "head"}
            write_bootstrap(tmp_path, {"head": (head, 0)} | dict(enumerate(workers)), max_workers)
        state = SimpleNamespace(
            available_resources_per_node=lambda: dict(zip(alive, nodes if free is None else free, strict=True)),
        )
        monkeypatch.setattr(ray_internals, "state", state)
        monkeypatch.setattr(ray, "nodes", lambda: listed)
        monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "node0"))

    return tell


def test_nodes_of_different_size(a_ray):
    """A small head, which offers no CPU, where the driver runs, a worker, and a node that has gone."""
    a_ray([HEAD, WORKER])
    found = capacity.measure()
    assert found.nodes == ((0, 0), (8, 1))
    assert (found.held_cpus, found.held_gpus, found.is_short) == (0, 0, False)
    assert found.object_store_bytes == 1400 * MIB
    assert found.smallest_object_store_bytes == 400 * MIB
    assert found.memory_bytes == 900 * MIB
    a_ray([{"object_store_memory": 400.0 * MIB}, WORKER])  # with `ray start --memory 0`
    assert capacity.measure().memory_bytes == float("inf")


def test_what_others_hold_is_no_part_of_what_is_free(a_ray):
    """Ray leaves out what is used up: the GPU of the second node. GPUs are waited for, where CPUs are shared."""
    a_ray([WORKER, WORKER], free=[WORKER, {"CPU": 2.65}])
    found = capacity.measure()
    assert sorted(found.nodes) == [(2.65, 1), (8, 1)]
    assert (found.num_cpus, found.num_gpus, found.is_short) == (16, 2, False)
    assert (found.held_cpus, found.held_gpus) == (pytest.approx(5.35), 1)
    assert (found.free_cpus, found.largest_node_cpus, found.task_cpus) == (10.65, 8, 1)


@pytest.mark.parametrize(
    ("free_cpus", "is_short", "nodes", "task_cpus"),
    [
        (2.0, False, ((2, 0),), 1),
        (1.65, False, ((1.65, 0),), 1),
        (0.6599999, False, ((0.6599999, 0),), 0.65),  # cut, so that Ray finds as much
        (2 - 1.49, False, ((2 - 1.49, 0),), 0.51),
        (0.5, True, ((2, 0),), 0.51),
        (None, True, ((2, 0),), 0.51),
    ],
)
def test_when_too_little_is_free(a_ray, free_cpus, is_short, nodes, task_cpus):
    """With less than a reading task and a model that waits need, the plans are for the least of an idle cluster."""
    a_ray([HEAD | {"CPU": 2.0}], free=[{} if free_cpus is None else {"CPU": free_cpus}])
    found = capacity.measure()
    assert (found.is_short, found.nodes, found.task_cpus) == (is_short, nodes, task_cpus)
    assert found.free_cpus >= 0.51


def test_nodes_that_may_come_are_free(a_ray):
    small, large = {"CPU": 4}, {"CPU": 8, "GPU": 1}
    cluster = {"head": {"CPU": 0}, "workers": [(small, 2), (large, 3)]}
    a_ray([HEAD], **cluster)
    nothing_up = capacity.measure()
    assert sorted(nothing_up.nodes) == [(0, 0), (4, 0), (4, 0), (8, 1), (8, 1), (8, 1)]
    assert (nothing_up.num_cpus, nothing_up.free_cpus, nothing_up.is_short) == (32, 32, False)
    # One of each is up, and nothing on either is free: there are others.
    a_ray([HEAD, HEAD | {"CPU": 4.0}, WORKER], free=[HEAD, {}, {}], **cluster)
    both_full = capacity.measure()
    assert sorted(both_full.nodes) == [(0, 0), (0, 0), (0, 1), (4, 0), (8, 1), (8, 1)]
    assert (both_full.num_cpus, both_full.free_cpus, both_full.is_short) == (32, 20, False)


def test_the_limit_of_all_workers_holds(a_ray):
    workers = [({"CPU": 16}, 10), ({"CPU": 8, "GPU": 1}, 2)]
    a_ray([HEAD], head={"CPU": 0}, workers=workers, max_workers=3)
    found = capacity.measure()
    assert (found.num_cpus, found.num_gpus) == (32, 2)
    assert sorted(found.nodes) == [(0, 0), (8, 1), (8, 1), (16, 0)]
    # What is there is there.
    a_ray([HEAD | {"CPU": 24.0}], head={"CPU": 0}, workers=workers, max_workers=1)
    assert (capacity.measure().num_cpus, capacity.measure().num_gpus) == (24, 1)


def test_a_head_alone_is_one_node(a_ray):
    a_ray([HEAD | {"CPU": 2.0}], head={"CPU": 2}, workers=[({"CPU": 8}, 0)])
    assert not capacity.measure().has_many_nodes
    a_ray([HEAD | {"CPU": 2.0}], head={"CPU": 2}, workers=[({}, 1)])  # nobody knows what the worker offers
    found = capacity.measure()
    assert (found.has_many_nodes, found.nodes) == (True, ((2, 0),))


def test_a_job_on_the_documented_cluster_is_planned_before_any_worker_is_up(a_ray, tmp_path):
    """cluster.yaml: the head offers no CPU; 4 workers of 8 CPUs and 4 of 8 CPUs and a GPU come when they are asked."""
    a_ray([HEAD], head={"CPU": 0})
    (tmp_path / "ray_bootstrap_config.yaml").write_text(json.dumps(as_on_aws("cluster.yaml")))
    found = capacity.measure()
    assert (found.num_cpus, found.num_gpus, found.has_many_nodes, found.is_short) == (64, 4, True, False)
    assert found.nodes == (Node(0, 0), *[Node(8, 1)] * 4, *[Node(8, 0)] * 4)
    # 2 CPUs beside each GPU; the other 56 read and decode.
    training = plans.plan_training(found, num_workers=4, use_gpu=True)
    assert (training.cpus_per_worker, training.gpus_per_worker, training.share.num_cpus) == (2, 1, 14)
    # Three quarters of 64 are 12 predictors of 4 CPUs.
    scoring = plans.plan_scoring(found, use_gpu=False)
    assert (scoring.max_actors, scoring.cpus_per_actor) == (12, 4)


def test_the_memory_of_nodes_that_a_training_makes_come_is_planned_with(a_ray):
    """A head of 400 MiB at rest; Ray makes 30 % of 4,000 MiB an object store: 1,200 on each of 3 nodes."""
    head, worker = HEAD | {"CPU": 2.0}, {"CPU": 8, "memory": 4000 * MIB}
    a_ray([head], head={"CPU": 2}, workers=[(worker, 3)])
    at_rest = capacity.measure()
    assert at_rest.object_store_bytes == 400 * MIB
    assert at_rest.smallest_object_store_bytes == 400 * MIB
    assert at_rest.memory_bytes == 900 * MIB  # the driver is here
    # 2 workers take two nodes, their streams a third, of 400 MiB at least: a quarter of 1,200 for both.
    plan = plans.plan_training(at_rest, num_workers=2, use_gpu=False)
    assert (plan.cpus_per_worker, plan.share.object_store_bytes) == (8, 150 * MIB)
    # A worker and its stream: two nodes, a quarter of 800.
    assert plans.plan_training(at_rest, num_workers=1, use_gpu=False).share.object_store_bytes == 200 * MIB
    # One worker is up, and tells what all of its type will have.
    a_ray([head, {"CPU": 8.0, "object_store_memory": 1500.0 * MIB}], head={"CPU": 2}, workers=[(worker, 3)])
    one_up = capacity.measure()
    assert (one_up.object_store_bytes, one_up.smallest_object_store_bytes) == (1900 * MIB, 400 * MIB)
    # What is there is more than three nodes have for certain.
    plan = plans.plan_training(one_up, num_workers=2, use_gpu=False)
    assert plan.share.object_store_bytes == 1900 * MIB / 8


@pytest.mark.parametrize("max_workers", [3, 30])
def test_nodes_that_no_worker_needs_bring_no_memory(a_ray, max_workers):
    """However many nodes there may be, one worker and its stream need two, of 400 MiB at least."""
    a_ray([HEAD], head={"CPU": 0}, workers=[({"CPU": 8, "memory": 4000 * MIB}, max_workers)])
    found = capacity.measure()
    plan = plans.plan_training(found, num_workers=1, use_gpu=False)
    assert (plan.cpus_per_worker, plan.share.object_store_bytes) == (8, 200 * MIB)


@pytest.mark.parametrize(
    ("worker", "smallest"),
    [
        ({"CPU": 8, "memory": 1000 * MIB}, 300),
        ({"CPU": 8, "memory": 1000 * MIB, "object_store_memory": 350 * MIB}, 350),
        ({"CPU": 8}, 400),  # nothing tells
    ],
)
def test_the_smallest_object_store_may_be_of_a_node_that_comes(a_ray, worker, smallest):
    a_ray([HEAD], head={"CPU": 0}, workers=[(worker, 2)])
    found = capacity.measure()
    assert (found.object_store_bytes, found.smallest_object_store_bytes) == (400 * MIB, smallest * MIB)


def test_the_object_store_of_a_large_node_is_no_larger_than_ray_makes_it(a_ray):
    a_ray([HEAD | {"object_store_memory": 300e9}], head={"CPU": 0}, workers=[({"CPU": 64, "memory": 2000e9}, 1)])
    assert capacity.measure().smallest_object_store_bytes == 200e9


@pytest.mark.parametrize(
    ("num_gpus", "line"),
    [
        (0, ""),
        (1, ""),
        (
            2,
            "Waiting: 1 of the cluster's 2 GPUs are in use by other jobs or an endpoint. This command starts when 2 "
            "are free.\n",
        ),
    ],
)
def test_what_has_to_be_waited_for_is_told(a_ray, capsys, num_gpus, line):
    a_ray([WORKER, WORKER], free=[WORKER, {"CPU": 8.0}])
    capacity.tell_shortage(capacity.measure(), num_gpus=num_gpus, quiet=False)
    assert capsys.readouterr().out == line
    capacity.tell_shortage(capacity.measure(), num_gpus=num_gpus, quiet=True)
    assert capsys.readouterr().out == ""


def test_a_shortage_of_cpus_is_told_with_the_sums(a_ray, capsys):
    a_ray([HEAD | {"CPU": 2.0}], free=[{"CPU": 0.2}])
    capacity.tell_shortage(capacity.measure(), quiet=False)
    assert capsys.readouterr().out == (
        "Waiting: 1.8 of the cluster's 2 CPUs are in use by other jobs or an endpoint. This command starts when 0.51 "
        "on one node are free.\n"
    )
