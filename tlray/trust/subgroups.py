"""Measures how often a model is right on subgroups of images: by size, file format, mode, and columns of a table.

A model that is right on average can be wrong on the images of one scanner. Import it to find the subgroups where a
model is surely worse than on all images that it was measured on.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tlray.data import looks
from tlray.data.manifest import FURTHER
from tlray.data.tables import MAX_VALUES
from tlray.trust.intervals import share_interval

MIN_IMAGES = 10
"""Number of images below which a subgroup is not measured."""

MAX_KEPT = 12
"""Maximum number of subgroups that are kept, the worst ones."""

SIZE_EDGES_PX = (256, 384, 512, 768, 1024)
"""Longest sides of images, in pixels, up to which each range of sizes goes; the last range has no end."""

_TRAITS = dict(zip(looks.KEPT, ("file format", "mode"), strict=True))


def columns_of(table: pa.Table) -> dict[str, list[str | None]]:
    """Returns what divides images into subgroups.

    Args:
        table: A manifest. Columns of an inspection (`width_px`, `height_px`, `looks.KEPT`) may be missing.

    Returns:
        Name for people (`picture size`, `file format`, `mode`, or that of a column of the user's table) to the value of
        each image; None where it is not known.
    """
    found: dict[str, list[str | None]] = {}
    if {"width_px", "height_px"} <= set(table.column_names):
        sides = zip(table["width_px"].to_pylist(), table["height_px"].to_pylist(), strict=True)
        found["picture size"] = [None if width is None else _size(max(width, height)) for width, height in sides]
    found |= {name: table[column].to_pylist() for column, name in _TRAITS.items() if column in table.column_names}
    further = [name for name in table.column_names if name.startswith(FURTHER)]
    return found | {name.removeprefix(FURTHER): table[name].to_pylist() for name in further}


def _size(longest_px: int) -> str:
    first = 1
    for edge in SIZE_EDGES_PX:
        if longest_px <= edge:
            return f"{first} to {edge} px"
        first = edge + 1
    return f"{first} px and more"


def find(columns: Mapping[str, Sequence[str | None]], is_right: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    """Measures the accuracy of each subgroup.

    A subgroup is called worse if its 95 % interval lies below the accuracy of all images. Without any difference about
    1 in 40 would. Nothing is corrected for the number of subgroups, which is told beside them.

    Args:
        columns: See `columns_of`; columns with fewer than two or more than `MAX_VALUES` different values are left out.
        is_right: Whether the prediction of each image is right, bool [images].
        groups: Group of each image, [images], any values that can be sorted. The intervals count groups.

    Returns:
        Only str, int, float, bool, list and dict: `num_looked_at`, the number of subgroups of at least `MIN_IMAGES`
        images, `num_worse`, the number of those that are worse, and `lowest`, at most `MAX_KEPT` of them: first those
        that are worse, then by their accuracy. Each has `column`, `value`, `num_images`, `num_groups`, `accuracy`,
        `accuracy_ci95` and `is_worse`.

    Raises:
        DataError: Arrays of different lengths.
    """
    found: list[dict[str, Any]] = []
    for column, values in columns.items():
        names = sorted({value for value in values if value is not None})
        for name in names if 2 <= len(names) <= MAX_VALUES else ():
            rows = np.flatnonzero(np.array([value == name for value in values], dtype=bool))
            if len(rows) < MIN_IMAGES:
                continue
            interval = share_interval(is_right[rows], groups[rows])
            found.append(
                {
                    "column": column,
                    "value": name,
                    "num_images": len(rows),
                    "num_groups": len(np.unique(groups[rows])),
                    "accuracy": interval.value,
                    "accuracy_ci95": [interval.low, interval.high],
                    "is_worse": interval.high < float(np.mean(is_right)),
                }
            )
    found.sort(key=lambda each: (not each["is_worse"], each["accuracy"]))
    num_worse = sum(each["is_worse"] for each in found)
    return {"num_looked_at": len(found), "num_worse": num_worse, "lowest": found[:MAX_KEPT]}
