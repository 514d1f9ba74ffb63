"""The errors of the endpoint. All of them survive pickling between Ray processes."""

from collections.abc import Sequence

from tlray.errors import ImageError, TlrayError

RETRY_AFTER_S = 1
"""Seconds for the header Retry-After when there is no room. The model needs less time than this for a batch."""

CODES = {
    400: "invalid_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "too_slow",
    413: "too_large",
    415: "unsupported_media_type",
    421: "misdirected",
    422: "invalid_request",
    429: "busy",
    500: "internal",
    503: "unavailable",
    504: "timed_out",
}
"""The `error_code` of an answer by its HTTP status, for programs, where no more specific code is known."""


class RequestError(TlrayError):
    """A request cannot be answered. It becomes an HTTP answer that contains the message.

    Args:
        status: The HTTP status.
        message: What is wrong with the request and the remedy, for a person.
        code: Kind of failure, for a program; for an image, the value of an `ImageErrorCode`; None: the one in `CODES`.
        retry_after_s: Seconds for the header Retry-After; None: the header is left out.
    """

    def __init__(self, status: int, message: str, code: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(status, message, code, retry_after_s)
        self.status = status
        self.message = message
        self.code = code or CODES[status]
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.message


class QueueFull(TlrayError):  # noqa: N818 (as asyncio's and the standard library's)
    """A model's queue has no room for the submitted items."""


class QueueClosed(TlrayError):  # noqa: N818
    """A model's queue was closed and takes no more items."""


def image_error(errors: Sequence[ImageError | None], names: Sequence[str]) -> RequestError:
    """Returns the error (422) of a request with images that cannot be decoded.

    Args:
        errors: The error of each image; None where it can be decoded. At least one is not None.
        names: The name of each image in the request.
    """
    bad = [(name, error) for name, error in zip(names, errors, strict=True) if error is not None]
    more = f" ({len(bad) - 1} more images cannot be decoded)" if len(bad) > 1 else ""
    name, first = bad[0]
    return RequestError(422, f"{name}: {first.message}{more}", first.code.value)
