"""Who may ask: holders of a key, or without keys this machine alone, and no page of another site by way of it."""

import ipaddress
import os
from collections.abc import Awaitable, Callable, Collection
from typing import Any
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, HTTPBearer

from serve_app.errors import RequestError
from serve_app.http.auth import FILE_VARIABLE, KEYS_VARIABLE, ApiKeys, Verdict

REFUSALS = {
    Verdict.MISSING: "A key is required: Authorization: Bearer KEY, or X-API-Key: KEY.",
    Verdict.WRONG: "The key is not valid.",
}

HAPROXY_VARIABLE = "RAY_SERVE_ENABLE_HA_PROXY"
"""Set to 1, Serve has HAProxy hand on requests, and a client's address is not known here."""

PROXY_HEADERS = frozenset({"forwarded", "via", "x-real-ip", "x-client-ip", "true-client-ip", "cf-connecting-ip"})
"""Headers that reverse proxies add to a request, beside those that start with `PROXY_PREFIX`."""

PROXY_PREFIX = "x-forwarded"
"""Start of the names of headers such as X-Forwarded-For."""


def make_guard(
    keys: ApiKeys, *, is_open: bool, loopback_only: bool, origins: Collection[str] = ()
) -> Callable[..., Awaitable[None]]:
    """Makes what FastAPI asks before each guarded request.

    Args:
        keys: The keys.
        is_open: Without keys anyone may ask.
        loopback_only: Whoever reaches the server is on its own machine.
        origins: Other sites whose pages may ask, without keys too; see `Options.cors_origins`.
    """
    is_hidden = os.environ.get(HAPROXY_VARIABLE) == "1" and not loopback_only

    # A coroutine, though it waits for nothing: FastAPI would run a plain function in another thread, each time.
    async def check(
        request: Request,
        bearer: Any = Depends(HTTPBearer(auto_error=False)),  # noqa: ARG001, B008 (for the document of the API)
        key: Any = Depends(APIKeyHeader(name="X-API-Key", auto_error=False)),  # noqa: ARG001, B008
    ) -> None:
        verdict = keys.check(
            authorization=request.headers.get("authorization"), x_api_key=request.headers.get("x-api-key")
        )
        if verdict in REFUSALS:
            raise RequestError(verdict.value, REFUSALS[verdict])
        if not keys.required and not is_open:
            if is_hidden:
                raise RequestError(
                    403,
                    f"Behind HAProxy there must be keys ({KEYS_VARIABLE} or {FILE_VARIABLE}), or open_without_keys.",
                )
            _check_is_local(request, origins)

    return check


def _check_is_local(request: Request, origins: Collection[str]) -> None:
    """Refuses a request that comes from elsewhere, or by way of a proxy or a browser's page from elsewhere."""
    if request.client is None or not _is_loopback(request.client.host):
        raise _refusal("only the server's own machine may ask")
    # Who asks a proxy on this machine may be anywhere.
    added = next((name for name in request.headers if name in PROXY_HEADERS or name.startswith(PROXY_PREFIX)), None)
    if added is not None:
        raise _refusal("requests by way of a proxy are refused", f"the header {added[:100]}")
    # The one trace that nginx leaves by default, up to 1.29.6: it speaks an HTTP that browsers and libraries do not.
    if request.scope.get("http_version") == "1.0":
        raise _refusal("requests by way of a proxy are refused", "HTTP/1.0, as nginx speaks it")
    # A page of another site can have its own name lead here (DNS rebinding), and a browser lets it read what comes from
    # there. What it cannot do is to ask for this machine by this machine's name.
    host = request.headers.get("host", "")
    if not _is_local_name(host):
        raise _refusal(
            "the server must be asked for as localhost or 127.0.0.1", f"Host: {host[:100] or 'none'}", status=421
        )
    # Such a page can send forms here all the same, though not read the answers; browsers then say where it is from.
    origin = request.headers.get("origin")
    if origin is not None and origin not in origins and _netloc(origin) != host:
        raise _refusal("pages of other sites may not ask", f"Origin: {origin[:100]}")


def _refusal(rule: str, received: str | None = None, *, status: int = 403) -> RequestError:
    more = "" if received is None else f" Received: {received}"
    return RequestError(
        status, f"No API keys are set: {rule}. Set some in {KEYS_VARIABLE} or {FILE_VARIABLE} on the server.{more}"
    )


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _is_local_name(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    return name is not None and (name == "localhost" or _is_loopback(name))


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
