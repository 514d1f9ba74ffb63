"""Clients that others wrote, and requests as others document them, over a socket."""

import base64
import json
import socket
import subprocess
import sys
from urllib.parse import urlsplit

import pytest

from tests.endpoint import listening, local_api
from tests.unit.serve_app.test_api import KEY, SIZE_PX, Mean, png

DEADLINE_S = 60


@pytest.fixture(scope="module")
def address():
    with listening(local_api(Mean())) as address:
        yield address


def test_nvidias_client_is_answered(tmp_path):
    (tmp_path / "light.png").write_bytes(png(204))
    with listening(local_api(Mean(), {"TLRAY_API_KEYS": KEY})) as address:
        done = subprocess.run(
            [sys.executable, "-m", "tests.triton", urlsplit(address).netloc, KEY, str(tmp_path / "light.png")],
            stdout=subprocess.PIPE, timeout=DEADLINE_S, check=True,
        )  # fmt: skip
    told = json.loads(done.stdout)
    assert [told[what] for what in ("live", "ready", "model ready", "version ready")] == [True] * 4
    assert (told["server"]["name"], told["server"]["extensions"]) == ("tlray", ["binary_tensor_data"])
    assert told["model"] == {
        "name": "chest-ct",
        "versions": ["1"],
        "platform": "tensorflow_savedmodel",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, SIZE_PX, SIZE_PX, 3]}],
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
            {"name": "refer", "datatype": "BOOL", "shape": [-1]},
            {"name": "refer_reason", "datatype": "BYTES", "shape": [-1]},
            {"name": "ood_score", "datatype": "FP32", "shape": [-1]},
            {"name": "prediction_set", "datatype": "BOOL", "shape": [-1, 2]},
        ],
        "parameters": {"engine": "openvino bfloat16"},
    }
    assert told["files"]["label"] == ["light", "light"]
    assert told["files"]["probabilities"] == [pytest.approx([0.2, 0.8])] * 2
    assert (told["pixels"]["id"], told["pixels"]["label"]) == ("7", ["dark", "dark", "light"])
    assert told["pixels"]["probabilities"] == [[1.0, 0.0], pytest.approx([0.8, 0.2]), [0.0, 1.0]]
    assert told["pixels in JSON"] == told["pixels"]


def curl(address: str, path: str, data: str = "") -> tuple[int, dict]:
    """Sends what `curl [-d DATA] ADDRESS/PATH` does, byte by byte, and waits as it does for the server's 100."""
    host = urlsplit(address)
    lines = [f"{'POST' if data else 'GET'} {path} HTTP/1.1", f"Host: {host.netloc}", "User-Agent: curl/7.88.1"]
    lines += ["Accept: */*"]
    if data:
        lines += [f"Content-Length: {len(data)}", "Content-Type: application/x-www-form-urlencoded"]
    expects = len(data) > 2**20
    lines += ["Expect: 100-continue"] if expects else []
    with connect(address) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        answer = connection.makefile("rb")
        if expects:
            assert (answer.readline(), answer.readline()) == (b"HTTP/1.1 100 Continue\r\n", b"\r\n")
        connection.sendall(data.encode())
        status = int(answer.readline().split()[1])
        headers = dict(line.decode().lower().split(": ", 1) for line in iter(answer.readline, b"\r\n"))
        return status, json.loads(answer.read(int(headers["content-length"])))


def test_requests_of_tensorflow_servings_documentation_are_answered(address):
    """https://www.tensorflow.org/tfx/serving/api_rest, with this model's input in place of that one's."""
    encoded = base64.b64encode(png(204)).decode()
    pixels = json.dumps([[[51, 51, 51]] * SIZE_PX] * SIZE_PX)
    expected = [pytest.approx([0.2, 0.8])]
    model = "/v1/models/chest-ct"
    for path in (model, f"{model}/versions/1"):
        status, answer = curl(address, path)
        assert status == 200
        assert answer == {
            "model_version_status": [
                {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
            ]
        }
        rows = curl(address, f"{path}:predict", f'{{"instances": [{{"b64": "{encoded}"}}]}}')
        assert rows == (200, {"predictions": expected})
    named = f'{{"signature_name": "serving_default", "instances": [{{"image": {{"b64": "{encoded}"}}}}]}}'
    assert curl(address, f"{model}:predict", named) == (200, {"predictions": expected})
    status, answer = curl(address, f"{model}:predict", named.replace("serving_default", "judged"))
    judged = {"refer": False, "refer_reason": "", "ood_score": 1.0, "prediction_set": [False, True]}
    assert (status, answer) == (200, {"predictions": [{"probabilities": expected[0], **judged}]})
    columns = f'{{"inputs": {{"image": [{{"b64": "{encoded}"}}]}}}}'
    assert curl(address, f"{model}:predict", columns) == (200, {"outputs": expected})
    numbers = curl(address, f"{model}:predict", f'{{"instances": [{pixels}]}}')
    assert numbers == (200, {"predictions": [pytest.approx([0.8, 0.2])]})
    assert curl(address, f"{model}:predict", '{"instances": []}')[0] == 400
    assert curl(address, "/v1/models/half_plus_two:predict", '{"instances": [1.0, 2.0, 5.0]}')[0] == 404


def test_curl_waits_before_it_sends_much(address):
    large = base64.b64encode(png(204) + bytes(2**20)).decode()  # what follows an image's end is not read
    status, answer = curl(address, "/v1/models/chest-ct:predict", f'{{"instances": [{{"b64": "{large}"}}]}}')
    assert (status, answer) == (200, {"predictions": [pytest.approx([0.2, 0.8])]})


def connect(address: str) -> socket.socket:
    host = urlsplit(address)
    return socket.create_connection((host.hostname, host.port), timeout=DEADLINE_S)


def raw(address: str, request: bytes) -> bytes:
    """Sends bytes, and returns what is answered until the server ends the connection."""
    with connect(address) as connection:
        connection.sendall(request)
        return connection.makefile("rb").read()


def post(body: bytes, *headers: str) -> bytes:
    lines = ["POST /v1/models/chest-ct:predict HTTP/1.1", "Host: localhost", "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


BODY = b'{"instances": []}'


@pytest.mark.parametrize(
    ("request_", "answers"),
    [
        (post(BODY, f"Content-Length: {len(BODY)}"), {400}),
        (post(BODY, "Content-Length: 4"), {400}),
        (post(BODY, "Content-Length: -1"), {400}),
        (post(BODY, "Content-Length: x"), {400}),
        (post(BODY, "Content-Length: 999999999999"), {413}),
        (post(BODY, "Content-Length: 17", "Content-Length: 18"), {400}),
        (post(BODY, "Content-Length: 17", "Transfer-Encoding: chunked"), {400}),
        (post(BODY, "Transfer-Encoding: chunked"), {400}),
        (post(b"fffffffffffffffff\r\n", "Transfer-Encoding: chunked"), {400}),
        (post(b"4\r\nabcdefgh\r\n0\r\n\r\n", "Transfer-Encoding: chunked"), {400}),
        (post(b"11\r\n" + BODY + b"\r\n0\r\n\r\n", "Transfer-Encoding: chunked"), {400}),
        (post(BODY, "Transfer-Encoding: gzip"), {400}),
        (post(b"", "No colon"), {400}),
        (post(b"", "X: \x00\x01"), {400}),
        (post(b"", "X: " + "y" * 200_000), {400}),
        (b"POST\r\n\r\n", {400}),
        (b"GET /%zz%00%ff HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", {404}),
        (b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", {404}),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300), {400}),
        (bytes(1000), {400}),
    ],
)
def test_what_is_hardly_http_is_refused(address, request_, answers):
    found = raw(address, request_)
    assert int(found.split(b" ", 2)[1]) in answers, found
    assert curl(address, "/v2/health/live") == (200, {"live": True})


def test_clients_that_leave_or_stall_are_let_go(caplog):
    with listening(local_api(Mean(), timeout_s=0.2)) as address:
        stalled = [post(BODY, "Content-Length: 1000"), post(b"4\r\nab", "Transfer-Encoding: chunked")]
        for sent in stalled:
            with connect(address) as connection:
                connection.sendall(sent)
        for sent in stalled:
            found = raw(address, sent)
            assert found.startswith(b"HTTP/1.1 408 "), found
        assert curl(address, "/v2/health/live") == (200, {"live": True})
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
