"""The Ray cluster: connecting to it, running something beside it, and what it has."""

import json
import logging
import math
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray._private.state as ray_state
import ray.data
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tlray.cluster import ray_init
from tlray.data.stream import TASK_CPUS
from tlray.errors import ConfigError, TlrayError

_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray's job manager in the environment of an entry point

WORKER_ENVIRONMENT = {
    "TF_USE_LEGACY_KERAS": "0",  # Keras 3, whatever else a user's environment asks for
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",  # a report waits for the next check, by default 2 s
}

LOCAL_RAY_ENVIRONMENT = {
    # On few CPUs Ray ends each idle process after a second and starts a new one for the next task, which costs more
    # than the images that it decodes.
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
    # Ray warns once it has four times as many processes: on 2 CPUs a training with 2 workers already has.
    "RAY_worker_maximum_startup_concurrency": "4",
    "RAY_AIR_NEW_OUTPUT": "0",  # Ray Tune's new output shows tables whatever its verbosity
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends a sweep, and not only its trials
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # a sweep tells the first one itself; the others are in its table
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the behaviour of coming versions, unwarned
}

KERAS_ENVIRONMENT = {"TLRAY_PROCESS": "keras"}
"""Variables of the processes of `start_here`, beside `worker_environment()`.

Ray gives a task an idle process of the same environment: the second one finds TensorFlow loaded."""

OWN_VARIABLES = frozenset({"TF_USE_LEGACY_KERAS"})
"""Variables of `WORKER_ENVIRONMENT` that a job's runtime_env cannot change: nothing works with another value."""

MANY_NODES = 64

OBJECT_STORE_PART = 0.3
"""Part of a node's memory that Ray makes its object store, by default: ray_constants.py,
DEFAULT_OBJECT_STORE_MEMORY_PROPORTION."""

MAX_OBJECT_STORE_BYTES = 200e9
"""The largest object store that Ray makes by default: DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES."""

MIN_WORKER_CPUS = 0.01
MIN_FREE_CPUS = TASK_CPUS + MIN_WORKER_CPUS
"""Of one node: a task that reads, and a model that waits for what it has read. With less nothing begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What a cluster has, or can grow to.

    Attributes:
        num_cpus: CPUs.
        num_gpus: GPUs.
        nodes: CPUs and GPUs that are free on each node that it has or can grow to: what a worker must fit into. All of
            them where no node has enough, see `is_short`.
        held_cpus: CPUs in use by other jobs and deployments.
        held_gpus: GPUs in use by other jobs and deployments.
        is_short: No node has `MIN_FREE_CPUS` that are free: a command has to wait, and plans for the least.
        object_store_bytes: Size of the object stores (shared memory for data in flight) of all nodes that are there.
        smallest_object_store_bytes: Size of the smallest object store of a node that is there or may be added. No node
            can hold a copy of more.
        memory_bytes: Of this node, besides its object store: what the driver itself can work with.
        has_many_nodes: It has, or can grow to, more than one node.
    """

    num_cpus: float
    num_gpus: float
    nodes: tuple[tuple[float, float], ...]
    object_store_bytes: int
    smallest_object_store_bytes: int
    memory_bytes: float
    has_many_nodes: bool
    held_cpus: float = 0.0
    held_gpus: float = 0.0
    is_short: bool = False

    @property
    def free_cpus(self) -> float:
        """CPUs that can be planned with, cut to hundredths."""
        return MIN_FREE_CPUS if self.is_short else _to_hundredths(self.num_cpus - self.held_cpus)

    @property
    def largest_node_cpus(self) -> float:
        """CPUs of the largest node, cut to hundredths: what one worker can have."""
        return _to_hundredths(max((cpus for cpus, _ in self.nodes), default=0.0))

    @property
    def task_cpus(self) -> float:
        """What a task asks for that keeps a CPU busy: one, or what there is of it."""
        return MIN_FREE_CPUS if self.is_short else min(1.0, self.largest_node_cpus)


def _to_hundredths(num_cpus: float) -> float:
    return math.floor(num_cpus * 100 + 1e-9) / 100


def in_job() -> bool:
    """Tells whether this process is the entry point of a Ray job."""
    return _JOB_VARIABLE in os.environ


def job_name() -> str | None:
    """Returns the submission id of the Ray job whose entry point this process is; None: of none."""
    return json.loads(os.environ.get(_JOB_VARIABLE, "{}")).get("metadata", {}).get("job_submission_id")


def worker_environment() -> dict[str, str]:
    """Returns the variables of all processes that Ray starts for this one.

    They are those of `WORKER_ENVIRONMENT`. Where the runtime_env of this process' Ray job has another value it wins,
    but for `OWN_VARIABLES`.
    """
    job = json.loads(os.environ.get(_JOB_VARIABLE, "{}"))
    given = (job.get("runtime_env") or {}).get("env_vars") or {}
    chosen = {name: given[name] for name in WORKER_ENVIRONMENT if name in given and name not in OWN_VARIABLES}
    return WORKER_ENVIRONMENT | chosen


def connect(*, with_jobs: bool = False) -> None:
    """Connects to the running Ray (`RAY_ADDRESS`, or one on this machine), or starts a local one.

    Args:
        with_jobs: A local one has a dashboard, with the job server in it. It ends with this process all the same.

    Raises:
        ConfigError: A Ray is named and cannot be reached.
    """
    for name, value in LOCAL_RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray").setLevel(logging.WARNING)
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # that it is on is its default
    options: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.WARNING,
        "include_dashboard": with_jobs,
        "runtime_env": {"env_vars": worker_environment()},
    }
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if not ray.is_initialized():
            ray_init.init(**options)
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)  # Ray's own would exit with the signal's number
    except ConnectionError as error:
        raise ConfigError(
            f"The Ray cluster cannot be reached: {error}. Check RAY_ADDRESS and the token (RAY_AUTH_MODE=token, "
            "`ray get-auth-token`), or unset RAY_ADDRESS to start a local Ray."
        ) from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)


def start_here(function: Callable[..., Any], *arguments: Any, **named: Any) -> "ray.ObjectRef[Any]":
    """Runs a function in a process of its own, so that TensorFlow starts while this one does something else.

    On this node, where a local weights file is, and without a CPU, of which a cluster's head may offer none.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"scheduling_strategy": here, "runtime_env": {"env_vars": worker_environment() | KERAS_ENVIRONMENT}}
    reference = ray.remote(function).options(num_cpus=0, max_retries=0, **options).remote(*arguments, **named)
    reference.future()  # so that Ray does not print its error where this process ends for another one
    return reference


def get(reference: Any) -> Any:
    """Waits for a task; its own errors come through as they were raised, without Ray's wrapping."""
    try:
        return ray.get(reference)
    except KeyboardInterrupt:
        ray.cancel(reference, force=True)
        raise
    except RayTaskError as error:
        if isinstance(error.cause, TlrayError):
            raise error.cause from None
        raise


def is_done(reference: Any) -> bool:
    """Tells whether a task has ended, well or not."""
    return bool(ray.wait([reference], timeout=0)[0])


def check(reference: Any) -> None:
    """Raises the error of a task that has failed already; waits for nothing."""
    if is_done(reference):
        get(reference)


def capacity() -> Capacity:
    """Returns what the connected cluster has, or what its autoscaler may add up to, and what of it others hold.

    To be asked before a command begins anything: what it holds itself counts as others'.
    """
    now = ray.cluster_resources()
    resources = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    nodes = list(resources.values())
    here = resources[ray.get_runtime_context().get_node_id()]
    # What Ray Train itself asks; None without an autoscaler.
    state: Any = ray_state.state
    largest = state.get_max_resources_from_cluster_config() or {}
    config = state.get_cluster_config()
    groups = list(config.node_group_configs) if config else []
    # The most nodes of a type; negative: any number.
    counts = [group.max_count if group.max_count >= 0 else MANY_NODES for group in groups]
    types = [group.resources for group, count in zip(groups, counts, strict=True) for _ in range(count)]
    now_nodes, then_nodes = ([_size(node) for node in each] for each in (nodes, types))
    free = state.available_resources_per_node()
    free_sizes = [_size(free.get(node_id, node)) for node_id, node in resources.items()]
    held_cpus, held_gpus = (
        sum(size[kind] - rest[kind] for size, rest in zip(now_nodes, free_sizes, strict=True)) for kind in (0, 1)
    )
    whole = max(now_nodes, then_nodes, key=lambda each: sum(cpus for cpus, _ in each))
    left = list(whole)
    for size, rest in zip(now_nodes, free_sizes, strict=True):
        if size in left:  # of the nodes that may come those that are there already
            left[left.index(size)] = (rest[0], size[1])
    is_short = max(cpus for cpus, _ in left) < MIN_FREE_CPUS - 1e-6
    now_stores = [node.get("object_store_memory", 0.0) for node in nodes]
    found_stores = [_store_bytes(resources, nodes) for resources in types]
    then_stores = [store for store in found_stores if store is not None]
    return Capacity(
        num_cpus=max(now.get("CPU", 0.0), float(largest.get("CPU", 0))),
        num_gpus=max(now.get("GPU", 0.0), float(largest.get("GPU", 0))),
        nodes=tuple(whole if is_short else left),
        object_store_bytes=int(sum(now_stores)),
        smallest_object_store_bytes=int(min(*now_stores, *then_stores, math.inf)),
        memory_bytes=here.get("memory", math.inf),  # a node that offers none to tasks has some all the same
        has_many_nodes=len(nodes) > 1 or bool(groups),
        held_cpus=held_cpus,
        held_gpus=held_gpus,
        is_short=is_short,
    )


def _store_bytes(resources: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> float | None:
    """Estimates the object store, in bytes, of a node that the autoscaler may add.

    The size is the first of these that is known:

    1. the one that the autoscaler's configuration gives for the node type, which it seldom does,
    2. the smallest one of the nodes that are there with the same CPUs and GPUs,
    3. Ray's default part of the `memory` of the node type. On Kubernetes that is all memory of the node; on AWS it is
       the memory besides the object store, so that the real object store is larger.

    Args:
        resources: Resources of the node type.
        nodes: Resources of the nodes that are there.

    Returns:
        The size; None where it is not known.
    """
    if resources.get("object_store_memory", 0):
        return resources["object_store_memory"]
    alike = [node.get("object_store_memory", 0.0) for node in nodes if _size(node) == _size(resources)]
    if alike:
        return min(alike)
    memory_bytes = resources.get("memory", 0)
    return min(OBJECT_STORE_PART * memory_bytes, MAX_OBJECT_STORE_BYTES) if memory_bytes else None


def _size(resources: Mapping[str, float]) -> tuple[float, float]:
    """Returns CPUs and GPUs; Ray leaves out what there is none of."""
    return float(resources.get("CPU", 0)), float(resources.get("GPU", 0))


def tell_shortage(available: Capacity, *, num_gpus: int = 0, quiet: bool) -> None:
    """Says what a command has to wait for, if it has to.

    Args:
        available: What the cluster has.
        num_gpus: GPUs that the command cannot do without.
        quiet: Say nothing.
    """
    lacking = []
    if available.is_short:
        lacking.append((available.num_cpus, available.held_cpus, "CPUs", f"{MIN_FREE_CPUS:g} of one node"))
    if available.num_gpus - available.held_gpus < num_gpus:
        lacking.append((available.num_gpus, available.held_gpus, "GPUs", f"{num_gpus}"))
    for there, held, what, needed in lacking if not quiet else []:
        print(
            f"Waiting: the cluster has {there:g} {what}, of which others (an endpoint, other jobs) hold "
            f"{round(held, 2):g}; this begins when {needed} are free."
        )
