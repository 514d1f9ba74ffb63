"""Parses and checks the body of POST /v1/batches."""

import re
import urllib.parse
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints, ValidationError

from serve_app.errors import RequestError
from serve_app.protocols.json_body import invalid, parse_object, shown
from tlray.errors import ConfigError
from tlray.files import roots

MAX_LOCATION_CHARACTERS = 4096
"""Maximum length of an input or output in characters.

The operating system allows paths of this length, and far longer command lines.
"""

MAX_BODY_BYTES = 64 * 1024
"""Maximum size of the body in bytes; a larger one is refused before it is parsed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The batch that a client asks for.

    Attributes:
        input: Normalized location of the images to score, see `listing.list_images`.
        output: Normalized location of the predictions.
        input_uri: The input for the job: a `file://` URI if the client gave one, to say that all nodes see it.
        output_uri: The output for the job, in the same form.
        version: Version of the model; None: the main one.
    """

    input: str
    output: str
    input_uri: str
    output_uri: str
    version: int | None


def _check_printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("only printable characters are allowed")
    return value


_Location = Annotated[
    str, StringConstraints(min_length=1, max_length=MAX_LOCATION_CHARACTERS), AfterValidator(_check_printable)
]


class _Fields(BaseModel):
    """The fields of the body, as the client wrote them."""

    model_config = ConfigDict(extra="forbid", strict=True)

    input: _Location
    output: _Location
    version: int | None = None


def parse(body: bytes) -> Order:
    """Returns the order in the body of a request.

    Raises:
        RequestError: 400: the body is invalid; 403: a location is relative or ambiguous.
    """
    if len(body) > MAX_BODY_BYTES:
        raise invalid(f"The body has more than {MAX_BODY_BYTES:,} bytes.")
    try:
        fields = _Fields.model_validate(parse_object(body))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name, said = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        raise invalid(
            f"{name}: {said}. The fields are input, output and version. Received: {shown(first['input'])}"
        ) from None
    source, target = (_normalized(name, getattr(fields, name)) for name in ("input", "output"))
    return Order(
        input=source,
        output=target,
        input_uri=_as_given(source, fields.input),
        output_uri=_as_given(target, fields.output),
        version=fields.version,
    )


def _as_given(location: str, given: str) -> str:
    """Returns a normalized location as a `file://` URI if it was given as one."""
    is_file_uri = re.match("file://", given, re.IGNORECASE)
    return f"file://{urllib.parse.quote(location)}" if is_file_uri else location


def _normalized(name: str, location: str) -> str:
    try:
        return roots.normalize(location)
    except ConfigError as error:
        raise forbidden(f"{name}: {error}") from None


def forbidden(message: str) -> RequestError:
    """Returns the error for a location that is not allowed (403), with a message."""
    return RequestError(403, message, "location_not_allowed")
