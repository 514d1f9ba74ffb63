"""The private names of Ray that tlray uses because no public interface offers the same. No other module may use any.

Each one is listed in `NAMES` with what would be lost without it. They were checked with Ray `CHECKED_VERSION`, and
pyproject.toml allows no later one; CONTRIBUTING.md, "Upgrading Ray", says how to check them with a new version.
"""

import contextlib
import functools
import logging
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ray._private import parameter, ray_constants, services, worker
from ray._private.state import state
from ray.data import DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.job_submission import JobSubmissionClient

from tlray.cluster.ports import free_ports

CHECKED_VERSION = "2.60"
"""Version of Ray, major and minor, in which every name of `NAMES` was checked."""

NAMES = {
    "ray._private.authentication": (
        "Is the name of the logger that warns in every command that token authentication is on, which is the default."
    ),
    "ray._private.state.state": (
        "Tells the free resources of each node. Public functions give only sums over the cluster; planned by sums, a "
        "worker may fit onto no node, and the run waits for ever."
    ),
    "ray._private.services.canonicalize_bootstrap_address": (
        "Tells whether a Ray runs on this machine before one is started. Without it, environment variables for a Ray "
        "of tlray's own could not be set in time."
    ),
    "ray._private.worker._global_node": (
        "Tells where Ray's log files are, for messages that name them. `ray.init` tells it too, but only to its first "
        "caller; called again, it replaces the handler of SIGTERM."
    ),
    "ray._private.parameter.RayParams": (
        "Gives a local Ray a free port for its job agent. By default each Ray uses the same port, and the second Ray "
        "on a machine accepts no jobs."
    ),
    "ray._private.ray_constants.ENABLE_RAY_CLUSTER": (
        "Makes a local Ray listen on loopback addresses. By default other machines can read its metrics, which need no "
        "token."
    ),
    "ray.data._internal.execution.execution_callback.ExecutionCallback": (
        "Makes Ray Data's loop rest between two rounds. When all images that may be decoded ahead are decoded, it has "
        "no task to wait for and spins, beside the training in the same process. Without it: 32 to 37 images/s; with "
        "it: 54 to 57 (`benchmarks/article_tlray.py` as `train_step.py` starts it, two pairs of runs in turns on 2 "
        "cores of an AMD EPYC, 2026-11-29)."
    ),
    "ray.job_submission.JobSubmissionClient._do_request": (
        "Tells to which Ray a job server belongs. A Ray without a dashboard reports a port at which another Ray's job "
        "server may listen; a bulk-scoring job would run on that Ray."
    ),
}
"""Private names of Ray, and what would be lost without each."""

METRICS_PORTS = ("AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT")
"""Environment variables with ports of two Ray processes. By default every Ray on a machine uses the same ports."""

CLUSTERS_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Environment variable with which Ray's processes set `ENABLE_RAY_CLUSTER`; "0": the node's address is 127.0.0.1."""


def free_resources() -> dict[str, Mapping[str, float]]:
    """Returns the free resources of each node, by the node's id in hex, without those of which nothing is free."""
    return state.available_resources_per_node()


def quieten() -> None:
    """Silences the warning that token authentication is on."""
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)


def logs_directory() -> str:
    """Returns the directory of the log files of the connected Ray on this node."""
    node: Any = worker._global_node
    return node.get_logs_dir_path()


def session_of(client: JobSubmissionClient) -> str:
    """Returns the session name of the Ray to which a job server belongs; see `RuntimeContext.get_session_name`.

    Raises:
        RuntimeError: The job server does not answer.
    """
    return client._do_request("GET", "/api/version").json()["session_name"]


def would_start() -> bool:
    """Tells whether `ray.init` would start a local Ray, because `RAY_ADDRESS` names none and none runs here."""
    find: Any = services.canonicalize_bootstrap_address
    return os.environ.get("RAY_ADDRESS", "") in ("", "local") and find(None) is None


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Makes a Ray that is started within the block listen on loopback addresses only, at ports of its own."""
    ports = dict(zip(METRICS_PORTS, map(str, free_ports(len(METRICS_PORTS))), strict=True))
    saved = parameter.RayParams, ray_constants.ENABLE_RAY_CLUSTER
    with_free_port: Any = functools.partial(parameter.RayParams, dashboard_agent_listen_port=0)
    parameter.RayParams = with_free_port
    ray_constants.ENABLE_RAY_CLUSTER = False
    variables = {CLUSTERS_VARIABLE: "0", **ports}
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        parameter.RayParams, ray_constants.ENABLE_RAY_CLUSTER = saved
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class Resting(ExecutionCallback):
    """Rests after each round of the loop of a dataset."""

    round_s = 0.0

    def on_execution_step(self, executor: Any) -> None:  # noqa: ARG002
        """Called by Ray Data."""
        time.sleep(self.round_s)


def rest_between_rounds(round_s: float) -> None:
    """Makes the loops of all datasets that this process creates from now on rest between two rounds.

    Callbacks that others have set stay.

    Args:
        round_s: Seconds to rest.
    """
    context = DataContext.get_current()
    others = [each for each in context.custom_execution_callback_classes if not issubclass(each, Resting)]
    resting = type(Resting.__name__, (Resting,), {"round_s": round_s})
    context.custom_execution_callback_classes = [*others, resting]
