"""The errors that a user of tlray can meet. Each message says what is wrong, with which value, and the remedy."""

from collections.abc import Iterable
from enum import StrEnum


class TlrayError(Exception):
    """Root of all errors raised on purpose by tlray.

    Every subclass takes exactly one argument, the message, so that it survives pickling between Ray processes.
    """


class ConfigError(TlrayError, ValueError):
    """A setting, or a combination of settings, cannot work."""


class DataError(TlrayError, ValueError):
    """The images or their labels cannot be used as they are."""


class BundleError(TlrayError):
    """A model bundle is missing, incomplete, damaged, or of an unknown version."""


class ImageError(TlrayError):
    """One image cannot be used. Becomes a row with an error code; it never fails a job.

    Args:
        code: What kind of failure it is.
        message: What is wrong with this image, for a person.
    """

    def __init__(self, code: "ImageErrorCode", message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message


class ImageErrorCode(StrEnum):
    """Why an image has no pixels: the values of the column `error_code`."""

    NOT_FOUND = "not_found"
    """There is no such file."""
    UNREADABLE = "unreadable"
    """The file exists and cannot be read: permissions, a directory, a failing disk or network."""
    EMPTY = "empty"
    """The file has zero bytes."""
    UNSUPPORTED_FORMAT = "unsupported_format"
    """The bytes are not a PNG, JPEG, BMP, TIFF or WebP image, or a pixel type that cannot be mapped to 8 bits."""
    TRUNCATED = "truncated"
    """The image ends before its last pixel."""
    TOO_LARGE = "too_large"
    """More bytes or more pixels than the limits allow (a decompression bomb, perhaps)."""
    DECODE_FAILED = "decode_failed"
    """The decoder gave up for another reason: the file is damaged."""
    CHANGED = "changed"
    """The file is another than when it was first read."""
    PREDICT_FAILED = "predict_failed"
    """The model gave no finite probabilities for this image."""


def too_large(size_bytes: int, max_bytes: int) -> ImageError:
    """Returns the error of a file, or a member of a zip archive, that has more bytes than the limit."""
    return ImageError(ImageErrorCode.TOO_LARGE, f"The file has {size_bytes:,} bytes; the limit is {max_bytes:,}.")


def some(names: Iterable[str], limit: int = 10) -> str:
    """Returns names for a message: sorted, quoted, and no more than a reader wants to see."""
    ordered = sorted(names)
    more = f" and {len(ordered) - limit} more" if len(ordered) > limit else ""
    return ", ".join(f"'{name}'" for name in ordered[:limit]) + more
