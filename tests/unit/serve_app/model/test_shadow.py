"""Shadow traffic: compared and counted, and never felt by a client."""

import asyncio
import dataclasses
import random

import httpx
import numpy as np
import pytest

from serve_app.batches.job_server import JobServer
from serve_app.batches.jobs import Batches
from serve_app.errors import RequestError
from serve_app.http.auth import ApiKeys
from serve_app.model.classifier import Answer, Pixels
from serve_app.model.service import Service
from serve_app.model.shadow import Shadow
from serve_app.options import Options
from serve_app.watch.telemetry import Telemetry
from tests.unit.serve_app.application import create_api
from tests.unit.serve_app.test_api import Mean, info, png, run, upload
from tests.unit.serve_app.watch.test_watch import of


class Inverse(Mean):
    """A shadow that takes every image for the other class, and knows the classes in another order."""

    def __init__(self, sha256="b" * 64, size_px=8):
        super().__init__()
        plain = info(sha256, size_px)
        self.info = dataclasses.replace(plain, spec=dataclasses.replace(plain.spec, classes=("light", "dark")))
        self.seen: list[Pixels] = []

    async def predict(self, pixels: Pixels):
        self.seen.append(pixels)
        return await super().predict(pixels)


class Endpoint:
    """The endpoint with a shadow."""

    def __init__(self, shadow, model=None, **options):
        self.settings = Options(bundle="b", shadow_bundle="s", **options)
        telemetry = Telemetry(self.settings.name)
        self.shadow = Shadow(shadow, self.settings, telemetry)
        service = Service(self.settings, {1: model or Mean(), 2: Mean()}, telemetry, self.shadow.offer)
        api = create_api(service, ApiKeys({}), Batches(service, JobServer()))
        transport = httpx.ASGITransport(api, raise_app_exceptions=False)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://localhost")

    async def predict(self, *files):
        answer = await self.http.post("/predict", files=upload(*files))
        assert answer.status_code == 200
        return answer.json()

    async def compared(self):
        """Returns when the shadow has nothing left to do."""
        while self.shadow._tasks:
            await asyncio.wait(self.shadow._tasks, timeout=20)


def outcomes(records):
    return {outcome: count for (outcome,), count in of(records, "tlray_shadow_images", "outcome").items()}


def test_answers_are_compared_by_the_names_of_the_classes(recorded):
    shadow = Inverse()

    async def ask():
        endpoint = Endpoint(shadow)
        found = await endpoint.predict(png(255), b"nonsense", png(51))
        await endpoint.compared()
        return found

    found = run(ask())
    assert found["bundle_sha256"] == "a" * 64
    assert [row["label"] for row in found["predictions"]] == ["light", None, "dark"]
    # To it the probability of the second class, dark, is the mean of the pixels: 1 for 255, and 0.2 for 51.
    assert outcomes(recorded) == {"differ": 2}
    assert of(recorded, "tlray_shadow_difference")[()] == pytest.approx(1.0 + 0.6)
    assert [len(pixels.images) for pixels in shadow.seen] == [2]


def test_agreement_costs_no_difference(recorded):
    shadow = Mean()
    shadow.info = info("b" * 64)

    async def ask():
        endpoint = Endpoint(shadow)
        await endpoint.predict(png(255), png(0), png(100))
        await endpoint.compared()

    run(ask())
    assert outcomes(recorded) == {"agree": 3}
    assert of(recorded, "tlray_shadow_difference") == {}


def test_uploads_are_kept_for_a_shadow_that_needs_them_and_not_beyond_a_request(recorded):
    padded = png(255) + bytes(3000)

    async def ask(size_px):
        shadow = Inverse(size_px=size_px)
        endpoint = Endpoint(shadow, max_body_bytes=4096)
        await endpoint.predict(png(0))  # then it is known what the shadow needs
        await endpoint.compared()
        shadow.gate.clear()
        held = []
        for _ in range(3):
            await endpoint.predict(padded)
            held.append(endpoint.shadow._num_held_bytes)
        shadow.gate.set()
        await endpoint.compared()
        return held, endpoint.shadow._num_held_bytes

    assert run(ask(8)) == ([0, 0, 0], 0)
    assert outcomes(recorded) == {"differ": 4}
    recorded.clear()
    assert run(ask(16)) == ([len(padded)] * 3, 0)
    assert outcomes(recorded) == {"differ": 2, "dropped": 2}


def test_images_are_decoded_anew_for_a_shadow_of_another_size(recorded):
    shadow = Inverse(size_px=16)

    async def ask():
        endpoint = Endpoint(shadow)
        await endpoint.predict(png(255))
        await endpoint.compared()

    run(ask())
    (pixels,) = shadow.seen
    assert (pixels.size_px, len(pixels.images[0])) == (16, 16 * 16)
    assert outcomes(recorded) == {"differ": 1}


def test_clients_do_not_wait_and_what_is_too_much_is_dropped(recorded):
    shadow = Mean()

    async def ask():
        endpoint = Endpoint(shadow, max_queued_images=4)
        shadow.gate.clear()
        for _ in range(3):
            await endpoint.predict(png(0), png(255))  # answered while the shadow is shut
        assert outcomes(recorded) == {"dropped": 2}
        shadow.gate.set()
        await endpoint.compared()

    run(ask())
    assert outcomes(recorded) == {"dropped": 2, "agree": 4}


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (RuntimeError("broken"), "error"),
        (RequestError(503, "The model has no room"), "dropped"),
    ],
)
def test_failures_are_counted_only(recorded, error, outcome):
    shadow = Mean()

    async def fail(pixels: Pixels):  # noqa: ARG001
        raise error

    shadow.predict = fail

    async def ask():
        endpoint = Endpoint(shadow)
        await endpoint.predict(png(0))
        await endpoint.compared()

    run(ask())
    assert outcomes(recorded) == {outcome: 1}


def test_slowness_ends(recorded):
    shadow = Mean()

    async def ask():
        endpoint = Endpoint(shadow)
        endpoint.shadow._options = endpoint.settings.model_copy(update={"timeout_s": 0.1})  # the answer has its time
        shadow.gate.clear()
        await endpoint.predict(png(0))
        await endpoint.compared()

    run(ask())
    assert outcomes(recorded) == {"error": 1}


def test_probabilities_that_are_none_and_other_classes_are_errors(recorded):
    async def nan(pixels: Pixels):
        probs_BK = np.full((len(pixels.images), 2), np.nan, np.float32)
        return Answer(bundle_sha256="a" * 64, probabilities=probs_BK, predict_s=0.0)

    no_number, stranger = Mean(), Mean()
    no_number.predict = nan
    plain = info()
    stranger.info = dataclasses.replace(plain, spec=dataclasses.replace(plain.spec, classes=("dark", "bright")))

    async def ask():
        for shadow in (no_number, stranger):
            endpoint = Endpoint(shadow)
            await endpoint.predict(png(0))
            await endpoint.compared()

    run(ask())
    assert outcomes(recorded) == {"error": 2}
    assert of(recorded, "tlray_shadow_difference") == {}


def test_another_bundle_in_the_shadows_place_is_asked_anew(recorded):
    shadow = Mean()

    async def ask():
        endpoint = Endpoint(shadow)
        await endpoint.predict(png(0))
        await endpoint.compared()
        shadow.info = Inverse("c" * 64, size_px=16).info
        for _ in range(2):  # of the first one the file was not kept
            await endpoint.predict(png(0))
            await endpoint.compared()

    run(ask())
    assert outcomes(recorded) == {"agree": 1, "dropped": 1, "differ": 1}


def test_only_a_share_of_the_main_versions_requests_is_mirrored(recorded, monkeypatch):
    draws = iter([0.0, 0.24, 0.25, 0.9])
    monkeypatch.setattr(random, "random", lambda: next(draws))

    async def ask():
        endpoint = Endpoint(Mean(), shadow_share=0.25)
        for _ in range(4):
            await endpoint.predict(png(0))
        body = {"instances": [np.zeros((8, 8, 3), int).tolist()]}
        answer = await endpoint.http.post("/v1/models/chest-ct/versions/2:predict", json=body)
        assert answer.status_code == 200
        await endpoint.compared()

    run(ask())
    assert outcomes(recorded) == {"agree": 2}
    assert next(draws, None) is None


@pytest.mark.parametrize("share", [0, -0.1, 1.1])
def test_shares_that_make_no_sense_are_refused(share):
    with pytest.raises(ValueError, match="shadow_share"):
        Options(bundle="b", shadow_share=share)
