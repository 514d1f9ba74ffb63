"""Divides the free resources of a cluster between models and the Ray Data tasks that read their images."""

import math
from dataclasses import dataclass
from typing import Any

import ray.data

from tlray.cluster.capacity import MIN_WORKER_CPUS, Capacity
from tlray.data.stream import TASK_CPUS, Share
from tlray.errors import ConfigError

MIN_OBJECT_STORE_BYTES = 64 * 2**20
"""Minimum of object-store memory, in bytes, that each training worker's stream may use."""

_KEEP = "keep a worker up if an autoscaler adds them (`min_workers: 1`, with KubeRay `minReplicas: 1`)"
"""Remedy where the workers that may come are not known, see `tlray.cluster.node_types`. The end of a sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainPlan:
    """Resources for a training run: those of its workers, and those of the streams that feed them.

    Attributes:
        cpus_per_worker: CPUs that each training worker asks for.
        gpus_per_worker: GPUs that each training worker asks for, 1 or 0.
        share: Resources that the stream of each rank may use.
    """

    cpus_per_worker: float
    gpus_per_worker: int
    share: Share


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorePlan:
    """Resources for the pool of predictors (Ray actors) that scores images.

    Attributes:
        max_actors: Maximum number of predictors in the pool.
        cpus_per_actor: CPUs that each predictor asks for.
        gpus_per_actor: GPUs that each predictor asks for, 1 or 0.
    """

    max_actors: int
    cpus_per_actor: float
    gpus_per_actor: int

    @property
    def num_threads(self) -> int | None:
        """Threads that each predictor's model uses; None for all of its node's, with one predictor or on GPUs."""
        return max(1, int(self.cpus_per_actor)) if self.max_actors > 1 and not self.gpus_per_actor else None

    def pool(self) -> dict[str, Any]:
        """Returns options of `ray.data.Dataset.map_batches` for a pool of 1 to `max_actors` predictors."""
        return {
            "num_cpus": self.cpus_per_actor,
            "num_gpus": self.gpus_per_actor or None,
            "compute": ray.data.ActorPoolStrategy(min_size=1, max_size=self.max_actors),
        }


def plan_training(available: Capacity, *, num_workers: int, use_gpu: bool) -> TrainPlan:
    """Divides the free resources of a cluster between training workers and Ray Data.

    Ray Data keeps at least one CPU, or half of the free ones if these are fewer than 2. Workers that took every CPU
    would starve the streams that feed them, and the run would hang without a message.

    Args:
        available: Resources of the cluster.
        num_workers: Number of training workers.
        use_gpu: Give each worker a GPU.

    Raises:
        ConfigError: The cluster cannot give what is asked for; the message lists what is needed and what there is.
    """
    held = f" ({available.held_cpus:.3g} of the CPUs in use by other jobs)" if available.held_cpus else ""
    has = f"The cluster has {available.num_cpus:g} CPUs and {available.num_gpus:g} GPUs{held}"
    if available.num_cpus < 2:
        raise ConfigError(
            f"{has}; training needs 2 CPUs, one of them for Ray Data. Start Ray with more "
            f"(`ray start --head --num-cpus=2`), or {_KEEP}."
        )
    if use_gpu and available.num_gpus < num_workers:
        without = f"training without --use-gpu, or {_KEEP}"
        remedy = f"--num-workers {available.num_gpus:g}" if available.num_gpus >= 1 else without
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
    # Whole CPUs if there is at least one for each worker, hundredths otherwise. With a GPU a worker gets 2 at most, so
    # that the others decode images.
    each = min(math.floor(each), 2 if use_gpu else math.inf) if each >= 1 else math.floor(each * 100) / 100
    # The CPUs left over on each node may be too few for the last workers, and the run would wait for them for ever.
    while _num_fitting(available, each, use_gpu=use_gpu) < num_workers:
        if each < MIN_WORKER_CPUS:
            raise ConfigError(f"--num-workers {num_workers} do not fit onto the nodes. {has}. Try fewer.")
        each = each - 1 if each > 1 else each / 2
    data_cpus = max(MIN_WORKER_CPUS, free_cpus - each * num_workers)
    # Images that wait for training may use a quarter of the object store; the rest is for other jobs and Ray itself.
    num_nodes = _num_nodes_needed(available, each, num_workers=num_workers, use_gpu=use_gpu)
    # The autoscaler adds no node for object-store memory, so only as many nodes count as the workers and streams need.
    certain_bytes = max(available.object_store_bytes, available.smallest_object_store_bytes * num_nodes)
    store_bytes = max(MIN_OBJECT_STORE_BYTES, certain_bytes // 4 // num_workers)
    share = Share(num_cpus=data_cpus / num_workers, object_store_bytes=store_bytes)
    return TrainPlan(cpus_per_worker=float(each), gpus_per_worker=int(use_gpu), share=share)


def _num_fitting(available: Capacity, cpus_per_worker: float, *, use_gpu: bool) -> int:
    """Returns how many workers fit onto the nodes; a worker cannot be divided between nodes."""
    return sum(_num_fitting_by_node(available, cpus_per_worker, use_gpu=use_gpu))


def _num_fitting_by_node(available: Capacity, cpus_per_worker: float, *, use_gpu: bool) -> list[int]:
    by_cpus = [math.floor(node.num_cpus / cpus_per_worker + 1e-9) for node in available.nodes]
    by_gpus = [math.floor(node.num_gpus) for node in available.nodes]
    return list(map(min, by_cpus, by_gpus)) if use_gpu else by_cpus


def _num_nodes_needed(available: Capacity, cpus_per_worker: float, *, num_workers: int, use_gpu: bool) -> int:
    """Returns the number of nodes needed for all workers and one reading task for each; at most all nodes."""
    num_fitting = _num_fitting_by_node(available, cpus_per_worker, use_gpu=use_gpu)
    cpus_needed = num_workers * (cpus_per_worker + TASK_CPUS)
    room, num_cpus = 0, 0.0
    nodes = sorted(zip(num_fitting, (node.num_cpus for node in available.nodes), strict=True), reverse=True)
    for number, (count, node_cpus) in enumerate(nodes, start=1):
        room, num_cpus = room + count, num_cpus + node_cpus
        if room >= num_workers and num_cpus >= cpus_needed - 1e-9:
            return number
    return len(nodes)


def plan_scoring(available: Capacity, *, use_gpu: bool) -> ScorePlan:
    """Divides the free resources of a cluster between predictors and Ray Data.

    CPUs in use by other jobs and deployments are left out. Predictors do not get all of the free CPUs: without CPUs for
    the tasks that read images they would have nothing to do.

    Args:
        available: Resources of the cluster.
        use_gpu: Predict on GPUs.

    Raises:
        ConfigError: The cluster has too few CPUs, or no GPU for `use_gpu`.
    """
    if available.num_cpus < 2:
        raise ConfigError(
            f"The cluster has {available.num_cpus:g} CPUs; scoring needs 2, one of them for Ray Data. Start Ray with "
            f"more (`ray start --head --num-cpus=2`), or {_KEEP}."
        )
    num_cpus = available.free_cpus
    # A small predictor gets the CPUs that a reading task leaves over, at most 1. It asks for a hundredth less, because
    # Ray Data fuses two operators that ask for the same.
    largest = min(num_cpus, available.largest_node_cpus)
    small = min(1.0, max(MIN_WORKER_CPUS, math.floor((largest - TASK_CPUS) * 100 - 1 + 1e-9) / 100))
    if use_gpu:
        if available.num_gpus < 1:
            raise ConfigError(f"--use-gpu: the cluster has no GPU. Score without --use-gpu, or {_KEEP}.")
        max_actors = max(1, min(int(available.num_gpus - available.held_gpus), int(num_cpus) - 1))
        max_actors = max(1, min(max_actors, _num_filling(available, small) - 1))
        return ScorePlan(max_actors=max_actors, cpus_per_actor=small, gpus_per_actor=1)
    if num_cpus < 2:
        return ScorePlan(max_actors=1, cpus_per_actor=small, gpus_per_actor=0)
    # InceptionV3 uses up to four threads well at batches of 32; beyond that more actors scale better than more threads.
    cpus_per_actor = min(4.0, float(num_cpus // 2), available.largest_node_cpus)
    max_actors = min(int(num_cpus * 3 / 4 // cpus_per_actor), _num_filling(available, cpus_per_actor) - 1)
    if max_actors < 1:  # a predictor of this size would leave no node with room for a reading task
        return ScorePlan(max_actors=1, cpus_per_actor=small, gpus_per_actor=0)
    return ScorePlan(max_actors=max_actors, cpus_per_actor=cpus_per_actor, gpus_per_actor=0)


def _num_filling(available: Capacity, cpus_per_actor: float) -> int:
    """Returns the least number of actors that can leave no node with enough free CPUs for a reading task."""
    rooms = [max(0.0, node.num_cpus - TASK_CPUS + 1e-9) for node in available.nodes]
    return sum(math.floor(room / cpus_per_actor) + 1 for room in rooms if room)
