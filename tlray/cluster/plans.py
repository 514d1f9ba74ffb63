"""How a command and its data share what is free of a cluster."""

import math
from dataclasses import dataclass
from typing import Any

import ray.data

from tlray.cluster.connection import MIN_WORKER_CPUS, Capacity
from tlray.data.stream import TASK_CPUS, Share
from tlray.errors import ConfigError

MIN_OBJECT_STORE_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainPlan:
    """How training and its data share a cluster.

    Attributes:
        cpus_per_worker: CPUs that each training worker asks for.
        gpus_per_worker: 1 or 0.
        share: What each rank's stream may use.
    """

    cpus_per_worker: float
    gpus_per_worker: int
    share: Share


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorePlan:
    """How the model and its data share a cluster.

    Attributes:
        max_actors: The pool of predictors grows up to this many.
        cpus_per_actor: CPUs that each asks for, and threads that it uses at least.
        gpus_per_actor: 1 or 0.
    """

    max_actors: int
    cpus_per_actor: float
    gpus_per_actor: int

    @property
    def num_threads(self) -> int | None:
        """Threads that each actor's model uses; None: all of its node's, which an only one on CPUs has to itself."""
        return max(1, int(self.cpus_per_actor)) if self.max_actors > 1 and not self.gpus_per_actor else None

    def pool(self) -> dict[str, Any]:
        """Returns the options of `ray.data.Dataset.map_batches` for a pool that grows and shrinks."""
        return {
            "num_cpus": self.cpus_per_actor,
            "num_gpus": self.gpus_per_actor or None,
            "compute": ray.data.ActorPoolStrategy(min_size=1, max_size=self.max_actors),
        }


def plan_training(available: Capacity, *, num_workers: int, use_gpu: bool) -> TrainPlan:
    """Shares what is free of a cluster between training workers and Ray Data: this keeps a CPU, or half of less than 2.

    Workers that took every CPU would starve the streams that feed them, and the run would hang without a word.

    Raises:
        ConfigError: The cluster cannot give what is asked for, with the sums.
    """
    held = f" ({available.held_cpus:.3g} of the CPUs in use by other jobs)" if available.held_cpus else ""
    has = f"The cluster has {available.num_cpus:g} CPUs and {available.num_gpus:g} GPUs{held}"
    if available.num_cpus < 2:
        raise ConfigError(
            f"{has}; training needs 2 CPUs, one of them for Ray Data. Start Ray with more: "
            "`ray start --head --num-cpus=2`."
        )
    if use_gpu and available.num_gpus < num_workers:
        remedy = f"--num-workers {available.num_gpus:g}" if available.num_gpus >= 1 else "training without --use-gpu"
        raise ConfigError(
            f"--use-gpu with --num-workers {num_workers} asks for {num_workers} GPUs. {has}. Try {remedy}."
        )
    if num_workers > available.num_cpus:
        raise ConfigError(
            f"--num-workers {num_workers} asks for more processes than CPUs. {has}. "
            f"Try --num-workers {int(available.num_cpus)}."
        )
    free_cpus = available.free_cpus
    reserved = max(min(1.0, free_cpus / 2), math.floor(free_cpus / 4))
    each = max(MIN_WORKER_CPUS, min((free_cpus - reserved) / num_workers, available.largest_node_cpus))
    # Whole CPUs where there are enough (2 beside a GPU: the rest decodes images), hundredths where there are not.
    each = min(math.floor(each), 2 if use_gpu else math.inf) if each >= 1 else math.floor(each * 100) / 100
    # What is left over on single nodes may be too little for the last workers, which would be waited for without end.
    while _num_fitting(available, each, use_gpu=use_gpu) < num_workers:
        if each < MIN_WORKER_CPUS:
            raise ConfigError(f"--num-workers {num_workers} do not fit onto the nodes. {has}. Try fewer.")
        each = each - 1 if each > 1 else each / 2
    data_cpus = max(MIN_WORKER_CPUS, free_cpus - each * num_workers)
    # A quarter of the store for what waits to be trained on: the rest is others' and Ray's own.
    num_nodes = _num_nodes_needed(available, each, num_workers=num_workers, use_gpu=use_gpu)
    # Memory makes no node come: those that may be added count as far as the workers and their streams need them.
    certain_bytes = max(available.object_store_bytes, available.smallest_object_store_bytes * num_nodes)
    store_bytes = max(MIN_OBJECT_STORE_BYTES, certain_bytes // 4 // num_workers)
    share = Share(num_cpus=data_cpus / num_workers, object_store_bytes=store_bytes)
    return TrainPlan(cpus_per_worker=float(each), gpus_per_worker=int(use_gpu), share=share)


def _num_fitting(available: Capacity, cpus_per_worker: float, *, use_gpu: bool) -> int:
    """Returns how many workers fit onto the nodes, each whole on one of them."""
    return sum(_num_fitting_by_node(available, cpus_per_worker, use_gpu=use_gpu))


def _num_fitting_by_node(available: Capacity, cpus_per_worker: float, *, use_gpu: bool) -> list[int]:
    fitting = [(math.floor(cpus / cpus_per_worker + 1e-9), gpus) for cpus, gpus in available.nodes]
    return [min(count, math.floor(gpus)) if use_gpu else count for count, gpus in fitting]


def _num_nodes_needed(available: Capacity, cpus_per_worker: float, *, num_workers: int, use_gpu: bool) -> int:
    """Returns the fewest nodes that have room for all workers and for one reading task beside each; at most all."""
    num_fitting = _num_fitting_by_node(available, cpus_per_worker, use_gpu=use_gpu)
    cpus_needed = num_workers * (cpus_per_worker + TASK_CPUS)
    room, num_cpus = 0, 0.0
    nodes = sorted(zip(num_fitting, (cpus for cpus, _ in available.nodes), strict=True), reverse=True)
    for number, (count, node_cpus) in enumerate(nodes, start=1):
        room, num_cpus = room + count, num_cpus + node_cpus
        if room >= num_workers and num_cpus >= cpus_needed - 1e-9:
            return number
    return len(nodes)


def plan_scoring(available: Capacity, *, use_gpu: bool) -> ScorePlan:
    """Shares what is free of a cluster between predictors and Ray Data.

    CPUs in use by other jobs and deployments are left out, and predictors do not get all of the others: with no CPU
    left for tasks that read images they would have nothing to do.

    Args:
        available: What the cluster has.
        use_gpu: Predict on GPUs.

    Raises:
        ConfigError: There is no GPU, or too few CPUs.
    """
    if available.num_cpus < 2:
        raise ConfigError(
            f"The cluster has {available.num_cpus:g} CPUs; scoring needs 2, one of them for Ray Data. Start Ray with "
            "more: `ray start --head --num-cpus=2`."
        )
    num_cpus = available.free_cpus
    # Where less than 2 are left, a reading task comes first, and what is over is the predictor's: but for a hundredth,
    # as Ray Data makes one of two that ask for the same.
    largest = min(num_cpus, available.largest_node_cpus)
    small = min(1.0, max(MIN_WORKER_CPUS, math.floor((largest - TASK_CPUS) * 100 - 1 + 1e-9) / 100))
    if use_gpu:
        if available.num_gpus < 1:
            raise ConfigError("--use-gpu: the cluster has no GPU. Score without --use-gpu.")
        max_actors = max(1, min(int(available.num_gpus - available.held_gpus), int(num_cpus) - 1))
        max_actors = max(1, min(max_actors, _num_filling(available, small) - 1))
        return ScorePlan(max_actors=max_actors, cpus_per_actor=small, gpus_per_actor=1)
    if num_cpus < 2:
        return ScorePlan(max_actors=1, cpus_per_actor=small, gpus_per_actor=0)
    # Four threads are what InceptionV3 uses well at batches of 32; more actors scale better than more threads.
    cpus_per_actor = min(4.0, float(num_cpus // 2), available.largest_node_cpus)
    max_actors = min(int(num_cpus * 3 / 4 // cpus_per_actor), _num_filling(available, cpus_per_actor) - 1)
    if max_actors < 1:  # the only node with room for it would have none left for a task that reads
        return ScorePlan(max_actors=1, cpus_per_actor=small, gpus_per_actor=0)
    return ScorePlan(max_actors=max_actors, cpus_per_actor=cpus_per_actor, gpus_per_actor=0)


def _num_filling(available: Capacity, cpus_per_actor: float) -> int:
    """Returns how many actors, wherever they are put, can leave no node with the CPUs of a task that reads."""
    rooms = [max(0.0, cpus - TASK_CPUS + 1e-9) for cpus, _ in available.nodes]
    return sum(math.floor(room / cpus_per_actor) + 1 for room in rooms if room)
