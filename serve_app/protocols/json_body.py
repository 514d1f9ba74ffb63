"""Strict parsing of JSON bodies, for both protocols and for batches. Invalid input always raises RequestError."""

import base64
import json
import reprlib
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from serve_app.errors import RequestError

_REPR = reprlib.Repr()
_REPR.maxlevel = 2


def invalid(message: str) -> RequestError:
    """Returns the error of a request that breaks the protocol's rules: HTTP 400."""
    return RequestError(400, message)


def shown(value: object) -> str:
    """Returns a value as text for a message, shortened because it may be large and deep."""
    return _REPR.repr(value)


def parse_object(body: bytes) -> dict[str, Any]:
    """Parses a JSON object by RFC 8259: in UTF-8, and without NaN and Infinity.

    Raises:
        RequestError: The body is no such object.
    """
    try:
        value = json.loads(body.decode(), parse_constant=_refuse)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise invalid(f"The body is not JSON: {error}.") from None
    except ValueError:
        raise invalid(
            "The body has a number that cannot be read: NaN, Infinity, or one of thousands of digits."
        ) from None
    except RecursionError:
        raise invalid("The body is nested too deeply.") from None
    if not isinstance(value, dict):
        raise invalid(f"The body must be a JSON object. Received: {shown(value)}")
    return value


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def check_count(num_images: int, *, max_images: int) -> None:
    """Checks that a request has images, and not too many.

    Raises:
        RequestError: 400: it has no image; 413: it has too many.
    """
    if num_images < 1:
        raise invalid("The request has no image. Send at least one.")
    if num_images > max_images:
        raise RequestError(413, f"The request has {num_images} images, but at most {max_images} are allowed.")


def decode_base64(text: object, *, where: str) -> bytes:
    """Decodes base64 by RFC 4648, section 4: with padding and without line breaks.

    Raises:
        RequestError: The value is no string, or not base64.
    """
    if not isinstance(text, str):
        raise invalid(f"{where} must be a base64 string. Received: {shown(text)}")
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise invalid(f"{where} is not base64 (RFC 4648, padded, no line breaks): {error}.") from None


def uint8_array(values: object, *, num_axes: int, where: str) -> np.ndarray:
    """Converts nested lists of integers to an array.

    Args:
        values: Nested lists; the innermost ones hold integers in [0, 255].
        num_axes: The depth to which they must be nested.
        where: Name of the value, for messages.

    Returns:
        uint8, `num_axes` axes, read-only. No axis is empty.

    Raises:
        RequestError: The lists have another depth, are ragged or empty, or hold anything else.
    """
    # Checks types level by level, at the speed of C. NumPy would accept text, truth values and fractions as numbers.
    level: Sequence[Any] = [values]
    shape = []
    for _ in range(num_axes):
        if set(map(type, level)) != {list}:
            raise invalid(f"{where} must be lists nested {num_axes} deep, none of them empty.")
        sizes = set(map(len, level))
        if len(sizes) > 1:
            raise invalid(f"{where} is ragged: its lists at one level have {min(sizes)} to {max(sizes)} elements.")
        shape.append(sizes.pop())
        level = list(chain.from_iterable(level))
    others = set(map(type, level)) - {int}
    if not level or others:
        received = ", ".join(sorted(kind.__name__ for kind in others)) or "nothing"
        raise invalid(f"{where} must hold integers only, nested {num_axes} deep. Received: {received}")
    try:
        data = bytes(level)
    except ValueError:
        raise invalid(f"{where} must hold 0 to 255. Received: {shown(min(level))} to {shown(max(level))}") from None
    return np.frombuffer(data, np.uint8).reshape(shape)
