"""What `tlray serve` refuses before there is a Ray, and what it says."""

import contextlib
import http.server
import os
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.serve._private import constants

from serve_app import foreground
from serve_app.environment import (
    INNER_HOST,
    PORTS,
    SERVE_ENVIRONMENT,
    restore_environment,
    serve_environment,
    set_environment,
)
from serve_app.foreground import check_host, check_room, check_roots, read_options, started
from serve_app.http.auth import FILE_VARIABLE, KEYS_VARIABLE
from serve_app.http.identity import TOKEN_VARIABLE
from serve_app.options import Options
from tlray.bundle.spec import BundleSpec
from tlray.cluster.capacity import Capacity, Node
from tlray.config.prediction import ServeConfig
from tlray.engines.kinds import EngineKind
from tlray.errors import BundleError, ConfigError, TlrayError

KEY = "0123456789abcdef"
EVERYWHERE = "0.0.0.0"  # noqa: S104


@pytest.fixture(autouse=True)
def without_keys(monkeypatch):
    for name in (KEYS_VARIABLE, FILE_VARIABLE):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize("host", [EVERYWHERE, "::", "192.0.2.1", "example"])
def test_others_are_let_in_with_keys_only(host):
    with pytest.raises(ConfigError, match=re.escape(f"--host {host} lets other machines in, and there are no keys.")):
        check_host(ServeConfig(bundle="b", host=host))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.2"])
def test_this_machine_needs_no_key(host, port):
    check_host(ServeConfig(bundle="b", host=host, port=port))


def test_keys_or_the_explicit_word_open_the_host(monkeypatch, port):
    check_host(ServeConfig(bundle="b", host=EVERYWHERE, port=port, open_without_keys=True))
    monkeypatch.setenv(KEYS_VARIABLE, KEY)
    check_host(ServeConfig(bundle="b", host=EVERYWHERE, port=port))
    monkeypatch.setenv(KEYS_VARIABLE, "short")
    with pytest.raises(ConfigError, match="at least 16 are required"):
        check_host(ServeConfig(bundle="b", port=port))


def test_folders_for_bulk_scoring_are_there(tmp_path):
    there, output = str(tmp_path), str(tmp_path / "made later")
    check_roots(Options(bundle="b", input_roots=[there], output_roots=[output]))
    with pytest.raises(ConfigError, match=f"--input-roots: there is no folder '{tmp_path}/nowhere'"):
        check_roots(Options(bundle="b", input_roots=[there, f"{there}/nowhere"], output_roots=[output]))


def test_a_port_in_use_is_refused():
    with socket.socket() as listener:
        # As Serve's own proxies listen, with which one of the same user could share the port.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(
            ConfigError, match=f"Port {port} of 127.0.0.1 cannot be listened on: Address already in use"
        ):
            check_host(ServeConfig(bundle="b", port=port))


def test_an_address_of_another_machine_is_refused(port):
    with pytest.raises(ConfigError, match="cannot be listened on"):
        check_host(ServeConfig(bundle="b", host="192.0.2.1", port=port, open_without_keys=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "two words"}, "--name: String should match pattern"),
        ({"max_replicas": 0}, "--max-replicas: Input should be greater than or equal to 1. Received: 0"),
        ({"max_batch_size": 0}, "--max-batch-size: Input should be greater than or equal to 1. Received: 0"),
        ({"input_roots": ("s3://b/../c",)}, "--input-roots: 's3://b/../c' has a component that is empty"),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_options(ServeConfig(bundle="b", **settings))


def test_paths_are_seen_from_the_working_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = ServeConfig(bundle="b", input_roots=("in", "s3://b/in"), output_roots=("out",), open_without_keys=True)
    options = read_options(config)
    assert options.bundle == f"{tmp_path}/b"
    assert options.input_roots == [f"{tmp_path}/in", "s3://b/in"]
    assert options.output_roots == [f"{tmp_path}/out"]
    assert options.open_without_keys


def test_a_missing_bundle_is_told_before_ray_starts(tmp_path, port, monkeypatch):
    calls: list[bool] = []
    monkeypatch.setattr("tlray.cluster.connection.connect", lambda **_: calls.append(True))
    with pytest.raises(BundleError, match="is not a bundle"), started(ServeConfig(bundle=str(tmp_path), port=port)):
        pass
    assert not calls


def test_a_precision_that_the_bundle_has_on_no_cpu_is_told_before_serving_on_a_ray_that_runs(port, monkeypatch):
    calls: list[bool] = []
    monkeypatch.setattr("tlray.cluster.connection.connect", lambda **_: calls.append(True))
    monkeypatch.setattr(foreground.ray_internals, "would_start", lambda: False)
    spec = BundleSpec(
        classes=("a", "b"), image_size_px=8, preprocessing="unit", backbone="b", weights="w",
        files={"openvino/model.xml": "0"},
    )  # fmt: skip
    monkeypatch.setattr(foreground.store, "load", lambda _: SimpleNamespace(spec=spec, sha256="0"))
    config = ServeConfig(bundle="b", port=port, precision="int8")
    with pytest.raises(ConfigError, match="this bundle has no int8 model"), started(config):
        pass
    assert not calls


@pytest.mark.parametrize(
    ("precision", "wanted", "on_this_cpu", "shown"),
    [
        ("int8", "auto", True, "openvino int8"),
        ("int8", "int8", False, "openvino int8"),
        ("float32", "auto", False, "openvino float32"),
        ("int8", "auto", False, "each replica chooses for its own CPU, up to openvino int8; see GET /model"),
    ],
)
def test_the_engine_is_shown_as_far_as_it_is_known(precision, wanted, on_this_cpu, shown):
    """Replicas on the machines of a Ray that runs already choose for their own CPUs."""
    found = foreground.describe_engine(EngineKind("openvino", precision), wanted, on_this_cpu=on_this_cpu)
    assert found == shown


def capacity(num_cpus: float, num_gpus: float) -> Capacity:
    return Capacity(
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        nodes=(Node(num_cpus, num_gpus),),
        object_store_bytes=1,
        smallest_object_store_bytes=1,
        memory_bytes=1,
        has_many_nodes=False,
    )


@pytest.mark.parametrize(
    ("settings", "num_cpus", "num_gpus", "message"),
    [
        ({"max_replicas": 2}, 2, 0, "Try --max-replicas 1; a single replica uses all CPUs."),
        ({"max_replicas": 4}, 17, 0, "Ray has 17 CPUs and 0 GPUs. Try --max-replicas 3"),
        ({"use_gpu": True}, 2, 0, "--use-gpu with --max-replicas 1 asks for as many GPUs. Ray has 2 CPUs and 0 GPUs."),
        ({"use_gpu": True, "max_replicas": 3}, 8, 2, "Try --max-replicas 2."),
    ],
)
def test_more_replicas_than_there_is_room_for(settings, num_cpus, num_gpus, message):
    options = read_options(ServeConfig(bundle="b", **settings))
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_room(options, capacity(num_cpus, num_gpus))


@pytest.mark.parametrize(
    ("settings", "num_cpus", "num_gpus"),
    [({}, 1, 0), ({"max_replicas": 4}, 18, 0), ({"use_gpu": True, "max_replicas": 2}, 2, 2)],
)
def test_room_that_suffices(settings, num_cpus, num_gpus):
    check_room(read_options(ServeConfig(bundle="b", **settings)), capacity(num_cpus, num_gpus))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, (True, True)), ({"max_replicas": 2}, (False, True)), ({"host": EVERYWHERE}, (True, False))],
)
def test_a_single_replica_is_one_process_and_loopback_is_known(settings, expected):
    options = read_options(ServeConfig(bundle="b", **settings))
    assert (options.one_process, options.loopback_only) == expected


def environments(tmp_path, *hosts):
    for number, host in enumerate(hosts):
        (tmp_path / str(number)).mkdir()
        config = ServeConfig(bundle="b", host=host, port=8000)
        yield serve_environment(str(tmp_path / str(number)), config, f"token-{number}")


def ports_of(environment: dict[str, str]) -> list[int]:
    first, end = (int(environment[f"RAY_SERVE_DIRECT_INGRESS_{each}_HTTP_PORT"]) for each in ("MIN", "MAX"))
    return [*range(first, end), *(int(environment[name]) for name in PORTS)]


def test_two_endpoints_share_no_file_and_no_port(tmp_path, monkeypatch):
    blocks = iter([21_000, 22_000])
    monkeypatch.setattr("serve_app.environment.free_block", lambda *_, **__: next(blocks))
    first, second = environments(tmp_path, "127.0.0.1", "127.0.0.1")
    shared = {name for name, value in first.items() if second[name] == value}
    assert shared == set(SERVE_ENVIRONMENT) | {"TLRAY_ENDPOINT_ADDRESS"}
    for environment, start in ((first, 21_000), (second, 22_000)):
        assert ports_of(environment) == list(range(start, start + 104))
    known = {name for name in vars(constants) if name.startswith("RAY_SERVE_")}
    everybodys = {name for name in known if "/haproxy-serve" in str(getattr(constants, name))}
    assert everybodys <= set(first)
    # All that Serve listens at by default, but gRPC, which is off.
    ports = {name for name in known if name.endswith("_PORT") and getattr(constants, name) and "GRPC" not in name}
    assert ports <= set(first), ports - set(first)


def test_every_setting_is_one_that_serve_reads(tmp_path):
    (found,) = environments(tmp_path, "127.0.0.1")
    text = "".join(path.read_text() for path in Path(constants.__file__).parent.glob("*.py"))
    assert [name for name in found if not name.startswith("TLRAY_") and f'"{name}"' not in text] == []


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1:8000"),
        (EVERYWHERE, "0.0.0.0:8000"),
        ("::1", "[::1]:8000"),
        ("192.0.2.1", "192.0.2.1:8000"),
    ],
)
def test_haproxy_listens_and_serve_behind_it_on_loopback_alone(tmp_path, host, address):
    (found,) = environments(tmp_path, host)
    assert found["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert (found["TLRAY_ENDPOINT_ADDRESS"], found["TLRAY_ENDPOINT_TOKEN"]) == (address, "token-0")
    assert INNER_HOST == "127.0.0.1"


def test_without_haproxy_serve_listens_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")
    (found,) = environments(tmp_path, EVERYWHERE)
    assert "TLRAY_ENDPOINT_ADDRESS" not in found
    assert "TLRAY_ENDPOINT_TOKEN" not in found
    assert (found["RAY_SERVE_ENABLE_HA_PROXY"], found["SERVE_SOCKET_REUSE_PORT_ENABLED"]) == ("0", "1")


def test_the_environment_is_as_before_in_the_end(monkeypatch):
    monkeypatch.setenv("RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S", "7")  # a setting of the user's own
    monkeypatch.setenv("TLRAY_ENDPOINT_TOKEN", "of another endpoint")
    before = dict(os.environ)
    saved = set_environment(SERVE_ENVIRONMENT | {TOKEN_VARIABLE: "own"})
    assert os.environ["RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S"] == "7"
    assert os.environ[TOKEN_VARIABLE] == "own"
    restore_environment(saved)
    assert dict(os.environ) == before


def test_a_ray_without_a_token_is_not_started(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ConfigError, match="RAY_AUTH_MODE=disabled would let other machines reach the model"):
        foreground.check_authentication(is_own_ray=True)
    foreground.check_authentication(is_own_ray=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    foreground.check_authentication(is_own_ray=True)


def test_serve_is_given_our_haproxy(tmp_path):
    (found,) = environments(tmp_path, EVERYWHERE)
    script = found["RAY_SERVE_HAPROXY_BINARY_PATH"]
    said = subprocess.run(
        [script, "-v"], cwd=tmp_path, env=os.environ | found, capture_output=True, text=True, check=True
    )
    assert said.stdout.startswith("HAProxy version")


@contextlib.contextmanager
def answering(endpoint: str, *, status: int) -> Iterator[str]:
    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("X-Tlray-Endpoint", endpoint)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize(("status", "needs_key"), [(200, False), (401, True)])
def test_an_endpoint_knows_that_it_reaches_itself(monkeypatch, status, needs_key):
    monkeypatch.setattr(foreground, "ANSWER_S", 1.0)
    with answering("0123", status=status) as address:
        assert foreground.needs_key(address, "0123") == needs_key
        with pytest.raises(
            TlrayError, match=f"The endpoint does not answer at {address}: another server answers there"
        ):
            foreground.needs_key(address, "4567")
