"""Measures the resources of a Ray cluster and which of them other jobs use."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import ray

from tlray.cluster import node_types, ray_internals
from tlray.data.stream import TASK_CPUS

OBJECT_STORE_PART = 0.3
"""Default share of a node's memory that Ray uses as its object store (ray_constants.py,
DEFAULT_OBJECT_STORE_MEMORY_PROPORTION)."""

MAX_OBJECT_STORE_BYTES = 200e9
"""Default maximum size in bytes of a node's object store (DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES)."""

MIN_WORKER_CPUS = 0.01
"""Minimum number of CPUs planned for a training worker, a predictor, or the data tasks of a training run."""

MIN_FREE_CPUS = TASK_CPUS + MIN_WORKER_CPUS
"""Free CPUs that one node must have before a command can start: for one reading task and one model."""


class Node(NamedTuple):
    """CPUs and GPUs of one node of a Ray cluster: all of them, or those that are free."""

    num_cpus: float
    num_gpus: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """Resources of a Ray cluster, including those that its autoscaler may add.

    Attributes:
        num_cpus: CPUs of the cluster, or the autoscaler's maximum if that is larger.
        num_gpus: GPUs of the cluster, or the autoscaler's maximum if that is larger.
        nodes: Free CPUs and all GPUs of each node that the cluster has or may add; a worker must fit into one of them.
            All CPUs of each node if `is_short`.
        held_cpus: CPUs in use by other jobs and deployments.
        held_gpus: GPUs in use by other jobs and deployments.
        is_short: No node has `MIN_FREE_CPUS` free CPUs, so that a command has to wait and plans with the minimum.
        object_store_bytes: Total size of the object stores (shared memory for data in flight) of the present nodes.
        smallest_object_store_bytes: Size of the smallest object store of a node that is present or may be added.
            Larger data does not fit on every node.
        memory_bytes: Memory of this node besides its object store, for the driver; infinite if the node offers none to
            tasks.
        has_many_nodes: The cluster has, or may grow to, more than one node.
    """

    num_cpus: float
    num_gpus: float
    nodes: tuple[Node, ...]
    object_store_bytes: int
    smallest_object_store_bytes: int
    memory_bytes: float
    has_many_nodes: bool
    held_cpus: float = 0.0
    held_gpus: float = 0.0
    is_short: bool = False

    @property
    def free_cpus(self) -> float:
        """Number of CPUs that a command can plan with, rounded down to hundredths."""
        return MIN_FREE_CPUS if self.is_short else _to_hundredths(self.num_cpus - self.held_cpus)

    @property
    def largest_node_cpus(self) -> float:
        """Largest number of CPUs in `nodes`, rounded down to hundredths: the most that one worker can have."""
        return _to_hundredths(max((node.num_cpus for node in self.nodes), default=0.0))

    @property
    def task_cpus(self) -> float:
        """CPUs that a task asks for if it keeps one CPU busy: 1, or less if no node has that."""
        return MIN_FREE_CPUS if self.is_short else min(1.0, self.largest_node_cpus)


def _to_hundredths(num_cpus: float) -> float:
    return math.floor(num_cpus * 100 + 1e-9) / 100


def measure() -> Capacity:
    """Returns the resources of the connected cluster, including those that its autoscaler may add.

    What it may add is known on the head of a cluster that `ray up` has started, see `node_types.nodes_at_most`.
    Elsewhere the present nodes are all that counts.

    Call this before a command starts any tasks or actors: resources that it uses itself count as in use by others.
    """
    alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    here = alive[ray.get_runtime_context().get_node_id()]
    resources: dict[str, Mapping[str, float]] = {node_id: node["Resources"] for node_id, node in alive.items()}
    present = list(resources.values())
    later = node_types.nodes_at_most(here["Labels"].get(node_types.GROUP_LABEL))
    present_nodes, later_nodes = ([_node(each) for each in listed] for listed in (present, later))
    free = ray_internals.free_resources()
    free_nodes = [_node(free.get(node_id, whole)) for node_id, whole in resources.items()]
    nodes = max(present_nodes, later_nodes, key=_sum)
    left = list(nodes)
    for whole, rest in zip(present_nodes, free_nodes, strict=True):
        if whole in left:
            left[left.index(whole)] = Node(rest.num_cpus, whole.num_gpus)
    is_short = max(node.num_cpus for node in left) < MIN_FREE_CPUS - 1e-6
    total, total_later, total_free = map(_sum, (present_nodes, later_nodes, free_nodes))
    present_stores = [each.get("object_store_memory", 0.0) for each in present]
    later_stores = [store for each in later if (store := _store_bytes(each, present)) is not None]
    return Capacity(
        num_cpus=max(total.num_cpus, total_later.num_cpus),
        num_gpus=max(total.num_gpus, total_later.num_gpus),
        nodes=tuple(nodes if is_short else left),
        object_store_bytes=int(sum(present_stores)),
        smallest_object_store_bytes=int(min(*present_stores, *later_stores, math.inf)),
        memory_bytes=here["Resources"].get("memory", math.inf),  # a node that offers no memory to tasks still has some
        has_many_nodes=max(len(present), len(later)) > 1,
        held_cpus=total.num_cpus - total_free.num_cpus,
        held_gpus=total.num_gpus - total_free.num_gpus,
        is_short=is_short,
    )


def _node(resources: Mapping[str, float]) -> Node:
    """Returns the CPUs and GPUs in resources from Ray, which leaves out those that are 0."""
    return Node(float(resources.get("CPU", 0)), float(resources.get("GPU", 0)))


def _sum(nodes: Sequence[Node]) -> Node:
    return Node(sum(node.num_cpus for node in nodes), sum(node.num_gpus for node in nodes))


def _store_bytes(resources: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> float | None:
    """Estimates the size in bytes of the object store of a node that the autoscaler may add.

    The estimate is the first of these that is known:

    1. the size that the cluster's configuration gives for the node type, which is seldom done,
    2. the smallest object store of the present nodes with the same CPUs and GPUs,
    3. Ray's default share of the `memory` of the node type. On AWS, `ray up` fills in the memory besides the object
       store, so that the real object store is larger.

    Args:
        resources: Resources of the node type.
        nodes: Resources of the present nodes.

    Returns:
        The size; None if it is not known.
    """
    if resources.get("object_store_memory", 0):
        return resources["object_store_memory"]
    alike = [node.get("object_store_memory", 0.0) for node in nodes if _node(node) == _node(resources)]
    if alike:
        return min(alike)
    memory_bytes = resources.get("memory", 0)
    return min(OBJECT_STORE_PART * memory_bytes, MAX_OBJECT_STORE_BYTES) if memory_bytes else None


def tell_shortage(available: Capacity, *, num_gpus: int = 0, quiet: bool) -> None:
    """Prints which resources a command has to wait for, if any.

    Args:
        available: Resources of the cluster.
        num_gpus: GPUs that the command needs.
        quiet: Print nothing.
    """
    lacking = []
    if available.is_short:
        lacking.append((available.num_cpus, available.held_cpus, "CPUs", f"{MIN_FREE_CPUS:g} on one node"))
    if available.num_gpus - available.held_gpus < num_gpus:
        lacking.append((available.num_gpus, available.held_gpus, "GPUs", f"{num_gpus}"))
    for there, held, what, needed in lacking if not quiet else []:
        print(
            f"Waiting: {round(held, 2):g} of the cluster's {there:g} {what} are in use by other jobs or an endpoint. "
            f"This command starts when {needed} are free."
        )
