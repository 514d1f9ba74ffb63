"""Measures traits of image files that say mostly how they were made: size, format, grey levels, borders, corners.

If these alone tell the classes apart, a model can learn them in place of the anatomy; see `tlray.trust.shortcuts`.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa
from PIL import Image

from tlray.data.decoding import FORMATS

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
"""Percentiles of the grey levels that are measured."""

EDGE = 0.08
"""Width of a border or a corner, as a share of the image's width or height. At 512 pixels it is 41 pixels, which covers
the annotations that scanners and viewers write into the corners."""

_SIDES = ("top", "bottom", "left", "right")
_CORNERS = ("top_left", "top_right", "bottom_left", "bottom_right")

FAMILIES: dict[str, tuple[str, ...]] = {
    "size": ("width_px", "height_px", "aspect"),
    "file": ("format", "mode", "file_bytes", "bytes_per_pixel"),
    "grey levels": ("percentile_1", "percentile_5", "percentile_95", "percentile_99", "black_share", "white_share"),
    "tissue": ("percentile_25", "percentile_50", "percentile_75", "mean", "deviation"),
    "borders": tuple(f"{place}_{what}" for place in _SIDES for what in ("mean", "deviation")),
    "corners": tuple(f"{place}_{what}" for place in _CORNERS for what in ("mean", "deviation")),
    "colour": ("colour",),
}
"""Names of the traits by family; a name is in one family only. The extremes of the grey levels show how a scan was
windowed and saved. `tissue`, the levels between them, also shows how much of the image is lung or tumour."""

ANATOMICAL = ("tissue",)
"""Families that lesions change too, so that they may tell the classes rightly. In phantoms without a shortcut, large
masses were told by `percentile_75` in 9 of 10 sets, with a balanced accuracy of 0.8 (160 slices each, 2026-11-29)."""

TECHNICAL = tuple(name for family, names in FAMILIES.items() if family not in ANATOMICAL for name in names)
"""Names of the traits of all other families."""

CATEGORIES = ("format", "mode")
"""Traits that are texts, as Pillow spells them; all others are numbers."""

SCHEMA = pa.schema(
    [(name, pa.string() if name in CATEGORIES else pa.float64()) for family in FAMILIES.values() for name in family]
)
"""Columns of a table of traits."""

_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I;16B", "I;16L", "I", "F")
_CODES: dict[str, tuple[str, ...]] = {"format": (*FORMATS, "MPO"), "mode": _MODES}
_WIDE_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
_WIDE_STEP = 257.0  # 65535 / 255


def measure(image: Image.Image, shown: Image.Image, *, num_bytes: int) -> dict[str, float | str]:
    """Returns the traits of an image file.

    Grey levels are in [0, 255], with the luminance of colours; 16-bit values are divided by 257. Borders are the four
    strips of the width `EDGE` without the corners.

    Args:
        image: The decoded image, from `decoding.load`.
        shown: The same with 8-bit channels, from `decoding.to_grey_or_rgb`.
        num_bytes: Size of the file.

    Returns:
        The traits by the names in `FAMILIES`. Numbers are: `width_px`, `height_px`; `aspect`, width divided by height;
        `file_bytes`; `bytes_per_pixel`; grey levels; `black_share` and `white_share`, the shares of pixels that
        are 0 and 255 (65535 with 16 bits), in [0, 1]; `colour`, the mean difference between the largest and the
        smallest channel of a pixel, in [0, 255].
    """
    width, height = image.size
    values: dict[str, float | str] = {
        "width_px": float(width),
        "height_px": float(height),
        "aspect": width / height,
        "format": image.format or "",
        "mode": image.mode,
        "file_bytes": float(num_bytes),
        "bytes_per_pixel": num_bytes / (width * height),
    }
    if image.mode in _WIDE_MODES:
        grey, white = np.asarray(image), 255 * _WIDE_STEP
        levels = _wide_levels(grey)
    else:
        luminance = shown.convert("L")
        grey, white = np.asarray(luminance), 255.0
        levels = _levels(np.array(luminance.histogram()))
    return values | levels | _edges(grey, white) | {"colour": _colour(shown)}


def to_table(rows: Iterable[Mapping[str, float | str]]) -> pa.Table:
    """Returns what `measure` returned for some images as a table with `SCHEMA`, a row for each in the same order."""
    return pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMA)


def to_matrix(table: pa.Table, names: Iterable[str]) -> np.ndarray:
    """Returns some traits as numbers, for a model.

    Args:
        table: A table from `to_table`.
        names: Names of the traits, which become the columns.

    Returns:
        float32 [images, traits]. Categories have fixed codes, the same for every table; unknown ones have the code -1.
    """
    columns = []
    for name in names:
        if name in CATEGORIES:
            known = {value: code for code, value in enumerate(_CODES[name])}
            columns.append(np.array([known.get(value, -1) for value in table[name].to_pylist()], np.float32))
        else:
            columns.append(table[name].to_numpy().astype(np.float32))
    return np.stack(columns, axis=1)


def _colour(shown: Image.Image) -> float:
    """Returns the mean difference between the largest and the smallest channel of a pixel."""
    if shown.mode == "L":
        return 0.0
    channels = [np.asarray(channel) for channel in shown.split()]
    return float((np.maximum.reduce(channels) - np.minimum.reduce(channels)).mean())  # uint8, never negative


def _levels(counts: np.ndarray) -> dict[str, float | str]:
    """Returns the traits of a histogram, int64 [256], which is several times as fast as sorting the pixels."""
    size, levels = int(counts.sum()), np.arange(256)
    ranks = [int(np.ceil(each / 100 * size)) for each in PERCENTILES]
    found = np.searchsorted(np.cumsum(counts), np.maximum(ranks, 1))
    mean = float(counts @ levels / size)
    return {
        **{f"percentile_{each}": float(value) for each, value in zip(PERCENTILES, found, strict=True)},
        "mean": mean,
        "deviation": float(np.sqrt(counts @ (levels - mean) ** 2 / size)),
        "black_share": float(counts[0] / size),
        "white_share": float(counts[255] / size),
    }


def _wide_levels(grey: np.ndarray) -> dict[str, float | str]:
    """Returns the traits of 16-bit grey levels [height, width]."""
    found = np.percentile(grey, PERCENTILES, method="inverted_cdf") / _WIDE_STEP
    return {
        **{f"percentile_{each}": float(value) for each, value in zip(PERCENTILES, found, strict=True)},
        "mean": float(grey.mean() / _WIDE_STEP),
        "deviation": float(grey.std(dtype=np.float64) / _WIDE_STEP),
        "black_share": float(np.mean(grey == 0)),
        "white_share": float(np.mean(grey == 255 * _WIDE_STEP)),
    }


def _edges(grey: np.ndarray, white: float) -> dict[str, float | str]:
    step = white / 255.0
    height, width = grey.shape
    # At least one pixel, and at most half of the image, also where it is 1 pixel wide.
    deep, wide = (max(1, min(round(EDGE * side), side // 2)) for side in (height, width))
    inner_rows = slice(deep, height - deep) if height > 2 * deep else slice(None)
    inner_columns = slice(wide, width - wide) if width > 2 * wide else slice(None)
    first_rows, last_rows, first_columns, last_columns = (
        slice(None, deep), slice(-deep, None), slice(None, wide), slice(-wide, None),
    )  # fmt: skip
    places = {
        "top": grey[first_rows, inner_columns],
        "bottom": grey[last_rows, inner_columns],
        "left": grey[inner_rows, first_columns],
        "right": grey[inner_rows, last_columns],
        "top_left": grey[first_rows, first_columns],
        "top_right": grey[first_rows, last_columns],
        "bottom_left": grey[last_rows, first_columns],
        "bottom_right": grey[last_rows, last_columns],
    }
    means: dict[str, float | str] = {f"{place}_mean": float(part.mean()) / step for place, part in places.items()}
    return means | {f"{place}_deviation": float(part.std()) / step for place, part in places.items()}
