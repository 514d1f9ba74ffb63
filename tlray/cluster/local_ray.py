"""Isolation of a Ray that a command starts for itself: it reaches nobody else, and nobody else reaches it.

`ray.init` has no options for these; the private names of Ray that are used stand here alone, for Ray 2.60.
"""

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Any

import ray._private.parameter as ray_parameter
import ray._private.services as ray_services
from ray._private import ray_constants

from tlray.cluster.ports import free_ports

METRICS_PORTS = ("AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT")
"""Environment variables with the ports of two of Ray's processes, which are the same for every Ray of a machine."""


def is_to_be_started() -> bool:
    """Tells whether `ray.init` would start a Ray: `RAY_ADDRESS` names none, and no `ray start` ran on this machine."""
    services: Any = ray_services
    is_unnamed = os.environ.get("RAY_ADDRESS", "") in ("", "local")
    return is_unnamed and services.canonicalize_bootstrap_address(None) is None


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Has a Ray that is started within the block listen on loopback addresses only, at ports of its own.

    Otherwise its metrics, which ask for no token, are open to other machines; and the second Ray of a machine takes no
    job, as the job agent's port is always the same.
    """
    ports = dict(zip(METRICS_PORTS, map(str, free_ports(len(METRICS_PORTS))), strict=True))
    parameters: Any = ray_parameter
    constants: Any = ray_constants
    saved = parameters.RayParams, constants.ENABLE_RAY_CLUSTER
    parameters.RayParams = functools.partial(parameters.RayParams, dashboard_agent_listen_port=0)
    # Ray's own setting for computers whose firewall asks about every open port; it makes 127.0.0.1 the node's address.
    constants.ENABLE_RAY_CLUSTER = False
    variables = {ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0", **ports}
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        parameters.RayParams, constants.ENABLE_RAY_CLUSTER = saved
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
