"""Schemas of error answers for the OpenAPI document: which statuses a route may answer with, and when."""

from typing import Any

from pydantic import BaseModel, Field

from serve_app.http.guard import REFUSALS, Verdict


class Failure(BaseModel):
    """An error answer."""

    error: str
    error_code: str = Field(description="Code for programs; for an image, such as decode_failed")


_REFUSALS = {
    400: "The request is not as described.",
    401: REFUSALS[Verdict.MISSING],
    403: f"{REFUSALS[Verdict.WRONG]} Or no keys are set and the request comes from another machine, through a proxy "
    "or from another site's page. Or a location is not allowed.",
    404: "There is no such model, version or batch.",
    408: "The body did not arrive in time.",
    409: "A batch is writing to this output.",
    413: "The request is too large, or has too many images.",
    415: "The body has another media type, or is compressed.",
    421: "No keys are set, and the Host header is not localhost or 127.0.0.1.",
    422: "An image cannot be decoded (`error_code` says why), or a parameter in the address is invalid or unknown.",
    429: "Too many images are waiting, too much is being sent, or another batch is running: see Retry-After.",
    500: "The server failed; its log says why.",
    503: "No model is ready, or there is no job server: see Retry-After.",
    504: "The model, the job server or the storage did not answer in time.",
}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Returns the entries of the OpenAPI document for some error statuses."""
    return {status: {"model": Failure, "description": _REFUSALS[status]} for status in statuses}


GUARDED = refusals(400, 401, 403, 421, 422, 500)
WITH_MODEL = refusals(404, 503)
WITH_BODY = refusals(400, 408, 413, 415)
WITH_IMAGES = {**WITH_BODY, **refusals(404, 429, 503, 504)}
WITH_BATCHES = refusals(404, 503, 504)
NEW_BATCH = {**WITH_BODY, **refusals(404, 409, 429, 503, 504)}
