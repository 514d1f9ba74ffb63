"""Connects to a Ray cluster, runs functions in separate processes, and reports the cluster's resources."""

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

_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray's job manager sets it in the environment of a job's entry point

WORKER_ENVIRONMENT = {
    "TF_USE_LEGACY_KERAS": "0",  # Keras 3, even if the user's environment asks for Keras 2
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",  # a report waits for the next check; Ray's default is 2 s
}

LOCAL_RAY_ENVIRONMENT = {
    # On few CPUs Ray by default ends each idle process after a second and starts a new one for the next task, which
    # costs more time than decoding the task's images.
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
    # Ray warns once it has four times this number of processes. By default that happens when 2 workers train on 2 CPUs.
    "RAY_worker_maximum_startup_concurrency": "4",
    "RAY_AIR_NEW_OUTPUT": "0",  # Ray Tune's new output shows tables at any verbosity
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the whole sweep, not only its trials
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the sweep reports the first error; the others are in its table
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the default of future versions of Ray; setting it avoids a warning
}

KERAS_ENVIRONMENT = {"TLRAY_PROCESS": "keras"}
"""Environment variables of the processes of `start_here`, in addition to `worker_environment()`.

Ray reuses an idle process with the same environment, so a second task finds TensorFlow already loaded."""

OWN_VARIABLES = frozenset({"TF_USE_LEGACY_KERAS"})
"""Variables of `WORKER_ENVIRONMENT` that a job's runtime_env cannot change, because tlray needs exactly their value."""

MANY_NODES = 64
"""Number of nodes assumed for a node type that the autoscaler may add without limit."""

OBJECT_STORE_PART = 0.3
"""Default share of a node's memory that Ray uses as its object store (ray_constants.py,
DEFAULT_OBJECT_STORE_MEMORY_PROPORTION)."""

MAX_OBJECT_STORE_BYTES = 200e9
"""Default maximum size in bytes of a node's object store (DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES)."""

MIN_WORKER_CPUS = 0.01
"""Minimum number of CPUs planned for a training worker, a predictor, or the data tasks of a training run."""

MIN_FREE_CPUS = TASK_CPUS + MIN_WORKER_CPUS
"""Free CPUs that one node must have before a command can start: for one reading task and one model."""


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
        """Number of CPUs that a command can plan with, rounded down to hundredths."""
        return MIN_FREE_CPUS if self.is_short else _to_hundredths(self.num_cpus - self.held_cpus)

    @property
    def largest_node_cpus(self) -> float:
        """Largest number of CPUs in `nodes`, rounded down to hundredths: the most that one worker can have."""
        return _to_hundredths(max((cpus for cpus, _ in self.nodes), default=0.0))

    @property
    def task_cpus(self) -> float:
        """CPUs that a task asks for if it keeps one CPU busy: 1, or less if no node has that."""
        return MIN_FREE_CPUS if self.is_short else min(1.0, self.largest_node_cpus)


def _to_hundredths(num_cpus: float) -> float:
    return math.floor(num_cpus * 100 + 1e-9) / 100


def in_job() -> bool:
    """Tells whether this process is the entry point of a Ray job."""
    return _JOB_VARIABLE in os.environ


def job_name() -> str | None:
    """Returns the submission id of the Ray job whose entry point this process is; None if it is not one."""
    return json.loads(os.environ.get(_JOB_VARIABLE, "{}")).get("metadata", {}).get("job_submission_id")


def worker_environment() -> dict[str, str]:
    """Returns the environment variables of all processes that Ray starts for this one.

    They are those of `WORKER_ENVIRONMENT`. Values in the runtime_env of this process' Ray job take precedence, except
    for `OWN_VARIABLES`.
    """
    job = json.loads(os.environ.get(_JOB_VARIABLE, "{}"))
    given = (job.get("runtime_env") or {}).get("env_vars") or {}
    chosen = {name: given[name] for name in WORKER_ENVIRONMENT if name in given and name not in OWN_VARIABLES}
    return WORKER_ENVIRONMENT | chosen


def connect(*, with_jobs: bool = False) -> None:
    """Connects to a running Ray cluster (`RAY_ADDRESS`, or one on this machine), or starts a local one.

    Args:
        with_jobs: Start a local Ray with its dashboard, which includes the job server. It still ends with this process.

    Raises:
        ConfigError: The Ray cluster cannot be reached.
    """
    for name, value in LOCAL_RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray").setLevel(logging.WARNING)
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # it logs that it is on, the default
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
                signal.signal(signal.SIGTERM, handler)  # Ray's own handler would exit with the signal's number
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
    """Starts a function in a separate process and returns its reference at once.

    TensorFlow can then start while this process does something else. The function runs on this node, where local
    weights files are, and asks for no CPU, because a cluster's head node may offer none.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"scheduling_strategy": here, "runtime_env": {"env_vars": worker_environment() | KERAS_ENVIRONMENT}}
    reference = ray.remote(function).options(num_cpus=0, max_retries=0, **options).remote(*arguments, **named)
    reference.future()  # keeps Ray from printing the task's error if this process ends because of another one
    return reference


def get(reference: Any) -> Any:
    """Waits for a task and returns its result; a `TlrayError` is raised as it is, without Ray's wrapper."""
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
    """Tells whether a task has ended, successfully or not."""
    return bool(ray.wait([reference], timeout=0)[0])


def check(reference: Any) -> None:
    """Raises the error of a task if it has failed by now; does not wait for the task."""
    if is_done(reference):
        get(reference)


def capacity() -> Capacity:
    """Returns the resources of the connected cluster, including those that its autoscaler may add.

    Call this before a command starts any tasks or actors: resources that it uses itself count as in use by others.
    """
    now = ray.cluster_resources()
    resources = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    nodes = list(resources.values())
    here = resources[ray.get_runtime_context().get_node_id()]
    # Ray Train asks the same. The result is None without an autoscaler.
    state: Any = ray_state.state
    largest = state.get_max_resources_from_cluster_config() or {}
    config = state.get_cluster_config()
    groups = list(config.node_group_configs) if config else []
    # Maximum number of nodes of each type; negative means no limit.
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
        if size in left:  # replace this node's full size by what is free on it
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
        memory_bytes=here.get("memory", math.inf),  # a node that offers no memory to tasks still has some
        has_many_nodes=len(nodes) > 1 or bool(groups),
        held_cpus=held_cpus,
        held_gpus=held_gpus,
        is_short=is_short,
    )


def _store_bytes(resources: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> float | None:
    """Estimates the size in bytes of the object store of a node that the autoscaler may add.

    The estimate is the first of these that is known:

    1. the size in the autoscaler's configuration of the node type, where it is seldom given,
    2. the smallest object store of the present nodes with the same CPUs and GPUs,
    3. Ray's default share of the `memory` of the node type. On Kubernetes that is all memory of the node; on AWS it is
       the memory besides the object store, so that the real object store is larger.

    Args:
        resources: Resources of the node type.
        nodes: Resources of the present nodes.

    Returns:
        The size; None if it is not known.
    """
    if resources.get("object_store_memory", 0):
        return resources["object_store_memory"]
    alike = [node.get("object_store_memory", 0.0) for node in nodes if _size(node) == _size(resources)]
    if alike:
        return min(alike)
    memory_bytes = resources.get("memory", 0)
    return min(OBJECT_STORE_PART * memory_bytes, MAX_OBJECT_STORE_BYTES) if memory_bytes else None


def _size(resources: Mapping[str, float]) -> tuple[float, float]:
    """Returns the numbers of CPUs and GPUs in resources from Ray, which leaves out those that are 0."""
    return float(resources.get("CPU", 0)), float(resources.get("GPU", 0))


def tell_shortage(available: Capacity, *, num_gpus: int = 0, quiet: bool) -> None:
    """Prints which resources a command has to wait for, if any.

    Args:
        available: Resources of the cluster.
        num_gpus: GPUs that the command needs.
        quiet: Print nothing.
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
