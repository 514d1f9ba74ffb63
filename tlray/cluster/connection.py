"""Connects to a Ray cluster, or starts a local one, and runs functions in separate processes."""

import contextlib
import json
import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
import ray.data
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tlray.cluster import ray_internals
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

NO_API_SERVER = {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9"}
"""Environment variable of processes of a local Ray without a dashboard: nobody answers at the discard port (RFC 863).

Every second Ray Train asks Ray's API server, by default at 127.0.0.1:8265, whether its controller lives. If another Ray
answers there, which does not know the controller, the training's workers are ended. Without an answer they go on."""

KERAS_ENVIRONMENT = {"TLRAY_PROCESS": "keras"}
"""Environment variables of the processes of `start_here`, in addition to `worker_environment()`.

Ray reuses an idle process with the same environment, so a second task finds TensorFlow already loaded."""

CONNECT_S = 10.0
"""Seconds to wait for a TCP connection to a Ray node."""

ROUND_S = 0.005
"""Seconds that Ray Data's loop in this process rests between two rounds."""

OVERRIDE_VARIABLE = "RAY_OVERRIDE_JOB_RUNTIME_ENV"
"""Environment variable that, set to "1", lets the runtime_env of `ray.init` set variables that the Ray job sets too;
without it `ray.init` raises a ValueError."""

OWN_VARIABLES = frozenset({"TF_USE_LEGACY_KERAS"})
"""Variables of `WORKER_ENVIRONMENT` that a job's runtime_env cannot change, because tlray needs exactly their value."""


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
        TlrayError: A local Ray could not be started.
    """
    for name, value in LOCAL_RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray").setLevel(logging.WARNING)
    ray_internals.quieten()
    options: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.WARNING,
        "include_dashboard": with_jobs,
        "runtime_env": {"env_vars": worker_environment()},
    }
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if not ray.is_initialized():
            _init(**options)
    except ConnectionError as error:
        raise ConfigError(
            f"The Ray cluster cannot be reached: {error}. Check RAY_ADDRESS and the token (RAY_AUTH_MODE=token, "
            "`ray get-auth-token`), or unset RAY_ADDRESS to start a local Ray."
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray's own handler would exit with the signal's number
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    ray_internals.rest_between_rounds(ROUND_S)
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _init(**options: Any) -> None:
    """Connects this process to a running Ray cluster, or starts a local one on loopback addresses, at ports of its own.

    Raises:
        ConnectionError: The Ray that RAY_ADDRESS names cannot be reached.
        TlrayError: The local one could not be started.
    """
    _check_address(os.environ.get("RAY_ADDRESS", ""))
    if not ray_internals.would_start():
        with _set(**{OVERRIDE_VARIABLE: "1"}):
            ray.init(None, **options)
        return
    variables = options["runtime_env"]["env_vars"]
    if not options["include_dashboard"]:
        variables |= NO_API_SERVER
    if in_job():  # whose own runtime_env would count for more than what is inherited
        variables = {OVERRIDE_VARIABLE: "1"}
    else:
        # Ray's processes inherit the variables from this one. Those that Ray starts before it knows of a job can then
        # run any task; with a runtime_env they would stay idle, and others would be started.
        del options["runtime_env"]
    with ray_internals.isolated(), _set(**variables):
        try:
            ray.init("local", **options)
        except Exception as error:  # such as a plain Exception, where Ray's processes were not there in time
            why = str(error).strip().split("\n", 1)[0].rstrip(".")
            raise TlrayError(
                f"Ray could not be started on this machine: {why or type(error).__name__}. A busy "
                "machine may need a second try. Its logs are in session_latest/logs of RAY_TMPDIR, by default /tmp/ray."
            ) from error


def _check_address(address: str) -> None:
    """Raises a ConnectionError if nothing listens at an address HOST:PORT; Ray itself would try for many minutes."""
    found = re.fullmatch(r"([^/:]+|\[[^/]+\]):(\d+)", address)
    if found:
        try:
            socket.create_connection((found[1].strip("[]"), int(found[2])), timeout=CONNECT_S).close()
        except (OSError, OverflowError) as error:
            raise ConnectionError(f"nobody answers at {address} ({error})") from error


@contextlib.contextmanager
def _set(**variables: str) -> Iterator[None]:
    """Sets environment variables of this process within the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


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


def call_in_tasks(functions: Sequence[Callable[[], Any]], *, task_cpus: float) -> list[Any]:
    """Calls functions without arguments in tasks on the cluster, and returns their results in the functions' order.

    Args:
        functions: Functions that can be pickled, such as partials of one at the top of a module.
        task_cpus: CPUs that a task asks for; a task keeps one CPU busy.

    Raises:
        TlrayError: The first one that a function has raised. The other tasks are cancelled, see `_cancel`.
    """
    task = ray.remote(_call).options(num_cpus=task_cpus)
    references = [task.remote(function) for function in functions]
    for reference in references:
        reference.future()  # see `start_here`
    try:
        return [get(reference) for reference in references]
    except BaseException:
        _cancel(references)
        raise


def _cancel(references: Sequence["ray.ObjectRef[Any]"]) -> None:
    """Cancels the tasks that have not ended. A task that Ray is just starting may nevertheless run.

    If a task has just ended, cancelling it can end this process: Ray 2.60 checks that a task whose result arrives is
    still in its table ("Tried to complete task that was not pending", in its task_manager).
    """
    _, unfinished = ray.wait(list(references), num_returns=len(references), timeout=0)
    for reference in unfinished:
        ray.cancel(reference, force=True)


def _call(function: Callable[[], Any]) -> Any:
    return function()


def get(reference: Any) -> Any:
    """Waits for a task and returns its result; a `TlrayError` is raised as it is, without Ray's wrapper."""
    try:
        return ray.get(reference)
    except KeyboardInterrupt:
        _cancel([reference])
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
