"""Isolates a local Ray that a command starts for itself from other machines and from other Rays on this machine.

`ray.init` has no options for this. The private names of Ray that it takes are used in this module only (Ray 2.60).
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
"""Environment variables with ports of two Ray processes. By default every Ray on a machine uses the same ports."""


def is_to_be_started() -> bool:
    """Tells whether `ray.init` would start a local Ray, because `RAY_ADDRESS` names none and none runs here."""
    services: Any = ray_services
    is_unnamed = os.environ.get("RAY_ADDRESS", "") in ("", "local")
    return is_unnamed and services.canonicalize_bootstrap_address(None) is None


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Makes a Ray that is started within the block listen on loopback addresses only, at ports of its own.

    Otherwise other machines could read its metrics, which need no token, and a second Ray on the same machine would
    accept no jobs, because the job agent's port is always the same.
    """
    ports = dict(zip(METRICS_PORTS, map(str, free_ports(len(METRICS_PORTS))), strict=True))
    parameters: Any = ray_parameter
    constants: Any = ray_constants
    saved = parameters.RayParams, constants.ENABLE_RAY_CLUSTER
    parameters.RayParams = functools.partial(parameters.RayParams, dashboard_agent_listen_port=0)
    # Ray has this setting for computers whose firewall asks about open ports; it makes 127.0.0.1 the node's address.
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
