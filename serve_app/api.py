"""The HTTP side: addresses, formats and codes. What is done with images is the service's."""

import asyncio
import base64
import ipaddress
import logging
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import numpy as np
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

from serve_app import open_inference, tensorflow_serving
from serve_app.access import ApiKeys, Verdict
from serve_app.batches import Batches, add_batches
from serve_app.body import LimitBody, check_media_type
from serve_app.errors import RequestError
from serve_app.page import load_page
from serve_app.requestlog import LogRequests, note
from serve_app.service import Prediction, Service
from tlray import __version__

_LOG = logging.getLogger(__name__)

JSON = "application/json"
JSON_TYPES = (JSON, "application/x-www-form-urlencoded", "text/plain", "")
"""TensorFlow Serving looks at no media type, and its documentation's `curl -d` sends the second one."""
INFER_TYPES = (JSON, "application/octet-stream", "")
FORM_TYPES = ("multipart/form-data",)

_REFUSALS = {
    Verdict.MISSING: "A key is required: Authorization: Bearer KEY, or X-API-Key: KEY.",
    Verdict.WRONG: "The key is not valid.",
}

_ANSWERS: dict[int | str, dict[str, Any]] = {
    status: {
        "description": description,
        "content": {JSON: {"schema": {"type": "object", "properties": {"error": {"type": "string"}}}}},
    }
    for status, description in {
        400: "The request is not as described.",
        401: _REFUSALS[Verdict.MISSING],
        403: _REFUSALS[Verdict.WRONG],
        404: "There is no such model or version.",
        413: "The request is too large, or has too many images.",
        415: "The body has another media type.",
        422: "An image cannot be decoded: `error_code` says why.",
        429: "Too many images are waiting: see Retry-After.",
        503: "No model is ready: see Retry-After.",
        504: "The model did not answer in time.",
    }.items()
}


def _body(media_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {media_type: {"schema": schema}}}}


_FORM_BODY = _body(
    FORM_TYPES[0],
    {
        "type": "object",
        "required": ["file"],
        "properties": {"file": {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}}},
    },
)
_PREDICT_BODY = _body(
    JSON,
    {
        "type": "object",
        "required": ["instances"],
        "properties": {
            "instances": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "required": ["b64"],
                    "properties": {"b64": {"type": "string", "format": "byte"}},
                },
            }
        },
    },
)
_INFER_BODY = _body(
    JSON,
    {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "inputs": {
                "type": "array",
                "minItems": 1,
                "maxItems": 1,
                "items": {
                    "type": "object",
                    "required": ["name", "datatype", "shape", "data"],
                    "properties": {
                        "name": {"const": open_inference.INPUT},
                        "datatype": {"enum": ["BYTES", "UINT8"]},
                        "shape": {"type": "array", "items": {"type": "integer"}},
                        "data": {"type": "array"},
                    },
                },
            },
        },
    },
)


def create_api(service: Service, keys: ApiKeys, batches: Batches) -> FastAPI:
    """Returns the HTTP application.

    Args:
        service: What answers.
        keys: Who may ask.
        batches: Bulk scoring.
    """
    api = FastAPI(
        title="tlray",
        version=__version__,
        description="Classifies chest-CT images. A research tool, no medical device: not for diagnosis.",
    )
    api.add_middleware(LimitBody, max_bytes=service.options.max_body_bytes)
    api.add_middleware(LogRequests, telemetry=service.telemetry)  # the outermost is added last
    api.exception_handler(RequestError)(_show_request_error)
    api.exception_handler(HTTPException)(_show_http_error)
    api.exception_handler(Exception)(_show_failure)
    guard = _guard(keys, is_open=service.options.open_without_keys)
    guarded = APIRouter(dependencies=[Depends(guard)], responses=_ANSWERS)
    _add_open(api, service)
    _add_predict(guarded, service)
    _add_tensorflow_serving(guarded, service)
    _add_open_inference(guarded, service)
    add_batches(guarded, batches)
    api.include_router(guarded)
    return api


# -- who may ask, and what goes wrong


def _guard(keys: ApiKeys, *, is_open: bool) -> Callable[..., None]:
    def check(
        request: Request,
        bearer: Any = Depends(HTTPBearer(auto_error=False)),  # noqa: ARG001, B008 (for the document of the API)
        key: Any = Depends(APIKeyHeader(name="X-API-Key", auto_error=False)),  # noqa: ARG001, B008
    ) -> None:
        verdict = keys.check(
            authorization=request.headers.get("authorization"), x_api_key=request.headers.get("x-api-key")
        )
        if verdict in _REFUSALS:
            raise RequestError(verdict.value, _REFUSALS[verdict])
        if not keys.required and not is_open and not _is_here(request):
            raise RequestError(
                403, "No API keys are set (TLRAY_API_KEYS): only the server's own machine may ask. Set some there."
            )

    return check


def _is_here(request: Request) -> bool:
    try:
        return request.client is not None and ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False


async def _show_request_error(_: Request, error: RequestError) -> JSONResponse:
    note(error_code=error.code)
    headers = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s else {}
    if error.status == Verdict.MISSING:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": error.message, "error_code": error.code}, error.status, headers)


async def _show_http_error(_: Request, error: HTTPException) -> JSONResponse:
    return JSONResponse({"error": str(error.detail), "error_code": None}, error.status_code, error.headers)


async def _show_failure(request: Request, error: Exception) -> JSONResponse:
    _LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return JSONResponse({"error": "The server failed; its log says why.", "error_code": "internal"}, 500)


# -- addresses


def _add_open(api: FastAPI, service: Service) -> None:
    page = load_page()

    @api.get("/", include_in_schema=False)
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page.content, headers=page.headers)

    @api.get("/v2/health/live", tags=["health"])
    async def live() -> dict[str, bool]:
        """Tells that the process answers."""
        return {"live": True}

    @api.get("/v2/health/ready", tags=["health"], responses={503: _ANSWERS[503]})
    async def ready() -> dict[str, Any]:
        """Tells that the model is loaded, checked and warmed up, and which one."""
        info = await service.model_info()
        return {"ready": True, "model": service.options.name, "bundle_sha256": info.bundle_sha256}

    @api.get("/v2", tags=["Open Inference Protocol"])
    async def server() -> dict[str, Any]:
        """Describes the server."""
        return open_inference.server_metadata(__version__)


def _add_predict(router: APIRouter, service: Service) -> None:
    @router.post("/predict", openapi_extra=_FORM_BODY, tags=["predict"])
    async def predict(request: Request, explain: bool = False) -> JSONResponse:
        """Classifies image files: `curl -F file=@scan.png ADDRESS/predict`.

        `explain=true` adds `explanation`, in base64 a PNG that shows where the model looked (Grad-CAM).
        """
        names, files = await _read_form(request, service.options.max_images_per_request)
        found = await service.predict(files, explain=explain)
        rows = _rows(found, names)
        if len(rows) == 1 and found.errors[0] is not None:
            raise _image_error(found.errors, ["file"])
        return JSONResponse(
            {
                "model": service.options.name,
                "bundle_sha256": found.info.bundle_sha256,
                "predictions": rows,
                "timing_ms": {"decode": round(found.decode_s * 1e3, 1), "predict": round(found.predict_s * 1e3, 1)},
            }
        )


def _add_tensorflow_serving(router: APIRouter, service: Service) -> None:
    tags: list[str | Enum] = ["TensorFlow Serving"]

    async def predict(request: Request, name: str, version: int | None = None) -> dict[str, Any]:
        """Predicts as TensorFlow Serving's REST API does."""
        service.check_name(name)
        check_media_type(request, JSON_TYPES)
        body = await request.body()
        parsed = await asyncio.to_thread(
            tensorflow_serving.parse_predict, body, max_images=service.options.max_images_per_request
        )
        found = await service.predict(parsed.images, version)
        _refuse_errors(found, "instances")
        return tensorflow_serving.encode_predict(parsed, found.probabilities)

    async def status(name: str, version: int | None = None) -> dict[str, Any]:
        """Tells which versions are there."""
        service.check_name(name)
        numbers = service.versions if version is None else [service.number(version)]
        for number in numbers:
            await service.model_info(number)
        return tensorflow_serving.status({str(number): "AVAILABLE" for number in numbers})

    for path in ("/v1/models/{name}", "/v1/models/{name}/versions/{version}"):
        router.post(f"{path}:predict", openapi_extra=_PREDICT_BODY, tags=tags)(predict)
        router.get(path, tags=tags)(status)


def _add_open_inference(router: APIRouter, service: Service) -> None:
    tags: list[str | Enum] = ["Open Inference Protocol"]

    async def infer(request: Request, name: str, version: int | None = None) -> Response:
        """Infers as the Open Inference Protocol has it."""
        service.check_name(name)
        check_media_type(request, INFER_TYPES)
        info = await service.model_info(version)
        body = await request.body()
        parsed = await asyncio.to_thread(
            open_inference.parse_infer,
            body,
            header_length=request.headers.get(open_inference.HEADER_LENGTH),
            size_px=info.spec.image_size_px,
            max_images=service.options.max_images_per_request,
        )
        found = await service.predict(parsed.images, version)
        _refuse_errors(found, open_inference.INPUT)
        content, headers = open_inference.encode_infer(
            parsed,
            model_name=name,
            model_version=str(service.number(version)),
            probs_BK=found.probabilities,
            labels=[found.info.spec.classes[k] for k in found.probabilities.argmax(axis=1)],
        )
        return Response(content, headers=headers)

    async def metadata(name: str, version: int | None = None) -> dict[str, Any]:
        """Describes the model's tensors."""
        service.check_name(name)
        spec = (await service.model_info(version)).spec
        return open_inference.model_metadata(
            name,
            versions=[str(number) for number in service.versions],
            size_px=spec.image_size_px,
            num_classes=len(spec.classes),
        )

    async def model_ready(name: str, version: int | None = None) -> dict[str, Any]:
        """Tells that a model is loaded and warmed up."""
        service.check_name(name)
        await service.model_info(version)
        return {"name": name, "ready": True}

    async def models() -> dict[str, Any]:
        """Lists the models."""
        return {"models": [service.options.name]}

    router.get("/v2/models", tags=tags)(models)
    for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        router.get(path, tags=tags)(metadata)
        router.get(f"{path}/ready", tags=tags)(model_ready)
        router.post(f"{path}/infer", openapi_extra=_INFER_BODY, tags=tags)(infer)


# -- forms and answers


async def _read_form(request: Request, max_images: int) -> tuple[list[str], list[bytes]]:
    check_media_type(request, FORM_TYPES)
    try:
        async with request.form(max_files=max_images, max_fields=max_images) as form:
            uploads = [each for each in form.getlist("file") if isinstance(each, UploadFile)]
            files = [await each.read() for each in uploads]
    except (MultiPartException, HTTPException) as error:
        raise RequestError(400, f"The form cannot be read: {getattr(error, 'detail', error)}") from error
    if not files:
        raise RequestError(400, 'The form has no file in a field "file": curl -F file=@scan.png ADDRESS/predict')
    return [each.filename or "" for each in uploads], files


def _rows(found: Prediction, names: Sequence[str]) -> list[dict[str, Any]]:
    spec = found.info.spec
    probabilities, explanations = iter(found.probabilities), iter(found.explanations)
    rows: list[dict[str, Any]] = []
    for name, error in zip(names, found.errors, strict=True):
        row: dict[str, Any] = {"file": name, "label": None, "confidence": None, "refer": None, "probabilities": None}
        if error is None:
            probs_K: np.ndarray = next(probabilities)
            best = int(probs_K.argmax())
            confidence = float(probs_K[best])
            row |= {
                "label": spec.classes[best],
                "confidence": confidence,
                "refer": confidence < spec.refer_below,
                "probabilities": dict(zip(spec.classes, probs_K.tolist(), strict=True)),
            }
            if found.explanations:
                row["explanation"] = base64.b64encode(next(explanations)).decode()
        rows.append(
            row | {"error_code": error.code.value if error else None, "error": error.message if error else None}
        )
    return rows


def _refuse_errors(found: Prediction, name: str) -> None:
    if any(found.errors):
        raise _image_error(found.errors, [f"{name}[{place}]" for place in range(len(found.errors))])


def _image_error(errors: Sequence[Any], names: Sequence[str]) -> RequestError:
    """Returns the answer to a request with images that cannot be decoded."""
    bad = [(name, error) for name, error in zip(names, errors, strict=True) if error is not None]
    more = f" ({len(bad) - 1} more images cannot be decoded)" if len(bad) > 1 else ""
    name, first = bad[0]
    return RequestError(422, f"{name}: {first.message}{more}", first.code.value)
