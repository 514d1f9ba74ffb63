"""The request log: one line for each request, with nothing in it that could be a patient's: no file name, no image."""

import logging
import time
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.watch.telemetry import Telemetry

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})
OTHER = "other"
"""A method or address that the endpoint does not have: what a client makes up is no tag, and is in no log."""

CLIENT_CLOSED_REQUEST = 499
"""The status of a request whose client has gone, as nginx names it; nobody is sent it."""

_LOG = logging.getLogger("ray.serve")


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """What becomes known of a request while it is answered.

    Attributes:
        num_images: Images in it.
        num_bytes: Bytes of its body.
        bundle_sha256: The model that answered.
        error_code: What kind of failure its answer is.
    """

    num_images: int = 0
    num_bytes: int = 0
    bundle_sha256: str | None = None
    error_code: str | None = None


_CURRENT: ContextVar[RequestRecord] = ContextVar("request")


def note(**known: Any) -> None:
    """Adds to the record of the request that is being answered here, if there is one; see `RequestRecord`."""
    record = _CURRENT.get(None)
    if record is not None:
        for name, value in known.items():
            setattr(record, name, value)


class LogRequests:
    """Logs and counts requests. ASGI middleware, the outermost: it sees what the others refuse.

    Args:
        app: What answers.
        telemetry: What counts.
    """

    def __init__(self, app: ASGIApp, *, telemetry: Telemetry) -> None:
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, and writes its line when it has been answered, has failed or was given up."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = RequestRecord()
        status = CLIENT_CLOSED_REQUEST
        start_s = time.monotonic()

        async def receive_counted() -> Message:
            message = await receive()
            record.num_bytes += len(message.get("body", b""))
            return message

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        token = _CURRENT.set(record)
        try:
            await self._app(scope, receive_counted, send_noted)
        except Exception:
            status, record.error_code = 500, "internal"
            raise
        finally:
            _CURRENT.reset(token)
            self._finish(scope, record, status, time.monotonic() - start_s)

    def _finish(self, scope: Scope, record: RequestRecord, status: int, duration_s: float) -> None:
        method = scope["method"] if scope["method"] in METHODS else OTHER
        route = getattr(scope.get("route"), "path", OTHER)  # the template, as the router has left it there
        self._telemetry.answered(
            method=method, route=route, status=status, code=record.error_code, duration_s=duration_s
        )
        fields = {
            "method": method,
            "path": route,
            "status": status,
            "duration_ms": round(duration_s * 1e3, 1),
            "num_images": record.num_images,
            "num_bytes": record.num_bytes,
            "bundle_sha256": record.bundle_sha256,
            "error_code": record.error_code,
        }
        _LOG.info("%s %s %s %.1f ms", method, route, status, duration_s * 1e3, extra=fields)
