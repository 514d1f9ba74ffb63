"""The FastAPI application: its routes, middleware and error answers. `Service` does the work on images."""

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from serve_app.batches.jobs import Batches
from serve_app.batches.routes import add_batches
from serve_app.errors import CODES, RequestError
from serve_app.http.auth import ApiKeys, Verdict
from serve_app.http.body import LimitBody, make_length_check
from serve_app.http.docs import add_docs
from serve_app.http.guard import make_guard
from serve_app.http.identity import Identity
from serve_app.http.methods import AnswerHead, allow_header, show_methods
from serve_app.http.page import load_page
from serve_app.http.query import check_query
from serve_app.http.request_log import LogRequests, note
from serve_app.model.service import Service
from serve_app.protocols import open_inference
from serve_app.protocols.answers import Live, Ready, ServerMetadata
from serve_app.protocols.refusals import GUARDED, refusals
from serve_app.protocols.routes import add_open_inference, add_tensorflow_serving
from serve_app.protocols.uploads import add_uploads
from tlray import __version__

_LOG = logging.getLogger(__name__)

CORS: dict[str, Any] = {
    "allow_methods": ("GET", "HEAD", "POST", "DELETE"),
    "allow_headers": ("Authorization", "X-API-Key", "Content-Type", open_inference.HEADER_LENGTH),
    "expose_headers": ("Retry-After", open_inference.HEADER_LENGTH),
}
"""Settings of `Cors`: methods and headers that pages of `Options.cors_origins` may use. Cookies are never used."""


class Cors(CORSMiddleware):
    """Starlette's CORS middleware, except that a refused preflight is answered in the JSON form of all other errors."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """Returns the answer to a browser that asks whether a page of another site may send a request."""
        answer = super().preflight_response(request_headers)
        if answer.status_code == 200:
            return answer
        headers = {name: value for name, value in answer.headers.items() if not name.startswith("content-")}
        return _failure(answer.status_code, f"{bytes(answer.body).decode()}.", headers=headers)


class Api(FastAPI):
    """A FastAPI application that puts the endpoint's name into every answer, even into those to unforeseen failures.

    Args:
        endpoint: The endpoint's public name; empty: answers carry none. See `Identity`.
        settings: Arguments for FastAPI.
    """

    def __init__(self, *, endpoint: str, **settings: Any) -> None:
        super().__init__(**settings)
        self._endpoint = endpoint

    def build_middleware_stack(self) -> ASGIApp:
        """Returns Starlette's middleware stack, wrapped in `Identity`."""
        return Identity(super().build_middleware_stack(), name=self._endpoint)


def create_api(service: Service, keys: ApiKeys, batches: Batches) -> FastAPI:
    """Returns the HTTP application.

    Args:
        service: Answers the requests for predictions and metadata.
        keys: The API keys that open the guarded routes.
        batches: Answers the requests for bulk scoring.
    """
    options = service.options
    api = Api(
        endpoint=options.endpoint,
        title="tlray",
        version=__version__,
        description="Classifies chest-CT images. A research tool, no medical device: not for diagnosis.",
        servers=[{"url": "."}],  # relative to this document, so it also holds below the prefix of a proxy
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(make_length_check(options.max_body_bytes))],
    )
    api.add_middleware(AnswerHead)
    api.add_middleware(LimitBody, max_bytes=options.max_body_bytes, timeout_s=options.timeout_s)
    if options.cors_origins:
        api.add_middleware(Cors, allow_origins=options.cors_origins, **CORS)
    api.add_middleware(LogRequests, telemetry=service.telemetry)  # the outermost is added last
    api.exception_handler(RequestError)(_show_request_error)
    api.exception_handler(RequestValidationError)(_show_invalid)
    api.exception_handler(HTTPException)(_show_http_error)
    api.exception_handler(ClientDisconnect)(_show_disconnect)
    api.exception_handler(Exception)(_show_failure)
    guard = make_guard(
        keys, is_open=options.open_without_keys, loopback_only=options.loopback_only, origins=options.cors_origins
    )
    guarded = APIRouter(dependencies=[Depends(guard), Depends(check_query)], responses=GUARDED)
    _add_open(api, service)
    add_docs(api)
    add_uploads(guarded, service)
    add_tensorflow_serving(guarded, service)
    add_open_inference(guarded, service)
    add_batches(guarded, batches)
    api.include_router(guarded)
    return api


# -- error answers


async def _show_request_error(_: Request, error: RequestError) -> JSONResponse:
    headers = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s else {}
    if error.status == Verdict.MISSING:
        headers["WWW-Authenticate"] = "Bearer"
    return _failure(error.status, error.message, error.code, headers)


async def _show_invalid(_: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return _failure(422, f"{where}: {first['msg']}.")


async def _show_http_error(request: Request, error: HTTPException) -> Response:
    if error.status_code != 405:
        return _failure(error.status_code, str(error.detail), headers=error.headers)
    if request.method == "OPTIONS":
        return show_methods(request)
    return _failure(405, f"{request.method[:20]} is not allowed for this address.", headers=allow_header(request))


async def _show_disconnect(_: Request, __: ClientDisconnect) -> JSONResponse:
    # A client that has closed only its sending half can still read this.
    return _failure(400, "The client closed the connection before its request was complete.")


async def _show_failure(request: Request, error: Exception) -> JSONResponse:
    _LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _failure(500, "The server failed; its log says why.")


def _failure(
    status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    code = code or CODES[status]
    note(error_code=code)
    return JSONResponse({"error": message, "error_code": code}, status, headers)


# -- routes without a key


def _add_open(api: FastAPI, service: Service) -> None:
    page = load_page()

    @api.get("/", include_in_schema=False)
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page.content, headers=page.headers)

    @api.get("/v2/health/live", response_model=Live, tags=["health"])
    async def live() -> dict[str, bool]:
        """Returns 200 if the process answers."""
        return {"live": True}

    @api.get("/v2/health/ready", response_model=Ready, responses=refusals(400, 500, 503), tags=["health"])
    async def ready() -> dict[str, Any]:
        """Returns 200 and the bundle's sha256 if the model is loaded, checked and warmed up."""
        info = await service.model_info()
        return {"ready": True, "model": service.options.name, "bundle_sha256": info.bundle_sha256}

    @api.get("/v2/", include_in_schema=False)
    @api.get("/v2", response_model=ServerMetadata, tags=["Open Inference Protocol"])
    async def server() -> dict[str, Any]:
        """Describes the server."""
        return open_inference.server_metadata(__version__)
