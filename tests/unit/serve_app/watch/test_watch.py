"""What the endpoint tells its operator: metrics, the request log, drift, and the dashboard of all that."""

import asyncio
import dataclasses
import json
import logging
import math
import re
from collections import Counter as Tally
from pathlib import Path
from typing import Any

import pytest
from ray.util import metrics

import serve_app
from serve_app.watch import drift
from serve_app.watch.telemetry import ModelTelemetry, Telemetry
from tests.unit.serve_app.test_api import KEY, Mean, b64, call, client, info, png, run, upload
from tlray.data.drift import (
    Distribution,
    TrainingImages,
    ValidationPredictions,
    chance_level,
    population_stability_index,
)


@pytest.fixture
def model():
    return Mean()


def of(records, name, *keys):
    """The tags, those of `keys`, and the sum of what was recorded under a name."""
    found: Tally[Any] = Tally()
    for each, value, tags in records:
        if each == name:
            found[tuple(tags[key] for key in keys)] += value
    return dict(found)


def num_requests(records):
    return Tally(
        (tags["method"], tags["route"], tags["status"])
        for name, _, tags in records
        if name == "tlray_request_duration_seconds"
    )


@pytest.fixture
def lines(caplog):
    """The lines of the request log as dictionaries, written as Serve does."""
    logger = logging.getLogger("ray.serve")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(caplog.handler)
    # Like Ray's formatter for JSON: the message, and what was given with it.
    usual = set(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
    yield lambda: [
        {"message": record.getMessage()} | {name: value for name, value in vars(record).items() if name not in usual}
        for record in caplog.records
    ]
    logger.removeHandler(caplog.handler)
    logger.setLevel(level)


def test_requests_are_counted_by_what_the_endpoint_has_and_not_by_what_clients_send(model, recorded):
    call(model, "POST", "/v1/models/chest-ct:predict", json={"instances": [b64(png(0))]})
    call(model, "POST", "/v1/models/chest-ct/versions/1:predict", json={"instances": [b64(png(0))]})
    call(model, "GET", "/v2/models/someone-else")
    call(model, "GET", "/made/up")
    call(model, "BREW", "/predict")
    call(model, "POST", "/predict", {"TLRAY_API_KEYS": KEY}, files=upload(png(0)))
    assert num_requests(recorded) == {
        ("POST", "/v1/models/{name}:predict", "200"): 1,
        ("POST", "/v1/models/{name}/versions/{version}:predict", "200"): 1,
        ("GET", "/v2/models/{name}", "404"): 1,
        ("GET", "other", "404"): 1,
        ("other", "/predict", "405"): 1,
        ("POST", "/predict", "401"): 1,
    }
    assert all(tags["model"] == "chest-ct" for _, _, tags in recorded)


def test_errors_are_counted_by_code(model, recorded):
    call(model, "POST", "/predict", files=upload(b"nonsense"))
    call(model, "POST", "/predict", files=upload(*[png(0)] * 65))
    call(model, "GET", "/v1/models/other")

    async def fail(_):
        raise RuntimeError

    model.predict = fail
    call(model, "POST", "/predict", files=upload(png(0)))
    errors = of(recorded, "tlray_request_errors", "route", "code")
    assert errors.pop(("/predict", "unsupported_format")) == 1
    assert errors.pop(("/predict", "internal")) == 1
    assert errors.pop(("/v1/models/{name}", "not_found")) == 1
    assert errors == {("/predict", "too_large"): 1}


def test_images_are_counted_by_class_and_error(model, recorded):
    assert call(model, "POST", "/predict", files=upload(png(255), png(128), b"", png(0), png(130))).status_code == 200
    assert of(recorded, "tlray_predictions", "version", "label") == {("1", "light"): 3, ("1", "dark"): 1}
    # 128 and 130 of 255 are below 0.6.
    assert of(recorded, "tlray_referred_predictions", "version", "reason") == {("1", "low_confidence"): 2}
    assert of(recorded, "tlray_image_errors", "version", "code") == {("1", "empty"): 1}
    held = [value for name, value, _ in recorded if name == "tlray_held_images"]
    assert held == [5, 0]


@pytest.mark.parametrize("protocol", ["TensorFlow Serving", "Open Inference Protocol"])
def test_of_a_request_that_is_refused_for_one_image_only_that_one_is_counted(model, recorded, monkeypatch, protocol):
    monkeypatch.setattr(drift, "WINDOW", 2)
    monkeypatch.setattr(drift, "STRIDE", 1)
    spec = dataclasses.replace(model.info.spec, training_images=training_images())
    model.info = dataclasses.replace(model.info, spec=spec)
    asked, predict = [], model.predict

    async def note(pixels):
        asked.append(pixels)
        return await predict(pixels)

    model.predict = note
    files = [b64(png(0))["b64"], b64(png(128))["b64"], b64(b"")["b64"]]
    if protocol == "TensorFlow Serving":
        path, body = "/v1/models/chest-ct:predict", {"instances": [{"b64": file} for file in files]}
    else:
        tensor = {"name": "image", "datatype": "BYTES", "shape": [3], "data": files}
        path, body = "/v2/models/chest-ct/infer", {"inputs": [tensor]}
    answer = call(model, "POST", path, json=body)
    assert (answer.status_code, answer.json()["error_code"]) == (422, "empty")
    assert asked == []
    assert of(recorded, "tlray_image_errors", "version", "code") == {("1", "empty"): 1}
    others = {name for name, _, _ in recorded} - {"tlray_image_errors"}
    assert others == {"tlray_held_images", "tlray_request_duration_seconds", "tlray_request_errors"}


def test_batches_are_counted(recorded):
    telemetry = ModelTelemetry("shadow")
    telemetry.started(batch_size=32, num_waiting=7)
    assert [(name, value) for name, value, _ in recorded] == [("tlray_batch_images", 32), ("tlray_waiting_images", 7)]
    assert [tags["version"] for _, _, tags in recorded] == ["shadow"] * 2


def test_the_log_has_a_line_a_request_and_nothing_of_a_patient(model, lines):
    files = [("file", ("Erika Mustermann 1964.png", png(255))), ("file", ("b.png", b"nonsense"))]
    headers = {"X-API-Key": KEY, "User-Agent": "Mustermann"}
    answer = call(model, "POST", "/predict?explain=true", {"TLRAY_API_KEYS": KEY}, files=files, headers=headers)
    assert answer.status_code == 200
    (line,) = lines()
    wanted = {"method": "POST", "path": "/predict", "status": 200, "num_images": 2, "error_code": None}
    assert line | wanted | {"bundle_sha256": "a" * 64} == line
    assert line["num_bytes"] == int(answer.request.headers["Content-Length"])
    assert line["duration_ms"] > 0
    assert line["message"] == f"POST /predict 200 {line['duration_ms']:.1f} ms"
    for secret in ("Mustermann", "b.png", KEY, "explain", b64(png(255))["b64"]):
        assert secret not in json.dumps(line)


def test_the_log_tells_of_what_was_refused(model, lines):
    call(model, "POST", "/predict", options={"max_body_bytes": 4096}, files=upload(b"x" * 5000))
    call(model, "POST", "/predict", files=upload(b""))
    call(model, "GET", "/Mustermann")
    found = [(line["path"], line["status"], line["num_images"], line["error_code"]) for line in lines()]
    wanted = [("/predict", 413, 0, "too_large"), ("/predict", 422, 1, "empty"), ("other", 404, 0, "not_found")]
    assert found == wanted


def test_a_client_that_has_gone_is_told_apart(model, recorded, lines):
    async def give_up():
        async with client(model) as http:
            model.gate.clear()
            request = asyncio.create_task(http.post("/predict", files=upload(png(0))))
            while not model.gate._waiters:
                await asyncio.sleep(0)
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)

    run(give_up())
    assert num_requests(recorded) == {("POST", "/predict", "499"): 1}
    assert [line["status"] for line in lines()] == [499]
    assert of(recorded, "tlray_held_images")[()] == 1  # 1 held, then 0


def training_images():
    """Images of the levels 0 to 90."""
    levels = Distribution(edges=tuple(float(edge) for edge in range(5, 95, 10)), counts=(10,) * 10)
    return TrainingImages(grey_mean=levels, grey_deviation=Distribution(edges=(1.0,), counts=(100, 0)))


def validation_predictions():
    """Every other image taken for the second class, half of them in doubt."""
    return ValidationPredictions(class_counts=(50, 50), confidence=Distribution(edges=(0.75,), counts=(50, 50)))


def test_drift_is_shown_and_forgotten_with_its_bundle(model, recorded, lines, monkeypatch):
    monkeypatch.setattr(drift, "WINDOW", 20)
    monkeypatch.setattr(drift, "STRIDE", 10)
    plain = info()
    spec = dataclasses.replace(
        plain.spec, training_images=training_images(), validation_predictions=validation_predictions()
    )
    model.info = dataclasses.replace(plain, spec=spec)

    def shown(gauge="tlray_drift"):
        return [(tags["statistic"], value) for name, value, tags in recorded if name == gauge]

    async def send():
        async with client(model) as http:
            same = upload(*[png(10 * number) for number in range(10)])
            await http.post("/predict", files=same)
            assert shown() == []
            await http.post("/predict", files=same)
            first = dict(shown())
            assert first["grey_mean"] == pytest.approx(0, abs=1e-6)
            assert first["grey_deviation"] == pytest.approx(population_stability_index([100, 0], [20, 0]))
            # Of levels up to 90 in 255: 60 and darker are dark with a confidence of 0.75 and more.
            assert first["predicted_class"] == pytest.approx(population_stability_index([50, 50], [20, 0]))
            assert first["confidence"] == pytest.approx(population_stability_index([50, 50], [6, 14]))
            assert dict(shown("tlray_drift_chance")) == {
                "grey_mean": chance_level([10] * 10, 20),
                "grey_deviation": chance_level([100, 0], 20),
                "predicted_class": chance_level([50, 50], 20),
                "confidence": chance_level([50, 50], 20),
            }
            p_values = dict(shown("tlray_drift_p_value"))
            assert (p_values["grey_mean"], p_values["grey_deviation"], p_values["confidence"]) == (1, 1, 1)
            # All of 20 images are of one class, which half of 100 were: 70 of 120 together, four statistics, two sides.
            expected = 4 * 2 * math.comb(70, 20) / math.comb(120, 20)
            assert p_values["predicted_class"] == pytest.approx(expected)
            assert of(recorded, "tlray_drift_alarms", "version", "statistic") == {("1", "predicted_class"): 1}
            (line,) = [line["message"] for line in lines() if "drift" in line["message"]]
            assert line.startswith(
                "Version 1 of the model chest-ct: drift in the latest 20 images: predicted_class (p "
            )
            await http.post("/predict", files=upload(*[png(200)] * 10))
            assert dict(shown()[4:])["grey_mean"] > 0.25
            model.info = info("b" * 64, size_px=16)
            await http.post("/predict", files=same)
            for gauge in ("tlray_drift", "tlray_drift_chance"):
                forgotten = dict(shown(gauge)[8:])
                assert set(forgotten) == set(drift.STATISTICS)
                assert all(map(math.isnan, forgotten.values()))

    run(send())


def test_foreign_images_are_drift(model, recorded, monkeypatch):
    monkeypatch.setattr(drift, "WINDOW", 20)
    monkeypatch.setattr(drift, "STRIDE", 10)
    # To the model pixels of 77 have a score of 2, and all others one of 1.
    known = dataclasses.replace(
        validation_predictions(), confidences=(0.75,) * 100, ood_scores=(1.0,) * 100, num_independent=100
    )
    model.info = dataclasses.replace(
        model.info, spec=dataclasses.replace(model.info.spec, validation_predictions=known)
    )
    usual, foreign = upload(*[png(100)] * 10), upload(*[png(77)] * 10)
    for files in ([*usual, *usual], [*usual, *foreign]):
        call(model, "POST", "/predict", files=files)
    found = [value for name, value, tags in recorded if (name, tags.get("statistic")) == FOREIGN]
    assert found[0] == 1
    # Each call is a new endpoint with a window of its own: none of the upper ten of 120 images is of the 100.
    assert found[1] == pytest.approx(3 * 2 * math.prod((20 - each) / (120 - each) for each in range(10)))
    assert of(recorded, "tlray_drift_alarms", "statistic")[("ood_score",)] == 1


FOREIGN = ("tlray_drift_p_value", "ood_score")


def test_a_bundle_that_knows_no_predictions_has_no_drift_of_them(model, recorded, monkeypatch):
    """As earlier versions made them, with the labels of the training images."""
    monkeypatch.setattr(drift, "WINDOW", 2)
    monkeypatch.setattr(drift, "STRIDE", 1)
    spec = dataclasses.replace(model.info.spec, training_images=training_images())
    model.info = dataclasses.replace(model.info, spec=spec)
    call(model, "POST", "/predict", files=upload(png(0), png(1), png(2)))
    for gauge in ("tlray_drift", "tlray_drift_chance"):
        shown = {tags["statistic"] for name, _, tags in recorded if name == gauge}
        assert shown == {"grey_mean", "grey_deviation"}


def test_a_bundle_without_statistics_has_no_drift(model, recorded, monkeypatch):
    monkeypatch.setattr(drift, "WINDOW", 2)
    monkeypatch.setattr(drift, "STRIDE", 1)
    call(model, "POST", "/predict", files=upload(png(0), png(1), png(2)))
    assert "tlray_drift" not in {name for name, _, _ in recorded}


def prometheus_names() -> set[str]:
    """What the code's metrics are called in Prometheus, without a histogram's _sum: Ray knows it by bucket only."""
    names = set()
    for metric in (*vars(Telemetry("m")).values(), *vars(ModelTelemetry(1)).values()):
        if not isinstance(metric, metrics.Metric):
            continue
        name = f"ray_{metric.info['name']}"
        if isinstance(metric, metrics.Histogram):
            names |= {f"{name}_bucket", f"{name}_count"}
        else:
            names.add(f"{name}_total" if isinstance(metric, metrics.Counter) else name)
    return names


def test_the_dashboard_shows_every_metric_and_no_other():
    dashboard = json.loads((Path(serve_app.__file__).parent / "watch/grafana_dashboard.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    used = set(re.findall(r"ray_\w+", " ".join(expressions)))
    assert used <= prometheus_names()
    assert {re.sub(r"_(bucket|count)$", "", name) for name in prometheus_names()} == {
        re.sub(r"_(bucket|count)$", "", name) for name in used
    }


def test_the_dashboard_can_be_imported():
    dashboard = json.loads((Path(serve_app.__file__).parent / "watch/grafana_dashboard.json").read_text())
    variables = {each["name"]: each for each in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids) == 14
    source = {"type": "prometheus", "uid": "${datasource}"}
    for panel in dashboard["panels"]:
        assert panel["datasource"] == source
        for target in panel["targets"]:
            assert target["datasource"] == source
            expression = target["expr"]
            assert expression.count("(") == expression.count(")")
            # Every label that is asked for is one that the metric has.
            assert set(re.findall(r"\$(\w+)", expression)) <= {"application", "__rate_interval"}
