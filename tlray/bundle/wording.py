"""Writes figures and their 95 % intervals as text, for sentences, tables and the terminal."""

from collections.abc import Callable, Sequence

Ends = Sequence[float | None] | None
"""An interval [low, high] of a metric. None, or with ends that are None: not known. Only the high end is None: it has
no upper limit."""


def percent(value: float) -> str:
    """Returns a share as text, such as `80.2 %`."""
    return f"{100 * value:.1f} %"


def decimals(value: float, digits: int = 3) -> str:
    """Returns a number as text, such as `0.802`."""
    return f"{value:.{digits}f}"


def span(ends: Ends, write: Callable[[float], str] = decimals) -> str:
    """Returns an interval as text, such as `0.701 to 0.903` or `at least 0.701`; empty if it is not known."""
    low, high = ends or (None, None)
    if low is None:
        return ""
    return f"at least {write(low)}" if high is None else f"{write(low)} to {write(high)}"


def bracketed(ends: Ends, write: Callable[[float], str] = percent, *, beside: str = "") -> str:
    """Returns what follows a figure in a sentence, such as ` (95 % interval 70.1 % to 90.3 %; by chance 25.0 %)`.

    Args:
        ends: The interval.
        write: Writes one of its ends.
        beside: What else the brackets have, such as `by chance 25.0 %`.

    Returns:
        Empty if there is neither an interval nor anything beside it; otherwise it begins with a space.
    """
    known = span(ends, write)
    texts = [f"95 % interval {known}"] * bool(known) + [beside] * bool(beside)
    return f" ({'; '.join(texts)})" if texts else ""


def estimate(value: float, ends: Ends, *, beside: str = "") -> str:
    """Returns a figure for the terminal, such as `0.802 (95 %: 0.701 to 0.903, 62 images)`; see `bracketed`."""
    known = span(ends)
    texts = [f"95 %: {known}"] * bool(known) + [beside] * bool(beside)
    return f"{decimals(value)} ({', '.join(texts)})" if texts else decimals(value)


def unnamed(num_unnamed: int, num_images: int) -> str:
    """Returns how many images have no named patient, such as `18 of 20 images have no named patient`.

    Args:
        num_unnamed: Number of these images; `no patients are named` if it is that of all.
        num_images: Number of all images.
    """
    if num_unnamed == num_images:
        return "no patients are named"
    return f"{num_unnamed} of {num_images} images {'has' if num_unnamed == 1 else 'have'} no named patient"
