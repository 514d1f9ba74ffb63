"""The errors of the endpoint. All of them survive pickling between Ray processes."""

from tlray.errors import TlrayError


class RequestError(TlrayError):
    """A request cannot be answered. Becomes an HTTP answer with the message in it.

    Args:
        status: The HTTP status.
        message: What is wrong with the request and the remedy, for a person.
        code: What kind of failure it is, for a program: of an image, `ImageErrorCode`.
        retry_after_s: When it is worth another try, as the header Retry-After has it; None: not as it is.
    """

    def __init__(self, status: int, message: str, code: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(status, message, code, retry_after_s)
        self.status = status
        self.message = message
        self.code = code
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.message


class QueueFull(TlrayError):  # noqa: N818 (as asyncio's and the standard library's)
    """A model's queue has no room for these items."""


class QueueClosed(TlrayError):  # noqa: N818
    """A model's queue takes nothing any more."""
