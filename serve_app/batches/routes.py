"""The routes of bulk scoring, below /v1/batches."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from serve_app.batches.jobs import Batches
from serve_app.http.body import check_media_type
from serve_app.protocols.answers import Batch, BatchList
from serve_app.protocols.bodies import BATCH_BODY, JSON
from serve_app.protocols.refusals import NEW_BATCH, WITH_BATCHES

MAX_LISTED = 100
"""Maximum number of batches in one list; the progress of each is read from storage."""


def add_batches(router: APIRouter, batches: Batches) -> None:
    """Adds the routes of bulk scoring to a router.

    Args:
        router: The router, which guards its routes.
        batches: Answers the requests.
    """

    @router.post(
        "/v1/batches",
        status_code=202,
        openapi_extra=BATCH_BODY,
        response_model=Batch,
        responses=NEW_BATCH,
        tags=["batches"],
    )
    async def create_batch(request: Request) -> dict[str, Any]:
        """Scores a folder, zip or manifest of images in the background, and writes the same rows as `tlray score`."""
        check_media_type(request, (JSON,))
        return await batches.create(await request.body())

    @router.get("/v1/batches", response_model=BatchList, responses=WITH_BATCHES, tags=["batches"])
    async def list_batches(limit: Annotated[int, Query(ge=1, le=MAX_LISTED)] = 20) -> dict[str, Any]:
        """Lists this model's batches, the newest first."""
        return {"batches": await batches.show_all(limit)}

    @router.get("/v1/batches/{batch_id}", response_model=Batch, responses=WITH_BATCHES, tags=["batches"])
    async def show_batch(batch_id: str) -> dict[str, Any]:
        """Returns the state and progress of a batch."""
        return await batches.show(batch_id)

    ending: dict[int | str, dict[str, Any]] = {202: {"model": Batch, "description": "The batch is ending."}}

    @router.delete(
        "/v1/batches/{batch_id}", response_model=Batch, responses={**WITH_BATCHES, **ending}, tags=["batches"]
    )
    async def cancel_batch(batch_id: str, response: Response) -> dict[str, Any]:
        """Cancels a batch; 200 if it had ended already. Rows that it has written stay."""
        is_ending, batch = await batches.cancel(batch_id)
        response.status_code = 202 if is_ending else 200
        return batch
