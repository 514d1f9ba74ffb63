"""Labels of figures: class names in any script and of any length, or numbers where no font has their glyphs."""

import functools
import itertools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib import font_manager

BASE_FAMILY = "DejaVu Sans"
"""The font family of the figures, which matplotlib brings along."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """Class labels of a figure.

    Attributes:
        texts: The label of each class, with its number from 1 in front if `is_numbered`.
        families: Font families to draw them with; matplotlib takes each glyph from the first one that has it.
        is_numbered: True if a name cannot be drawn. Its label is its number alone, and a table must give the name.
    """

    texts: tuple[str, ...]
    families: tuple[str, ...]
    is_numbered: bool


def label_classes(names: Sequence[str], families: Sequence[str] | None = None) -> Labels:
    """Makes the labels of classes for a figure.

    Args:
        names: The class names.
        families: Font families that may be used beside `BASE_FAMILY`; None: all that are installed.
    """
    found = {name: _find_families(name, installed_families() if families is None else families) for name in names}
    used = [BASE_FAMILY, *itertools.chain.from_iterable(each for each in found.values() if each)]
    is_numbered = None in found.values()
    texts = tuple(names)
    if is_numbered:
        numbered = enumerate(names, start=1)
        texts = tuple(f"{number}" if found[name] is None else f"{number} {name}" for number, name in numbered)
    return Labels(texts=texts, families=tuple(dict.fromkeys(used)), is_numbered=is_numbered)


@functools.cache
def installed_families() -> tuple[str, ...]:
    """Returns the installed font families with an upright font of normal weight, sans-serif ones first.

    The fonts that matplotlib brings for formulas are left out: some have other glyphs than their code points say.
    """
    fonts = [font for font in font_manager.fontManager.ttflist if (font.style, font.weight) == ("normal", 400)]
    names = {font.name for font in fonts if Path(mpl.get_data_path()) not in Path(font.fname).parents}
    return tuple(sorted(names, key=lambda name: ("sans" not in name.lower(), "mono" in name.lower(), name)))


def _find_families(text: str, families: Iterable[str]) -> list[str] | None:
    """Returns the families that a text needs beside `BASE_FAMILY`; None where a glyph is in none of them."""
    missing = {ord(letter) for letter in text if letter != "\n"} - _code_points(BASE_FAMILY)
    used = []
    for family in families:
        if not missing:
            break
        if missing & _code_points(family):
            used.append(family)
            missing -= _code_points(family)
    return None if missing else used


@functools.cache
def _code_points(family: str) -> frozenset[int]:
    """Returns the code points of the font that matplotlib uses for a family; none if there is no such font (any more).

    See `font_manager.findfont`.
    """
    try:
        path = font_manager.findfont(font_manager.FontProperties(family=[family]), fallback_to_default=False)
        return frozenset(font_manager.get_font(path).get_charmap())
    except (ValueError, OSError, RuntimeError):
        return frozenset()


def shorten(text: str, width: int) -> str:
    """Returns a name on one line, cut off with an ellipsis where it is wider than `width`, see `_width`."""
    line = " ".join(text.split())
    return line if _width(line) <= width else _break(line, width - 1)[0] + "…"


def wrap(text: str, width: int) -> str:
    """Breaks a name into lines of at most `width` and about equal length: as few as it needs, at most 4."""
    num_lines = len(_break(text, width))
    narrowest = next(narrower for narrower in range(2, width + 1) if len(_break(text, narrower)) <= num_lines)
    lines = [line.rstrip() for line in _break(text, narrowest)]
    return "\n".join(lines if num_lines <= 4 else [*lines[:3], _break(lines[3], width - 1)[0] + "…"])


def _break(text: str, width: int) -> list[str]:
    """Breaks a text after separators, or wherever it must, into lines of at most `width` (at least 2), see `_width`."""
    lines = [""]
    for part in re.findall(r"[^\s_.,/-]*[\s_.,/-]|[^\s_.,/-]+", text):
        for piece in _pieces(part, width):
            if _width(lines[-1]) + _width(piece) > width:
                lines.append("")
            lines[-1] += piece
    return lines


def _pieces(part: str, width: int) -> list[str]:
    pieces = [""]
    for letter in part:
        if _width(pieces[-1] + letter) > width:
            pieces.append("")
        pieces[-1] += letter
    return pieces


def _width(text: str) -> int:
    """Returns the width of a text in Latin letters; Chinese, Japanese and Korean letters are twice as wide."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)
