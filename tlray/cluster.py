"""The Ray cluster: connecting to it, what it can give, and how that is shared between training and data."""

import contextlib
import dataclasses
import functools
import logging
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
import ray._private.parameter as ray_parameter
import ray._private.state as ray_state
import ray.data
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tlray import storage
from tlray.config import TrainConfig
from tlray.errors import ConfigError, TlrayError
from tlray.streams import TASK_CPUS, Share

_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray's job manager in the environment of an entry point

WORKER_ENVIRONMENT = {
    "TF_USE_LEGACY_KERAS": "0",  # Ray's TensorFlow backend would choose Keras 2
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
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the behaviour of coming versions, unwarned
}

KERAS_ENVIRONMENT = WORKER_ENVIRONMENT | {"TLRAY_PROCESS": "keras"}
"""Of `start_here`. Ray gives a task an idle process of the same environment: the second one finds TensorFlow loaded."""

MIN_OBJECT_STORE_BYTES = 64 * 2**20
MIN_WORKER_CPUS = 0.01
MANY_NODES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What a cluster has, or can grow to.

    Attributes:
        num_cpus: CPUs.
        num_gpus: GPUs.
        nodes: CPUs and GPUs of each node that it has or can grow to: what a worker must fit into.
        object_store_bytes: Shared memory for data in flight, of all nodes together.
        smallest_object_store_bytes: The same of the node that has least of it: what every node can have a copy of.
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

    @property
    def largest_node_cpus(self) -> float:
        """CPUs of the largest node: what one worker can have."""
        return max((cpus for cpus, _ in self.nodes), default=0.0)


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
        return int(self.cpus_per_actor) if self.max_actors > 1 and not self.gpus_per_actor else None

    def pool(self) -> dict[str, Any]:
        """Returns the options of `ray.data.Dataset.map_batches` for a pool that grows and shrinks."""
        return {
            "num_cpus": self.cpus_per_actor,
            "num_gpus": self.gpus_per_actor or None,
            "compute": ray.data.ActorPoolStrategy(min_size=1, max_size=self.max_actors),
        }


def in_job() -> bool:
    """Tells whether this process is the entry point of a Ray job."""
    return _JOB_VARIABLE in os.environ


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
        "runtime_env": {"env_vars": WORKER_ENVIRONMENT},
    }
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if not ray.is_initialized():
            with _agent_port_of_its_own() if with_jobs else contextlib.nullcontext():
                ray.init(**options)
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


@contextlib.contextmanager
def _agent_port_of_its_own() -> Iterator[None]:
    """Has a Ray that is started here take jobs at any free port; `ray.init` has no option for it.

    Its fixed default belongs to the first Ray of a machine; the second one would start, and take no job.
    """
    parameters: Any = ray_parameter
    original = parameters.RayParams
    parameters.RayParams = functools.partial(original, dashboard_agent_listen_port=0)
    try:
        yield
    finally:
        parameters.RayParams = original


def start_here(function: Callable[..., Any], *arguments: Any, **named: Any) -> "ray.ObjectRef[Any]":
    """Runs a function in a process of its own, so that TensorFlow starts while this one does something else.

    On this node, where a local weights file is, and without a CPU, of which a cluster's head may offer none.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"scheduling_strategy": here, "runtime_env": {"env_vars": KERAS_ENVIRONMENT}}
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


def output_location(location: str) -> str:
    """Returns an output location that every node and a later process will find again.

    Raises:
        ConfigError: It would lie in Ray's temporary copy of a job's files, or on the disk of one of several nodes.
    """
    if in_job() and not storage.is_uri(location) and not os.path.isabs(os.path.expanduser(location)):
        raise ConfigError(
            f"--out {location} is relative: in a Ray job it would be lost with Ray's copy of the working directory. "
            "Give an absolute path on storage that all nodes share, or a URI (s3://, gs://)."
        )
    return storage.absolute(location)


def input_location(location: str) -> str:
    """Returns an input location as an absolute path or URI (relative ones are seen from the working directory)."""
    return storage.absolute(location)


def absolute(config: TrainConfig) -> TrainConfig:
    """Returns a config whose locations mean the same in every process."""

    def if_path(location: str | None, *names: str) -> Any:
        return location if location is None or location in names else input_location(location)

    own_model = config.backbone.endswith(".keras")
    return dataclasses.replace(
        config,
        data=input_location(config.data),
        out=output_location(config.out),
        weights=if_path(config.weights, "imagenet", "none"),
        class_map=if_path(config.class_map),
        backbone=input_location(config.backbone) if own_model else config.backbone,
    )


def capacity() -> Capacity:
    """Returns what the connected cluster has, or what its autoscaler may add up to."""
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
    now_nodes, then_nodes = (
        [(float(node.get("CPU", 0)), float(node.get("GPU", 0))) for node in each] for each in (nodes, types)
    )
    return Capacity(
        num_cpus=max(now.get("CPU", 0.0), float(largest.get("CPU", 0))),
        num_gpus=max(now.get("GPU", 0.0), float(largest.get("GPU", 0))),
        nodes=tuple(max(now_nodes, then_nodes, key=lambda each: sum(cpus for cpus, _ in each))),
        object_store_bytes=int(now.get("object_store_memory", 0)),
        smallest_object_store_bytes=int(min(node.get("object_store_memory", 0) for node in nodes)),
        memory_bytes=here.get("memory", math.inf),  # a node that offers none to tasks has some all the same
        has_many_nodes=len(nodes) > 1 or bool(groups),
    )


def plan_training(available: Capacity, *, num_workers: int, use_gpu: bool) -> TrainPlan:
    """Shares a cluster between training workers and Ray Data, which keeps at least one CPU.

    Workers that took every CPU would starve the streams that feed them, and the run would hang without a word.

    Raises:
        ConfigError: The cluster cannot give what is asked for, with the sums.
    """
    has = f"The cluster has {available.num_cpus:g} CPUs and {available.num_gpus:g} GPUs"
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
    reserved = max(1.0, math.floor(available.num_cpus / 4))
    each = min((available.num_cpus - reserved) / num_workers, available.largest_node_cpus)
    # Whole CPUs where there are enough (2 beside a GPU: the rest decodes images), hundredths where there are not.
    each = min(math.floor(each), 2 if use_gpu else math.inf) if each >= 1 else math.floor(each * 100) / 100
    # What is left over on single nodes may be too little for the last workers, which would be waited for without end.
    while _num_fitting(available, each, use_gpu=use_gpu) < num_workers:
        if each < MIN_WORKER_CPUS:
            raise ConfigError(f"--num-workers {num_workers} do not fit onto the nodes. {has}. Try fewer.")
        each = each - 1 if each > 1 else each / 2
    data_cpus = available.num_cpus - each * num_workers
    # A quarter of the store for what waits to be trained on: the rest is others' and Ray's own.
    store_bytes = max(MIN_OBJECT_STORE_BYTES, available.object_store_bytes // 4 // num_workers)
    share = Share(num_cpus=data_cpus / num_workers, object_store_bytes=store_bytes)
    return TrainPlan(cpus_per_worker=float(each), gpus_per_worker=int(use_gpu), share=share)


def _num_fitting(available: Capacity, cpus_per_worker: float, *, use_gpu: bool) -> int:
    """Returns how many workers fit onto the nodes, each whole on one of them."""
    fitting = [(math.floor(cpus / cpus_per_worker + 1e-9), gpus) for cpus, gpus in available.nodes]
    return sum(min(count, math.floor(gpus)) if use_gpu else count for count, gpus in fitting)


def held_cpus() -> float:
    """Returns the CPUs that are held now: by an endpoint's replicas or other jobs, where this one has not begun."""
    return ray.cluster_resources().get("CPU", 0.0) - ray.available_resources().get("CPU", 0.0)


def plan_scoring(available: Capacity, *, use_gpu: bool, held_cpus: float = 0.0) -> ScorePlan:
    """Shares a cluster between predictors and Ray Data.

    Args:
        available: What the cluster has.
        use_gpu: Predict on GPUs.
        held_cpus: CPUs that may stay in others' hands: predictors that took all of the rest would have nothing to do,
            as no task could read for them.

    Raises:
        ConfigError: There is no GPU, or too few CPUs.
    """
    if available.num_cpus < 2:
        raise ConfigError(
            f"The cluster has {available.num_cpus:g} CPUs; scoring needs 2, one of them for Ray Data. Start Ray with "
            "more: `ray start --head --num-cpus=2`."
        )
    num_cpus = available.num_cpus - held_cpus
    # Where less than 2 are left, a reading task comes first, and what is over is the predictor's: but for a hundredth,
    # as Ray Data makes one of two that ask for the same.
    small = max(MIN_WORKER_CPUS, math.floor((num_cpus - TASK_CPUS) * 100 - 1 + 1e-9) / 100)
    if use_gpu:
        if available.num_gpus < 1:
            raise ConfigError("--use-gpu: the cluster has no GPU. Score without --use-gpu.")
        max_actors = max(1, min(int(available.num_gpus), int(num_cpus) - 1))
        return ScorePlan(max_actors=max_actors, cpus_per_actor=min(1.0, small), gpus_per_actor=1)
    if num_cpus < 2:
        return ScorePlan(max_actors=1, cpus_per_actor=min(1.0, small), gpus_per_actor=0)
    # Four threads are what InceptionV3 uses well at batches of 32; more actors scale better than more threads.
    cpus_per_actor = min(4.0, float(num_cpus // 2), available.largest_node_cpus)
    max_actors = max(1, int(num_cpus * 3 / 4 // cpus_per_actor))
    return ScorePlan(max_actors=max_actors, cpus_per_actor=cpus_per_actor, gpus_per_actor=0)


def check_shared(location: str, available: Capacity) -> None:
    """Refuses a node-local output where workers may run on other nodes; a `file://` URI says that all nodes see it.

    Raises:
        ConfigError: The output is a plain path and the cluster has several nodes.
    """
    if available.has_many_nodes and not storage.is_uri(location):
        raise ConfigError(
            f"--out {location} is a path on this node, and the cluster has others. Give a URI (s3://, gs://), or "
            f"file://{location} if all nodes mount that path."
        )
