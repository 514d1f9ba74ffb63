"""Asks a model again which bundle it has, where a request may be right for another one than is known."""

import asyncio
from collections.abc import Awaitable, Callable

from serve_app.errors import RequestError
from serve_app.model.classifier import ModelInfo

AGAIN_S = 2.0
"""Seconds after which the known description stays, so that a wrong request is told so soon."""


async def renewed(ask: Callable[[], Awaitable[ModelInfo]], known: ModelInfo) -> ModelInfo:
    """Returns what a model says of itself now; the known description if it does not answer.

    For some seconds after a prediction a model of its own deployment is not asked again: see `FRESH_S` of
    `serve_app.model.remote`.
    """
    try:
        async with asyncio.timeout(AGAIN_S):
            return await ask()
    except (TimeoutError, RequestError):
        return known
