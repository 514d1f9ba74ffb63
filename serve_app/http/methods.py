"""HEAD and OPTIONS, which every address answers: HEAD as GET without the body, OPTIONS with the list of its methods."""

from collections.abc import Mapping

from fastapi import Request, Response
from starlette.routing import BaseRoute, Match, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

METHODS = ("DELETE", "GET", "PATCH", "POST", "PUT")
"""Methods that an address can be given by name."""

ROUTE_NOTES = ("endpoint", "route", "path_params")
"""Entries of an ASGI scope in which the router notes where a request went, which the log reads."""


class AnswerHead:
    """Answers HEAD as GET, without the body. ASGI middleware.

    Args:
        app: Application that knows GET.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, HEAD as GET."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_without_body(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        as_get = {**scope, "method": "GET"}  # a copy: the server reads its own when it sends the answer
        try:
            await self._app(as_get, receive, send_without_body)
        finally:
            scope.update({name: as_get[name] for name in ROUTE_NOTES if name in as_get})


def allow_header(request: Request) -> Mapping[str, str]:
    """Returns the header that names the methods of a request's address; Starlette names those of its first route only.

    Args:
        request: Request for an address that exists.
    """
    found = {method for method in METHODS if any(_knows(route, request.scope, method) for route in request.app.routes)}
    more = {"HEAD", "OPTIONS"} if "GET" in found else {"OPTIONS"}
    return {"Allow": ", ".join(sorted(found | more))}


def _knows(route: BaseRoute, scope: Scope, method: str) -> bool:
    if isinstance(route, Mount) and method != "GET":  # a folder of files, which takes anything and then refuses it
        return False
    root_path = scope.get("app_root_path", scope.get("root_path", ""))  # without the prefix of a folder that was tried
    match, _ = route.matches({**scope, "method": method, "root_path": root_path})
    return match is Match.FULL


def show_methods(request: Request) -> Response:
    """Returns the answer to OPTIONS. It needs no key and asks no model."""
    return Response(status_code=204, headers=allow_header(request))
