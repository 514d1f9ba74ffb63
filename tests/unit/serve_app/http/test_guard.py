"""Who may ask without keys, and how requests come by way of a proxy or from another site's page."""

import asyncio
from urllib.parse import urljoin

import httpx
import pytest
from pydantic import ValidationError

from serve_app.options import Options
from tests.endpoint import below
from tests.unit.serve_app.application import local_api
from tests.unit.serve_app.test_api import KEY, Mean, png, upload

SITE = "https://scans.example"
KEYED = {"TLRAY_API_KEYS": KEY}


@pytest.fixture
def model() -> Mean:
    return Mean()


def ask(api, method="GET", path="/v2/models", **request) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(api)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            return await http.request(method, path, **request)

    return asyncio.run(send())


@pytest.mark.parametrize(
    "added",
    [
        {"Forwarded": "for=203.0.113.9"},
        {"X-Forwarded-For": "203.0.113.9"},
        {"X-Forwarded-For": "127.0.0.1"},  # whatever it says
        {"x-forwarded-proto": "https"},
        {"X-Forwarded-Host": "scans.example"},
        {"X-Forwarded-Anything": ""},
        {"X-Real-IP": "203.0.113.9"},
        {"Via": "1.1 vegur"},
        {"True-Client-IP": "203.0.113.9"},
    ],
)
def test_without_keys_requests_by_way_of_a_proxy_are_refused(model, added):
    refused = ask(local_api(model), headers=added)
    (name,) = added
    assert (refused.status_code, refused.json()["error_code"]) == (403, "forbidden")
    assert refused.json()["error"] == (
        "No API keys are set, so requests through a proxy are refused. Set keys in TLRAY_API_KEYS or "
        f"TLRAY_API_KEYS_FILE on the server. Received: the header {name.lower()}"
    )
    uploaded = ask(local_api(model), "POST", "/predict", files=upload(png(0)), headers=added)
    assert uploaded.status_code == 403
    assert ask(local_api(model, KEYED), headers=added | {"X-API-Key": KEY}).status_code == 200
    assert ask(local_api(model, open_without_keys=True), headers=added).status_code == 200
    assert ask(local_api(model), path="/v2/health/live", headers=added).status_code == 200


@pytest.mark.parametrize(("version", "status"), [("1.0", 403), ("1.1", 200), ("2", 200)])
def test_without_keys_http_of_nginx_is_refused(model, version, status):
    def speaking(api):
        async def application(scope, receive, send):
            await api({**scope, "http_version": version}, receive, send)

        return application

    assert ask(speaking(local_api(model))).status_code == status
    assert ask(speaking(local_api(model, KEYED)), headers={"X-API-Key": KEY}).status_code == 200


def test_the_document_names_addresses_below_a_prefix(model):
    proxy = below("/ct/v7", local_api(model, KEYED))
    where = "http://127.0.0.1/ct/v7/openapi.json"
    document = ask(proxy, path=where).json()
    (server,) = document["servers"]
    base = urljoin(where, server["url"]).rstrip("/")
    assert base == "http://127.0.0.1/ct/v7"
    answer = ask(proxy, "POST", f"{base}/predict", files=upload(png(255)), headers={"X-API-Key": KEY})
    assert answer.json()["predictions"][0]["label"] == "light"
    assert ask(proxy, path=f"{base}/docs").status_code == 200


ALLOWED = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type,x-api-key"}


@pytest.mark.parametrize("environment", [{}, KEYED])
def test_a_page_of_an_allowed_site_may_ask(model, environment):
    api = local_api(model, environment, cors_origins=[SITE])
    preflight = ask(api, "OPTIONS", "/predict", headers={"Origin": SITE} | ALLOWED)  # browsers send no key with it
    assert preflight.status_code == 200
    assert preflight.headers["Access-Control-Allow-Origin"] == SITE
    assert preflight.headers["Access-Control-Allow-Methods"] == "GET, HEAD, POST, DELETE"
    assert {"x-api-key", "authorization"} <= set(preflight.headers["Access-Control-Allow-Headers"].lower().split(", "))
    assert "Access-Control-Allow-Credentials" not in preflight.headers
    key = {"X-API-Key": KEY} if environment else {}
    answer = ask(api, "POST", "/predict", files=upload(png(255)), headers={"Origin": SITE} | key)
    assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (200, SITE)
    wrong = ask(api, "POST", "/predict", files=upload(b""), headers={"Origin": SITE} | key)
    assert (wrong.status_code, wrong.headers["Access-Control-Allow-Origin"]) == (422, SITE)


@pytest.mark.parametrize("origins", [[], ["https://other.example"]])
def test_a_page_of_any_other_site_may_not(model, origins):
    api = local_api(model, cors_origins=origins)
    for origin in (SITE, f"{SITE}.evil.example", "http://scans.example", "null"):
        preflight = ask(api, "OPTIONS", "/predict", headers={"Origin": origin} | ALLOWED)
        assert "Access-Control-Allow-Origin" not in preflight.headers
        answer = ask(api, "POST", "/predict", files=upload(png(0)), headers={"Origin": origin})
        assert (answer.status_code, "Access-Control-Allow-Origin" in answer.headers) == (403, False)


def test_an_allowed_site_opens_no_other_door(model):
    api = local_api(model, cors_origins=[SITE])
    assert ask(api, headers={"Origin": SITE}).status_code == 200
    assert ask(api, headers={"Origin": SITE, "Host": "scans.example"}).status_code == 421
    assert ask(api, headers={"Origin": SITE, "X-Forwarded-For": "203.0.113.9"}).status_code == 403
    assert ask(local_api(model, KEYED, cors_origins=[SITE]), headers={"Origin": SITE}).status_code == 401


@pytest.mark.parametrize("origin", ["https://scans.example", "http://host:3000", "http://[::1]:3000"])
def test_origins_are_written_as_browsers_send_them(origin):
    assert Options(bundle="b", cors_origins=[origin]).cors_origins == [origin]


@pytest.mark.parametrize(
    "origin",
    [
        *("*", "null", "", "https://*.example", "scans.example", "https://scans.example/", "https://Scans.example"),
        *("https://scans.example:443", "http://scans.example:80", "ftp://scans.example", "https://user@scans.example"),
        *("https://scans.example:", "http://[::1", "http://"),
    ],
)
def test_what_no_browser_sends_is_no_origin(origin):
    with pytest.raises(ValidationError, match="as browsers send it"):
        Options(bundle="b", cors_origins=[origin])
