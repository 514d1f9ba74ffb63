import base64
import json
from typing import Any

import numpy as np
import pytest

from serve_app.errors import RequestError
from serve_app.protocols import tensorflow_serving
from serve_app.protocols.predicted import Predicted

PNG, JPEG = b"\x89PNG\r\n\x1a\n ...", b"\xff\xd8\xff\xe0 ..."
PIXELS = [[[0, 1, 2], [3, 4, 5]]]  # 1 high, 2 wide


def b64(data: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(data).decode()}


def parse(request: object, max_images: int = 4) -> tensorflow_serving.PredictRequest:
    return tensorflow_serving.parse_predict(json.dumps(request).encode(), max_images=max_images)


def plain(images: list[bytes | np.ndarray]) -> list[object]:
    return [each.tolist() if isinstance(each, np.ndarray) else each for each in images]


@pytest.mark.parametrize(
    ("request_", "images", "columnar"),
    [
        ({"instances": [b64(PNG)]}, [PNG], False),
        ({"signature_name": "serving_default", "instances": [b64(PNG), b64(JPEG)]}, [PNG, JPEG], False),
        ({"signature_name": "", "instances": [{"image": b64(PNG)}, {"image": PIXELS}]}, [PNG, PIXELS], False),
        ({"instances": [PIXELS, b64(b""), [[[9, 9, 9]]]]}, [PIXELS, b"", [[[9, 9, 9]]]], False),
        ({"inputs": [b64(PNG), b64(JPEG)]}, [PNG, JPEG], True),
        ({"inputs": {"image": [b64(PNG), PIXELS]}, "other": 1}, [PNG, PIXELS], True),
    ],
)
def test_images_come_in_rows_and_columns_as_files_and_pixels(request_, images, columnar):
    request = parse(request_)
    assert plain(request.images) == images
    assert request.columnar is columnar


@pytest.mark.parametrize(
    ("named", "signature"),
    [
        ({}, "serving_default"),
        ({"signature_name": ""}, "serving_default"),
        ({"signature_name": "serving_default"}, "serving_default"),
        ({"signature_name": "judged"}, "judged"),
    ],
)
@pytest.mark.parametrize("key", ["instances", "inputs"])
def test_the_request_names_a_signature(named, signature, key):
    request = parse(named | {key: [b64(PNG)]})
    assert (request.signature, request.images, request.columnar) == (signature, [PNG], key == "inputs")


def test_pixels_are_arrays_of_bytes():
    (pixels,) = parse({"instances": [PIXELS]}).images
    assert isinstance(pixels, np.ndarray)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (1, 2, 3))


def test_the_example_of_the_documentation():
    body = b"""{
      "signature_name": "serving_default",
      "instances": [
        { "image": { "b64": "aW1hZ2UgYnl0ZXM=" } },
        { "image": { "b64": "YXdlc29tZSBpbWFnZSBieXRlcw==" } }
      ]
    }"""
    request = tensorflow_serving.parse_predict(body, max_images=2)
    assert request.images == [b"image bytes", b"awesome image bytes"]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, 'The request must have either "instances" (a list of images) or "inputs".'),
        ({"instances": [PIXELS], "inputs": [PIXELS]}, "The request must have either"),
        ({"instances": []}, "The request has no image."),
        ({"inputs": {"image": []}}, "The request has no image."),
        ({"instances": b64(PNG)}, '"instances" must be a list of images. Received: {'),
        ({"instances": {"image": [PIXELS]}}, '"instances" must be a list of images. Received: {'),
        ({"instances": None}, '"instances" must be a list of images. Received: None'),
        ({"inputs": b64(PNG)}, '"inputs" must be a list of images. Received: {'),
        ({"inputs": {"image": b64(PNG)}}, '"inputs.image" must be a list of images. Received: {'),
        ({"inputs": {"picture": [PIXELS]}}, '"inputs" must be a list of images. Received: {'),
        (
            {"signature_name": "classify", "instances": [PIXELS]},
            'signature_name must be "serving_default" or "judged", or be left out. Received: \'classify\'',
        ),
        ({"signature_name": None, "instances": [PIXELS]}, "signature_name must be"),
        ({"signature_name": ["x"], "instances": [PIXELS]}, "signature_name must be"),
        (
            {"instances": [PIXELS, "iVBO"]},
            'instances[1] must be {"b64": FILE} or pixels [height][width][3]. Received: ',
        ),
        ({"instances": [{"picture": PIXELS}]}, 'instances[0] must be {"b64": FILE} or pixels'),
        ({"instances": [{"image": PIXELS, "x": 1}]}, 'instances[0] must be {"b64": FILE} or pixels'),
        ({"instances": [{"image": {"image": PIXELS}}]}, 'instances[0].image must be {"b64": FILE} or pixels'),
        ({"instances": [{"image": {"b64": "?"}}]}, "instances[0].image.b64 is not base64"),
        ({"inputs": {"image": [b64(PNG), {"b64": 7}]}}, "inputs.image[1].b64 must be a base64 string. Received: 7"),
        ({"instances": [[[0, 1, 2]]]}, "instances[0] must be lists nested 3 deep"),
        ({"instances": [[[[0, 1]]]]}, "instances[0] must be pixels [height][width][3]. Received: [1, 1, 2]"),
        ({"instances": [[[[0, 1, 2, 3]]]]}, "instances[0] must be pixels [height][width][3]. Received: [1, 1, 4]"),
        ({"instances": [[[[0, 1, 2]], [[0, 1, 2], [3, 4, 5]]]]}, "instances[0] is ragged"),
        ({"instances": [[[[0, 1, 256]]]]}, "instances[0] must hold 0 to 255. Received: 0 to 256"),
        ({"instances": [[[[0, 1, 0.5]]]]}, "instances[0] must hold integers only, nested 3 deep. Received: float"),
        ({"instances": [[]]}, "instances[0] must be lists nested 3 deep"),
    ],
)
def test_what_the_protocol_does_not_have_is_refused(request_, message):
    with pytest.raises(RequestError) as caught:
        parse(request_)
    assert caught.value.status == 400
    assert caught.value.message.startswith(message)


def test_too_many_images_are_refused_before_they_are_decoded():
    with pytest.raises(RequestError, match=r"^The request has 5 images, but at most 4 are allowed\.$") as caught:
        parse({"instances": [{"b64": "?"}] * 5})
    assert caught.value.status == 413


PROBS = np.array([[0.25, 0.75], [1.0, 0.0], [0.1, 0.9]], np.float32)
SETS = np.array([[True, True], [True, False], [False, True]])


def predicted(probs_BK: np.ndarray, sets_BK: np.ndarray | None = None) -> Predicted:
    """Returns predictions for up to three images; the second one is referred, and its score is not known."""
    return Predicted(
        probs_BK=probs_BK,
        labels=["light", "dark", "light"][: len(probs_BK)],
        reasons=["", "ambiguous", ""][: len(probs_BK)],
        ood_scores=np.array([0.5, np.nan, 1.5], np.float32)[: len(probs_BK)],
        sets_BK=sets_BK,
    )


def answered(request: object, given: Predicted) -> dict[str, Any]:
    """Returns the answer to a request as a client reads it, by JSON's own rules."""
    return json.loads(json.dumps(tensorflow_serving.encode_predict(parse(request), given), allow_nan=False))


@pytest.mark.parametrize("named", [{}, {"signature_name": ""}, {"signature_name": "serving_default"}])
def test_answers(named):
    answer = answered(named | {"instances": [PIXELS]}, predicted(PROBS, SETS))
    assert list(answer) == ["predictions"]
    assert np.array(answer["predictions"], np.float32).tolist() == PROBS.tolist()  # nothing is lost
    columns = answered(named | {"inputs": [PIXELS]}, predicted(PROBS[:2], SETS[:2]))
    assert columns == {"outputs": [[0.25, 0.75], [1.0, 0.0]]}


def test_judged_answers_have_named_outputs():
    named = {"signature_name": "judged"}
    given = predicted(PROBS[:2], SETS[:2])
    assert answered(named | {"instances": [PIXELS]}, given) == {
        "predictions": [
            {
                "probabilities": [0.25, 0.75],
                "refer": False,
                "refer_reason": "",
                "ood_score": 0.5,
                "prediction_set": [True, True],
            },
            {
                "probabilities": [1.0, 0.0],
                "refer": True,
                "refer_reason": "ambiguous",
                "ood_score": -1.0,
                "prediction_set": [True, False],
            },
        ]
    }
    assert answered(named | {"inputs": [PIXELS]}, given) == {
        "outputs": {
            "probabilities": [[0.25, 0.75], [1.0, 0.0]],
            "refer": [False, True],
            "refer_reason": ["", "ambiguous"],
            "ood_score": [0.5, -1.0],
            "prediction_set": [[True, True], [True, False]],
        }
    }


def test_a_model_without_prediction_sets_gives_sets_without_a_class():
    """No real set is empty."""
    answer = answered({"signature_name": "judged", "inputs": [PIXELS]}, predicted(PROBS[:2]))
    assert answer["outputs"]["prediction_set"] == [[False, False], [False, False]]


def test_the_status_is_that_of_the_documentation():
    assert tensorflow_serving.status({"1": "AVAILABLE", "2": "LOADING"}) == {
        "model_version_status": [
            {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}},
            {"version": "2", "state": "LOADING", "status": {"error_code": "OK", "error_message": ""}},
        ]
    }


def test_the_metadata_is_that_of_the_documentation():
    """In the form of the example at https://www.tensorflow.org/tfx/serving/api_rest#model_metadata_api."""

    def tensor(name: str, dtype: str, *sizes: str) -> dict[str, object]:
        dim = [{"size": size, "name": ""} for size in sizes]
        return {"dtype": dtype, "tensor_shape": {"dim": dim, "unknown_rank": False}, "name": name}

    inputs = {"image": tensor("image:0", "DT_UINT8", "-1", "299", "299", "3")}
    probabilities = {"probabilities": tensor("probabilities:0", "DT_FLOAT", "-1", "4")}
    assert tensorflow_serving.metadata("chest-ct", version="3", size_px=299, num_classes=4) == {
        "model_spec": {"name": "chest-ct", "signature_name": "", "version": "3"},
        "metadata": {
            "signature_def": {
                "signature_def": {
                    "serving_default": {
                        "inputs": inputs,
                        "outputs": probabilities,
                        "method_name": "tensorflow/serving/predict",
                    },
                    "judged": {
                        "inputs": inputs,
                        "outputs": probabilities
                        | {
                            "refer": tensor("refer:0", "DT_BOOL", "-1"),
                            "refer_reason": tensor("refer_reason:0", "DT_STRING", "-1"),
                            "ood_score": tensor("ood_score:0", "DT_FLOAT", "-1"),
                            "prediction_set": tensor("prediction_set:0", "DT_BOOL", "-1", "4"),
                        },
                        "method_name": "tensorflow/serving/predict",
                    },
                }
            }
        },
    }
