"""Labels that matplotlib can draw: class names in any script, or numbers where no installed font has their glyphs."""

import functools
import itertools
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
        texts: One for each class, with its number from 1 in front if `is_numbered`.
        families: Font families to draw them with; matplotlib takes each glyph from the first one that has it.
        is_numbered: True if a name cannot be drawn: its label is its number alone, and a table must tell the name.
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
    """Returns the code points of the font that matplotlib draws a family with, none if it is not (or no longer) there.

    See `font_manager.findfont`.
    """
    try:
        path = font_manager.findfont(font_manager.FontProperties(family=[family]), fallback_to_default=False)
        return frozenset(font_manager.get_font(path).get_charmap())
    except (ValueError, OSError, RuntimeError):
        return frozenset()
