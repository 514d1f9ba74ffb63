"""Checks of request bodies: their size, speed and media type, and the memory that all of them take together."""

import asyncio
from collections.abc import Callable, Collection, Coroutine
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.errors import RETRY_AFTER_S, RequestError

MIN_BYTES_PER_S = 16 * 1024
"""Minimum speed of a body in bytes per second, which a bad mobile connection reaches. A slower body is cut off."""

NO_BODY = ("GET", "HEAD", "DELETE")
"""Methods whose requests must not have a body."""

MAX_BODIES = 8
"""Limit of the bodies held at once: their total size is at most that of so many bodies of the maximum size."""


class LimitBody:
    """Refuses bodies that turn out too large or too slow. `make_length_check` refuses those announced as too large.

    This is ASGI middleware, see https://www.starlette.io/middleware/#pure-asgi-middleware.

    Args:
        app: The application that reads the bodies.
        max_bytes: Maximum size of a body in bytes. All bodies held at once may have `MAX_BODIES` times as many.
        timeout_s: Seconds that a body may take, in addition to the time that its bytes need at `MIN_BYTES_PER_S`.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, timeout_s: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._num_held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on; reading its body raises RequestError: 408: too slow; 413: too large; 429: no room."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start_s = asyncio.get_running_loop().time()
        num_bytes = 0
        is_whole = False

        async def receive_limited() -> Message:
            nonlocal num_bytes, is_whole
            if is_whole:  # the next message says that the client has left, at any time
                return await receive()
            try:
                async with asyncio.timeout_at(start_s + self._timeout_s + num_bytes / MIN_BYTES_PER_S):
                    message = await receive()
            except TimeoutError:
                raise RequestError(
                    408, "The request did not arrive in time. Send it again, or fewer images at once."
                ) from None
            num_new = len(message.get("body", b""))
            num_bytes += num_new
            self._num_held_bytes += num_new
            if num_bytes > self._max_bytes:
                raise _too_large(self._max_bytes)
            if self._num_held_bytes > MAX_BODIES * self._max_bytes:
                raise RequestError(
                    429,
                    "The server is receiving too much data at once. Try again a little later.",
                    retry_after_s=RETRY_AFTER_S,
                )
            is_whole = not message.get("more_body", False)
            return message

        try:
            await self._app(scope, receive_limited, send)
        finally:
            self._num_held_bytes -= num_bytes


def make_length_check(max_bytes: int) -> Callable[[Request], Coroutine[Any, Any, None]]:
    """Returns a FastAPI dependency that refuses a body by its headers, before it is read.

    This is early because Serve reads bodies ahead, and keeps what arrives until the request is answered.

    Args:
        max_bytes: Maximum size of a body in bytes.
    """

    async def check_length(request: Request) -> None:
        announced = request.headers.get("content-length", "0")
        if request.method in NO_BODY and (announced != "0" or "transfer-encoding" in request.headers):
            raise RequestError(400, f"Send no body with {request.method}.")
        # int() raises an error for numbers of thousands of digits.
        if announced.isdecimal() and (len(announced) > 20 or int(announced) > max_bytes):
            raise _too_large(max_bytes)

    return check_length


def _too_large(max_bytes: int) -> RequestError:
    return RequestError(
        413, f"The request has more than {max_bytes:,} bytes. Send fewer images at once, or smaller ones."
    )


async def admit(request: Request, check_room: Callable[[], None]) -> None:
    """Refuses a request before its body is parsed if there is no room, to spare an overloaded server the work.

    Args:
        request: A request whose body has not been read.
        check_room: Raises RequestError if there is no room; `admit` raises it too.
    """
    try:
        check_room()
    except RequestError:
        async for _ in request.stream():  # a client that is still sending would not read the answer
            pass
        raise


def media_type(request: Request) -> str:
    """Returns a request's media type without parameters, in lower case; empty if it has none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def check_media_type(request: Request, allowed: Collection[str]) -> None:
    """Refuses a body that has another media type or is compressed.

    Args:
        request: The request.
        allowed: Media types in lower case; empty text allows a request without one.

    Raises:
        RequestError: 415: the body is refused.
    """
    found = media_type(request)
    if found not in allowed:
        wanted = " or ".join(filter(None, allowed))
        raise RequestError(415, f"The body must be {wanted}. Received: {found or 'no Content-Type'}")
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        # A few bytes can unpack to any size, and images are compressed already.
        raise RequestError(415, f"Send the body without compression. Received: Content-Encoding: {encoding[:100]}")
