"""Formats of the Open Inference Protocol (KServe's V2) over REST, with its binary tensor data extension.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md and
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md.
"""

import json
import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serve_app.protocols import json_body
from serve_app.protocols.json_body import invalid, shown
from serve_app.protocols.predicted import LABEL, OUTPUTS, PROBABILITIES, Predicted

INPUT = "image"
DEFAULT_OUTPUTS = (PROBABILITIES, LABEL)
"""The tensors that a request gets which names none."""

HEADER_LENGTH = "Inference-Header-Content-Length"
"""Header with the length of the JSON in bytes, if binary data follows it."""

PLATFORM = "tensorflow_savedmodel"
"""Format of the model's bundle, in the protocol's words. What runs it is in `parameters`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestedOutput:
    """An output tensor that the client has requested.

    Attributes:
        name: Name of the tensor, one of `OUTPUTS`.
        is_binary: Whether its data follow the JSON rather than being in it.
    """

    name: str
    is_binary: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class InferRequest:
    """A parsed inference request.

    Attributes:
        id: The client's name for the request; None: it has none.
        images: Each an encoded image file, or pixels at the model's size: uint8 [size, size, 3], RGB, read-only.
        outputs: The tensors of the answer, in this order.
    """

    id: str | None
    images: list[bytes | np.ndarray]
    outputs: tuple[RequestedOutput, ...]


def parse_infer(body: bytes, *, header_length: str | None, size_px: int, max_images: int) -> InferRequest:
    """Parses an inference request.

    Its one input, "image", is BYTES [n], image files (in JSON: base64 strings), or UINT8 [n, size, size, 3], pixels (in
    JSON: integers, flat or nested).

    Args:
        body: The body of POST /v2/models/NAME/infer.
        header_length: The header Inference-Header-Content-Length; None if there is none: the body is JSON alone.
        size_px: Height and width of the model's input.
        max_images: Maximum number of images.

    Raises:
        RequestError: 400: the request is not as above, or asks for an output that does not exist; 413: it has too many
            images.
    """
    length = _header_length(header_length, len(body))
    request = json_body.parse_object(body[:length])
    name = request.get("id")
    if not isinstance(name, str | None):
        raise invalid(f"id must be a string. Received: {shown(name)}")
    inputs = request.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1:
        raise invalid(f'inputs must be a list of one tensor, "{INPUT}". Received: {shown(inputs)}')
    outputs = _outputs(request)
    images = _images(inputs[0], memoryview(body)[length:], size_px=size_px, max_images=max_images)
    return InferRequest(id=name, images=images, outputs=outputs)


def _header_length(text: str | None, body_length: int) -> int:
    if text is None:
        return body_length
    if not re.fullmatch("[0-9]{1,15}", text) or int(text) > body_length:
        raise invalid(
            f"{HEADER_LENGTH} must be the length of the JSON in bytes, at most the body's {body_length}. "
            f"Received: {shown(text)}"
        )
    return int(text)


def _parameters(owner: dict[str, Any], where: str) -> dict[str, Any]:
    parameters = owner.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise invalid(f"The parameters of {where} must be an object. Received: {shown(parameters)}")
    return parameters


def _flag(parameters: dict[str, Any], name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise invalid(f"{name} must be true or false. Received: {shown(value)}")
    return value


def _outputs(request: dict[str, Any]) -> tuple[RequestedOutput, ...]:
    default = _flag(_parameters(request, "the request"), "binary_data_output", default=False)
    wanted = request.get("outputs")
    if wanted is None or wanted == []:
        wanted = [{"name": name} for name in DEFAULT_OUTPUTS]
    if not isinstance(wanted, list):
        raise invalid(f"outputs must be a list. Received: {shown(wanted)}")
    outputs: dict[str, RequestedOutput] = {}
    for each in wanted:
        name = each.get("name") if isinstance(each, dict) else None
        if not isinstance(name, str) or name not in OUTPUTS or name in outputs:
            raise invalid(f"outputs may be {', '.join(OUTPUTS)}, each at most once. Received: {shown(each)}")
        parameters = _parameters(each, f"the output {name}")
        if parameters.keys() - {"binary_data"}:
            # Other extensions return something else than the tensor, such as the most probable classes.
            raise invalid(f"The output {name} takes the parameter binary_data only. Received: {shown(parameters)}")
        outputs[name] = RequestedOutput(name=name, is_binary=_flag(parameters, "binary_data", default=default))
    return tuple(outputs.values())


def _images(tensor: object, binary: memoryview, *, size_px: int, max_images: int) -> list[bytes | np.ndarray]:
    if not isinstance(tensor, dict) or tensor.get("name") != INPUT:
        raise invalid(f'The input must be an object with the name "{INPUT}". Received: {shown(tensor)}')
    shape = _shape(tensor, size_px)
    json_body.check_count(shape[0], max_images=max_images)
    data, num_bytes = tensor.get("data"), _parameters(tensor, INPUT).get("binary_data_size")
    if (data is None) == (num_bytes is None):
        raise invalid(
            f"{INPUT} must have either data or the parameter binary_data_size; shared memory is not supported."
        )
    expected = 0 if num_bytes is None else num_bytes
    if type(expected) is not int or expected != len(binary):
        raise invalid(
            f"{HEADER_LENGTH} leaves {len(binary)} bytes after the JSON, so binary_data_size of {INPUT} must be "
            f"{len(binary)}. Received: {shown(num_bytes)}"
        )
    if len(shape) == 1:
        return _files_of_binary(binary, shape[0]) if data is None else _files_of_json(data, shape[0])
    return list(_pixels_of_binary(binary, shape) if data is None else _pixels_of_json(data, shape))


def _shape(tensor: dict[str, Any], size_px: int) -> list[int]:
    datatype, shape = tensor.get("datatype"), tensor.get("shape")
    kinds = (("BYTES", []), ("UINT8", [size_px, size_px, 3]))
    if isinstance(shape, list) and (datatype, shape[1:]) in kinds and {type(size) for size in shape} == {int}:
        return shape
    raise invalid(
        f"{INPUT} must be BYTES of shape [n] or UINT8 of shape [n, {size_px}, {size_px}, 3]. "
        f"Received: {shown(datatype)} of shape {shown(shape)}"
    )


def _files_of_json(data: object, num_images: int) -> list[bytes | np.ndarray]:
    if not isinstance(data, list) or len(data) != num_images:
        raise invalid(f"data of {INPUT} must be a list of {num_images} base64 strings. Received: {shown(data)}")
    return [json_body.decode_base64(text, where=f"data[{number}]") for number, text in enumerate(data)]


def _files_of_binary(binary: memoryview, num_images: int) -> list[bytes | np.ndarray]:
    files: list[bytes | np.ndarray] = []
    start = 0
    for _ in range(num_images):
        try:
            (length,) = struct.unpack_from("<I", binary, start)
        except struct.error:
            raise invalid(f"The binary data ends after {len(files)} of {num_images} images.") from None
        files.append(bytes(binary[start + 4 : start + 4 + length]))
        start += 4 + length
    if start != len(binary):
        raise invalid(
            f"{num_images} images and their lengths (4 bytes, little-endian, before each) add up to {start} bytes. "
            f"Received: {len(binary)}"
        )
    return files


def _pixels_of_json(data: object, shape: list[int]) -> np.ndarray:
    is_nested = isinstance(data, list) and len(data) > 0 and isinstance(data[0], list)
    pixels = json_body.uint8_array(data, num_axes=4 if is_nested else 1, where=f"data of {INPUT}")
    if list(pixels.shape) != (shape if is_nested else [math.prod(shape)]):
        raise invalid(f"data of {INPUT} must be of shape {shape}, nested or flat. Received: {list(pixels.shape)}")
    return pixels.reshape(shape)


def _pixels_of_binary(binary: memoryview, shape: list[int]) -> np.ndarray:
    if len(binary) != math.prod(shape):
        raise invalid(f"{INPUT} of shape {shape} has {math.prod(shape)} bytes. Received: {len(binary)}")
    return np.frombuffer(binary, np.uint8).reshape(shape)


def encode_infer(
    request: InferRequest, *, model_name: str, model_version: str, predicted: Predicted
) -> tuple[bytes, dict[str, str]]:
    """Returns the answer to an inference request: its body and its headers.

    Args:
        request: The request that is answered.
        model_name: Name of the model.
        model_version: Version of the model.
        predicted: The predictions.
    """
    outputs, chunks = [], []
    for wanted in request.outputs:
        tensor = OUTPUTS[wanted.name]
        values = tensor.values(predicted)
        shape = list(values.shape) if isinstance(values, np.ndarray) else [len(values)]
        output: dict[str, Any] = {"name": wanted.name, "datatype": tensor.datatype, "shape": shape}
        if wanted.is_binary:
            chunks.append(values.tobytes() if isinstance(values, np.ndarray) else _binary_text(values))
            output["parameters"] = {"binary_data_size": len(chunks[-1])}
        else:
            output["data"] = values.ravel().tolist() if isinstance(values, np.ndarray) else list(values)
        outputs.append(output)
    answer: dict[str, Any] = {"model_name": model_name, "model_version": model_version, "outputs": outputs}
    if request.id is not None:
        answer["id"] = request.id
    header = json.dumps(answer, allow_nan=False, separators=(",", ":")).encode()
    if not chunks:
        return header, {"Content-Type": "application/json"}
    return b"".join((header, *chunks)), {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(header))}


def _binary_text(texts: Sequence[str]) -> bytes:
    encoded = [text.encode() for text in texts]
    return b"".join(struct.pack("<I", len(each)) + each for each in encoded)


def server_metadata(version: str) -> dict[str, Any]:
    """Returns the answer to GET /v2.

    Args:
        version: Version of the server.
    """
    return {"name": "tlray", "version": version, "extensions": ["binary_tensor_data"]}


def model_metadata(
    name: str, *, versions: Sequence[str], size_px: int, num_classes: int, engine: str
) -> dict[str, Any]:
    """Returns the answer to GET /v2/models/NAME.

    The input is described as the model has it, UINT8, because the protocol allows one datatype per tensor. Image files,
    BYTES [n], are also accepted.

    Args:
        name: Name of the model.
        versions: Versions of the model that can be asked for.
        size_px: Height and width of the model's input.
        num_classes: Number of classes.
        engine: The engine and precision that predict. The protocol has no field for them.
    """
    return {
        "name": name,
        "versions": list(versions),
        "platform": PLATFORM,
        "inputs": [{"name": INPUT, "datatype": "UINT8", "shape": [-1, size_px, size_px, 3]}],
        "outputs": [
            {"name": each, "datatype": tensor.datatype, "shape": tensor.shape(num_classes)}
            for each, tensor in OUTPUTS.items()
        ],
        "parameters": {"engine": engine},
    }
