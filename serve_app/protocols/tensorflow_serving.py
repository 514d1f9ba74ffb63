"""Formats of TensorFlow Serving's REST API: predict requests and answers, status, metadata and errors.

The API is described in https://www.tensorflow.org/tfx/serving/api_rest; details that are not described there follow
json_tensor.cc of TensorFlow Serving. There are two differences: NaN and Infinity are refused, as they are neither JSON
nor pixels, and the images of a request may differ in size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serve_app.protocols import json_body
from serve_app.protocols.json_body import invalid, shown
from serve_app.protocols.predicted import LABEL, OUTPUTS, PROBABILITIES, Predicted

INPUT = "image"
SIGNATURE = "serving_default"
"""The signature of a request that names none. Its only output is `probabilities`."""

JUDGED = "judged"
"""The signature that also says which images a person must look at, and why."""

JUDGED_OUTPUTS = {name: tensor for name, tensor in OUTPUTS.items() if name != LABEL}
"""The outputs of `JUDGED`, by name: all but the label, which the probabilities tell."""

DTYPES = {"FP32": "DT_FLOAT", "BOOL": "DT_BOOL", "BYTES": "DT_STRING"}
"""TensorFlow's names of the datatypes of output tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictRequest:
    """A parsed predict request.

    Attributes:
        images: Each an encoded image file, or pixels: uint8 [height, width, 3], RGB, of any size.
        columnar: Whether the request has "inputs" instead of "instances"; its answer then has "outputs".
        signature: `SIGNATURE` or `JUDGED`.
    """

    images: list[bytes | np.ndarray]
    columnar: bool
    signature: str


def parse_predict(body: bytes, *, max_images: int) -> PredictRequest:
    """Parses a predict request.

    Row format: {"instances": [IMAGE, ...]} or {"instances": [{"image": IMAGE}, ...]}. Columnar format: {"inputs":
    [IMAGE, ...]} or {"inputs": {"image": [IMAGE, ...]}}. An IMAGE is {"b64": FILE} with the file in base64, or a nested
    list [height][width][3] of integers in [0, 255]. "signature_name" may be "serving_default" (also if it is empty or
    left out) or "judged", see `encode_predict`.

    Args:
        body: The body of POST /v1/models/NAME:predict.
        max_images: Maximum number of images.

    Raises:
        RequestError: 400: the request is not as above; 413: it has too many images.
    """
    request = json_body.parse_object(body)
    signature = request.get("signature_name", SIGNATURE)
    if signature == "":
        signature = SIGNATURE
    if signature not in (SIGNATURE, JUDGED):
        raise invalid(
            f'signature_name must be "{SIGNATURE}" or "{JUDGED}", or be left out. Received: {shown(signature)}'
        )
    if ("instances" in request) == ("inputs" in request):
        raise invalid('The request must have either "instances" (a list of images) or "inputs".')
    key = "instances" if "instances" in request else "inputs"
    columnar = key == "inputs"
    values = request[key]
    if columnar and _is_named(values):
        values, key = values[INPUT], f"{key}.{INPUT}"
    if not isinstance(values, list):
        raise invalid(f'"{key}" must be a list of images. Received: {shown(values)}')
    json_body.check_count(len(values), max_images=max_images)
    images = []
    for number, value in enumerate(values):
        is_named = not columnar and _is_named(value)
        where = f"{key}[{number}]" + (f".{INPUT}" if is_named else "")
        images.append(_image(value[INPUT] if is_named else value, where=where))
    return PredictRequest(images=images, columnar=columnar, signature=signature)


def _is_named(value: object) -> bool:
    return isinstance(value, dict) and value.keys() == {INPUT}


def _image(value: object, *, where: str) -> bytes | np.ndarray:
    if isinstance(value, dict) and value.keys() == {"b64"}:
        return json_body.decode_base64(value["b64"], where=f"{where}.b64")
    if not isinstance(value, list):
        raise invalid(f'{where} must be {{"b64": FILE}} or pixels [height][width][3]. Received: {shown(value)}')
    pixels_HWC = json_body.uint8_array(value, num_axes=3, where=where)
    if pixels_HWC.shape[2] != 3:
        raise invalid(f"{where} must be pixels [height][width][3]. Received: {list(pixels_HWC.shape)}")
    return pixels_HWC


def encode_predict(request: PredictRequest, predicted: Predicted) -> dict[str, Any]:
    """Returns the answer to a predict request.

    With the signature `SIGNATURE` it has a list of probabilities for each image: TensorFlow Serving leaves the name of
    an only output out. With `JUDGED` it has all of `JUDGED_OUTPUTS` by name: in row format an object for each image, in
    columnar format one object of lists.

    Args:
        request: The request that is answered.
        predicted: The predictions.
    """
    key = "outputs" if request.columnar else "predictions"
    if request.signature == SIGNATURE:
        return {key: predicted.probs_BK.tolist()}
    columns = {name: _listed(tensor.values(predicted)) for name, tensor in JUDGED_OUTPUTS.items()}
    if request.columnar:
        return {key: columns}
    return {key: [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]}


def _listed(values: np.ndarray | Sequence[str]) -> list[Any]:
    return values.tolist() if isinstance(values, np.ndarray) else list(values)


def status(states: Mapping[str, str]) -> dict[str, Any]:
    """Returns the answer to GET /v1/models/NAME.

    Args:
        states: The state of each version: START, LOADING, AVAILABLE, UNLOADING or END (ModelVersionStatus.State of
            https://github.com/tensorflow/serving/blob/master/tensorflow_serving/apis/get_model_status.proto).
    """
    fine = {"error_code": "OK", "error_message": ""}
    return {
        "model_version_status": [
            {"version": version, "state": state, "status": fine} for version, state in states.items()
        ]
    }


def metadata(name: str, *, version: str, size_px: int, num_classes: int) -> dict[str, Any]:
    """Returns the answer to GET /v1/models/NAME/metadata: GetModelMetadataResponse as JSON, with both signatures.

    The input is described as the model has it, because the format allows one dtype per tensor. Image files in base64
    are also accepted.

    Args:
        name: Name of the model.
        version: Version of the model.
        size_px: Height and width of the input.
        num_classes: Number of classes.
    """
    tensors = {
        each: _tensor(each, DTYPES[tensor.datatype], tensor.shape(num_classes))
        for each, tensor in JUDGED_OUTPUTS.items()
    }
    outputs = {SIGNATURE: {PROBABILITIES: tensors[PROBABILITIES]}, JUDGED: tensors}
    signatures = {
        signature: {
            "inputs": {INPUT: _tensor(INPUT, "DT_UINT8", [-1, size_px, size_px, 3])},
            "outputs": given,
            "method_name": "tensorflow/serving/predict",
        }
        for signature, given in outputs.items()
    }
    return {
        "model_spec": {"name": name, "signature_name": "", "version": version},
        "metadata": {"signature_def": {"signature_def": signatures}},
    }


def _tensor(name: str, dtype: str, shape: Sequence[int]) -> dict[str, Any]:
    # Protocol Buffers write 64-bit numbers as text in JSON.
    dim = [{"size": str(size), "name": ""} for size in shape]
    return {"dtype": dtype, "tensor_shape": {"dim": dim, "unknown_rank": False}, "name": f"{name}:0"}
