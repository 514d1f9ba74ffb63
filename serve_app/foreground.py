"""Runs the endpoint in the foreground, on a local Ray or the one that RAY_ADDRESS names, for `tlray serve`."""

import contextlib
import io
import ipaddress
import logging
import os
import socket
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

import ray
from pydantic import ValidationError

from serve_app.environment import INNER_HOST, SERVE_ENVIRONMENT, restore_environment, serve_environment, set_environment
from serve_app.haproxy import ADDRESS_VARIABLE
from serve_app.http.auth import FILE_VARIABLE, KEYS_VARIABLE, ApiKeys
from serve_app.http.identity import ANSWER_HEADER, name_of, new_token
from serve_app.options import CPUS_PER_REPLICA, Options
from tlray.bundle import store
from tlray.bundle.spec import BundleSpec
from tlray.cluster import capacity, connection, locations, ray_internals
from tlray.config.prediction import ServeConfig
from tlray.config.training import PrecisionChoice
from tlray.config.values import flag
from tlray.engines import choice
from tlray.engines.kinds import EngineKind
from tlray.errors import ConfigError, TlrayError
from tlray.files import storage

NAME = "tlray"
"""Name of the application within Serve."""

GRACE_S = 20.0
"""Seconds that a replica has at the end to answer what it holds: less than the 30 s that `serve.shutdown` waits."""

ANSWER_S = 30.0
"""Seconds within which a deployed application must answer at its address."""

CPUS_BESIDE = 2
"""CPUs left to the ingress and bulk scoring, where several model replicas have CPUs of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A running endpoint.

    Attributes:
        address: URL of the endpoint, from this machine.
        options: The settings of the application.
        spec: Description of the bundle that is served, its `bundle.json`.
        bundle_sha256: SHA-256 of that `bundle.json`, which identifies the model.
        engine: The engine and precision that predict, in words; see `describe_engine`.
        needs_key: Whether requests must carry an API key.
        logs: The directory of Serve's log files on this node.
    """

    address: str
    options: Options
    spec: BundleSpec
    bundle_sha256: str
    engine: str
    needs_key: bool
    logs: str

    def wait(self) -> None:
        """Blocks until Ctrl-C or SIGTERM, which are raised as KeyboardInterrupt."""
        threading.Event().wait()


@contextlib.contextmanager
def started(config: ServeConfig) -> Iterator[Endpoint]:
    """Starts the endpoint. On leaving the context it is shut down, together with a Ray that was started for it.

    Settings, address and bundle are checked before Ray is started; the room in the cluster is checked afterwards.

    Raises:
        ConfigError: A setting cannot work, the address cannot be listened on, or Serve runs on that Ray already.
        BundleError: There is no bundle, or it is damaged.
        TlrayError: Ray could not be started, or Serve could not start the application.
    """
    options = read_options(config)
    check_roots(options)
    check_host(config)
    bundle = store.load(options.bundle)  # a remote one's copy goes with this object
    spec, sha256 = bundle.spec, bundle.sha256
    # A Ray that runs already has its own settings, and its replicas know no token.
    is_own_ray = ray_internals.would_start()
    check_authentication(is_own_ray=is_own_ray)
    # The machines of a Ray that runs already may have other CPUs.
    kind = choice.for_bundle(bundle, options.engine, options.precision, use_gpu=options.use_gpu, on_this_cpu=is_own_ray)
    scratch = tempfile.TemporaryDirectory(prefix="tlray-serve-")
    token = new_token()
    options = options.model_copy(update={"endpoint": name_of(token)})
    saved = set_environment(serve_environment(scratch.name, config, token) if is_own_ray else SERVE_ENVIRONMENT)
    from ray import serve  # noqa: PLC0415 (it reads the environment here)

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    address = _address(config)
    is_ours = False
    try:
        connection.connect(with_jobs=bool(options.input_roots and options.output_roots))
        available = capacity.measure()
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
                f"{KEYS_VARIABLE} or {FILE_VARIABLE} is set here but not where Ray was started, so the endpoint would "
                "require no key. Set it for `ray start`, or unset RAY_ADDRESS to start a local Ray."
            )
        yield Endpoint(
            address=address,
            options=options,
            spec=spec,
            bundle_sha256=sha256,
            engine=describe_engine(kind, options.precision, on_this_cpu=is_own_ray),
            needs_key=has_keys,
            logs=_logs(),
        )
    finally:
        # Ray prints that the controller's last task ended with the controller.
        with contextlib.redirect_stdout(io.StringIO()):
            if is_ours:
                serve.shutdown()
            ray.shutdown(wait_for_processes=True)
        restore_environment(saved)
        scratch.cleanup()


def describe_engine(kind: EngineKind, precision: PrecisionChoice, *, on_this_cpu: bool) -> str:
    """Returns in words which engine and precision predict.

    Args:
        kind: The engine and precision that were chosen.
        precision: The wanted precision. auto: each replica chooses for its own CPU.
        on_this_cpu: Whether all replicas run on this machine's CPU.
    """
    if on_this_cpu or precision != "auto" or kind.precision == "float32":
        return str(kind)
    return f"each replica chooses for its own CPU, up to {kind}; see GET /model"


def read_options(config: ServeConfig) -> Options:
    """Returns the application's settings; relative paths are resolved from the working directory.

    Raises:
        ConfigError: A setting cannot work.
    """
    try:
        return Options(
            bundle=storage.absolute(config.bundle),  # refused before it is shown, if it has a password
            name=config.name,
            open_without_keys=config.open_without_keys,
            cors_origins=list(config.cors_origins),
            one_process=config.max_replicas == 1,
            loopback_only=_is_loopback(config.host),
            engine=config.engine,
            precision=config.precision,
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
    """Checks that the input folders of bulk scoring exist. Output folders need not: bulk scoring creates them.

    Raises:
        ConfigError: A folder does not exist; the message names it.
    """
    for root in options.input_roots:
        if not storage.exists(root):
            raise ConfigError(f"--input-roots: there is no folder '{root}'.")


def check_host(config: ServeConfig) -> None:
    """Checks that the address can be listened on, and that other machines do not reach it without keys.

    Raises:
        ConfigError: It cannot be listened on, or it needs keys or `open_without_keys`; the message says what to do.
    """
    is_open = ApiKeys().required or config.open_without_keys
    if not is_open and not _is_loopback(config.host):
        raise ConfigError(
            f"--host {config.host} lets other machines in, and there are no keys. Set {KEYS_VARIABLE}, or "
            f"{FILE_VARIABLE} to a file with keys (`openssl rand -hex 24` makes one); or omit --host; or give "
            "--open-without-keys."
        )
    try:
        family, *_, where = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
        # Serve shares its port with any other Serve of the same user, and clients would reach one or the other.
        with socket.socket(family) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(where)
    except OSError as error:
        raise ConfigError(
            f"Port {config.port} of {config.host} cannot be listened on: {error.strerror}. Give another --port, or "
            "another --host."
        ) from None


def check_authentication(*, is_own_ray: bool) -> None:
    """Refuses to start a Ray without token authentication, as Serve opens a port of each replica to other machines.

    Raises:
        ConfigError: RAY_AUTH_MODE switches the token off.
    """
    mode = os.environ.get("RAY_AUTH_MODE", "token")
    if is_own_ray and mode != "token":
        raise ConfigError(f"RAY_AUTH_MODE={mode} would let other machines reach the model without a key. Unset it.")


def check_room(options: Options, available: capacity.Capacity) -> None:
    """Refuses more replicas than the cluster has room for; Serve would wait for room forever.

    Raises:
        ConfigError: They do not fit; the message lists what is needed and what is available.
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


def _deploy(config: ServeConfig, options: Options) -> None:
    from ray import serve  # noqa: PLC0415

    from serve_app.app import application  # noqa: PLC0415

    host = INNER_HOST if os.environ.get(ADDRESS_VARIABLE) else config.host
    serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": config.port})
    try:
        serve.run(application(options, grace_s=GRACE_S), name=NAME)
    except RuntimeError as error:
        said = str(error).strip().splitlines()[-1]
        raise TlrayError(f"Ray Serve could not start the endpoint: {said} More is in {_logs()}.") from error


def _logs() -> str:
    return os.path.join(ray_internals.logs_directory(), "serve")


def _address(config: ServeConfig) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host, config.host)  # noqa: S104
    return f"http://[{host}]:{config.port}" if ":" in host else f"http://{host}:{config.port}"


def needs_key(address: str, endpoint: str) -> bool:
    """Waits until this endpoint, and no other, answers at its address, and returns whether it requires a key.

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
