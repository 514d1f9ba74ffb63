"""A model in other processes, seen from the ingress: the handle and Serve's status are stand-ins."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from serve_app.errors import QueueClosed, QueueFull, RequestError
from serve_app.model import remote
from serve_app.model.classifier import Answer, Explained, Pixels
from serve_app.model.remote import NUM_TRIES, RemoteModel
from tlray.inference.lookalikes import Lookalike


class Handle:
    """Answers each call with the next of what it was given; an exception is raised."""

    app_name, deployment_name = "tlray", "Classifier-1"

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.calls: list[str] = []
        self.images: list[list[bytes]] = []

    def __getattr__(self, method: str) -> Any:
        async def call(pixels: Pixels | None = None, *_: Any) -> Any:
            self.calls.append(method)
            self.images.append([*pixels.images] if pixels is not None else [])
            answer = self.answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        return SimpleNamespace(remote=call)


def pixels(*images: bytes) -> Pixels:
    return Pixels(images=images or [b"0"], size_px=1, intensity_range=None)


def answer(name: str, *probs: list[float], predict_s: float = 1.0, explained: Explained | None = None) -> Answer:
    """What a bundle says of as many images; of none: they are made for another one."""
    probabilities = np.array(probs, np.float32) if probs else None
    return Answer(bundle_sha256=name * 64, probabilities=probabilities, predict_s=predict_s, explained=explained)


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
    handle = Handle(first, answer("a", [1]), first, answer("b", [1]), second, answer("a"), first)
    busy = model(handle)
    assert asyncio.run(busy.describe()) is first
    clock(60)
    asyncio.run(busy.predict(pixels()))
    clock(remote.FRESH_S - 0.1)
    assert asyncio.run(busy.describe()) is first
    assert handle.calls == ["describe", "predict"]
    clock(0.2)
    assert asyncio.run(busy.describe()) is first
    assert handle.calls[2:] == ["describe"]
    # Another bundle answers: what was known of the first one holds no longer.
    asyncio.run(busy.predict(pixels()))
    assert asyncio.run(busy.describe()) is second
    assert handle.calls[3:] == ["predict", "describe"]
    asyncio.run(busy.explain(pixels(), "b" * 64))
    assert asyncio.run(busy.describe()) is first
    assert handle.calls[5:] == ["explain", "describe"]


@pytest.mark.parametrize("error", [RayActorError(), QueueClosed("closing"), QueueFull("full")])
def test_another_replica_is_asked(error):
    handle = Handle(error, error, answer("a", [0.25, 0.75]))
    found = asyncio.run(model(handle).predict(pixels()))
    assert found.probabilities is not None
    assert found.probabilities.tolist() == [[0.25, 0.75]]
    assert handle.calls == ["predict"] * NUM_TRIES
    with pytest.raises(RequestError) as caught:
        asyncio.run(model(Handle(error, error, error, "too late")).predict(pixels()))
    assert (caught.value.status, caught.value.retry_after_s) == (503, 1)


def test_no_room_anywhere_is_told_at_once():
    handle = Handle(BackPressureError(num_queued_requests=2, max_queued_requests=2), "not asked for")
    with pytest.raises(RequestError, match="no room") as caught:
        asyncio.run(model(handle).predict(pixels()))
    assert caught.value.status == 503
    assert handle.calls == ["predict"]


def test_each_image_is_a_call_and_their_answers_are_one():
    handle = Handle(*(answer("a", [k / 4, 1 - k / 4], predict_s=float(k)) for k in range(3)))
    found = asyncio.run(model(handle).predict(pixels(b"0", b"1", b"2")))
    assert handle.calls == ["predict"] * 3
    assert handle.images == [[b"0"], [b"1"], [b"2"]]
    assert found.probabilities is not None
    assert found.probabilities.tolist() == [[0, 1], [0.25, 0.75], [0.5, 0.5]]
    assert (found.bundle_sha256, found.predict_s, found.explained) == ("a" * 64, 2.0, None)


def test_explanations_of_several_calls_are_one():
    handle = Handle(*(answer("a", [1], explained=Explained(overlays=[png])) for png in (b"x", b"y")))
    assert asyncio.run(model(handle).explain(pixels(b"0", b"1"), "a" * 64)).explained == Explained(
        overlays=[b"x", b"y"]
    )
    handle = Handle(*(answer("a", [1], explained=Explained(problem="No map.")) for _ in range(2)))
    assert asyncio.run(model(handle).explain(pixels(b"0", b"1"), "a" * 64)).explained == Explained(problem="No map.")


def test_lookalikes_of_several_calls_are_one():
    found = [[[Lookalike(class_index=0, similarity=0.5, jpeg=jpeg)]] for jpeg in (b"x", b"y")]
    handle = Handle(*(replace(answer("a", [1]), lookalikes=each) for each in found))
    asked = replace(pixels(b"0", b"1"), with_lookalikes=True)
    assert asyncio.run(model(handle).predict(asked)).lookalikes == [*found[0], *found[1]]
    plain = Handle(answer("a", [1]), answer("a", [1]))
    assert asyncio.run(model(plain).predict(pixels(b"0", b"1"))).lookalikes is None


def test_images_for_another_bundle_have_no_answer():
    found = asyncio.run(model(Handle(answer("b"), answer("b"))).predict(pixels(b"0", b"1")))
    assert (found.bundle_sha256, found.probabilities) == ("b" * 64, None)


@pytest.mark.parametrize("method", ["predict", "explain"])
def test_one_bundle_answers_all_images_of_a_request(method):
    whole = answer("b", [0.25, 0.75], [0.5, 0.5])
    handle = Handle(answer("a", [1, 0]), answer("b", [0, 1]), whole)
    arguments = ["a" * 64] if method == "explain" else []
    found = asyncio.run(getattr(model(handle), method)(pixels(b"0", b"1"), *arguments))
    assert found is whole
    assert handle.images == [[b"0"], [b"1"], [b"0", b"1"]]


def test_where_one_image_fails_the_others_are_given_up():
    given_up: list[bytes] = []

    async def call(part: Pixels) -> Answer:
        (image,) = part.images
        if image == b"1":
            raise BackPressureError(num_queued_requests=2, max_queued_requests=2)
        try:
            await asyncio.Event().wait()
        finally:
            given_up.append(image)
        raise AssertionError

    handle = SimpleNamespace(predict=SimpleNamespace(remote=call))

    async def ask() -> None:
        with pytest.raises(RequestError, match="no room"):
            await model(cast("Any", handle)).predict(pixels(b"0", b"1", b"2"))
        await asyncio.sleep(0)

    asyncio.run(ask())
    assert sorted(given_up) == [b"0", b"2"]


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
