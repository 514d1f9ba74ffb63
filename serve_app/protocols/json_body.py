"""A request's JSON: what both protocols read from it, strictly. Whatever the bytes are, the error is a RequestError."""

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
    """Returns the error of a request that is not as the protocol wants it: HTTP 400."""
    return RequestError(400, message)


def shown(value: object) -> str:
    """Returns a value for a message, shortened: it may be large and deep."""
    return _REPR.repr(value)


def parse_object(body: bytes) -> dict[str, Any]:
    """Parses a JSON object as RFC 8259 has it: in UTF-8, and without NaN and Infinity.

    Raises:
        RequestError: It is none.
    """
    try:
        value = json.loads(body.decode(), parse_constant=_refuse)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise invalid(f"The body is no JSON: {error}.") from None
    except ValueError:
        raise invalid("The body has a number that cannot be: NaN, Infinity, or thousands of digits.") from None
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
        RequestError: 400: it has none; 413: it has too many.
    """
    if num_images < 1:
        raise invalid("The request has no image. Send at least one.")
    if num_images > max_images:
        raise RequestError(413, f"{num_images} images in one request; the most are {max_images}.")


def decode_base64(text: object, *, where: str) -> bytes:
    """Decodes base64 as RFC 4648, section 4, has it: with padding and without line breaks.

    Raises:
        RequestError: It is no text, or not base64.
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
        values: Lists in lists; those of the innermost level hold integers in [0, 255].
        num_axes: How deep they must be nested.
        where: What this is, for messages.

    Returns:
        uint8, `num_axes` axes, read-only. No axis is empty.

    Raises:
        RequestError: They are nested otherwise, ragged, empty, or hold anything else.
    """
    # Level by level and by types, at the speed of C: NumPy would take text, truth values and fractions for numbers.
    level: Sequence[Any] = [values]
    shape = []
    for _ in range(num_axes):
        if set(map(type, level)) != {list}:
            raise invalid(f"{where} must be lists nested {num_axes} deep, none of them empty.")
        sizes = set(map(len, level))
        if len(sizes) > 1:
            raise invalid(f"{where} is ragged: its lists of one level have {min(sizes)} to {max(sizes)} elements.")
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
