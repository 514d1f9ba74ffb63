"""What a running endpoint tells its operator, as Prometheus and the log files show it, with a shadow beside it."""

import dataclasses
import io
import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import ray
from PIL import Image
from ray import serve

from serve_app.app import build
from serve_app.options import Options
from serve_app.watch.drift import STATISTICS, WINDOW
from tests.e2e.test_serving import export
from tests.unit.serve_app.watch.test_watch import prometheus_names, training_images, validation_predictions
from tlray.bundle import store
from tlray.cluster import ray_internals
from tlray.cluster.ports import free_ports

NUM_IMAGES = 64
NUM_REQUESTS = -(-WINDOW // NUM_IMAGES)
APPLICATION = "watched"
VERSIONS = ("1", "shadow")


@pytest.fixture(scope="module")
def address(local_ray, tmp_path_factory):  # noqa: ARG001
    """An endpoint with a shadow, after `NUM_REQUESTS` of `NUM_IMAGES`, one of them unreadable, and two that failed."""
    directory = tmp_path_factory.mktemp("bundles")
    main, shadow = (export(directory, name, seed) for seed, name in enumerate(["main", "shadow"]))
    spec, _ = store.read_spec(main)
    predictions = dataclasses.replace(validation_predictions(), class_counts=(50, 50, 50))
    known = {"training_images": training_images(), "validation_predictions": predictions}
    store.seal(main, dataclasses.replace(spec, **known, thresholds={"refer_below": 0.99}))
    (port,) = free_ports(1)
    serve.start(http_options={"port": port})
    # Room for all that is asked here: on a busy machine the shadow may come last by far.
    options = Options(bundle=main, shadow_bundle=shadow, max_queued_images=2 * WINDOW)
    serve.run(build(options), name=APPLICATION)
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def asked(address) -> str:
    """The same after it was asked."""
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (NUM_IMAGES - 1, 32, 32), np.uint8)  # grey
    files = [("file", ("Erika Mustermann.png", png(pixels))) for pixels in noise]
    for _ in range(NUM_REQUESTS):
        broken = ("file", ("broken.png", b""))
        answer = httpx.post(f"{address}/predict", files=[*files, broken], timeout=60).raise_for_status()
        assert [row["error_code"] for row in answer.json()["predictions"]] == [None] * len(files) + ["empty"]
    httpx.post(f"{address}/predict", files=files, timeout=60).raise_for_status()
    assert httpx.get(f"{address}/v1/models/Mustermann", timeout=60).status_code == 404
    return address


def scrape() -> dict[str, dict[frozenset[tuple[str, str]], float]]:
    """What Ray gives to Prometheus of the endpoint: name, then labels, to value."""
    (node,) = ray.nodes()
    text = httpx.get(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics", timeout=30).raise_for_status().text
    found: dict[str, dict[frozenset[tuple[str, str]], float]] = {}
    for name, labels, value in re.findall(r"^(ray_tlray_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        pairs = frozenset(re.findall(r'(\w+)="([^"]*)"', labels))
        if ("application", APPLICATION) in pairs:
            found.setdefault(name, {})[pairs] = float(value)
    return found


def total(samples: dict[frozenset[tuple[str, str]], float], **labels: str) -> float:
    return sum(value for pairs, value in samples.items() if set(labels.items()) <= pairs)


def are_all_told(samples: dict[str, Any], *, num_predicted: int) -> bool:
    """Tells whether every process has reported its last: the ingress, the model and the shadow."""
    if not prometheus_names() <= samples.keys():
        return False
    counted = [total(samples[name]) for name in ("ray_tlray_predictions_total", "ray_tlray_shadow_images_total")]
    waiting = [total(samples[name]) for name in ("ray_tlray_held_images", "ray_tlray_waiting_images")]
    # 63 images are two batches at least.
    batches = [total(samples["ray_tlray_batch_images_count"], version=name) for name in VERSIONS]
    return counted == [num_predicted] * 2 and waiting == [0, 0] and min(batches) >= 2 * (NUM_REQUESTS + 1)


def wait_for_samples(*, num_predicted: int) -> dict[str, Any]:
    """Returns what Prometheus is given when all is told; each process reports every ten seconds."""
    deadline_s = time.monotonic() + 90
    pause = threading.Event()
    while True:
        samples = scrape()
        if are_all_told(samples, num_predicted=num_predicted):
            return samples
        assert time.monotonic() < deadline_s, samples
        pause.wait(0.5)


def test_prometheus_is_told_of_everything(asked):  # noqa: ARG001
    num_predicted = (NUM_REQUESTS + 1) * (NUM_IMAGES - 1)
    samples = wait_for_samples(num_predicted=num_predicted)
    requests = samples["ray_tlray_request_duration_seconds_count"]
    assert total(requests, route="/predict", method="POST", status="200") == NUM_REQUESTS + 1
    assert total(requests, route="/v1/models/{name}", method="GET", status="404") == 1
    errors = samples["ray_tlray_request_errors_total"]
    assert total(errors) == total(errors, route="/v1/models/{name}", code="not_found") == 1
    assert total(samples["ray_tlray_image_errors_total"], code="empty", version="1") == NUM_REQUESTS
    assert 0 < total(samples["ray_tlray_referred_predictions_total"]) <= num_predicted
    outcomes = samples["ray_tlray_shadow_images_total"]
    assert total(outcomes, outcome="agree") + total(outcomes, outcome="differ") == num_predicted
    assert 0 < total(samples["ray_tlray_shadow_difference_total"]) < num_predicted
    drift = {dict(pairs)["statistic"]: value for pairs, value in samples["ray_tlray_drift"].items()}
    assert set(drift) == set(STATISTICS) - {"ood_score"}  # the bundle was made up without
    chance = {dict(pairs)["statistic"]: value for pairs, value in samples["ray_tlray_drift_chance"].items()}
    assert set(chance) == set(drift)
    # Of 150 validation images in three classes and 500 that were asked; 5.99: chi-square of two degrees of freedom.
    assert chance["predicted_class"] == pytest.approx(5.99 * (1 / 150 + 1 / WINDOW), rel=1e-3)
    assert drift["grey_deviation"] > 0.25  # of noise, beside the even images that the bundle was made up with
    p_values = {dict(pairs)["statistic"]: value for pairs, value in samples["ray_tlray_drift_p_value"].items()}
    assert p_values["grey_deviation"] < 1e-6
    assert total(samples["ray_tlray_drift_alarms_total"], statistic="grey_deviation", version="1") >= 1


def test_the_request_log_has_one_line_a_request(asked):  # noqa: ARG001
    logs = Path(ray_internals.logs_directory()) / "serve"
    (file,) = [path for path in logs.glob("replica_*.log") if f"{APPLICATION}_Ingress" in path.name]
    text = file.read_text()
    assert "Mustermann" not in text
    lines = [json.loads(line) for line in text.splitlines()]
    requests = [line for line in lines if "POST" in line["message"]]
    assert [line["path"] for line in requests] == ["/predict"] * (NUM_REQUESTS + 1)
    assert [line["num_images"] for line in requests] == [NUM_IMAGES] * NUM_REQUESTS + [NUM_IMAGES - 1]
    assert len({line["request_id"] for line in requests}) == NUM_REQUESTS + 1
    assert all(line["num_bytes"] > (NUM_IMAGES - 1) * 32 * 32 for line in requests)  # noise cannot be compressed
    assert {len(line["bundle_sha256"]) for line in requests} == {64}
