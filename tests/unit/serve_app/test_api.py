import asyncio
import base64
import gzip
import hashlib
import io
import re
import struct
import time
from dataclasses import replace

import httpx
import numpy as np
import pytest
from PIL import Image

from serve_app.model import service
from serve_app.model.classifier import Answer, Explained, ModelInfo, Pixels, to_batch
from tests.unit.serve_app.application import local_api
from tlray.bundle.spec import BundleSpec
from tlray.inference.lookalikes import Lookalike

SIZE_PX = 8
KEY = "0123456789abcdef"


def info(sha256="a" * 64, size_px=SIZE_PX):
    spec = BundleSpec(
        classes=("dark", "light"),
        image_size_px=size_px,
        preprocessing="unit",
        thresholds={"refer_below": 0.6, "max_ood_score": 1.5},
        set_thresholds=(0.5, 0.7),
        backbone="b",
        weights="w",
    )
    return ModelInfo(spec=spec, bundle_sha256=sha256, location="/b", engine="openvino bfloat16", max_batch_size=4)


class Mean:
    """A model whose probability of `light` is the mean of the pixels, and to which pixels of 77 are foreign."""

    def __init__(self):
        self.info = info()
        self.gate = asyncio.Event()
        self.gate.set()

    async def describe(self):
        return self.info

    async def predict(self, pixels: Pixels):
        await self.gate.wait()
        answer = ood_scores = None
        if pixels.size_px == self.info.spec.image_size_px:
            light = to_batch(pixels.images, pixels.size_px).mean(axis=(1, 2, 3)) / 255
            answer = np.stack([1 - light, light], axis=1).astype(np.float32)
            ood_scores = np.where(np.isclose(light, 77 / 255), 2.0, 1.0).astype(np.float32)
        return Answer(bundle_sha256=self.info.bundle_sha256, probabilities=answer, ood_scores=ood_scores, predict_s=0.0)

    async def explain(self, pixels: Pixels, bundle_sha256):
        if bundle_sha256 != self.info.bundle_sha256:
            return Answer(bundle_sha256=self.info.bundle_sha256, probabilities=None, predict_s=0.0)
        answer = await self.predict(pixels)
        classes = answer.probabilities.argmax(axis=1)  # pyright: ignore[reportOptionalMemberAccess]
        overlays = [f"overlay {index} of {len(pixels.images)}".encode() for index in classes]
        return replace(answer, explained=Explained(overlays=overlays))


@pytest.fixture
def model():
    return Mean()


def client(model, environment=None, address="127.0.0.1", **options):
    api = local_api(model, environment, **options)
    transport = httpx.ASGITransport(api, raise_app_exceptions=False, client=(address, 50000))
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")


def png(value, size_px=SIZE_PX):
    file = io.BytesIO()
    Image.new("L", (size_px, size_px), value).save(file, "PNG")
    return file.getvalue()


def upload(*files):
    return [("file", (f"{number}.png", file)) for number, file in enumerate(files)]


def b64(file):
    return {"b64": base64.b64encode(file).decode()}


def run(coroutine):
    return asyncio.run(coroutine)


def call(model, method, path, environment=None, options=None, **request):
    async def send():
        async with client(model, environment, **(options or {})) as http:
            return await http.request(method, path, **request)

    return run(send())


def test_files_are_classified(model):
    answer = call(model, "POST", "/predict", files=upload(png(255), png(51)))
    assert answer.status_code == 200
    assert answer.json()["bundle_sha256"] == "a" * 64
    light, dark = answer.json()["predictions"]
    assert light == {
        "file": "0.png",
        "label": "light",
        "confidence": 1.0,
        "refer": False,
        "refer_reason": None,
        "prediction_set": ["light"],
        "ood_score": 1.0,
        "probabilities": {"dark": 0.0, "light": 1.0},
        "error_code": None,
        "error": None,
    }
    assert (dark["label"], dark["confidence"]) == ("dark", pytest.approx(0.8))


def test_low_confidence_is_referred(model):
    (row,) = call(model, "POST", "/predict", files=upload(png(128))).json()["predictions"]
    assert (row["refer"], row["refer_reason"]) == (True, "low_confidence")
    assert row["confidence"] == pytest.approx(128 / 255)


def test_the_reason_of_a_referral_is_told_in_every_protocol(model):
    files = [png(255), png(77), png(90), b"nonsense"]
    rows = call(model, "POST", "/predict", files=upload(*files)).json()["predictions"]
    # Of 90 of 255 `light` has 0.353, and is in a set from 0.3 on.
    assert [row["refer_reason"] for row in rows] == [None, "out_of_distribution", "ambiguous", None]
    assert [row["prediction_set"] for row in rows] == [["light"], ["dark", "light"], ["dark", "light"], None]
    assert [row["ood_score"] for row in rows] == [1.0, 2.0, 1.0, None]
    tensor = {"name": "image", "datatype": "BYTES", "shape": [3], "data": [b64(file)["b64"] for file in files[:3]]}
    names = ["refer", "refer_reason", "ood_score", "prediction_set"]
    body = {"inputs": [tensor], "outputs": [{"name": name} for name in names]}
    outputs = call(model, "POST", "/v2/models/chest-ct/infer", json=body).json()["outputs"]
    assert [(each["name"], each["datatype"], each["data"]) for each in outputs] == [
        ("refer", "BOOL", [False, True, True]),
        ("refer_reason", "BYTES", ["", "out_of_distribution", "ambiguous"]),
        ("ood_score", "FP32", [1.0, 2.0, 1.0]),
        ("prediction_set", "BOOL", [False, True, True, True, True, True]),
    ]
    assert outputs[3]["shape"] == [3, 2]
    images = [b64(file) for file in files[:3]]
    body = {"signature_name": "judged", "inputs": {"image": images}}
    judged = call(model, "POST", "/v1/models/chest-ct:predict", json=body).json()["outputs"]
    assert {name: judged[name] for name in names} == {
        "refer": [False, True, True],
        "refer_reason": ["", "out_of_distribution", "ambiguous"],
        "ood_score": [1.0, 2.0, 1.0],
        "prediction_set": [[False, True], [True, True], [True, True]],
    }
    assert judged["probabilities"] == [list(row["probabilities"].values()) for row in rows[:3]]
    body = {"signature_name": "judged", "instances": images}
    answer = call(model, "POST", "/v1/models/chest-ct/versions/1:predict", json=body).json()
    assert list(answer) == ["predictions"]
    assert answer["predictions"] == [
        {name: values[place] for name, values in judged.items()} for place in range(len(images))
    ]


def test_a_model_that_cannot_tell_says_so(model):
    model.info = replace(model.info, spec=replace(model.info.spec, thresholds={}, set_thresholds=None))
    (row,) = call(model, "POST", "/predict", files=upload(png(128))).json()["predictions"]
    assert (row["refer"], row["refer_reason"], row["prediction_set"]) == (False, None, None)
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [b64(png(128))["b64"]]}
    body = {"inputs": [tensor], "outputs": [{"name": "prediction_set"}]}
    (output,) = call(model, "POST", "/v2/models/chest-ct/infer", json=body).json()["outputs"]
    assert (output["shape"], output["data"]) == ([1, 2], [False, False])  # a set that is known has a class
    predict = model.predict

    async def predict_without_scores(pixels: Pixels):
        return replace(await predict(pixels), ood_scores=None)

    model.predict = predict_without_scores
    body = {"signature_name": "judged", "instances": [b64(png(255))]}
    assert call(model, "POST", "/v1/models/chest-ct:predict", json=body).json() == {
        "predictions": [
            {
                "probabilities": [0.0, 1.0],
                "refer": False,
                "refer_reason": "",
                "ood_score": -1.0,
                "prediction_set": [False, False],
            }
        ]
    }


def test_a_bad_file_among_others_is_a_row_and_alone_an_error(model):
    answer = call(model, "POST", "/predict", files=upload(png(255), b"nonsense", png(0)))
    assert answer.status_code == 200
    assert [row["label"] for row in answer.json()["predictions"]] == ["light", None, "dark"]
    assert answer.json()["predictions"][1]["error_code"] == "unsupported_format"
    alone = call(model, "POST", "/predict", files=upload(b""))
    assert (alone.status_code, alone.json()["error_code"]) == (422, "empty")


def test_all_protocols_give_the_same(model):
    files = [png(value) for value in (0, 10, 200)]
    plain = call(model, "POST", "/predict", files=upload(*files)).json()["predictions"]
    expected = [list(row["probabilities"].values()) for row in plain]
    rows = call(model, "POST", "/v1/models/chest-ct:predict", json={"instances": [b64(file) for file in files]})
    assert rows.json() == {"predictions": expected}
    tensor = {"name": "image", "datatype": "BYTES", "shape": [3], "data": [b64(file)["b64"] for file in files]}
    infer = call(model, "POST", "/v2/models/chest-ct/infer", json={"id": "7", "inputs": [tensor]}).json()
    assert infer["outputs"][0]["data"] == [value for row in expected for value in row]
    assert infer["outputs"][1] == {
        "name": "label",
        "datatype": "BYTES",
        "shape": [3],
        "data": ["dark", "dark", "light"],
    }
    assert (infer["id"], infer["model_name"], infer["model_version"]) == ("7", "chest-ct", "1")


def test_pixels_are_taken_too(model):
    pixels = np.full((SIZE_PX, SIZE_PX, 3), 255)
    rows = call(model, "POST", "/v1/models/chest-ct/versions/1:predict", json={"instances": [pixels.tolist()]})
    assert rows.json() == {"predictions": [[0.0, 1.0]]}
    header = (
        b'{"inputs":[{"name":"image","datatype":"UINT8","shape":[1,8,8,3],"parameters":{"binary_data_size":192}}],'
        b'"outputs":[{"name":"probabilities","parameters":{"binary_data":true}}]}'
    )
    answer = call(
        model,
        "POST",
        "/v2/models/chest-ct/infer",
        content=header + pixels.astype(np.uint8).tobytes(),
        headers={"Inference-Header-Content-Length": str(len(header)), "Content-Type": "application/octet-stream"},
    )
    length = int(answer.headers["Inference-Header-Content-Length"])
    assert struct.unpack("<2f", answer.content[length:]) == (0.0, 1.0)


def test_bad_images_are_named_in_both_protocols(model):
    body = {"instances": [b64(png(1)), b64(b"nonsense")]}
    answer = call(model, "POST", "/v1/models/chest-ct:predict", json=body)
    assert (answer.status_code, answer.json()["error_code"]) == (422, "unsupported_format")
    assert answer.json()["error"].startswith("instances[1]: ")


def test_the_model_is_described(model):
    assert call(model, "GET", "/v2/health/live").json() == {"live": True}
    ready = call(model, "GET", "/v2/health/ready").json()
    assert ready == {"ready": True, "model": "chest-ct", "bundle_sha256": "a" * 64}
    assert call(model, "GET", "/v2").json()["extensions"] == ["binary_tensor_data"]
    assert call(model, "GET", "/v2/models").json() == {"models": ["chest-ct"]}
    about = call(model, "GET", "/v2/models/chest-ct").json()
    assert about["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, SIZE_PX, SIZE_PX, 3]}]
    assert about["parameters"] == {"engine": "openvino bfloat16"}
    status = call(model, "GET", "/v1/models/chest-ct").json()["model_version_status"]
    assert status == [{"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}]


def test_the_model_that_answers_is_told_to_those_who_may_ask(model):
    assert call(model, "GET", "/model").json() == {
        "model": "chest-ct",
        "version": 1,
        "bundle_sha256": "a" * 64,
        "classes": ["dark", "light"],
        "refer_below": 0.6,
        "max_ood_score": 1.5,
        "engine": "openvino bfloat16",
    }
    assert call(model, "GET", "/model", {"TLRAY_API_KEYS": KEY}).status_code == 401


def test_the_signature_is_described_for_each_version(model):
    for path in ("/v1/models/chest-ct/metadata", "/v1/models/chest-ct/versions/1/metadata"):
        about = call(model, "GET", path).json()
        assert about["model_spec"] == {"name": "chest-ct", "signature_name": "", "version": "1"}
        signature = about["metadata"]["signature_def"]["signature_def"]["serving_default"]
        judged = about["metadata"]["signature_def"]["signature_def"]["judged"]
        assert list(judged["outputs"]) == ["probabilities", "refer", "refer_reason", "ood_score", "prediction_set"]
        sizes = [each["size"] for each in signature["inputs"]["image"]["tensor_shape"]["dim"]]
        assert sizes == ["-1", str(SIZE_PX), str(SIZE_PX), "3"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models/other"),
        ("GET", "/v1/models/other/metadata"),
        ("GET", "/v1/models/chest-ct/versions/2/metadata"),
        ("POST", "/v1/models/other:predict"),
        ("GET", "/v1/models/chest-ct/versions/2"),
        ("GET", "/v2/models/other/ready"),
        ("GET", "/nothing"),
    ],
)
def test_what_is_not_there_is_404(model, method, path):
    answer = call(model, method, path)
    assert answer.status_code == 404
    assert answer.json()["error"]


def test_keys_are_asked_for_except_by_health(model):
    environment = {"TLRAY_API_KEYS": KEY}
    assert call(model, "GET", "/v2/health/live", environment).status_code == 200
    missing = call(model, "POST", "/predict", environment, files=upload(png(0)))
    assert (missing.status_code, missing.headers["WWW-Authenticate"]) == (401, "Bearer")
    wrong = {"X-API-Key": KEY[::-1]}
    assert call(model, "POST", "/predict", environment, files=upload(png(0)), headers=wrong).status_code == 403
    for right in ({"X-API-Key": KEY}, {"Authorization": f"Bearer {KEY}"}):
        assert call(model, "POST", "/predict", environment, files=upload(png(0)), headers=right).status_code == 200


def test_large_bodies_are_refused_whether_announced_or_not(model):
    options = {"max_body_bytes": 4096}
    announced = call(model, "POST", "/v1/models/chest-ct:predict", options=options, content=b"x" * 5000)
    assert announced.status_code == 413

    async def chunks():
        for _ in range(5):
            yield b"x" * 1000

    streamed = call(model, "POST", "/v1/models/chest-ct:predict", options=options, content=chunks())
    assert streamed.status_code == 413
    assert "4,096 bytes" in streamed.json()["error"]
    form = call(model, "POST", "/predict", options=options, files=upload(b"x" * 5000))
    assert form.status_code == 413


def test_other_media_types_are_refused(model):
    assert call(model, "POST", "/predict", json={}).status_code == 415
    assert call(model, "POST", "/v1/models/chest-ct:predict", files=upload(png(0))).status_code == 415
    text = {"Content-Type": "text/csv"}
    assert call(model, "POST", "/v2/models/chest-ct/infer", content=b"{}", headers=text).status_code == 415


def test_forms_without_a_file_are_explained(model):
    answer = call(model, "POST", "/predict", files=[("scan", ("a.png", png(0)))])
    assert answer.status_code == 400
    assert 'a field "file"' in answer.json()["error"]
    many = call(model, "POST", "/predict", options={"max_images_per_request": 2}, files=upload(*[png(0)] * 3))
    assert many.status_code == 413


def test_overload_is_refused(model):
    async def overload():
        async with client(model, max_queued_images=2) as http:
            model.gate.clear()
            first = asyncio.create_task(http.post("/predict", files=upload(png(0), png(0))))
            while not model.gate._waiters:
                await asyncio.sleep(0)
            refused = await http.post("/predict", files=upload(png(0)))
            for path in ("/predict", "/v1/models/chest-ct:predict", "/v2/models/chest-ct/infer"):
                kind = "multipart/form-data" if path == "/predict" else "application/json"
                unread = await http.post(path, content=b"not what it should be", headers={"Content-Type": kind})
                assert unread.status_code == 429
            model.gate.set()
            return refused, await first, await http.post("/predict", files=upload(png(0), png(0)))

    refused, first, fine = run(overload())
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
    assert (first.status_code, fine.status_code) == (200, 200)


def test_overlays_take_half_of_the_queue(model):
    async def ask():
        async with client(model, max_queued_images=4, max_images_per_request=2) as http:
            model.gate.clear()
            first = asyncio.create_task(http.post("/predict?explain=true", files=upload(png(0), png(0))))
            while not model.gate._waiters:
                await asyncio.sleep(0)
            refused = await http.post("/predict?explain=true", files=upload(png(0)))
            form = {"Content-Type": "multipart/form-data"}
            unread = await http.post("/predict?explain=true", content=b"not what it should be", headers=form)
            assert unread.status_code == 429
            second = asyncio.create_task(http.post("/predict", files=upload(png(0), png(0))))
            while len(model.gate._waiters) < 2:
                await asyncio.sleep(0)
            model.gate.set()
            return refused, await first, await second, await http.post("/predict?explain=true", files=upload(png(0)))

    refused, *fine = run(ask())
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
    assert "explain=true" in refused.json()["error"]
    assert [answer.status_code for answer in fine] == [200] * 3


def test_the_largest_request_is_explained_however_short_the_queue(model):
    files = upload(*[png(0)] * 3)
    options = {"max_queued_images": 4, "max_images_per_request": 3}
    assert call(model, "POST", "/predict?explain=true", options=options, files=files).status_code == 200


def test_slowness_ends_and_leaves_room(model):
    async def ask():
        model.gate.clear()
        async with client(model, max_queued_images=2, timeout_s=0.1) as http:
            return [await http.post("/predict", files=upload(png(0), png(0))) for _ in range(2)]

    assert [answer.status_code for answer in run(ask())] == [504] * 2


def test_images_are_decoded_again_for_another_bundle(model):
    async def swap():
        async with client(model) as http:
            before = await http.post("/predict", files=upload(png(255)))
            model.info = info("b" * 64, size_px=16)
            return before.json(), (await http.post("/predict", files=upload(png(255)))).json()

    before, after = run(swap())
    assert (before["bundle_sha256"], after["bundle_sha256"]) == ("a" * 64, "b" * 64)
    assert after["predictions"] == before["predictions"]


def test_pixels_of_the_size_of_another_bundle_are_taken_after_it_has_come(model):
    def tensor(size_px):
        pixels = np.full((1, size_px, size_px, 3), 255)
        return {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [*pixels.shape], "data": pixels.tolist()}]}

    async def swap():
        async with client(model) as http:
            before = await http.post("/v2/models/chest-ct/infer", json=tensor(SIZE_PX))
            model.info = info("b" * 64, size_px=16)
            after = await http.post("/v2/models/chest-ct/infer", json=tensor(16))
            return before, after, await http.post("/v2/models/chest-ct/infer", json=tensor(17))

    before, after, wrong = run(swap())
    assert [answer.status_code for answer in (before, after, wrong)] == [200, 200, 400]
    assert after.json()["outputs"][0]["data"] == [0.0, 1.0]
    assert "[n, 16, 16, 3]" in wrong.json()["error"]


def test_a_request_is_not_refused_by_a_bundle_that_has_gone(model):
    """A signed 16-bit image, such as one of Hounsfield units, needs a bundle with an intensity range."""
    file = io.BytesIO()
    Image.fromarray(np.full((SIZE_PX, SIZE_PX), -1000, np.int32)).save(file, "TIFF")
    body = {"instances": [b64(file.getvalue())]}

    async def swap():
        async with client(model) as http:
            before = await http.post("/v1/models/chest-ct:predict", json=body)
            model.info = replace(info("b" * 64), spec=replace(info().spec, intensity_range=(-1000.0, 400.0)))
            return before, await http.post("/v1/models/chest-ct:predict", json=body)

    before, after = run(swap())
    assert (before.status_code, after.status_code) == (422, 200)
    assert after.json() == {"predictions": [[1.0, 0.0]]}


def test_an_overlay_is_of_the_bundle_that_answered(model):
    explain = model.explain

    async def swap_and_explain(*arguments):
        model.info = info("b" * 64)  # between what is known of the model and what it is asked, the first time
        return await explain(*arguments)

    model.explain = swap_and_explain
    answer = call(model, "POST", "/predict?explain=true", files=upload(png(255))).json()
    assert answer["bundle_sha256"] == "b" * 64
    assert base64.b64decode(answer["predictions"][0]["explanation"]) == b"overlay 1 of 1"


def test_failures_show_no_traceback(model):
    async def fail(_):
        raise RuntimeError("secret")

    model.predict = fail
    answer = call(model, "POST", "/predict", files=upload(png(0)))
    assert (answer.status_code, answer.json()["error_code"]) == (500, "internal")
    assert "secret" not in answer.text


def test_predictions_are_explained_where_asked_for(model):
    answer = call(model, "POST", "/predict?explain=true", files=upload(png(255), b"nonsense", png(0)))
    rows = answer.json()["predictions"]
    assert base64.b64decode(rows[0]["explanation"]) == b"overlay 1 of 2"
    assert "explanation" not in rows[1]
    assert base64.b64decode(rows[2]["explanation"]) == b"overlay 0 of 2"


def test_lookalikes_are_shown_where_asked_for(model):
    predict = model.predict

    async def find(pixels: Pixels):
        found = [
            [Lookalike(class_index=1, similarity=0.75, jpeg=b"jpeg %d" % place)] for place in range(len(pixels.images))
        ]
        return replace(await predict(pixels), lookalikes=found if pixels.with_lookalikes else None)

    model.predict = find
    files = upload(png(255), b"nonsense", png(0))
    for query in ("lookalikes=true", "lookalikes=true&explain=true"):
        first, broken, last = call(model, "POST", f"/predict?{query}", files=files).json()["predictions"]
        expected = {"label": "light", "similarity": 0.75, "jpeg": base64.b64encode(b"jpeg 0").decode()}
        assert (first["label"], first["lookalikes"]) == ("light", [expected])
        assert "lookalikes" not in broken
        assert base64.b64decode(last["lookalikes"][0]["jpeg"]) == b"jpeg 1"
        assert ("explanation" in first) == ("explain" in query)
    rows = call(model, "POST", "/predict?lookalikes=false", files=files).json()["predictions"]
    assert ["lookalikes" in row for row in rows] == [False] * 3


def test_a_bundle_without_training_images_has_no_lookalikes(model):
    predict = model.predict

    async def find(pixels: Pixels):
        return replace(await predict(pixels), lookalikes=[[] for _ in pixels.images])

    model.predict = find
    (row,) = call(model, "POST", "/predict?lookalikes=true", files=upload(png(255))).json()["predictions"]
    assert (row["label"], row["lookalikes"]) == ("light", [])


def test_a_model_that_cannot_be_explained_predicts_all_the_same(model):
    async def explain(pixels, _):
        return replace(await model.predict(pixels), explained=Explained(problem="It has no feature map."))

    model.explain = explain
    answer = call(model, "POST", "/predict?explain=true", files=upload(png(255), b"nonsense"))
    row, broken = answer.json()["predictions"]
    assert (row["label"], row["explanation_error"]) == ("light", "It has no feature map.")
    assert "explanation" not in row
    assert "explanation_error" not in broken


def test_large_images_are_decoded_one_after_another(model, monkeypatch):
    at_once, most = [], []
    decode = service.decode

    def watched(*arguments):
        at_once.append(1)
        most.append(len(at_once))
        time.sleep(0.02)
        try:
            return decode(*arguments)
        finally:
            at_once.pop()

    monkeypatch.setattr(service, "MAX_PIXELS_AT_ONCE", SIZE_PX**2 - 1)
    monkeypatch.setattr(
        service, "decode", lambda file, spec, *limit: (decode if limit else watched)(file, spec, *limit)
    )
    answer = call(model, "POST", "/predict", files=upload(*[png(255)] * 4, b"nonsense"))
    assert [row["label"] for row in answer.json()["predictions"]] == ["light"] * 4 + [None]
    assert most == [1] * 4


@pytest.mark.parametrize("charset", ["punycode", "idna", "undefined", "unicode_escape", "utf-7", "rot13"])
def test_text_in_a_form_is_utf_8(model, charset):
    body = b'--B\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + b"A" * 1_000_000 + b"\r\n--B--\r\n"
    kind = {"Content-Type": f"multipart/form-data; boundary=B; charset={charset}"}
    answer = call(model, "POST", "/predict", content=body, headers=kind)
    assert (answer.status_code, answer.json()["error_code"]) == (415, "unsupported_media_type")
    utf_8 = {"Content-Type": "multipart/form-data; boundary=B; charset=UTF-8"}
    assert "no file in a field" in call(model, "POST", "/predict", content=body, headers=utf_8).json()["error"]


def test_requests_that_need_no_body_have_none(model):
    for method, path in (("GET", "/v2/health/ready"), ("GET", "/v2/models"), ("DELETE", "/v1/batches/x")):
        answer = call(model, method, path, content=b"x")
        assert (answer.status_code, answer.json()["error"]) == (400, f"Send no body with {method}.")

    async def endless():
        yield b"x"
        raise AssertionError("It was read.")

    assert call(model, "GET", "/v2/health/ready", content=endless()).status_code == 400


def test_the_page_runs_its_own_script_only(model):
    answer = call(model, "GET", "/", {"TLRAY_API_KEYS": KEY})
    assert answer.status_code == 200
    (script,) = re.findall("<script>(.*?)</script>", answer.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = answer.headers["Content-Security-Policy"]
    assert f"script-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")
    assert "no medical device" in answer.text


def test_the_page_says_that_nobody_has_checked_its_overlays(model):
    page = " ".join(call(model, "GET", "/").text.split())
    (footer,) = re.findall("<footer>(.*?)</footer>", page)
    assert re.sub("<.*?>", "", footer).strip() == (
        "An overlay is a Grad-CAM heatmap: an estimate of how much each place speaks for the predicted class; the "
        "brighter, the more. It was not checked here whether the overlays of this model point at what decides: tlray "
        "evaluate --check-overlays N measures that on N images. Even if they do, they show what the model looks at, "
        "not where a disease is."
    )
    assert "Show a Grad-CAM overlay: an estimate of what speaks for the predicted class" in page
    assert "the evidence for" not in page


def test_probabilities_that_are_none_are_an_error(model):
    async def predict(pixels: Pixels):
        nan = np.full((len(pixels.images), 2), np.nan, np.float32)
        return Answer(bundle_sha256="a" * 64, probabilities=nan, predict_s=0.0)

    model.predict = predict
    answer = call(model, "POST", "/predict", files=upload(png(0)))
    assert (answer.status_code, answer.json()["error_code"]) == (500, "predict_failed")


def test_without_keys_other_machines_are_refused_unless_told_otherwise(model):
    async def ask(address, environment=None, **options):
        async with client(model, environment, address, **options) as http:
            return (await http.get("/v2/models", headers={"X-API-Key": KEY})).status_code

    assert run(ask("127.0.0.1")) == 200
    assert run(ask("::1")) == 200
    assert run(ask("192.0.2.7")) == 403
    assert run(ask("192.0.2.7", {"TLRAY_API_KEYS": KEY})) == 200
    assert run(ask("192.0.2.7", open_without_keys=True)) == 200


def test_behind_haproxy_nobody_is_known_to_be_here(model, monkeypatch):
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    answer = call(model, "GET", "/v2/models")
    assert (answer.status_code, "HAProxy" in answer.json()["error"]) == (403, True)
    assert call(model, "GET", "/v2/models", options={"loopback_only": True}).status_code == 200
    assert call(model, "GET", "/v2/models", options={"open_without_keys": True}).status_code == 200
    headers = {"X-API-Key": KEY}
    assert call(model, "GET", "/v2/models", {"TLRAY_API_KEYS": KEY}, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("127.0.0.1:8000", 200),
        ("127.0.0.2", 200),
        ("[::1]:8000", 200),
        ("evil.example:8000", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost@evil.example", 421),
        ("192.0.2.7", 421),
        ("[::1", 421),
        ("", 421),
    ],
)
def test_without_keys_the_server_is_asked_for_by_this_machines_name(model, host, status):
    headers = {"Host": host}
    answer = call(model, "GET", "/v2/models", headers=headers)
    assert answer.status_code == status
    if status == 421:
        assert "TLRAY_API_KEYS" in answer.json()["error"]
    key = headers | {"X-API-Key": KEY}
    assert call(model, "GET", "/v2/models", {"TLRAY_API_KEYS": KEY}, headers=key).status_code == 200
    assert call(model, "GET", "/v2/models", options={"open_without_keys": True}, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://testhost", 403),
        ("http://127.0.0.1:9", 403),
        ("null", 403),
        ("http://[", 403),
        ("http://127.0.0.1", 200),
    ],
)
def test_without_keys_pages_of_other_sites_may_not_ask(model, origin, status):
    headers = {"Host": "127.0.0.1", "Origin": origin}
    assert call(model, "GET", "/v2/models", headers=headers).status_code == status
    key = headers | {"X-API-Key": KEY}
    assert call(model, "GET", "/v2/models", {"TLRAY_API_KEYS": KEY}, headers=key).status_code == 200


def test_more_images_than_there_will_ever_be_room_for_are_too_many(model):
    files = upload(png(0), png(0), png(0))
    assert call(model, "POST", "/predict", options={"max_queued_images": 2}, files=files).status_code == 413


def test_a_model_that_does_not_answer_is_not_ready(model):
    async def never():
        await asyncio.Event().wait()

    model.describe = never
    answer = call(model, "GET", "/v2/health/ready", options={"timeout_s": 0.05})
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")


def test_the_server_is_described_with_and_without_a_slash(model):
    assert call(model, "GET", "/v2/").json() == call(model, "GET", "/v2").json()


def test_what_is_no_number_is_refused_as_everything_else_is(model):
    answer = call(model, "GET", "/v2/models/chest-ct/versions/one/ready")
    assert (answer.status_code, answer.json()["error_code"]) == (422, "invalid_request")
    assert answer.json()["error"].startswith("path.version: ")


@pytest.mark.parametrize(
    ("method", "path", "parameter", "known"),
    [
        ("POST", "/predict?lookalike=true", "lookalike", "Known parameters: explain, lookalikes."),
        ("POST", "/predict?explain=perhaps&Explain=true", "Explain", "Known parameters: explain, lookalikes."),
        ("POST", "/predict?version=2", "version", "Known parameters: explain, lookalikes."),
        ("POST", "/v1/models/chest-ct:predict?versions=2", "versions", "Known parameters: version."),
        ("GET", "/v1/models/chest-ct/versions/1?version=2", "version", "This address takes no parameters."),
        ("HEAD", "/v2/models/chest-ct/ready?v=2", "v", "Known parameters: version."),
        ("GET", "/v1/batches?offset=2", "offset", "Known parameters: limit."),
        ("GET", "/model?version=2", "version", "This address takes no parameters."),
    ],
)
def test_an_unknown_parameter_is_refused_and_the_known_ones_are_named(model, method, path, parameter, known):
    answer = call(model, method, path, **({"files": upload(png(255))} if method == "POST" else {}))
    assert answer.status_code == 422
    if method != "HEAD":
        error = f"The address has the unknown parameter '{parameter}'. {known}"
        assert answer.json() == {"error": error, "error_code": "invalid_request"}


def test_an_unknown_parameter_is_told_to_those_only_who_have_a_key(model):
    assert call(model, "GET", "/model?x=1", {"TLRAY_API_KEYS": KEY}).status_code == 401


@pytest.mark.parametrize("path", ["/", "/docs", "/v2", "/v2/health/live", "/v2/health/ready"])
def test_the_open_addresses_ignore_parameters_which_monitors_and_links_add(model, path):
    assert call(model, "GET", f"{path}?_=1").status_code == 200


def test_compressed_bodies_are_refused(model):
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = call(model, "POST", "/v1/models/chest-ct:predict", content=gzip.compress(b"{}"), headers=headers)
    assert answer.status_code == 415
    assert "without compression" in answer.json()["error"]


def test_the_documentation_runs_what_lies_here_only(model):
    answer = call(model, "GET", "/docs", {"TLRAY_API_KEYS": KEY})
    assert answer.status_code == 200
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self' 'sha256-")
    assert "://" not in policy + "".join(re.findall('(?:src|href)="([^"]*)"', answer.text))
    for path in re.findall('(?:src|href)="([^"]*)"', answer.text):
        assert call(model, "GET", f"/{path}").status_code == 200
    assert call(model, "GET", "/openapi.json").json()["info"]["title"] == "tlray"
    assert call(model, "GET", "/redoc").status_code == 404
