"""A session of NVIDIA's client with an Open Inference server; prints what it was told, as JSON.

A process of its own: the client brings gevent, which no other test needs to know of.

    python -m tests.triton HOST:PORT KEY IMAGE_FILE
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

MODEL = "chest-ct"


def ask(client: InferenceServerClient, tensor: np.ndarray, datatype: str, headers: dict[str, str], **how: bool) -> Any:
    """Returns labels and probabilities, by name."""
    image = InferInput("image", list(tensor.shape), datatype)
    image.set_data_from_numpy(tensor, binary_data=how["binary_input"])
    outputs = [InferRequestedOutput(name, binary_data=how["binary_output"]) for name in ("label", "probabilities")]
    result = client.infer(MODEL, [image], outputs=outputs, request_id="7", headers=dict(headers))  # it adds to them
    labels, probabilities = (result.as_numpy(output.name()) for output in outputs)
    assert labels is not None
    assert probabilities is not None
    texts = [each.decode() if isinstance(each, bytes) else each for each in labels.tolist()]
    return {"id": result.get_response()["id"], "label": texts, "probabilities": probabilities.tolist()}


def main(address: str, key: str, path: str) -> None:
    headers = {"X-API-Key": key}
    client = InferenceServerClient(address)
    metadata = client.get_model_metadata(MODEL, headers=headers)
    (size_px,) = set(metadata["inputs"][0]["shape"][1:3])
    files = np.array([Path(path).read_bytes()] * 2, dtype=np.object_)
    pixels = np.stack([np.full((size_px, size_px, 3), value, np.uint8) for value in (0, 51, 255)])
    told = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model ready": client.is_model_ready(MODEL, headers=headers),
        "version ready": client.is_model_ready(MODEL, "1", headers=headers),
        "server": client.get_server_metadata(),
        "model": metadata,
        "files": ask(client, files, "BYTES", headers, binary_input=True, binary_output=True),
        "pixels": ask(client, pixels, "UINT8", headers, binary_input=True, binary_output=True),
        "pixels in JSON": ask(client, pixels, "UINT8", headers, binary_input=False, binary_output=False),
    }
    client.close()
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
