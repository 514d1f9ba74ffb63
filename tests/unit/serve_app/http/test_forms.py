"""Forms as clients write them: the names of uploaded files, and how a form ends."""

import asyncio
from collections.abc import AsyncGenerator
from io import BytesIO

import httpx
import pytest
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException

from serve_app.http.forms import FormParser, with_plain_name
from tests.unit.serve_app.test_api import Mean, call, png

HEAD = "form-data; name=file; "


KIND = {"Content-Type": "multipart/form-data; boundary=B"}


def predict(disposition: str) -> list[str]:
    """Uploads a white image under a Content-Disposition; returns the name and label that are answered."""
    head = f"--B\r\nContent-Disposition: {disposition}\r\nContent-Type: image/png\r\n\r\n".encode()
    answer = call(Mean(), "POST", "/predict", content=head + png(255) + b"\r\n--B--\r\n", headers=KIND)
    (row,) = answer.raise_for_status().json()["predictions"]
    return [row["file"], row["label"]]


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        (HEAD + "filename*=UTF-8''scan.png", "scan.png"),
        (HEAD + "filename*=utf-8'de'Schnitt%20%C3%A4.png", "Schnitt ä.png"),
        (HEAD + "filename*=\"utf-8''scan.png\"", "scan.png"),
        (HEAD + "filename*=ISO-8859-1''%E4.png", "ä.png"),
        ("form-data; filename*=UTF-8''a%22%5Cb.png; name=file", 'a"\\b.png'),
        (HEAD + "filename=\"plain.png\"; filename*=UTF-8''other.png", "plain.png"),
        (HEAD + 'filename="plain.png"', "plain.png"),
    ],
)
def test_a_file_may_have_an_extended_name_alone(disposition, name):
    assert predict(disposition) == [name, "light"]


def test_only_two_codecs_are_used():
    # Punycode needs time with the square of the length.
    slow = b"form-data; filename*=punycode''" + b"a" * 200_000
    assert with_plain_name(slow) == slow + b'; filename="' + b"a" * 200_000 + b'"'
    assert with_plain_name(b"form-data; filename*=utf-8''%ff").endswith('; filename="\ufffd"'.encode())
    assert with_plain_name(b"form-data; name=text") == b"form-data; name=text"


PART = b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n%s\r\n'
ENDS = {
    "curl, browsers, httpx": b"--B--\r\n",
    "nothing after it": b"--B--",
    "an epilogue": b"--B--\r\nThis is an epilogue.\r\n--B\r\n",
    "an epilogue at once": b"--B--epilogue",
    "spaces": b"--B-- \t\r\n",
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("num_files", [1, 3])
def test_a_form_with_its_closing_boundary_is_whole(end, num_files):
    content = (PART % png(255)) * num_files + end
    answer = call(Mean(), "POST", "/predict", content=content, headers=KIND)
    assert [row["label"] for row in answer.raise_for_status().json()["predictions"]] == ["light"] * num_files


CUTS = {
    "within the second image": PART % png(0) + (PART % png(255))[:-20],
    "after the second image": PART % png(0) + PART % png(255),
    "within the closing boundary": PART % png(0) + PART % png(255) + b"--B-",
    "within a part's head": PART % png(0) + PART[:30],
    "after a boundary": PART % png(0) + b"--B\r\n",
}


@pytest.mark.parametrize("content", CUTS.values(), ids=CUTS)
def test_a_form_that_is_cut_off_is_refused(content):
    """Its last image would be left out, and the answer would be that of the others alone."""
    answer = call(Mean(), "POST", "/predict", content=content, headers=KIND)
    assert answer.status_code == 400
    assert answer.json()["error"] == (
        "The form cannot be read: the form ends before its last part is complete. Send all of it, up to the closing "
        "boundary."
    )


def parse(content: bytes, num_bytes: int, kind: str = KIND["Content-Type"]) -> list[bytes]:
    """Parses a form that comes in pieces of some bytes; returns the content of its files."""

    async def stream() -> AsyncGenerator[bytes, None]:
        for start in range(0, len(content), num_bytes):
            yield content[start : start + num_bytes]

    async def read() -> list[bytes]:
        form = await FormParser(Headers({"Content-Type": kind}), stream()).parse()
        files = [await each.read() for each in form.getlist("file") if isinstance(each, UploadFile)]
        await form.close()
        return files

    return asyncio.run(read())


@pytest.mark.parametrize("num_bytes", [1, 2, 7, 1000])
def test_a_form_may_come_in_pieces(num_bytes):
    assert parse(PART % b"a" + PART % b"--B" + b"--B--\r\n", num_bytes) == [b"a", b"--B"]
    with pytest.raises(MultiPartException, match="the form ends before its last part is complete"):
        parse(PART % b"a" + PART % b"--B" + b"--B-", num_bytes)


def test_the_forms_of_httpx_are_whole():
    request = httpx.Request("POST", "http://h", files=[("file", ("a", BytesIO(b"1"))), ("file", ("b", b"2"))])
    assert parse(request.read(), 1000, request.headers["Content-Type"]) == [b"1", b"2"]
