"""Limits of request bodies, as ASGI: an application that reads all of a body, and clients that are no friends of it."""

import asyncio
import selectors
from collections.abc import Coroutine

import pytest
from starlette.requests import Request

from serve_app.errors import RequestError
from serve_app.http import body
from serve_app.http.body import MAX_BODIES, LimitBody, make_length_check

MAX_BYTES = 100


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop without threads, whose clock moves when nothing is left to do, and at once to what is due next."""

    def __init__(self):
        now_s = 0.0

        class Selector(selectors.DefaultSelector):
            def select(self, timeout=None):
                nonlocal now_s
                now_s += timeout or 0.0
                return super().select(None if timeout is None else 0)

        super().__init__(Selector())
        self.time = lambda: now_s


def run(coroutine: Coroutine[None, None, None]) -> None:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(coroutine)


async def read_all(scope, receive, send):  # noqa: ARG001
    while (await receive())["more_body"]:
        pass


async def held_until(event, scope, receive, send):
    await read_all(scope, receive, send)
    await event.wait()


async def ignore(message):
    pass


def http(*headers):
    return {"type": "http", "headers": list(headers)}


def parts(*bodies, pause_s=0.0):
    waiting = [{"type": "http.request", "body": part, "more_body": True} for part in bodies]
    waiting[-1]["more_body"] = False

    async def receive():
        await asyncio.sleep(pause_s)
        return waiting.pop(0)

    return receive


def status(limit, receive, *headers):
    async def ask():
        await limit(http(*headers), receive, ignore)

    with pytest.raises(RequestError) as caught:
        run(ask())
    return caught.value.status


@pytest.fixture
def limit():
    return LimitBody(read_all, max_bytes=MAX_BYTES, timeout_s=10.0)


def test_the_longest_body_passes_and_one_byte_more_does_not(limit):
    run(limit(http(), parts(bytes(60), bytes(40)), ignore))
    assert status(limit, parts(bytes(60), bytes(41))) == 413


@pytest.mark.parametrize(
    ("method", "announced", "expected"),
    [
        *(("POST", text, None) for text in (b"0", b"100", b"x", b"-1", "²".encode("latin-1"))),
        *(("POST", text, 413) for text in (b"101", b"9" * 25, b"9" * 5000)),
        *((method, text, 400) for method in ("GET", "HEAD", "DELETE") for text in (b"1", b"101", b"x")),
        *((method, b"0", None) for method in ("GET", "HEAD", "DELETE")),
    ],
)
def test_what_is_announced_is_enough_to_be_refused(method, announced, expected):
    request = Request(http((b"content-length", announced)) | {"method": method})
    check = make_length_check(MAX_BYTES)(request)
    if expected is None:
        run(check)
        return
    with pytest.raises(RequestError) as caught:
        run(check)
    assert caught.value.status == expected


def test_a_body_that_drips_is_cut_off_though_it_never_pauses_for_long():
    # 100 parts of a byte, 1 s apart, within 5 s: no pause is as long as the limit.
    limit = LimitBody(read_all, max_bytes=MAX_BYTES, timeout_s=5.0)
    assert status(limit, parts(*[b"x"] * 100, pause_s=1.0)) == 408


def test_a_long_body_has_the_time_that_its_bytes_need(monkeypatch):
    # 10 parts, 2 s apart, are slower than 5 s in all, and faster than 10 bytes in 5 s.
    monkeypatch.setattr(body, "MIN_BYTES_PER_S", 2)
    limit = LimitBody(read_all, max_bytes=MAX_BYTES, timeout_s=5.0)
    run(limit(http(), parts(*[bytes(10)] * 10, pause_s=2.0), ignore))


def test_all_bodies_together_are_bounded_until_they_are_answered():
    async def crowd():
        event = asyncio.Event()

        async def app(scope, receive, send):
            await held_until(event, scope, receive, send)

        limit = LimitBody(app, max_bytes=MAX_BYTES, timeout_s=10.0)
        held = [asyncio.create_task(limit(http(), parts(bytes(MAX_BYTES)), ignore)) for _ in range(MAX_BODIES)]
        await asyncio.wait(held, timeout=0.05)
        with pytest.raises(RequestError, match="The server is receiving too much data at once") as caught:
            await limit(http(), parts(b"x"), ignore)
        assert (caught.value.status, caught.value.retry_after_s) == (429, body.RETRY_AFTER_S)
        event.set()
        await asyncio.gather(*held)
        await limit(http(), parts(bytes(MAX_BYTES)), ignore)

    run(crowd())
