"""Which requests an endpoint's replicas take, and what its answers carry."""

import asyncio
import json

import pytest

from serve_app.http.identity import ANSWER_HEADER, PROXY_HEADER, TOKEN_VARIABLE, Identity, name_of, new_token

TOKEN = new_token()


async def greet(_scope, _receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
    await send({"type": "http.response.body", "body": b"hello"})


def ask(app: Identity, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        raise AssertionError("a body was read")

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    asyncio.run(app({"type": "http", "headers": raw}, receive, send))
    start, body = sent
    return start["status"], {name.decode(): value.decode() for name, value in start["headers"]}, body["body"]


def test_a_request_of_its_own_proxy_is_answered_with_its_name():
    app = Identity(greet, name="abc", token=TOKEN)
    assert ask(app, {PROXY_HEADER: TOKEN}) == (200, {"a": "b", ANSWER_HEADER: "abc"}, b"hello")


@pytest.mark.parametrize("headers", [{}, {PROXY_HEADER: "another"}, {PROXY_HEADER: ""}])
def test_a_request_of_another_endpoints_proxy_is_503(headers):
    status, answer, body = ask(Identity(greet, name="abc", token=TOKEN), headers)
    assert (status, answer["retry-after"], answer[ANSWER_HEADER]) == (503, "1", "abc")
    assert json.loads(body)["error_code"] == "unavailable"
    assert answer["content-length"] == str(len(body))


def test_without_a_token_all_requests_are_taken(monkeypatch):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert ask(Identity(greet, name=""), {}) == (200, {"a": "b"}, b"hello")
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    assert ask(Identity(greet, name=""), {})[0] == 503


def test_tokens_differ_and_a_name_does_not_tell_its_token():
    first, second = new_token(), new_token()
    assert first != second
    # sha256("abc"), FIPS 180-2, appendix B.1
    assert name_of("abc") == "ba7816bf8f01cfea"
