import base64
import json
import struct
from typing import Any

import numpy as np
import pytest

from serve_app.errors import RequestError
from serve_app.protocols import open_inference
from serve_app.protocols.open_inference import InferRequest, RequestedOutput
from serve_app.protocols.predicted import Predicted

PNG, JPEG = b"\x89PNG\r\n\x1a\n ...", b"\xff\xd8\xff\xe0"
SIZE_PX = 2
PIXELS = np.arange(2 * SIZE_PX * SIZE_PX * 3, dtype=np.uint8).reshape(2, SIZE_PX, SIZE_PX, 3)
PROBS = np.array([[0.25, 0.75], [0.1, 0.9]], np.float32)
BOTH_IN_JSON = (RequestedOutput(name="probabilities", is_binary=False), RequestedOutput(name="label", is_binary=False))


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def parse(request: object, binary: bytes | None = None, header_length: str | None = None) -> InferRequest:
    header = json.dumps(request).encode()
    if binary is not None and header_length is None:
        header_length = str(len(header))
    return open_inference.parse_infer(
        header + (binary or b""), header_length=header_length, size_px=SIZE_PX, max_images=4
    )


def files(*data: object, **changes: object) -> dict[str, Any]:
    tensor = {"name": "image", "datatype": "BYTES", "shape": [len(data)], "data": list(data), **changes}
    return {"inputs": [{key: value for key, value in tensor.items() if value is not None}]}


def pixels(values: object, **changes: object) -> dict[str, Any]:
    tensor = {"name": "image", "datatype": "UINT8", "shape": [2, SIZE_PX, SIZE_PX, 3], "data": values, **changes}
    return {"inputs": [{key: value for key, value in tensor.items() if value is not None}]}


def binary_size(size: object) -> dict[str, Any]:
    return {"data": None, "parameters": {"binary_data_size": size}}


def refused(*arguments: Any, status: int = 400, **options: Any) -> str:
    with pytest.raises(RequestError) as caught:
        parse(*arguments, **options)
    assert caught.value.status == status
    assert len(caught.value.message) < 1000
    return caught.value.message


# In: image files.


def test_files_come_as_base64():
    request = parse(files(b64(PNG), b64(JPEG), ""))
    assert request.images == [PNG, JPEG, b""]
    assert request.id is None
    assert request.outputs == BOTH_IN_JSON


def test_files_come_as_binary_data():
    binary = b"\x0c\0\0\0" + PNG + b"\0\0\0\0" + b"\x04\0\0\0" + JPEG
    assert parse(files(1, 2, 3, **binary_size(28)), binary).images == [PNG, b"", JPEG]


@pytest.mark.parametrize(
    ("request_", "binary", "message"),
    [
        (files(b64(PNG), shape=[2]), None, "data of image must be a list of 2 base64 strings. Received: ["),
        (files(data="iVBO", shape=[1]), None, "data of image must be a list of 1 base64 strings. Received: 'iVBO'"),
        (files(b64(PNG), "?"), None, "data[1] is not base64"),
        (files(7), None, "data[0] must be a base64 string. Received: 7"),
        (files([b64(PNG)]), None, "data[0] must be a base64 string. Received: ["),
        (files(1, 2, **binary_size(8)), b"\x04\0\0\0" + JPEG, "The binary data ends after 1 of 2 images."),
        (files(1, **binary_size(3)), b"\x04\0\0", "The binary data ends after 0 of 1 images."),
        (
            files(1, **binary_size(7)),
            b"\x04\0\0\0abc",
            "1 images and their lengths (4 bytes, little-endian, before each",
        ),
        (files(1, **binary_size(9)), b"\x04\0\0\0abcde", "1 images and their lengths"),
        (files(1, **binary_size(8)), b"\xff\xff\xff\xffabcd", "1 images and their lengths"),
        (files(1, **binary_size(0)), b"", "The binary data ends after 0 of 1 images."),
    ],
)
def test_files_that_are_not_as_their_tensor_says_are_refused(request_, binary, message):
    assert refused(request_, binary).startswith(message)


# In: pixels.


@pytest.mark.parametrize("data", [PIXELS.tolist(), PIXELS.ravel().tolist()], ids=["nested", "flat"])
def test_pixels_come_as_json(data):
    images = parse(pixels(data)).images
    assert [type(image) for image in images] == [np.ndarray] * 2
    assert np.array_equal(np.stack(images), PIXELS)  # pyright: ignore[reportArgumentType]
    assert np.stack(images).dtype == np.uint8  # pyright: ignore[reportArgumentType]


def test_pixels_come_as_binary_data():
    images = parse(pixels(None, **binary_size(24)), PIXELS.tobytes()).images
    assert np.array_equal(np.stack(images), PIXELS)  # pyright: ignore[reportArgumentType]
    assert np.stack(images).dtype == np.uint8  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("request_", "binary", "message"),
    [
        (
            pixels(PIXELS[:1].tolist()),
            None,
            "data of image must be of shape [2, 2, 2, 3], nested or flat. Received: [1, 2",
        ),
        (
            pixels(PIXELS.ravel()[1:].tolist()),
            None,
            "data of image must be of shape [2, 2, 2, 3], nested or flat. Received",
        ),
        (pixels(PIXELS.reshape(2, 12).tolist()), None, "data of image must be lists nested 4 deep"),
        (pixels([]), None, "data of image must hold integers only, nested 1 deep. Received: nothing"),
        (pixels("AAAA"), None, "data of image must be lists nested 1 deep"),
        (pixels([*range(23), 256]), None, "data of image must hold 0 to 255. Received: 0 to 256"),
        (pixels([*range(23), 0.5]), None, "data of image must hold integers only, nested 1 deep. Received: float"),
        (pixels([*range(23), True]), None, "data of image must hold integers only, nested 1 deep. Received: bool"),
        (pixels(None, **binary_size(23)), bytes(23), "image of shape [2, 2, 2, 3] has 24 bytes. Received: 23"),
    ],
)
def test_pixels_that_are_not_as_their_tensor_says_are_refused(request_, binary, message):
    assert refused(request_, binary).startswith(message)


# In: the tensor, and what follows the JSON.


@pytest.mark.parametrize(
    "shape", [None, [], [1, 1], [2, 2, 3], [1, 3, 3, 3], [1, 2, 2, 1], [1.0], [True], ["1"], 1, {}]
)
@pytest.mark.parametrize("datatype", ["BYTES", "UINT8"])
def test_the_shape_must_be_one_that_the_model_takes(shape, datatype):
    message = refused(files(b64(PNG), shape=shape, datatype=datatype))
    expected = f"image must be BYTES of shape [n] or UINT8 of shape [n, 2, 2, 3]. Received: '{datatype}' of shape "
    assert message.startswith(expected)


@pytest.mark.parametrize("datatype", [None, "FP32", "bytes", 7, ["BYTES"]])
def test_the_datatype_must_be_one_that_the_model_takes(datatype):
    message = refused(files(b64(PNG), datatype=datatype))
    assert message == (
        f"image must be BYTES of shape [n] or UINT8 of shape [n, 2, 2, 3]. Received: {datatype!r} of shape [1]"
    )


@pytest.mark.parametrize("num_images", [0, -1])
def test_a_request_without_an_image_is_refused(num_images):
    assert refused(files(shape=[num_images], data=[])) == "The request has no image. Send at least one."
    assert refused(pixels([], shape=[num_images, 2, 2, 3])) == "The request has no image. Send at least one."


@pytest.mark.parametrize("num_images", [5, 10**30])
def test_too_many_images_are_refused_before_they_are_decoded(num_images):
    message = refused(files(shape=[num_images], data=["?"]), status=413)
    assert message == f"The request has {num_images} images, but at most 4 are allowed."
    refused(pixels(None, shape=[num_images, 2, 2, 3], **binary_size(0)), b"", status=413)


@pytest.mark.parametrize(
    "tensor",
    [
        {"data": None},
        {"data": [b64(PNG)], "parameters": {"binary_data_size": 0}},
        {"data": None, "parameters": {"shared_memory_region": "x", "shared_memory_byte_size": 4}},
    ],
)
def test_data_is_in_one_place(tensor):
    message = refused(files(1, **tensor))
    assert message == "image must have either data or the parameter binary_data_size; shared memory is not supported."


@pytest.mark.parametrize("size", [7, 9, 8.0, "8", True, -8, [8], 10**40])
def test_the_binary_data_is_as_long_as_the_tensor_says(size):
    assert refused(files(1, **binary_size(size)), b"\x04\0\0\0" + JPEG).startswith(
        "Inference-Header-Content-Length leaves 8 bytes after the JSON, so binary_data_size of image must be 8. "
    )


def test_no_binary_data_follows_where_there_is_none():
    assert refused(files(b64(PNG)), b"x").startswith("Inference-Header-Content-Length leaves 1 bytes after the JSON, ")
    assert parse(files(b64(PNG)), b"").images == [PNG]
    assert refused(files(1, **binary_size(0))) == "The binary data ends after 0 of 1 images."
    without_header = json.dumps(files(1, **binary_size(8))).encode() + b"\x04\0\0\0" + JPEG
    with pytest.raises(RequestError, match=r"^The body is not JSON: "):
        open_inference.parse_infer(without_header, header_length=None, size_px=2, max_images=4)


@pytest.mark.parametrize("length", ["", "-1", "+1", "1.0", "x", "0x1", "\u0661", " 1", "999999", "9" * 5000])
def test_the_header_is_a_length_within_the_body(length):
    message = refused(files(b64(PNG)), b"", length)
    assert message.startswith(
        "Inference-Header-Content-Length must be the length of the JSON in bytes, at most the body's"
    )


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ([], "The body must be a JSON object. Received: []"),
        ({}, 'inputs must be a list of one tensor, "image". Received: None'),
        ({"inputs": []}, 'inputs must be a list of one tensor, "image". Received: []'),
        ({"inputs": [{}, {}]}, 'inputs must be a list of one tensor, "image". Received: [{}, {}]'),
        ({"inputs": {"name": "image"}}, "inputs must be a list of one tensor"),
        ({"inputs": ["image"]}, "The input must be an object with the name \"image\". Received: 'image'"),
        (files(b64(PNG), name="input0"), 'The input must be an object with the name "image". Received: {'),
        (files(b64(PNG), parameters=[]), "The parameters of image must be an object. Received: []"),
        (files(b64(PNG)) | {"id": 7}, "id must be a string. Received: 7"),
        (files(b64(PNG)) | {"parameters": 7}, "The parameters of the request must be an object. Received: 7"),
        (
            files(b64(PNG)) | {"parameters": {"binary_data_output": 1}},
            "binary_data_output must be true or false. Received",
        ),
        (files(b64(PNG)) | {"outputs": "label"}, "outputs must be a list. Received: 'label'"),
    ],
)
def test_what_the_protocol_does_not_have_is_refused(request_, message):
    assert refused(request_).startswith(message)


# Out.


@pytest.mark.parametrize(
    "outputs", [[{}], ["label"], [{"name": "logits"}], [{"name": ["label"]}], [{"name": "label"}] * 2]
)
def test_outputs_that_there_are_not_are_refused(outputs):
    message = refused(files(b64(PNG)) | {"outputs": outputs})
    names = "probabilities, label, refer, refer_reason, ood_score, prediction_set"
    assert message.startswith(f"outputs may be {names}, each at most once. Received: ")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"classification": 2},
            "The output label takes the parameter binary_data only. Received: {'classification': 2}",
        ),
        ({"binary_data": "yes"}, "binary_data must be true or false. Received: 'yes'"),
        ([], "The parameters of the output label must be an object. Received: []"),
    ],
)
def test_what_an_output_cannot_do_is_refused(parameters, message):
    assert refused(files(b64(PNG)) | {"outputs": [{"name": "label", "parameters": parameters}]}) == message


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({}, [("probabilities", False), ("label", False)]),
        ({"outputs": []}, [("probabilities", False), ("label", False)]),
        ({"parameters": {"binary_data_output": True, "timeout": 5}}, [("probabilities", True), ("label", True)]),
        ({"outputs": [{"name": "label"}, {"name": "probabilities"}]}, [("label", False), ("probabilities", False)]),
        ({"outputs": [{"name": "label", "parameters": {"binary_data": True}}]}, [("label", True)]),
        (
            {
                "parameters": {"binary_data_output": True},
                "outputs": [{"name": "label", "parameters": {"binary_data": False}}, {"name": "probabilities"}],
            },
            [("label", False), ("probabilities", True)],
        ),
    ],
)
def test_the_request_chooses_outputs_and_their_form(request_, expected):
    outputs = parse(files(b64(PNG)) | request_).outputs
    assert [(output.name, output.is_binary) for output in outputs] == expected


SETS = np.array([[False, True], [True, True]])


def encode(
    outputs: tuple[RequestedOutput, ...], id_: str | None = None, *, sets_BK: np.ndarray | None = SETS
) -> tuple[bytes, dict[str, str]]:
    request = InferRequest(id=id_, images=[PNG, JPEG], outputs=outputs)
    predicted = Predicted(
        probs_BK=PROBS,
        labels=["gro\u00df", "ok"],
        reasons=["", "ambiguous"],
        ood_scores=np.array([0.5, np.nan], np.float32),
        sets_BK=sets_BK,
    )
    return open_inference.encode_infer(request, model_name="chest-ct", model_version="3", predicted=predicted)


def test_an_answer_in_json():
    body, headers = encode(BOTH_IN_JSON, id_='4"2')
    assert headers == {"Content-Type": "application/json"}
    answer = json.loads(body)
    assert np.array(answer["outputs"][0].pop("data"), np.float32).tolist() == PROBS.ravel().tolist()
    assert answer == {
        "model_name": "chest-ct",
        "model_version": "3",
        "id": '4"2',
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [2, 2]},
            {"name": "label", "datatype": "BYTES", "shape": [2], "data": ["gro\u00df", "ok"]},
        ],
    }


def test_an_answer_with_binary_data():
    body, headers = encode(
        (RequestedOutput(name="label", is_binary=True), RequestedOutput(name="probabilities", is_binary=True))
    )
    length = int(headers.pop("Inference-Header-Content-Length"))
    assert headers == {"Content-Type": "application/octet-stream"}
    assert json.loads(body[:length]) == {
        "model_name": "chest-ct",
        "model_version": "3",
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": 15}},
            {"name": "probabilities", "datatype": "FP32", "shape": [2, 2], "parameters": {"binary_data_size": 16}},
        ],
    }
    assert body[length : length + 15] == b"\x05\0\0\0gro\xc3\x9f\x02\0\0\0ok"
    assert struct.unpack("<4f", body[length + 15 :]) == tuple(PROBS.ravel().tolist())


def test_an_answer_of_both_kinds():
    body, headers = encode(
        (RequestedOutput(name="probabilities", is_binary=True), RequestedOutput(name="label", is_binary=False))
    )
    length = int(headers["Inference-Header-Content-Length"])
    first, second = json.loads(body[:length])["outputs"]
    assert first["parameters"] == {"binary_data_size": 16}
    assert second["data"] == ["gro\u00df", "ok"]
    assert body[length:] == PROBS.astype("<f4").tobytes()


def test_how_predictions_are_judged():
    names = ("refer", "refer_reason", "ood_score", "prediction_set")
    answer = json.loads(encode(tuple(RequestedOutput(name=name, is_binary=False) for name in names))[0])
    assert answer["outputs"] == [
        {"name": "refer", "datatype": "BOOL", "shape": [2], "data": [False, True]},
        {"name": "refer_reason", "datatype": "BYTES", "shape": [2], "data": ["", "ambiguous"]},
        {"name": "ood_score", "datatype": "FP32", "shape": [2], "data": [0.5, -1.0]},
        {"name": "prediction_set", "datatype": "BOOL", "shape": [2, 2], "data": [False, True, True, True]},
    ]
    body, headers = encode(tuple(RequestedOutput(name=name, is_binary=True) for name in names))
    length = int(headers["Inference-Header-Content-Length"])
    assert body[length:] == (b"\0\1" + b"\0\0\0\0\x09\0\0\0ambiguous" + struct.pack("<2f", 0.5, -1) + b"\0\1\1\1")


def test_only_the_tensors_that_are_asked_for_are_computed(monkeypatch):
    monkeypatch.setattr(np, "isfinite", None)  # which the unknown scores need
    body, _ = encode(BOTH_IN_JSON)
    assert [output["name"] for output in json.loads(body)["outputs"]] == ["probabilities", "label"]


def test_a_model_without_prediction_sets_gives_sets_without_a_class():
    """No real set is empty. The tensor is there all the same, as the metadata says, like an unknown score of -1."""
    body, _ = encode((RequestedOutput(name="prediction_set", is_binary=False),), sets_BK=None)
    assert json.loads(body)["outputs"] == [
        {"name": "prediction_set", "datatype": "BOOL", "shape": [2, 2], "data": [False] * 4},
    ]


def test_metadata():
    assert open_inference.server_metadata("0.2.0") == {
        "name": "tlray",
        "version": "0.2.0",
        "extensions": ["binary_tensor_data"],
    }
    about = open_inference.model_metadata(
        "chest-ct", versions=["1", "2"], size_px=299, num_classes=4, engine="openvino int8"
    )
    assert about == {
        "name": "chest-ct",
        "versions": ["1", "2"],
        "platform": "tensorflow_savedmodel",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, 299, 299, 3]}],
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 4]},
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
            {"name": "refer", "datatype": "BOOL", "shape": [-1]},
            {"name": "refer_reason", "datatype": "BYTES", "shape": [-1]},
            {"name": "ood_score", "datatype": "FP32", "shape": [-1]},
            {"name": "prediction_set", "datatype": "BOOL", "shape": [-1, 4]},
        ],
        "parameters": {"engine": "openvino int8"},
    }
