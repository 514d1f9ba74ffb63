"""How a command and its data share a cluster: the plans by hand, and the refusals. Needs no running Ray."""

import dataclasses
import re

import pytest

from tlray.cluster import plans
from tlray.cluster.capacity import Capacity, Node
from tlray.cluster.plans import ScorePlan
from tlray.errors import ConfigError

MIB = 2**20


def make_capacity(
    num_cpus: float = 2,
    num_gpus: float = 0,
    *,
    store: int = 8 * 2**30,
    largest: float | None = None,
    has_many_nodes: bool = False,
    held_cpus: float = 0,
    is_short: bool = False,
) -> Capacity:
    """A cluster of like nodes; what is held is so on the first one."""
    sizes = [(num_cpus, num_gpus)] if largest is None else [(largest, num_gpus)] * int(num_cpus // largest)
    left = [(sizes[0][0] - held_cpus, sizes[0][1]), *sizes[1:]]
    return Capacity(
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        nodes=tuple(Node(*each) for each in (sizes if is_short else left)),
        object_store_bytes=store,
        smallest_object_store_bytes=store,
        memory_bytes=8 * 2**30,
        has_many_nodes=has_many_nodes,
        held_cpus=held_cpus,
        is_short=is_short,
    )


def test_nothing_asks_for_more_than_the_largest_node_has():
    # 4 nodes of 16 CPUs: a quarter is Ray Data's, but one worker cannot have the other 48.
    capacity = make_capacity(64, largest=16, has_many_nodes=True)
    assert plans.plan_training(capacity, num_workers=1, use_gpu=False).cpus_per_worker == 16
    assert plans.plan_training(capacity, num_workers=4, use_gpu=False).cpus_per_worker == 12
    # 3 nodes of 2 CPUs: half of all would be 3.
    assert plans.plan_scoring(make_capacity(6, largest=2), use_gpu=False).cpus_per_actor == 2


@pytest.mark.parametrize("node_cpus", [2, 4, 8, 16])
@pytest.mark.parametrize("num_nodes", [1, 2, 3, 5, 8])
def test_every_worker_fits_on_a_node(num_nodes, node_cpus):
    capacity = make_capacity(num_nodes * node_cpus, largest=node_cpus, has_many_nodes=True)
    for num_workers in range(1, num_nodes * node_cpus + 1):
        each = plans.plan_training(capacity, num_workers=num_workers, use_gpu=False).cpus_per_worker
        assert num_nodes * int(node_cpus / each + 1e-9) >= num_workers


def test_workers_go_where_the_gpus_are():
    # All 4 GPUs are on the node of 4 CPUs: 2 CPUs each would leave two workers without a place.
    capacity = dataclasses.replace(make_capacity(20, 4), nodes=(Node(16.0, 0.0), Node(4.0, 4.0)))
    assert plans.plan_training(capacity, num_workers=4, use_gpu=True).cpus_per_worker == 1
    apart = dataclasses.replace(capacity, nodes=(Node(16.0, 3.0), Node(0.0, 1.0)))
    with pytest.raises(ConfigError, match="--num-workers 4 do not fit onto the nodes"):
        plans.plan_training(apart, num_workers=4, use_gpu=True)


def test_workers_are_made_smaller_until_they_fit():
    # 8 nodes of 8: (64 - 16) // 9 = 5 each, of which a node holds one; of 4 it holds two.
    capacity = make_capacity(64, largest=8, has_many_nodes=True)
    assert plans.plan_training(capacity, num_workers=9, use_gpu=False).cpus_per_worker == 4


@pytest.mark.parametrize(
    ("cluster_size", "num_workers", "use_gpu", "cpus_per_worker", "data_cpus_per_rank"),
    [
        # A quarter of the CPUs, at least one, is Ray Data's; the rest is shared, in whole CPUs from one on.
        ((2, 0), 1, False, 1, 1),  # 2 - 1 = 1
        ((2, 0), 2, False, 0.5, 0.5),  # (2 - 1) / 2; 1 left for two ranks
        ((3, 0), 2, False, 1, 0.5),  # (3 - 1) / 2; 1 left
        ((3, 0), 3, False, 0.66, 0.34),  # (3 - 1) / 3 = 0.666, cut to hundredths; 3 - 1.98 = 1.02 left
        ((8, 0), 1, False, 6, 2),  # 8 - 8 // 4
        ((8, 0), 2, False, 3, 1),
        ((8, 0), 4, False, 1, 1),  # 6 / 4 = 1.5, a whole CPU each; 4 left
        ((8, 0), 8, False, 0.75, 0.25),
        ((9, 0), 2, False, 3, 1.5),  # (9 - 2) / 2 = 3.5; 3 left
        # Beside a GPU two CPUs do, the rest decodes images.
        ((32, 4), 4, True, 2, 6),  # 32 - 8 = 24, 6 each, at most 2; 24 left
        ((32, 4), 2, True, 2, 14),
        ((8, 4), 4, True, 1, 1),  # 6 / 4
        ((2, 1), 1, True, 1, 1),
    ],
)
def test_training_plan_by_hand(cluster_size, num_workers, use_gpu, cpus_per_worker, data_cpus_per_rank):
    plan = plans.plan_training(make_capacity(*cluster_size), num_workers=num_workers, use_gpu=use_gpu)
    assert plan.cpus_per_worker == cpus_per_worker
    assert plan.gpus_per_worker == int(use_gpu)
    assert plan.share.num_cpus == pytest.approx(data_cpus_per_rank)


@pytest.mark.parametrize(
    ("store", "num_workers", "expected"),
    [
        (4096 * MIB, 1, 1024 * MIB),  # a quarter
        (4096 * MIB, 4, 256 * MIB),  # a quarter, for four ranks
        (400 * MIB, 2, 64 * MIB),  # 400 / 4 / 2 = 50: the least is 64
        (0, 1, 64 * MIB),
    ],
)
def test_share_of_the_object_store(store, num_workers, expected):
    plan = plans.plan_training(make_capacity(8, store=store), num_workers=num_workers, use_gpu=False)
    assert plan.share.object_store_bytes == expected


def test_a_cpu_is_always_left_for_data():
    for num_cpus in [*range(2, 40), 2.5, 63.9, 64, 100, 1000]:
        for num_gpus in (0, num_cpus):
            capacity = make_capacity(num_cpus, num_gpus)
            for num_workers in range(1, min(int(num_cpus), 64) + 1):
                plan = plans.plan_training(capacity, num_workers=num_workers, use_gpu=num_gpus > 0)
                assert plan.cpus_per_worker > 0
                assert plan.share.num_cpus > 0
                assert num_cpus - plan.cpus_per_worker * num_workers >= 1
                used = (plan.cpus_per_worker + plan.share.num_cpus) * num_workers
                assert used == pytest.approx(num_cpus)
            scoring = plans.plan_scoring(capacity, use_gpu=num_gpus > 0)
            assert scoring.max_actors >= 1
            assert num_cpus - scoring.max_actors * scoring.cpus_per_actor >= 1


@pytest.mark.parametrize(
    ("num_cpus", "held_cpus", "num_workers", "cpus_per_worker", "data_cpus_per_rank"),
    [
        # Of less than two free CPUs a half is Ray Data's.
        (2, 0.35, 1, 0.82, 0.83),  # 1.65 / 2, cut to hundredths
        (2, 0.35, 2, 0.41, 0.415),  # (1.65 - 0.825) / 2 = 0.4125
        (2, 1.0, 1, 0.5, 0.5),
        (2, 1.9, 1, 0.25, 0.26),  # short: planned with 0.51
        (2, 2.0, 2, 0.12, 0.135),
        (16, 4.0, 3, 3, 1),  # 12 - 3 = 9
        (16, 15.4, 8, 0.03, 0.045),  # 0.6 - 0.3; 0.0375 each
    ],
)
def test_training_beside_others(num_cpus, held_cpus, num_workers, cpus_per_worker, data_cpus_per_rank):
    capacity = make_capacity(num_cpus, held_cpus=held_cpus, is_short=num_cpus - held_cpus < 0.51)
    plan = plans.plan_training(capacity, num_workers=num_workers, use_gpu=False)
    assert plan.cpus_per_worker == cpus_per_worker
    assert plan.share.num_cpus == pytest.approx(data_cpus_per_rank)
    assert (plan.cpus_per_worker + plan.share.num_cpus) * num_workers <= max(num_cpus - held_cpus, 0.51) + 1e-9


def test_a_refusal_says_what_others_hold():
    message = "The cluster has 2 CPUs and 0 GPUs (0.35 of the CPUs in use by other jobs). Try --num-workers 2."
    with pytest.raises(ConfigError, match=re.escape(message)):
        plans.plan_training(make_capacity(2, held_cpus=0.35), num_workers=3, use_gpu=False)


@pytest.mark.parametrize(
    ("capacity", "num_workers", "use_gpu", "message"),
    [
        (
            (1, 0), 1, False,
            "The cluster has 1 CPUs and 0 GPUs; training needs 2 CPUs, one of them for Ray Data. Start Ray with more "
            "(`ray start --head --num-cpus=2`), or keep a worker up if an autoscaler adds them (`min_workers: 1`, with "
            "KubeRay `minReplicas: 1`).",
        ),
        ((0, 0), 1, False, "The cluster has 0 CPUs and 0 GPUs; training needs 2 CPUs"),
        ((1.9, 4), 1, True, "The cluster has 1.9 CPUs and 4 GPUs; training needs 2 CPUs"),
        (
            (2, 0), 3, False,
            "--num-workers 3 asks for more processes than CPUs. The cluster has 2 CPUs and 0 GPUs. "
            "Try --num-workers 2.",
        ),
        (
            (16, 2), 4, True,
            "--use-gpu with --num-workers 4 asks for 4 GPUs. The cluster has 16 CPUs and 2 GPUs. Try --num-workers 2.",
        ),
        (
            (8, 0), 1, True,
            "--use-gpu with --num-workers 1 asks for 1 GPUs. The cluster has 8 CPUs and 0 GPUs. "
            "Try training without --use-gpu, or keep a worker up if an autoscaler adds them (`min_workers: 1`, with "
            "KubeRay `minReplicas: 1`).",
        ),
        ((2, 4), 3, True, "--num-workers 3 asks for more processes than CPUs. The cluster has 2 CPUs and 4 GPUs."),
    ],
)  # fmt: skip
def test_training_refusals_with_the_sums(capacity, num_workers, use_gpu, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        plans.plan_training(make_capacity(*capacity), num_workers=num_workers, use_gpu=use_gpu)


@pytest.mark.parametrize(
    ("num_cpus", "num_gpus", "use_gpu", "expected"),
    [
        (2, 0, False, (1, 1.0, 0)),  # half of the CPUs, of which three quarters hold one
        (3, 0, False, (2, 1.0, 0)),  # 3 // 2 = 1 each; 2.25 / 1
        (4, 0, False, (1, 2.0, 0)),  # 3 / 2
        (8, 0, False, (1, 4.0, 0)),  # 6 / 4
        (16, 0, False, (3, 4.0, 0)),  # 12 / 4
        (64, 0, False, (12, 4.0, 0)),  # never more than 4 CPUs each
        (32, 4, True, (4, 1.0, 1)),
        (32, 4, False, (6, 4.0, 0)),
        (2, 1, True, (1, 1.0, 1)),
        (4, 8, True, (3, 1.0, 1)),  # a CPU each, and one for Ray Data
    ],
)
def test_scoring_plan_by_hand(num_cpus, num_gpus, use_gpu, expected):
    max_actors, cpus_per_actor, gpus_per_actor = expected
    assert plans.plan_scoring(make_capacity(num_cpus, num_gpus), use_gpu=use_gpu) == ScorePlan(
        max_actors=max_actors, cpus_per_actor=cpus_per_actor, gpus_per_actor=gpus_per_actor
    )


@pytest.mark.parametrize(
    ("capacity", "use_gpu", "message"),
    [
        (
            (1, 0), False,
            "The cluster has 1 CPUs; scoring needs 2, one of them for Ray Data. Start Ray with more (`ray start --head "
            "--num-cpus=2`), or keep a worker up if an autoscaler adds them (`min_workers: 1`, with KubeRay "
            "`minReplicas: 1`).",
        ),
        (
            (8, 0), True,
            "--use-gpu: the cluster has no GPU. Score without --use-gpu, or keep a worker up if an autoscaler adds "
            "them (`min_workers: 1`, with KubeRay `minReplicas: 1`).",
        ),
    ],
)  # fmt: skip
def test_scoring_refusals(capacity, use_gpu, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        plans.plan_scoring(make_capacity(*capacity), use_gpu=use_gpu)


@pytest.mark.parametrize(
    ("cluster_size", "held_cpus", "use_gpu", "expected"),
    [
        ((2, 0), 0.35, False, (1, 1.0)),  # 1.65 left, 0.5 to read with, at most a whole one for the model
        ((2, 0), 0.6, False, (1, 0.89)),  # 1.4 - 0.5, less a hundredth
        ((2, 0), 1.0, False, (1, 0.49)),  # another share than a reading task's
        ((2, 0), 1.8, False, (1, 0.01)),  # none left: it waits for a reading task, and takes next to nothing itself
        ((16, 0), 0, False, (3, 4.0)),  # 12 of 16
        ((16, 0), 5, False, (2, 4.0)),  # 8 of 11; three would take 12 of them
        ((16, 0), 12.5, False, (2, 1.0)),  # 2 of 3.5
        ((8, 4), 0, True, (4, 1.0)),
        ((8, 4), 5, True, (2, 1.0)),  # one of 3 is left to read with
        ((8, 4), 7, True, (1, 0.49)),
    ],
)
def test_scoring_leaves_a_cpu_to_read_with_beside_others(cluster_size, held_cpus, use_gpu, expected):
    capacity = make_capacity(*cluster_size, held_cpus=held_cpus, is_short=cluster_size[0] - held_cpus < 0.51)
    plan = plans.plan_scoring(capacity, use_gpu=use_gpu)
    assert (plan.max_actors, plan.cpus_per_actor) == expected
    assert plan.gpus_per_actor == int(use_gpu)


@pytest.mark.parametrize(
    ("plan", "num_threads", "num_gpus"),
    [
        (ScorePlan(max_actors=1, cpus_per_actor=4.0, gpus_per_actor=0), None, None),  # the only one: all cores
        (ScorePlan(max_actors=3, cpus_per_actor=4.0, gpus_per_actor=0), 4, None),
        (ScorePlan(max_actors=3, cpus_per_actor=1.0, gpus_per_actor=1), None, 1),
        (ScorePlan(max_actors=2, cpus_per_actor=0.7, gpus_per_actor=0), 1, None),  # 0 would be all
    ],
)
def test_the_pool_of_a_plan(plan, num_threads, num_gpus):
    pool = plan.pool()
    assert plan.num_threads == num_threads
    assert (pool["num_cpus"], pool["num_gpus"]) == (plan.cpus_per_actor, num_gpus)
    assert (pool["compute"].min_size, pool["compute"].max_size) == (1, plan.max_actors)


@pytest.mark.parametrize(
    ("free_cpus", "expected"),
    [
        ((2.0, 0.4, 0.4), (1, 1.0)),  # two actors of 1 CPU would fill the only node on which a task can read
        ((1.0, 0.4, 0.4, 0.4), (1, 0.49)),
        ((1.0, 0.4, 0.4), (1, 0.49)),
        ((0.9, 0.9, 0.9), (2, 0.9)),
    ],
)
def test_free_cpus_in_pieces_leave_room_for_a_reading_task(free_cpus, expected):
    num_cpus = sum(free_cpus)
    held = 4.0 * len(free_cpus) - num_cpus
    capacity = dataclasses.replace(
        make_capacity(4.0 * len(free_cpus), held_cpus=held), nodes=tuple(Node(cpus, 0.0) for cpus in free_cpus)
    )
    plan = plans.plan_scoring(capacity, use_gpu=False)
    assert (plan.max_actors, plan.cpus_per_actor) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("nodes", "cpus_per_worker", "num_workers", "use_gpu", "expected"),
    [
        (((8, 0),) * 5, 3, 2, False, 1),  # 2 * 3.5 = 7 of 8
        (((8, 0),) * 5, 4, 2, False, 2),  # both on one, their streams on another
        (((8, 0),) * 5, 5, 3, False, 3),  # one on each, the streams beside them
        (((8, 0), (2, 0), (8, 0)), 8, 2, False, 3),
        (((16, 0), (4, 1), (4, 1)), 2, 2, True, 2),  # where the GPUs are
        (((16, 0), (4, 1), (4, 1)), 4, 2, True, 3),
        (((2, 0),), 1.9, 1, False, 1),  # the streams wait: there is no other node
    ],
)
def test_nodes_that_a_training_needs(nodes, cpus_per_worker, num_workers, use_gpu, expected):
    """The fewest nodes that hold the workers, each whole on one, and half a CPU more for each of them."""
    available = dataclasses.replace(make_capacity(), nodes=tuple(Node(*node) for node in nodes))
    found = plans._num_nodes_needed(available, cpus_per_worker, num_workers=num_workers, use_gpu=use_gpu)
    assert found == expected
