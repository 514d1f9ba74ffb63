"""A request's body: no larger than allowed, and of a media type that the address takes."""

from collections.abc import Collection

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.errors import RequestError


class LimitBody:
    """Refuses requests with large bodies: by their Content-Length before a byte is read, else once they get too large.

    ASGI middleware, see https://www.starlette.io/middleware/#pure-asgi-middleware.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on with a body that raises RequestError (413) where it is too large."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"")
        num_bytes = 0

        async def receive_limited() -> Message:
            nonlocal num_bytes
            if announced.isdigit() and int(announced) > self._max_bytes:
                raise self._error()
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_bytes:
                raise self._error()
            return message

        await self._app(scope, receive_limited, send)

    def _error(self) -> RequestError:
        return RequestError(413, f"The request has more than {self._max_bytes:,} bytes. Send fewer images at once.")


def media_type(request: Request) -> str:
    """Returns the media type without its parameters, in lower case; empty where there is none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def check_media_type(request: Request, allowed: Collection[str]) -> None:
    """Refuses a body of another type.

    Raises:
        RequestError: 415.
    """
    found = media_type(request)
    if found not in allowed:
        wanted = " or ".join(filter(None, allowed))
        raise RequestError(415, f"The body must be {wanted}. Received: {found or 'no Content-Type'}")
