"""A request's body: no larger than allowed, without long pauses, and of a type that is taken."""

import asyncio
from collections.abc import Callable, Collection

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.errors import RequestError


class LimitBody:
    """Refuses large bodies, by their Content-Length before a byte is read, else once they are; and those that stall.

    ASGI middleware, see https://www.starlette.io/middleware/#pure-asgi-middleware.

    Args:
        app: What is guarded.
        max_bytes: The longest body.
        timeout_s: The longest pause before the next part of one.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, timeout_s: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on with a body that raises RequestError (408, 413) where it stalls or is too large."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"")
        num_bytes = 0
        is_whole = False

        async def receive_limited() -> Message:
            nonlocal num_bytes, is_whole
            if is_whole:  # what follows is the client's leaving, whenever that is
                return await receive()
            # Numbers of thousands of digits are refused by int().
            if announced.isdigit() and (len(announced) > 20 or int(announced) > self._max_bytes):
                raise self._error()
            try:
                async with asyncio.timeout(self._timeout_s):
                    message = await receive()
            except TimeoutError:
                raise RequestError(
                    408, f"No more of the request came within {self._timeout_s:g} s. Send it again."
                ) from None
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_bytes:
                raise self._error()
            is_whole = not message.get("more_body", False)
            return message

        await self._app(scope, receive_limited, send)

    def _error(self) -> RequestError:
        return RequestError(413, f"The request has more than {self._max_bytes:,} bytes. Send fewer images at once.")


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
