"""Answers to HEAD and OPTIONS: HEAD like GET without the body, OPTIONS with the methods of the address."""

from collections.abc import Mapping

from fastapi import Request, Response
from starlette.routing import BaseRoute, Match, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

METHODS = ("DELETE", "GET", "PATCH", "POST", "PUT")
"""Methods that a route may have; HEAD and OPTIONS are added to them."""

ROUTE_NOTES = ("endpoint", "route", "path_params")
"""Entries of an ASGI scope in which the router stores the matched route, for the request log."""


class AnswerHead:
    """ASGI middleware that answers HEAD like GET, without the body.

    Args:
        app: Application that answers GET.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on; HEAD is passed on as GET."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_without_body(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        as_get = {**scope, "method": "GET"}  # a copy, as the server reads the original when it sends the answer
        try:
            await self._app(as_get, receive, send_without_body)
        finally:
            scope.update({name: as_get[name] for name in ROUTE_NOTES if name in as_get})


def allow_header(request: Request) -> Mapping[str, str]:
    """Returns the header Allow with all methods of a request's address; Starlette names only those of one route.

    Args:
        request: Request for an address that exists.
    """
    found = {method for method in METHODS if any(_knows(route, request.scope, method) for route in request.app.routes)}
    more = {"HEAD", "OPTIONS"} if "GET" in found else {"OPTIONS"}
    return {"Allow": ", ".join(sorted(found | more))}


def _knows(route: BaseRoute, scope: Scope, method: str) -> bool:
    if isinstance(route, Mount) and method != "GET":  # a folder of files matches all methods, but answers only GET
        return False
    root_path = scope.get("app_root_path", scope.get("root_path", ""))  # without the prefix of a mount that was tried
    match, _ = route.matches({**scope, "method": method, "root_path": root_path})
    return match is Match.FULL


def show_methods(request: Request) -> Response:
    """Returns the answer to OPTIONS. It needs no key and asks no model."""
    return Response(status_code=204, headers=allow_header(request))
