import pickle

import numpy as np
import pytest

from serve_app.errors import RequestError
from serve_app.protocols import json_body


def refused(function, *arguments, **options) -> str:
    with pytest.raises(RequestError) as caught:
        function(*arguments, **options)
    assert (caught.value.status, caught.value.code) == (400, "invalid_request")
    assert str(caught.value) == caught.value.message
    assert len(caught.value.message) < 1000
    return caught.value.message


def test_errors_survive_pickling():
    again = pickle.loads(pickle.dumps(RequestError(429, "Later.", "queue_full", 2)))  # noqa: S301
    assert type(again) is RequestError
    assert (again.status, again.message, again.code, again.retry_after_s) == (429, "Later.", "queue_full", 2)
    assert (RequestError(404, "No.").code, RequestError(404, "No.").retry_after_s) == ("not_found", None)


def test_an_object_is_parsed():
    assert json_body.parse_object('{"ä": [1, 2.5, "x", null, true]}'.encode()) == {"ä": [1, 2.5, "x", None, True]}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "The body is not JSON: Expecting value: line 1 column 1"),
        (b"{", "The body is not JSON: "),
        (b'{"a": 1} {', "The body is not JSON: Extra data"),
        (b"{'a': 1}", "The body is not JSON: "),
        (b'{"a": \xff}', "The body is not JSON: 'utf-8' codec"),
        ('{"a": 1}'.encode("utf-16"), "The body is not JSON: "),
        ('\ufeff{"a": 1}'.encode(), "The body is not JSON: Unexpected UTF-8 BOM"),
        (b"[1]", "The body must be a JSON object. Received: [1]"),
        (b"null", "The body must be a JSON object. Received: None"),
        (b"[" + b"1," * 10**5 + b"1]", "The body must be a JSON object. Received: [1, 1, 1, 1, 1, 1, ...]"),
        (b"[" * 50 + b"]" * 50, "The body must be a JSON object. Received: [[[...]]]"),
        (b'{"a": NaN}', "The body has a number that cannot be"),
        (b'{"a": -Infinity}', "The body has a number that cannot be"),
        (b'{"a": ' + b"9" * 5000 + b"}", "The body has a number that cannot be"),
        (b'{"a": ' + b"[" * 10**6 + b"]" * 10**6 + b"}", "The body is nested too deeply."),
        (b'{"a": ' * 10**5, "The body is nested too deeply."),
    ],
)
def test_what_is_no_object_is_refused(body, message):
    assert refused(json_body.parse_object, body).startswith(message)


def test_base64():
    assert json_body.decode_base64("aGVsbG8=", where="x") == b"hello"
    assert json_body.decode_base64("", where="x") == b""
    for text in ("aGVsbG8", "aGVs\nbG8=", "aGVs bG8=", "a-_=", "aGVsbG8=x", "ä", "\ud800", "="):
        assert refused(json_body.decode_base64, text, where="a.b64").startswith("a.b64 is not base64 (RFC 4648")
    for value in (None, 7, ["aGVsbG8="], {"b64": ""}):
        message = refused(json_body.decode_base64, value, where="a.b64")
        assert message == f"a.b64 must be a base64 string. Received: {value!r}"


def test_nested_integers_become_an_array():
    values = [[[0, 1, 2], [3, 4, 5]], [[250, 251, 252], [253, 254, 255]]]
    array = json_body.uint8_array(values, num_axes=3, where="x")
    assert array.dtype == np.uint8
    assert array.tolist() == values
    assert json_body.uint8_array([7, 8], num_axes=1, where="x").tolist() == [7, 8]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "x must be lists nested 2 deep, none of them empty."),
        (7, "x must be lists nested 2 deep"),
        ([1, 2], "x must be lists nested 2 deep"),
        ([[1], 2], "x must be lists nested 2 deep"),
        ([[1], "2"], "x must be lists nested 2 deep"),
        ([{"a": 1}], "x must be lists nested 2 deep"),
        ([[]], "x must hold integers only, nested 2 deep. Received: nothing"),
        ([[1, 2], [3]], "x is ragged: its lists at one level have 1 to 2 elements."),
        ([[[1]]], "x must hold integers only, nested 2 deep. Received: list"),
        ([[1, [2]]], "x must hold integers only, nested 2 deep. Received: list"),
        ([[1, 2.0]], "x must hold integers only, nested 2 deep. Received: float"),
        ([[1, True]], "x must hold integers only, nested 2 deep. Received: bool"),
        ([[1, None, "2"]], "x must hold integers only, nested 2 deep. Received: NoneType, str"),
        ([[0, 256]], "x must hold 0 to 255. Received: 0 to 256"),
        ([[-1, 255]], "x must hold 0 to 255. Received: -1 to 255"),
        ([[0, 10**40]], "x must hold 0 to 255. Received: 0 to 1000000000"),
    ],
)
def test_what_is_no_array_of_pixels_is_refused(values, message):
    assert refused(json_body.uint8_array, values, num_axes=2, where="x").startswith(message)


def test_the_number_of_images_is_limited():
    json_body.check_count(3, max_images=3)
    assert refused(json_body.check_count, 0, max_images=3) == "The request has no image. Send at least one."
    with pytest.raises(RequestError, match=r"^The request has 4 images, but at most 3 are allowed\.$") as caught:
        json_body.check_count(4, max_images=3)
    assert caught.value.status == 413
