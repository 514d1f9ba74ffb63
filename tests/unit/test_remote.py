"""A model in other processes, seen from the ingress: the handle and Serve's status are stand-ins."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from serve_app import remote
from serve_app.errors import QueueClosed, QueueFull, RequestError
from serve_app.remote import NUM_TRIES, RemoteModel


class Handle:
    """Answers each call with the next of what it was given; an exception is raised."""

    app_name, deployment_name = "tlray", "Classifier-1"

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.calls: list[str] = []

    def __getattr__(self, method: str) -> Any:
        async def call(*_: Any) -> Any:
            self.calls.append(method)
            answer = self.answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        return SimpleNamespace(remote=call)


def model(handle: Handle) -> RemoteModel:
    return RemoteModel(cast("DeploymentHandle", handle))


@pytest.fixture
def clock(monkeypatch) -> Callable[[float], None]:
    now = [1000.0]
    monkeypatch.setattr(remote.time, "monotonic", lambda: now[0])

    def forward(seconds: float) -> None:
        now[0] += seconds

    return forward


def set_status(monkeypatch, states: dict[str, int], status: str = "HEALTHY") -> None:
    deployment = SimpleNamespace(status=status, replica_states=states)
    application = SimpleNamespace(deployments={"Classifier-1": deployment})
    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications={"tlray": application}))


def test_a_model_that_predicts_is_not_asked_what_it_is(monkeypatch, clock):
    set_status(monkeypatch, {"RUNNING": 1})
    first, second = (SimpleNamespace(bundle_sha256=name * 64) for name in "ab")
    handle = Handle(first, first, first, second, second)
    busy = model(handle)
    assert asyncio.run(busy.describe()) is first
    clock(60)
    asyncio.run(busy.predict(cast("Any", None)))
    clock(remote.FRESH_S - 0.1)
    assert asyncio.run(busy.describe()) is first
    assert handle.calls == ["describe", "predict"]
    clock(0.2)
    assert asyncio.run(busy.describe()) is first
    assert handle.calls[2:] == ["describe"]
    # Another bundle answers: what was known of the first one holds no longer.
    asyncio.run(busy.predict(cast("Any", None)))
    assert asyncio.run(busy.describe()) is second
    assert handle.calls[3:] == ["predict", "describe"]


@pytest.mark.parametrize("error", [RayActorError(), QueueClosed("closing"), QueueFull("full")])
def test_another_replica_is_asked(error):
    handle = Handle(error, error, "answer")
    assert asyncio.run(model(handle).predict(cast("Any", None))) == "answer"
    assert handle.calls == ["predict"] * NUM_TRIES
    with pytest.raises(RequestError) as caught:
        asyncio.run(model(Handle(error, error, error, "too late")).predict(cast("Any", None)))
    assert (caught.value.status, caught.value.retry_after_s) == (503, 1)


def test_no_room_anywhere_is_told_at_once():
    handle = Handle(BackPressureError(num_queued_requests=2, max_queued_requests=2), "not asked for")
    with pytest.raises(RequestError, match="no room") as caught:
        asyncio.run(model(handle).predict(cast("Any", None)))
    assert caught.value.status == 503
    assert handle.calls == ["predict"]


@pytest.mark.parametrize(
    ("states", "status", "expected"),
    [
        ({}, "HEALTHY", "first"),
        ({"STOPPING": 1}, "HEALTHY", "first"),
        ({"RUNNING": 1}, "HEALTHY", "second"),
        ({"STARTING": 1}, "UPSCALING", "second"),
        ({}, "UNHEALTHY", "second"),
    ],
)
def test_a_model_at_rest_is_described_without_waking_it(monkeypatch, clock, states, status, expected):
    set_status(monkeypatch, {})
    handle = Handle("first", "second")
    asleep = model(handle)
    assert asyncio.run(asleep.describe()) == "first"  # never seen before: one is started
    clock(remote.AWAKE_S)
    set_status(monkeypatch, states, status)
    assert asyncio.run(asleep.describe()) == expected
    assert len(handle.calls) == (1 if expected == "first" else 2)


def test_a_model_that_just_answered_is_asked_without_looking(monkeypatch, clock):
    looks: list[int] = []
    monkeypatch.setattr(serve, "status", lambda: looks.append(1) or SimpleNamespace(applications={}))
    handle = Handle("first", "second", "third")
    awake = model(handle)
    assert asyncio.run(awake.describe()) == "first"
    clock(remote.AWAKE_S - 0.1)
    assert asyncio.run(awake.describe()) == "second"
    assert not looks
    clock(remote.AWAKE_S)
    assert asyncio.run(awake.describe()) == "third"  # Serve does not know it: it is asked, and an error is its own
    assert looks
