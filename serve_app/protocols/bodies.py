"""Schemas of request bodies for the OpenAPI document, and their media types.

Requests are not parsed by these schemas, but by other modules, which check more than the schemas can say.
"""

from typing import Any

from serve_app.protocols import open_inference, tensorflow_serving

JSON = "application/json"
BINARY = "application/octet-stream"
FORM = "multipart/form-data"

EXAMPLE_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
"""A PNG of one grey pixel in base64, an example that can be sent from the page /docs."""

BYTES: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}


def _body(contents: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": contents}}


FORM_BODY = _body(
    {
        FORM: {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {
                    "file": {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}}
                },
            }
        }
    }
)
PREDICT_BODY = _body(
    {
        JSON: {
            "schema": {
                "type": "object",
                "required": ["instances"],
                "properties": {
                    "signature_name": {
                        "enum": [tensorflow_serving.SIGNATURE, tensorflow_serving.JUDGED, ""],
                        "default": tensorflow_serving.SIGNATURE,
                        "description": "judged: the answer also says which images a specialist must look at, and why",
                    },
                    "instances": {
                        "type": "array",
                        "minItems": 1,
                        "items": {
                            "type": "object",
                            "required": ["b64"],
                            "properties": {"b64": {"type": "string", "format": "byte"}},
                            "additionalProperties": False,
                        },
                    },
                },
            },
            "example": {"instances": [{"b64": EXAMPLE_PNG}]},
        }
    }
)
INFER_BODY = _body(
    {
        JSON: {
            "schema": {
                "type": "object",
                "required": ["inputs"],
                "properties": {
                    "id": {"type": "string"},
                    "inputs": {
                        "type": "array",
                        "minItems": 1,
                        "maxItems": 1,
                        "items": {
                            "type": "object",
                            "required": ["name", "datatype", "shape", "data"],
                            "properties": {
                                "name": {"const": open_inference.INPUT},
                                "datatype": {"enum": ["BYTES", "UINT8"]},
                                "shape": {"type": "array", "items": {"type": "integer"}},
                                "data": {"type": "array"},
                            },
                        },
                    },
                },
            },
            "example": {
                "inputs": [
                    {"name": open_inference.INPUT, "datatype": "BYTES", "shape": [1], "data": [EXAMPLE_PNG]},
                ]
            },
        },
        BINARY: BYTES,
    }
)
BATCH_BODY = _body(
    {
        JSON: {
            "schema": {
                "type": "object",
                "required": ["input", "output"],
                "additionalProperties": False,
                "properties": {
                    "input": {"type": "string", "description": "A file, folder, glob, zip or table; a path or URI"},
                    "output": {"type": "string", "description": "A folder for this batch alone; a path or URI"},
                    "version": {"type": ["integer", "null"], "description": "Version of the model; null: the main one"},
                },
            }
        }
    }
)
