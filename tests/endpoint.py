"""The endpoint without Ray: its HTTP side over a socket, around a bundle that is loaded in this process."""

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import uvicorn

from serve_app.api import create_api
from serve_app.batches.job_server import JobServer
from serve_app.batches.jobs import Batches
from serve_app.http.auth import ApiKeys
from serve_app.model.classifier import Classifier
from serve_app.model.service import Service
from serve_app.options import Options


class LocalClassifier(Classifier):
    """A replica without Ray, which would say how many CPUs it has."""

    def __init__(self, location: str, *, max_batch_size: int = 4, max_waiting: int = 64, use_gpu: bool = False) -> None:
        context = SimpleNamespace(get_assigned_resources=dict)
        with mock.patch("serve_app.model.classifier.ray.get_runtime_context", return_value=context):
            super().__init__(location, 1, max_batch_size=max_batch_size, max_waiting=max_waiting, use_gpu=use_gpu)


def local_api(model: Any, environment: Mapping[str, str] | None = None, **options: Any) -> Any:
    """Returns the application around a model; its bulk scoring finds no job server."""
    service = Service(Options(bundle="b", **options), {1: model})
    return create_api(service, ApiKeys(environment or {}), Batches(service, JobServer()))


def below(prefix: str, api: Any) -> Any:
    """Returns a proxy that has an application below a prefix, and takes it away as nginx's `location PREFIX/` does."""

    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        assert path.startswith(prefix + "/"), path
        headers = [*scope["headers"], (b"x-forwarded-prefix", prefix.encode())]
        await api({**scope, "path": path[len(prefix) :], "headers": headers}, receive, send)

    return proxy


@contextmanager
def listening(api: Any) -> Iterator[str]:
    """Serves an application in a thread; gives its address, without a path."""
    with socket.create_server(("127.0.0.1", 0)) as listener:  # clients wait in its queue for the thread to start
        server = uvicorn.Server(uvicorn.Config(api, log_level="critical", lifespan="off", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="endpoint")
        thread.start()
        try:
            yield "http://{}:{}".format(*listener.getsockname())
        finally:
            server.should_exit = True
            thread.join()
