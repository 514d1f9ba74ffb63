"""Requests and images that are not as they should be, by every door: each is answered, and as the document says.

`make test` sends the same sample of them each time. `make soak` sets TLRAY_FUZZ=all and sends all.
"""

import asyncio
import base64
import gzip
import io
import json
import os
import random
import struct
import zlib
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import numpy as np
import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import settings
from PIL import Image
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    ignored_auth,
    positive_data_acceptance,
    unsupported_method,
)

from serve_app.api import create_api
from serve_app.batches.jobs import Batches
from serve_app.http.auth import ApiKeys
from serve_app.model.service import Service
from serve_app.options import Options
from tests.unit.serve_app.batches.test_jobs import Noted
from tests.unit.serve_app.test_api import KEY, SIZE_PX, Mean

pytestmark = [
    # Pillow tells of damaged metadata, and goes on without.
    pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL\\..*"),
]

DEADLINE_S = 30
"""Nothing here takes a second: what is not answered by then hangs."""

SENDS_ALL = os.environ.get("TLRAY_FUZZ") == "all"
SAMPLE = 100
"""Number of requests of each kind, and of images of each format, unless all are sent."""

JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=B"}
PREDICT = "/v1/models/chest-ct:predict"
INFER = "/v2/models/chest-ct/infer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    path: str
    content: bytes
    headers: dict[str, str] = field(default_factory=dict)


def image_file(form: str, mode: str = "L", size_px: int = 16, **options: Any) -> bytes:
    pixels = np.arange(size_px**2, dtype=np.uint16).reshape(size_px, size_px)
    image = Image.fromarray(pixels * 199) if mode == "I;16" else Image.fromarray(pixels.astype(np.uint8)).convert(mode)
    file = io.BytesIO()
    image.save(file, form, **options, **({"exif": exif()} if form in ("JPEG", "PNG", "WEBP") else {}))
    return file.getvalue()


def exif() -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = 6  # turned by a quarter
    return found


def part(content: bytes, head: bytes = b'Content-Disposition: form-data; name="file"; filename="a.png"') -> bytes:
    return b"--B\r\n" + head + b"\r\nContent-Type: image/png\r\n\r\n" + content + b"\r\n"


def dump(value: Any) -> bytes:
    return json.dumps(value).encode()


def tensor(data: Any, datatype: str = "BYTES", shape: tuple[int, ...] = (1,)) -> dict[str, Any]:
    return {"inputs": [{"name": "image", "datatype": datatype, "shape": list(shape), "data": data}]}


def binary(header: dict[str, Any], data: bytes) -> Sent:
    text = dump(header)
    return Sent(path=INFER, content=text + data, headers={"Inference-Header-Content-Length": str(len(text))})


def announced(datatype: str, shape: tuple[int, ...], num_bytes: int) -> dict[str, Any]:
    parameters = {"binary_data_size": num_bytes}
    return {"inputs": [{"name": "image", "datatype": datatype, "shape": list(shape), "parameters": parameters}]}


PNG = image_file("PNG")
B64 = base64.b64encode(PNG).decode()
PIXELS = np.arange(SIZE_PX**2 * 3).reshape(SIZE_PX, SIZE_PX, 3).tolist()
BODIES: dict[str, tuple[str, Any]] = {
    "rows": (PREDICT, {"signature_name": "serving_default", "instances": [{"b64": B64}, {"image": {"b64": B64}}]}),
    "pixels": (PREDICT, {"instances": [PIXELS]}),
    "columns": (PREDICT, {"signature_name": "judged", "inputs": {"image": [{"b64": B64}]}}),
    "tensor of files": (INFER, {"id": "7", **tensor([B64]), "outputs": [{"name": "label", "parameters": {}}]}),
    "tensor of pixels": (INFER, tensor([PIXELS], "UINT8", (1, SIZE_PX, SIZE_PX, 3))),
    "batch": ("/v1/batches", {"input": "/data/in/a", "output": "/data/out/b", "version": 1}),
}
RIGHT = {
    "form": Sent(path="/predict", content=part(PNG) + part(image_file("JPEG")) + b"--B--\r\n", headers=FORM),
    "binary files": binary(announced("BYTES", (1,), len(PNG) + 4), struct.pack("<I", len(PNG)) + PNG),
    "binary pixels": binary(announced("UINT8", (1, SIZE_PX, SIZE_PX, 3), SIZE_PX**2 * 3), bytes(SIZE_PX**2 * 3)),
} | {name: Sent(path=path, content=dump(value), headers=JSON) for name, (path, value) in BODIES.items()}

WRONG_VALUES: list[Any] = [
    None, True, -1, 0, 2**63, 10**400, 1.5, float("nan"), float("-inf"), "", "\x00", "\ud800", "image", B64[:-3],
    [], [[]], {}, [None], {"b64": None}, {"b64": "????"}, {"b64": ""}, ["a"] * 100, [-1, 2**40], [0], [-1],
    [1, SIZE_PX, SIZE_PX, 3], [1, 10**9, 10**9, 3],
]  # fmt: skip
WRONG_TEXTS = {
    "nothing": b"",
    "null": b"null",
    "a number": b"1e999",
    "a long number": b"1" * 10_000,
    "text": b'"x"',
    "a list": b"[]",
    "NaN": b'{"instances": [NaN]}',
    "cut": b'{"instances": [',
    "invalid UTF-8": b'{"instances": ["\xff\xfe"]}',
    "an overlong zero": b'{"instances": ["\xc0\x80"]}',
    "half a surrogate": b'{"instances": ["\\ud800"], "id": "\\udfff"}',
    "UTF-16": '{"instances": []}'.encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf{}",
    "two values": b"{}{}",
    "the same name twice": b'{"instances": [], "instances": 1, "inputs": [], "inputs": {}}',
    "lists to the ground": b'{"instances":' + b"[" * 100_000,
    "objects to the ground": b'{"inputs":' + b'{"a":' * 100_000,
    "lists to the ground and back": b'{"instances":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a list in lists": b'{"inputs":' + b"[" * 500 + b"]" * 500 + b"}",
    "many names": dump({str(number): number for number in range(20_000)}),
    "many images": dump({"instances": [{"b64": B64}] * 1000}),
    "a comment": b'{"instances": [] /* none */}',
    "single quotes": b"{'instances': []}",
    "zeros": bytes(1000),
    "gzip": gzip.compress(dump({"instances": [{"b64": B64}]})),
    "an image": PNG,
}


def spoil(data: bytes, rng: random.Random) -> bytes:
    """Cuts, flips, overwrites, repeats, removes or adds bytes somewhere."""
    start, length = rng.randrange(len(data)), rng.choice([1, 1, 2, 4, 16])
    middle = data[start : start + length]
    middle = rng.choice(
        [
            lambda: b"",
            lambda: bytes([middle[0] ^ 1 << rng.randrange(8)]) + middle[1:],
            lambda: rng.randbytes(length),
            lambda: b"\xff" * length,
            lambda: bytes(length),
            lambda: middle * 50,
            lambda: rng.randbytes(length) + middle,
        ]
    )()
    end = data[start + length :] if rng.random() < 0.8 else b""
    return data[:start] + middle + end


def replaced(value: Any, wrong: Any) -> list[Any]:
    """Returns the JSON with something wrong in place of each of its parts, and with each left out."""
    found = [wrong]
    if isinstance(value, dict):
        for name, each in value.items():
            found += [value | {name: other} for other in replaced(each, wrong)]
            found.append({other: value[other] for other in value if other != name})
    elif isinstance(value, list) and value:
        found += [[other, *value[1:]] for other in replaced(value[0], wrong)]
    return found


FORM_HEADS = {
    "no name": b"Content-Disposition: form-data",
    "no disposition": b"X: y",
    "another disposition": b'Content-Disposition: attachment; filename="a.png"',
    "an empty name of a file": b'Content-Disposition: form-data; name="file"; filename=""',
    "no name of a file": b'Content-Disposition: form-data; name="file"',
    "a path": b'Content-Disposition: form-data; name="file"; filename="../../etc/passwd"',
    "zeros in it": b'Content-Disposition: form-data; name="file"; filename="a\x00.png"',
    "bytes in it": b'Content-Disposition: form-data; name="file"; filename="\xff\xfe\xed\xa0\x80.png"',
    "an open quote": b'Content-Disposition: form-data; name="file"; filename="a.png',
    "an extended name": b"Content-Disposition: form-data; name=file; filename*=UTF-8''%ff%00",
    "an unknown charset": b"Content-Disposition: form-data; name=file; filename*=x-none''a",
    "a long name": b'Content-Disposition: form-data; name="file"; filename="' + b"a" * 100_000 + b'"',
    "a long header": b"X: " + b"y" * 100_000,
    "no colon": b"Content-Disposition",
    "a header of nothing": b": x",
    "a space in a name": b"Content Disposition: form-data",
    "twice": b'Content-Disposition: form-data; name="file"; filename="a"\r\nContent-Disposition: form-data; name="b"',
    "many headers": b"\r\n".join(b"X-%d: y" % number for number in range(5000)),
    "encoded": b'Content-Disposition: form-data; name="file"; filename="a"\r\nContent-Transfer-Encoding: base64',
}
FORM_BODIES = {
    "nothing": b"",
    "no boundary": PNG,
    "the end alone": b"--B--\r\n",
    "no end": part(PNG),
    "an empty part": b"--B\r\n\r\n\r\n--B--\r\n",
    "parts without a head": b"--B\r\n" * 1000,
    "lines that end otherwise": part(PNG).replace(b"\r\n", b"\n") + b"--B--\n",
    "text before it": b"before\r\n" + part(PNG) + b"--B--\r\nafter",
    "many files": part(PNG) * 100 + b"--B--\r\n",
    "many fields": part(b"x", b'Content-Disposition: form-data; name="a"') * 5000 + b"--B--\r\n",
    "a large field": part(b"x" * 2_000_000, b'Content-Disposition: form-data; name="a"') + b"--B--\r\n",
    "an empty file": part(b"") + b"--B--\r\n",
    "a form in a form": part(part(PNG)) + b"--B--\r\n",
}
FORM_TYPES = [
    "multipart/form-data",
    "multipart/form-data; boundary=",
    'multipart/form-data; boundary="',
    "multipart/form-data; boundary=other",
    "multipart/form-data; boundary=" + "b" * 10_000,
    "multipart/form-data; boundary=B; charset=no-such",
    *(
        f"multipart/form-data; boundary=B; charset={name}"
        for name in ("undefined", "idna", "punycode", "unicode_escape")
    ),
    "multipart/form-data; boundary=B; boundary=C",
    "multipart/form-data; boundary*=utf-8''B",
    "multipart/mixed; boundary=B",
    "MULTIPART/FORM-DATA; BOUNDARY=B",
    "application/x-www-form-urlencoded",
    "image/png",
    ";;;",
    "\u00ff",
]
OF_SERVE = (
    *("X-Request-ID", "X-Request-Timeout-Seconds", "X-Request-Disconnect-Disabled", "X-Session-ID"),
    "serve_multiplexed_model_id",
)
HEADERS = [
    *({"Content-Length": text} for text in ("-1", "x", "1e9", "0", "9" * 25, "9" * 5000, "1, 1", "\u00b2")),
    *({"Inference-Header-Content-Length": text} for text in ("-1", "0", "1", "1e2", "9" * 8, "9" * 5000, "", "\u00b2")),
    *({name: text} for name in OF_SERVE for text in ("", "\u00ff", "x" * 1000)),
    *({"Content-Encoding": text} for text in ("gzip", "br", "identity, gzip", "\u00ff")),
    *({"Content-Type": text} for text in ("", "text/html", "application/json; charset=utf-16", "application/json;;")),
    *({"Host": text} for text in ("", "[", "[::1", "a:b:c", "\u00ff", "localhost:99999999")),
    *({"X-API-Key": text} for text in ("", "\u00ff", "x" * 100_000)),
    *({"Authorization": text} for text in ("", "Bearer", "Bearer  ", "Basic \u00ff", "Bearer x y")),
]  # fmt: skip


def wrong_requests() -> dict[str, list[Sent]]:
    """Returns requests by what is wrong with them: the same ones each time."""
    rng = random.Random(20261124)  # noqa: S311 (these are no secrets)
    found = {
        "spoilt": [replace(right, content=spoil(right.content, rng)) for right in RIGHT.values() for _ in range(40)],
        "parts": [
            Sent(path=path, content=dump(body), headers=JSON)
            for path, right in BODIES.values()
            for wrong in WRONG_VALUES
            for body in replaced(right, wrong)
        ],
        "texts": [
            Sent(path=path, content=text, headers=JSON)
            for path in ("/predict", PREDICT, INFER, "/v1/batches")
            for text in WRONG_TEXTS.values()
        ],
        "forms": [
            *(
                Sent(path="/predict", content=part(PNG, head) + b"--B--\r\n", headers=FORM)
                for head in FORM_HEADS.values()
            ),
            *(Sent(path="/predict", content=body, headers=FORM) for body in FORM_BODIES.values()),
            *(replace(RIGHT["form"], headers={"Content-Type": each}) for each in FORM_TYPES),
        ],
        "headers": [replace(right, headers=right.headers | each) for right in RIGHT.values() for each in HEADERS],
    }
    return {
        kind: requests if SENDS_ALL else rng.sample(requests, min(SAMPLE, len(requests)))
        for kind, requests in found.items()
    }


JOBS = Noted()


def make_api() -> FastAPI:
    options = Options(
        bundle="b", max_body_bytes=4 * 2**20, input_roots=["/data/in"], output_roots=["/data/out"], timeout_s=DEADLINE_S
    )
    service = Service(options, {1: Mean()})
    return create_api(service, ApiKeys({"TLRAY_API_KEYS": KEY}), Batches(service, JOBS))


API = make_api()
DOCUMENT = schemathesis.openapi.from_asgi("/openapi.json", API)


@pytest.fixture
def ask():
    """Sends requests, one after the other; returns the answers' statuses. Each answer is as the document has it."""
    JOBS.jobs.clear()

    async def send(requests: list[Sent]) -> list[int]:
        transport = httpx.ASGITransport(API, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            return [await send_one(http, each) for each in requests]

    async def send_one(http: httpx.AsyncClient, sent: Sent) -> int:
        headers = {"X-API-Key": KEY} | sent.headers
        encoded = [(name.encode(), text.encode("latin-1")) for name, text in headers.items()]
        async with asyncio.timeout(DEADLINE_S):
            answer = await http.post(sent.path, content=sent.content, headers=encoded)
        assert answer.status_code < 500, (sent, answer.text)
        operation = DOCUMENT.find_operation_by_path("POST", sent.path)
        assert operation is not None
        assert str(answer.status_code) in operation.definition.raw["responses"], (sent, answer.text)
        operation.validate_response(answer)
        if answer.status_code >= 400:
            assert answer.json()["error"], sent
        return answer.status_code

    return lambda requests: asyncio.run(send(requests))


def test_right_requests_are_right(ask):
    assert ask(list(RIGHT.values())) == [200 if name != "batch" else 202 for name in RIGHT]


def test_each_signature_is_answered_in_both_formats(ask):
    bodies = [
        {"signature_name": name} | images
        for name in ("", "serving_default", "judged")
        for images in ({"instances": [{"b64": B64}] * 2}, {"inputs": [{"b64": B64}] * 2})
    ]
    assert ask([Sent(path=PREDICT, content=dump(body), headers=JSON) for body in bodies]) == [200] * 6


@pytest.mark.parametrize(("kind", "requests"), wrong_requests().items(), ids=wrong_requests())
def test_wrong_requests_are_answered(ask, kind, requests):
    assert len(requests) >= 40
    statuses = ask(requests)
    assert sum(status >= 400 for status in statuses) > len(requests) / 3, (kind, Counter(statuses))


def as_form(files: list[bytes]) -> Sent:
    return Sent(path="/predict", content=b"".join(map(part, files)) + b"--B--\r\n", headers=FORM)


@pytest.mark.parametrize(
    "kind",
    [
        *("PNG L", "PNG P", "PNG I;16", "JPEG RGB", "JPEG CMYK", "BMP RGB", "BMP P"),
        *("TIFF L", "TIFF I;16", "TIFF RGBA", "WEBP RGBA", "GIF P"),
    ],
)
def test_spoilt_images_are_answered(ask, kind):
    rng = random.Random(kind)  # noqa: S311
    right = image_file(*kind.split())
    files = [spoil(right, rng) for _ in range(4 * 64 if SENDS_ALL else SAMPLE)]
    assert set(ask([as_form(files[start : start + 64]) for start in range(0, len(files), 64)])) == {200}


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 0) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def tiff(**tags: int) -> bytes:
    numbers = {"width": 256, "height": 257, "bits": 258, "compression": 259, "photometric": 262, "offset": 273}
    numbers |= {"samples": 277, "rows": 278, "bytes": 279}
    entries = b"".join(
        struct.pack("<HHII", numbers[name], 4, 1, value)
        for name, value in sorted(tags.items(), key=lambda item: numbers[item[0]])
    )
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


SCANS = image_file("JPEG", progressive=True)
BOMBS = {
    "a PNG of 100,000 x 100,000": (png(100_000, 100_000, chunk(b"IDAT", zlib.compress(bytes(1000)))), "too_large"),
    "a PNG of no size": (png(0, 0, chunk(b"IDAT", zlib.compress(b""))), "decode_failed"),
    "a PNG of the largest size": (png(2**31 - 1, 2**31 - 1), "too_large"),
    "a PNG of negative size": (png(2**32 - 1, 2**32 - 1), "too_large"),
    "a PNG without pixels": (png(16, 16), "decode_failed"),
    "a PNG with text that unpacks to 100 MB": (
        png(16, 16, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100_000_000)))),
        "decode_failed",
    ),
    "a TIFF of 100,000 x 100,000": (
        tiff(width=100_000, height=100_000, bits=8, compression=1, photometric=1, offset=8, samples=1, rows=1, bytes=9),
        "too_large",
    ),
    "a TIFF that is its own pixels": (
        tiff(width=8, height=8, bits=8, compression=1, photometric=1, offset=2**32 - 1, samples=1, rows=8, bytes=64),
        "truncated",
    ),
    "a BMP of 100,000 x 100,000": (
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 100_000, 100_000, 1, 24, 0, 0, 0, 0, 0, 0),
        "too_large",
    ),
    "a JPEG that ends at once": (b"\xff\xd8\xff\xd9", "decode_failed"),
    "a JPEG of a thousand scans": (SCANS[:-2] + SCANS[SCANS.rfind(b"\xff\xda") : -2] * 1000 + SCANS[-2:], "too_large"),
    "a zip": (b"PK\x03\x04" + bytes(100), "unsupported_format"),
    "a gzip": (gzip.compress(PNG), "unsupported_format"),
    "markup": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "unsupported_format"),
}


@pytest.mark.parametrize(("file", "code"), BOMBS.values(), ids=BOMBS)
def test_bombs_are_refused_before_they_unpack(file, code):
    async def send():
        transport = httpx.ASGITransport(API, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            return await http.post("/predict", files={"file": file}, headers={"X-API-Key": KEY}, timeout=DEADLINE_S)

    answer = asyncio.run(send())
    assert (answer.status_code, answer.json()["error_code"]) == (422, code), answer.text


def check_operation(case):
    excluded = [
        positive_data_acceptance,  # bytes that were thought of at random are no image, whatever a schema says of them
        ignored_auth,  # of two keys one that is valid is enough; see below
    ]
    if case.operation.path.endswith(":predict"):
        # A GET of it asks for the status of a model of such a name.
        excluded += [unsupported_method, allow_header_conformance]
    case.call_and_validate(headers={"X-API-Key": KEY}, excluded_checks=excluded, timeout=DEADLINE_S)


class TestDocument:
    """The document is true of each operation.

    Each has a method with a name of its own: pytest 9.2 gives all operations of one method the same id, and
    pytest-xdist's `loadfile` then runs one of them only.
    """


for path, methods in API.openapi()["paths"].items():
    for method in methods:

        @settings(derandomize=True, database=None, max_examples=25 if SENDS_ALL else 5, deadline=None)
        def test(_, case):
            check_operation(case)

        operation = DOCUMENT.include(method=method.upper(), path=path)
        setattr(TestDocument, f"test {method.upper()} {path}", operation.parametrize()(test))
        del test


def test_every_address_but_the_descriptions_of_the_server_asks_for_a_key():
    async def send() -> dict[str, set[int]]:
        transport = httpx.ASGITransport(API, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            found: dict[str, set[int]] = {}
            for path, methods in API.openapi()["paths"].items():
                for method in methods:
                    answer = await http.request(method, path.format(name="chest-ct", version=1, batch_id=1))
                    found.setdefault(path, set()).add(answer.status_code)
            return found

    statuses = asyncio.run(send())
    assert len(statuses) > 10
    open_paths = {"/v2", "/v2/health/live", "/v2/health/ready"}
    assert {path for path, found in statuses.items() if found != {401}} == open_paths
