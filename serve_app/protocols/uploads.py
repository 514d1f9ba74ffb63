"""The routes for uploads: /predict for files (`curl -F file=@scan.png ADDRESS/predict`), and /model for its model."""

import base64
import functools
import math
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException

from serve_app.errors import RequestError, image_error
from serve_app.http.body import admit, check_media_type
from serve_app.http.forms import FormParser
from serve_app.model.service import Prediction, Service
from serve_app.protocols.answers import ModelShown, Predictions
from serve_app.protocols.bodies import FORM, FORM_BODY
from serve_app.protocols.refusals import WITH_IMAGES, WITH_MODEL
from tlray.inference.lookalikes import Lookalike


def add_uploads(router: APIRouter, service: Service) -> None:
    """Adds the routes for uploads to a router.

    Args:
        router: The router, which guards its routes.
        service: Answers the requests.
    """

    @router.post(
        "/predict", openapi_extra=FORM_BODY, response_model=Predictions, responses=WITH_IMAGES, tags=["predict"]
    )
    async def predict(request: Request, explain: bool = False, lookalikes: bool = False) -> JSONResponse:
        """Classifies image files: `curl -F file=@scan.png ADDRESS/predict`.

        `explain=true` adds `explanation`, a PNG in base64: a Grad-CAM estimate of what speaks for the predicted class.
        `lookalikes=true` adds `lookalikes`, the training images that are most like the image, if the bundle keeps some:
        they are what the model was trained on, not evidence.
        """
        await admit(request, functools.partial(service.check_room, explain=explain))
        names, files = await _read_form(request, service.options.max_images_per_request)
        found = await service.predict(files, explain=explain, lookalikes=lookalikes)
        rows = _rows(found, names)
        if len(rows) == 1 and found.errors[0] is not None:
            raise image_error(found.errors, ["file"])
        return JSONResponse(
            {
                "model": service.options.name,
                "bundle_sha256": found.info.bundle_sha256,
                "predictions": rows,
                "timing_ms": {"decode": round(found.decode_s * 1e3, 1), "predict": round(found.predict_s * 1e3, 1)},
            }
        )

    @router.get("/model", response_model=ModelShown, responses=WITH_MODEL, tags=["predict"])
    async def show_model() -> dict[str, Any]:
        """Describes the model that answers at /predict."""
        info = await service.model_info()
        return {
            "model": service.options.name,
            "version": service.options.version,
            "bundle_sha256": info.bundle_sha256,
            "classes": list(info.spec.classes),
            "refer_below": info.spec.refer_below,
            "max_ood_score": info.spec.limits.max_ood_score,
            "engine": info.engine,
        }


async def _read_form(request: Request, max_images: int) -> tuple[list[str], list[bytes]]:
    check_media_type(request, (FORM,))
    _, parameters = parse_options_header(request.headers["content-type"])
    if parameters.get(b"charset", b"utf-8").lower() != b"utf-8":
        # A client may name any codec of Python; punycode takes 14 s for a megabyte, and blocks the event loop.
        raise RequestError(415, "Names and text in a form must be UTF-8. Leave the charset out.")
    try:
        async with aclosing(request.stream()) as stream:
            form = await FormParser(request.headers, stream, max_files=max_images, max_fields=max_images).parse()
    except MultiPartException as error:
        status = 413 if error.message.startswith("Too many") else 400
        raise RequestError(status, f"The form cannot be read: {error.message}") from error
    try:
        uploads = [each for each in form.getlist("file") if isinstance(each, UploadFile)]
        files = [await each.read() for each in uploads]
    finally:
        await form.close()
    if not files:
        raise RequestError(
            400, 'The form has no file in a field "file". Send one as curl does: curl -F file=@scan.png ADDRESS/predict'
        )
    return [each.filename or "" for each in uploads], files


PREDICTED = ("label", "confidence", "refer", "refer_reason", "prediction_set", "ood_score", "probabilities")
"""Names of the values that an answer has for each image; all are null where the image cannot be read."""


def _predicted(found: Prediction, place: int) -> dict[str, Any]:
    """Returns the values of `PREDICTED` for a readable image."""
    classes, probs_K = found.info.spec.classes, found.probabilities[place]
    best, judged, ood_score = int(probs_K.argmax()), found.judgement, float(found.ood_scores[place])
    reason, sets_BK = judged.reasons[place], judged.sets_BK
    values = (
        classes[best],
        float(probs_K[best]),
        bool(reason),
        reason or None,
        None if sets_BK is None else [name for name, is_in in zip(classes, sets_BK[place], strict=True) if is_in],
        ood_score if math.isfinite(ood_score) else None,
        dict(zip(classes, probs_K.tolist(), strict=True)),
    )
    return dict(zip(PREDICTED, values, strict=True))


def _shown(found: Lookalike, classes: Sequence[str]) -> dict[str, Any]:
    return {
        "label": classes[found.class_index],
        "similarity": found.similarity,
        "jpeg": base64.b64encode(found.jpeg).decode(),
    }


def _rows(found: Prediction, names: Sequence[str]) -> list[dict[str, Any]]:
    places, explanations = iter(range(len(found.probabilities))), iter(found.explanations)
    rows: list[dict[str, Any]] = []
    for name, error in zip(names, found.errors, strict=True):
        row: dict[str, Any] = {"file": name} | dict.fromkeys(PREDICTED)
        if error is None:
            place = next(places)
            row |= _predicted(found, place)
            if found.lookalikes is not None:
                row["lookalikes"] = [_shown(each, found.info.spec.classes) for each in found.lookalikes[place]]
            if found.not_explained:
                row["explanation_error"] = found.not_explained
            elif found.explanations:
                row["explanation"] = base64.b64encode(next(explanations)).decode()
        rows.append(
            row | {"error_code": error.code.value if error else None, "error": error.message if error else None}
        )
    return rows
