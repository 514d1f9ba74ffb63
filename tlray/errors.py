"""Exceptions that tlray raises for its users. Each message says what is wrong, with which value, and what to do."""

from collections.abc import Iterable
from enum import StrEnum


class TlrayError(Exception):
    """Base class of all errors that tlray raises on purpose.

    A subclass must pass all arguments of its constructor to `super().__init__`, so that Ray can pickle the error.
    """


class ConfigError(TlrayError, ValueError):
    """A setting, or a combination of settings, cannot work."""


class DataError(TlrayError, ValueError):
    """The images or their labels cannot be used as they are."""


class BundleError(TlrayError):
    """A model bundle is missing, incomplete, damaged, or of an unknown version."""


class ImageError(TlrayError):
    """One image cannot be used. The image becomes a row with an error code; the job goes on.

    Args:
        code: The kind of failure.
        message: What is wrong with this image, in words for a person.
    """

    def __init__(self, code: "ImageErrorCode", message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message


class ImageErrorCode(StrEnum):
    """Reasons why an image cannot be used; the values of the column `error_code`."""

    NOT_FOUND = "not_found"
    """There is no such file."""
    UNREADABLE = "unreadable"
    """The file exists and cannot be read: permissions, a directory, a failing disk or network."""
    EMPTY = "empty"
    """The file has zero bytes."""
    UNSUPPORTED_FORMAT = "unsupported_format"
    """The file is not a PNG, JPEG, BMP, TIFF or WebP image, or its pixel type cannot be mapped to 8 bits."""
    TRUNCATED = "truncated"
    """The image ends before its last pixel."""
    TOO_LARGE = "too_large"
    """The file has more bytes, pixels (also of a TIFF's tile) or JPEG scans than allowed (perhaps a bomb)."""
    DECODE_FAILED = "decode_failed"
    """The decoder failed for another reason; most often the file is damaged."""
    CHANGED = "changed"
    """The file has changed since it was first looked at."""
    PREDICT_FAILED = "predict_failed"
    """The model returned probabilities for this image that are not finite."""


def too_large(size_bytes: int, max_bytes: int) -> ImageError:
    """Returns the error for a file, or a member of a zip archive, that has more bytes than the limit."""
    return ImageError(ImageErrorCode.TOO_LARGE, f"The file has {size_bytes:,} bytes; the limit is {max_bytes:,}.")


def some(names: Iterable[str], limit: int = 10) -> str:
    """Returns names as a text for a message: sorted, quoted, and cut off after `limit` names."""
    ordered = sorted(names)
    more = f" and {len(ordered) - limit} more" if len(ordered) > limit else ""
    return ", ".join(f"'{name}'" for name in ordered[:limit]) + more


def counted(number: int, noun: str) -> str:
    """Returns a number with its noun, such as `1 image` or `2 images`.

    Args:
        number: The number.
        noun: A noun in the singular whose plural ends with an added s.
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def times(number: int) -> str:
    """Returns how often something happens: `once`, `twice`, `3 times`."""
    return {1: "once", 2: "twice"}.get(number, f"{number} times")
