"""The endpoint's HTTP application for tests that need many of them: its routes are built once for the same options.

FastAPI takes 60 ms to build the routes, and 1 ms to answer a request.
"""

import os
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI

from serve_app import api as endpoint
from serve_app.batches.job_server import JobServer
from serve_app.batches.jobs import Batches
from serve_app.http.auth import ApiKeys
from serve_app.http.guard import HAPROXY_VARIABLE
from serve_app.model.service import Service
from serve_app.options import Options

_BUILT: dict[tuple[str, str | None], tuple[FastAPI, list[Any]]] = {}
"""Applications, each with the objects that its routes and middleware call, by all that decides what is built."""


def create_api(service: Service, keys: ApiKeys, batches: Batches) -> FastAPI:
    """Returns what `serve_app.api.create_api` does, perhaps with routes that have answered in another test.

    The objects that the routes call get the state of the arguments, and the middleware is new. So an application that
    was made earlier with the same options must not be asked any more.
    """
    called = [service, service.telemetry, keys, batches]
    key = (service.options.model_dump_json(), os.environ.get(HAPROXY_VARIABLE))
    if key not in _BUILT:
        _BUILT[key] = endpoint.create_api(service, keys, batches), called
    api, known = _BUILT[key]
    for old, new in zip(known, called, strict=True):
        old.__dict__ = new.__dict__
    api.middleware_stack = None  # Starlette builds it at the next request
    return api


def local_api(model: Any, environment: Mapping[str, str] | None = None, **options: Any) -> Any:
    """Returns the application around a model, as `tests.endpoint.local_api` does."""
    service = Service(Options(bundle="b", **options), {1: model})
    return create_api(service, ApiKeys(environment or {}), Batches(service, JobServer()))
