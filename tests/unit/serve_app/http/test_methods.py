"""HEAD, OPTIONS and what an address does not take."""

import httpx
import pytest

from tests.endpoint import listening
from tests.unit.serve_app.application import local_api
from tests.unit.serve_app.test_api import KEY, Mean, call


@pytest.fixture
def model() -> Mean:
    return Mean()


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/docs/swagger-ui.css", "/openapi.json", "/v2/health/ready", "/v2/models/chest-ct"]
)
def test_head_is_get_without_the_body(model, path):
    got, head = call(model, "GET", path), call(model, "HEAD", path)
    assert (head.status_code, head.content) == (200, b"")
    same = ("content-length", "content-type", "content-security-policy")
    assert [head.headers.get(name) for name in same] == [got.headers.get(name) for name in same]
    assert int(head.headers["content-length"]) == len(got.content) > 0


def test_a_server_counts_no_body_of_head(model, caplog):
    """It looks at its own scope for the method: a HEAD that seems to be a GET lacks its body there."""
    with listening(local_api(model)) as address, httpx.Client(base_url=address) as http:
        answers = [http.head("/v2/health/ready"), http.head("/predict"), http.get("/v2/health/ready")]
    assert [each.status_code for each in answers] == [200, 405, 200]
    assert "connection" not in answers[0].headers  # it stays open
    assert "shorter than Content-Length" not in caplog.text


@pytest.mark.parametrize(("path", "status"), [("/nothing", 404), ("/v1/models/other", 404), ("/predict", 405)])
def test_head_fails_as_get_does(model, path, status):
    head = call(model, "HEAD", path)
    assert (head.status_code, head.content) == (status, b"")


def test_head_needs_the_key_that_get_needs_and_options_needs_none(model):
    environment = {"TLRAY_API_KEYS": KEY}
    assert call(model, "HEAD", "/v2/models", environment).status_code == 401
    assert call(model, "HEAD", "/v2/models", environment, headers={"X-API-Key": KEY}).status_code == 200
    assert call(model, "OPTIONS", "/v2/models", environment).status_code == 204


METHODS = {
    "/": "GET, HEAD, OPTIONS",
    "/docs/swagger-ui.css": "GET, HEAD, OPTIONS",
    "/openapi.json": "GET, HEAD, OPTIONS",
    "/v2/health/live": "GET, HEAD, OPTIONS",
    "/predict": "OPTIONS, POST",
    "/v1/models/chest-ct": "GET, HEAD, OPTIONS",
    "/v2/models/chest-ct/infer": "OPTIONS, POST",
    "/v1/batches": "GET, HEAD, OPTIONS, POST",
    "/v1/batches/0123": "DELETE, GET, HEAD, OPTIONS",
}


@pytest.mark.parametrize(("path", "methods"), METHODS.items())
def test_an_address_tells_its_methods(model, path, methods):
    told = call(model, "OPTIONS", path)
    assert (told.status_code, told.content, told.headers["Allow"]) == (204, b"", methods)
    refused = call(model, "PUT", path)
    assert (refused.status_code, refused.headers["Allow"]) == (405, methods)
    assert refused.json() == {"error": "PUT is not allowed for this address.", "error_code": "method_not_allowed"}


def test_what_is_not_there_has_no_methods(model):
    assert call(model, "OPTIONS", "/nothing").status_code == 404
