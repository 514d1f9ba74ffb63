"""The routes of TensorFlow Serving's REST API and of the Open Inference Protocol.

Their formats are in `tensorflow_serving` and `open_inference`.
"""

import functools
from enum import Enum
from typing import Any

from fastapi import APIRouter, Request, Response

from serve_app.errors import RequestError
from serve_app.http.body import admit, check_media_type
from serve_app.model.renewal import renewed
from serve_app.model.service import Prediction, Service
from serve_app.protocols import open_inference, tensorflow_serving
from serve_app.protocols.answers import (
    Columns,
    InferAnswer,
    ModelMetadata,
    ModelReady,
    Models,
    ModelStatus,
    Rows,
    SignatureMetadata,
)
from serve_app.protocols.bodies import BINARY, BYTES, INFER_BODY, JSON, PREDICT_BODY
from serve_app.protocols.predicted import Predicted
from serve_app.protocols.refusals import WITH_IMAGES, WITH_MODEL

JSON_TYPES = (JSON, "application/x-www-form-urlencoded", "text/plain", "")
"""Media types of JSON bodies. TensorFlow Serving ignores the type, and its documentation's `curl -d` sends the second.

The empty one stands for a request without a type.
"""

INFER_TYPES = (*JSON_TYPES, BINARY)
"""Media types of inference requests, which may have binary data."""


def add_tensorflow_serving(router: APIRouter, service: Service) -> None:
    """Adds the routes of TensorFlow Serving's REST API to a router.

    Args:
        router: The router, which guards its routes.
        service: Answers the requests.
    """
    tags: list[str | Enum] = ["TensorFlow Serving"]

    async def predict(request: Request, name: str, version: int | None = None) -> dict[str, Any]:
        """Classifies images in the format of TensorFlow Serving's REST API.

        The answer has the probabilities of each image. With the `signature_name` `judged` it has named outputs:
        `probabilities`, `refer`, `refer_reason` (empty if not referred), `ood_score` (-1: not known) and
        `prediction_set` (true for each class in the set; none if there are no sets).
        """
        service.check_name(name)
        check_media_type(request, JSON_TYPES)
        await admit(request, service.check_room)
        body = await request.body()
        parsed = await service.parse(
            tensorflow_serving.parse_predict, body, max_images=service.options.max_images_per_request
        )
        found = await service.predict(parsed.images, version, all_of="instances")
        return tensorflow_serving.encode_predict(parsed, _predicted(found))

    async def status(name: str, version: int | None = None) -> dict[str, Any]:
        """Lists the available versions of the model."""
        service.check_name(name)
        numbers = service.versions if version is None else [service.number(version)]
        for number in numbers:
            await service.model_info(number)
        return tensorflow_serving.status({str(number): "AVAILABLE" for number in numbers})

    async def metadata(name: str, version: int | None = None) -> dict[str, Any]:
        """Describes the input and outputs of both signatures, `serving_default` and `judged`."""
        service.check_name(name)
        spec = (await service.model_info(version)).spec
        return tensorflow_serving.metadata(
            name,
            version=str(service.number(version)),
            size_px=spec.image_size_px,
            num_classes=len(spec.classes),
        )

    for path in ("/v1/models/{name}", "/v1/models/{name}/versions/{version}"):
        router.post(
            f"{path}:predict",
            openapi_extra=PREDICT_BODY,
            response_model=Rows | Columns,
            responses=WITH_IMAGES,
            tags=tags,
        )(predict)
        router.get(path, response_model=ModelStatus, responses=WITH_MODEL, tags=tags)(status)
        router.get(f"{path}/metadata", response_model=SignatureMetadata, responses=WITH_MODEL, tags=tags)(metadata)


def add_open_inference(router: APIRouter, service: Service) -> None:
    """Adds the routes of the Open Inference Protocol to a router.

    Args:
        router: The router, which guards its routes.
        service: Answers the requests.
    """
    tags: list[str | Enum] = ["Open Inference Protocol"]

    async def infer(request: Request, name: str, version: int | None = None) -> Response:
        """Classifies images in the format of the Open Inference Protocol.

        Without `outputs` the answer has `probabilities` and `label`. A request can also name `refer`, `refer_reason`,
        `ood_score` (-1: not known) and `prediction_set` (true for each class in the set; none if there are no sets).
        """
        service.check_name(name)
        check_media_type(request, INFER_TYPES)
        await admit(request, service.check_room)
        body = await request.body()
        parse = functools.partial(
            service.parse,
            open_inference.parse_infer,
            body,
            header_length=request.headers.get(open_inference.HEADER_LENGTH),
            max_images=service.options.max_images_per_request,
        )
        known = await service.known_info(version)
        try:
            parsed = await parse(size_px=known.spec.image_size_px)
        except RequestError as error:
            if error.status != 400:
                raise
            # Perhaps the pixels are right for another bundle, which has replaced the one that is known.
            found = await renewed(functools.partial(service.model_info, version), known)
            if found.spec.image_size_px == known.spec.image_size_px:
                raise
            parsed = await parse(size_px=found.spec.image_size_px)
        prediction = await service.predict(parsed.images, version, all_of=open_inference.INPUT)
        content, headers = open_inference.encode_infer(
            parsed,
            model_name=name,
            model_version=str(service.number(version)),
            predicted=_predicted(prediction),
        )
        return Response(content, headers=headers)

    async def metadata(name: str, version: int | None = None) -> dict[str, Any]:
        """Describes the model's tensors, and the engine that computes them (in `parameters`)."""
        service.check_name(name)
        info = await service.model_info(version)
        return open_inference.model_metadata(
            name,
            versions=[str(number) for number in service.versions],
            size_px=info.spec.image_size_px,
            num_classes=len(info.spec.classes),
            engine=info.engine,
        )

    async def model_ready(name: str, version: int | None = None) -> dict[str, Any]:
        """Returns 200 if the model is loaded and warmed up."""
        service.check_name(name)
        await service.model_info(version)
        return {"name": name, "ready": True}

    async def models() -> dict[str, Any]:
        """Lists the models."""
        return {"models": [service.options.name]}

    binary_answer: dict[int | str, dict[str, Any]] = {200: {"content": {BINARY: BYTES}}}
    router.get("/v2/models", response_model=Models, tags=tags)(models)
    for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        router.get(path, response_model=ModelMetadata, responses=WITH_MODEL, tags=tags)(metadata)
        router.get(f"{path}/ready", response_model=ModelReady, responses=WITH_MODEL, tags=tags)(model_ready)
        router.post(
            f"{path}/infer",
            openapi_extra=INFER_BODY,
            response_model=InferAnswer,
            responses={**WITH_IMAGES, **binary_answer},
            tags=tags,
        )(infer)


def _predicted(found: Prediction) -> Predicted:
    return Predicted(
        probs_BK=found.probabilities,
        labels=[found.info.spec.classes[k] for k in found.probabilities.argmax(axis=1)],
        reasons=found.judgement.reasons,
        ood_scores=found.ood_scores,
        sets_BK=found.judgement.sets_BK,
    )
