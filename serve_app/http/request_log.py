"""The request log: one line per request, without patient data such as file names and images."""

import logging
import time
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.watch.telemetry import Telemetry

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})
"""Methods that are logged and counted by name."""

OTHER = "other"
"""Name for all other methods and addresses. Text that a client makes up must not be in the log or a metric's tags."""

CLIENT_CLOSED_REQUEST = 499
"""Status, as in nginx, of a request whose client has left. It is logged and counted, and never sent."""

_LOG = logging.getLogger("ray.serve")


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """Facts about a request, collected while it is answered.

    Attributes:
        num_images: Number of images in the request.
        num_bytes: Bytes of the body that have arrived.
        bundle_sha256: SHA-256 of the bundle that answered; None: no model answered.
        error_code: The answer's `error_code`; None: the answer is no error.
    """

    num_images: int = 0
    num_bytes: int = 0
    bundle_sha256: str | None = None
    error_code: str | None = None


_CURRENT: ContextVar[RequestRecord] = ContextVar("request")


def note(**known: Any) -> None:
    """Sets fields of the `RequestRecord` of the request that is being answered in this context, if there is one."""
    record = _CURRENT.get(None)
    if record is not None:
        for name, value in known.items():
            setattr(record, name, value)


class LogRequests:
    """ASGI middleware that logs and counts requests. It is the outermost one, so it sees what the others refuse.

    Args:
        app: The application.
        telemetry: Counts the requests.
    """

    def __init__(self, app: ASGIApp, *, telemetry: Telemetry) -> None:
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, and logs it when it has been answered, has failed or was cancelled."""
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
        route = getattr(scope.get("route"), "path", OTHER)  # the path template that the router has stored
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
