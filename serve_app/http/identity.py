"""The identity of an endpoint: replicas accept requests from their own proxy only, and answers name their endpoint.

Endpoints on one machine may use ports that others have just left. Without a token, a proxy whose replica has died could
hand its clients' requests to another endpoint's replica, which has another model and other keys.
"""

import hashlib
import json
import os
import secrets
from typing import TYPE_CHECKING

from serve_app.errors import CODES, RETRY_AFTER_S

if TYPE_CHECKING:  # without it, `tlray-haproxy` starts in a tenth of a second
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOKEN_VARIABLE = "TLRAY_ENDPOINT_TOKEN"  # noqa: S105 (a name)
"""Environment variable with the endpoint's token, for its replicas and HAProxy. If unset, no token is required."""

PROXY_HEADER = "x-tlray-proxy"
"""Request header in which HAProxy sends the endpoint's token; HAProxy replaces a client's value."""

ANSWER_HEADER = "x-tlray-endpoint"
"""Answer header with the endpoint's public name."""

_REFUSAL = "This request was meant for another endpoint, which does not answer now. Try again a little later."


def new_token() -> str:
    """Returns a token that only one endpoint knows: 32 hexadecimal digits."""
    return secrets.token_hex(16)


def name_of(token: str) -> str:
    """Returns the public name of the endpoint with a token: 16 hexadecimal digits that do not reveal it."""
    return hashlib.sha256(token.encode()).hexdigest()[:16]


class Identity:
    """ASGI middleware that refuses requests of another endpoint's proxy (503) and writes the name into each answer.

    Args:
        app: The application.
        name: The endpoint's public name; empty: answers carry none.
        token: The token that each request must carry; empty: none; None: the value of `TOKEN_VARIABLE`.
    """

    def __init__(self, app: "ASGIApp", *, name: str, token: str | None = None) -> None:
        self._app = app
        self._token = os.environ.get(TOKEN_VARIABLE, "").encode() if token is None else token.encode()
        self._header = [(ANSWER_HEADER.encode(), name.encode())] if name else []

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Passes a request on, or refuses it without reading its body."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_name(message: "Message") -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *self._header]}
            await send(message)

        if self._token and dict(scope["headers"]).get(PROXY_HEADER.encode()) != self._token:
            await self._refuse(send_with_name)
            return
        await self._app(scope, receive, send_with_name)

    async def _refuse(self, send: "Send") -> None:
        body = json.dumps({"error": _REFUSAL, "error_code": CODES[503]}).encode()
        headers = {"content-type": "application/json", "content-length": f"{len(body)}", "connection": "close"}
        headers["retry-after"] = str(RETRY_AFTER_S)
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 503, "headers": raw})
        await send({"type": "http.response.body", "body": body})
