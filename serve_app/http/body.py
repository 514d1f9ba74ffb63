"""A request's body: no larger and no slower than allowed, all together within memory, and of a type that is taken."""

import asyncio
from collections.abc import Callable, Collection, Coroutine
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.errors import RETRY_AFTER_S, RequestError

MIN_BYTES_PER_S = 16 * 1024
"""A body that comes more slowly is cut off; a bad mobile connection is as fast."""

NO_BODY = ("GET", "HEAD", "DELETE")
"""Methods that need none."""

MAX_BODIES = 8
"""All bodies that are held at a time are no larger than so many of the longest."""


class LimitBody:
    """Refuses large bodies, once they are; and slow ones. `check_length` comes before it.

    ASGI middleware, see https://www.starlette.io/middleware/#pure-asgi-middleware.

    Args:
        app: What is guarded.
        max_bytes: The longest body. `MAX_BODIES` times as much are held at once.
        timeout_s: A body may take so long, and the time that its bytes need at `MIN_BYTES_PER_S`.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, timeout_s: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._num_held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on with a body that raises RequestError (408, 413, 429) where it is not as it should be."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start_s = asyncio.get_running_loop().time()
        num_bytes = 0
        is_whole = False

        async def receive_limited() -> Message:
            nonlocal num_bytes, is_whole
            if is_whole:  # what follows is the client's leaving, whenever that is
                return await receive()
            try:
                async with asyncio.timeout_at(start_s + self._timeout_s + num_bytes / MIN_BYTES_PER_S):
                    message = await receive()
            except TimeoutError:
                raise RequestError(
                    408, "The request came too slowly. Send it again, or fewer images at once."
                ) from None
            num_new = len(message.get("body", b""))
            num_bytes += num_new
            self._num_held_bytes += num_new
            if num_bytes > self._max_bytes:
                raise _too_large(self._max_bytes)
            if self._num_held_bytes > MAX_BODIES * self._max_bytes:
                raise RequestError(
                    429, "Too much is being sent. Try again a little later.", retry_after_s=RETRY_AFTER_S
                )
            is_whole = not message.get("more_body", False)
            return message

        try:
            await self._app(scope, receive_limited, send)
        finally:
            self._num_held_bytes -= num_bytes


def make_length_check(max_bytes: int) -> Callable[[Request], Coroutine[Any, Any, None]]:
    """Makes what FastAPI asks before each request: it refuses a body by what is announced of it.

    Serve reads bodies ahead, and keeps what comes for as long as a request is not answered.

    Args:
        max_bytes: The longest body.
    """

    async def check_length(request: Request) -> None:
        announced = request.headers.get("content-length", "0")
        if request.method in NO_BODY and (announced != "0" or "transfer-encoding" in request.headers):
            raise RequestError(400, f"Send no body with {request.method}.")
        # Numbers of thousands of digits are refused by int().
        if announced.isdecimal() and (len(announced) > 20 or int(announced) > max_bytes):
            raise _too_large(max_bytes)

    return check_length


def _too_large(max_bytes: int) -> RequestError:
    return RequestError(
        413, f"The request has more than {max_bytes:,} bytes. Send fewer images at once, or smaller ones."
    )


async def admit(request: Request, check_room: Callable[[], None]) -> None:
    """Refuses a request for which there is no room before its body is parsed: an overloaded server has other work.

    Args:
        request: With a body that nobody has read.
        check_room: Raises RequestError where there is none.
    """
    try:
        check_room()
    except RequestError:
        async for _ in request.stream():  # a client that is still sending would not read the answer
            pass
        raise


def media_type(request: Request) -> str:
    """Returns the media type without its parameters, in lower case; empty where there is none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def check_media_type(request: Request, allowed: Collection[str]) -> None:
    """Refuses a body of another type, or one that is compressed.

    Raises:
        RequestError: 415.
    """
    found = media_type(request)
    if found not in allowed:
        wanted = " or ".join(filter(None, allowed))
        raise RequestError(415, f"The body must be {wanted}. Received: {found or 'no Content-Type'}")
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        # What a few bytes unpack to has no bound, and images are compressed already.
        raise RequestError(415, f"Send the body without compression. Received: Content-Encoding: {encoding[:100]}")
