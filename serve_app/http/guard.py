"""Access to guarded routes: for holders of an API key or, without keys, for this machine but no other site's pages."""

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
"""Messages for requests that are refused because of their key."""

HAPROXY_VARIABLE = "RAY_SERVE_ENABLE_HA_PROXY"
"""Environment variable of Serve. If it is 1, requests come through HAProxy, and clients' addresses are not known."""

PROXY_HEADERS = frozenset({"forwarded", "via", "x-real-ip", "x-client-ip", "true-client-ip", "cf-connecting-ip"})
"""Names of headers that reverse proxies add to a request, besides those that start with `PROXY_PREFIX`."""

PROXY_PREFIX = "x-forwarded"
"""Start of the names of further headers that reverse proxies add, such as X-Forwarded-For."""


def make_guard(
    keys: ApiKeys, *, is_open: bool, loopback_only: bool, origins: Collection[str] = ()
) -> Callable[..., Awaitable[None]]:
    """Returns a FastAPI dependency that raises RequestError (401, 403, 421) for requests without access.

    Args:
        keys: The API keys.
        is_open: Whether everyone has access if there are no keys.
        loopback_only: Whether all clients that reach the server are on its own machine.
        origins: Other sites whose pages have access if there are no keys; see `Options.cors_origins`.
    """
    is_hidden = os.environ.get(HAPROXY_VARIABLE) == "1" and not loopback_only

    # A coroutine, though it awaits nothing, because FastAPI would run a plain function in another thread.
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
                    f"Behind HAProxy the server needs keys ({KEYS_VARIABLE} or {FILE_VARIABLE}) or open_without_keys.",
                )
            _check_is_local(request, origins)

    return check


def _check_is_local(request: Request, origins: Collection[str]) -> None:
    """Refuses a request that comes from another machine, through a proxy, or from another site's page in a browser."""
    if request.client is None or not _is_loopback(request.client.host):
        raise _refusal("only requests from the server's own machine are answered")
    # The client of a proxy on this machine may be anywhere.
    added = next((name for name in request.headers if name in PROXY_HEADERS or name.startswith(PROXY_PREFIX)), None)
    if added is not None:
        raise _refusal("requests through a proxy are refused", f"the header {added[:100]}")
    # By default, nginx up to 1.29.6 leaves only this trace: HTTP/1.0, which browsers and libraries do not speak.
    if request.scope.get("http_version") == "1.0":
        raise _refusal("requests through a proxy are refused", "HTTP/1.0, as nginx speaks it")
    # Another site can let its own name lead to this machine (DNS rebinding), and browsers then let its pages read the
    # answers. But such a request has the site's name in its Host header, not a name of this machine.
    host = request.headers.get("host", "")
    if not _is_local_name(host):
        raise _refusal("the Host header must be localhost or 127.0.0.1", f"Host: {host[:100] or 'none'}", status=421)
    # A page of another site can also send forms here, though not read the answers. Browsers then add its Origin.
    origin = request.headers.get("origin")
    if origin is not None and origin not in origins and _netloc(origin) != host:
        raise _refusal("requests from other sites' pages are refused", f"Origin: {origin[:100]}")


def _refusal(rule: str, received: str | None = None, *, status: int = 403) -> RequestError:
    more = "" if received is None else f" Received: {received}"
    return RequestError(
        status, f"No API keys are set, so {rule}. Set keys in {KEYS_VARIABLE} or {FILE_VARIABLE} on the server.{more}"
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
