"""Lists the images of a run whose labels are likely wrong, for a person to check: as a table, and with pictures."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.csv

from tlray.data import looks, stream
from tlray.data.dataset import Dataset
from tlray.errors import ImageError
from tlray.files import spreadsheet, storage
from tlray.training.judgement_fit import Unseen
from tlray.trust import gallery, suspects

FILE = "suspect_labels.csv"
"""Name of the table in a run's directory."""

MAX_PICTURES = 24
"""Number of images that the report shows, those with the least probable labels."""

TEXTS, NUMBERS = ("image_id", "split", "label", "suggested"), ("label_prob", "suggested_prob")


def find(images: Dataset, unseen: Unseen) -> list[dict[str, Any]]:
    """Returns the images whose labels are likely wrong, the least probable labels first.

    Args:
        images: The run's images.
        unseen: What probes say about images that they were not fitted on.

    Returns:
        For each image `image_id`, `uri`, `split`, `label`, `suggested` (the class that is likely), `label_prob` and
        `suggested_prob` (the probabilities of both, in [0, 1]).
    """
    readable = images.readable
    known = {row["image_id"]: row for row in readable.select(["image_id", "uri", "split"]).to_pylist()}
    return [
        known[unseen.image_ids[each.place]]
        | {
            "label": images.classes[each.label],
            "suggested": images.classes[each.suggested],
            "label_prob": each.label_prob,
            "suggested_prob": each.suggested_prob,
        }
        for each in suspects.find(unseen.probs_BK, unseen.labels)
    ]


def write(out: str, found: Sequence[Mapping[str, Any]]) -> None:
    """Writes `FILE`, a row for each image of `find`."""
    columns: dict[str, Any] = {
        **{name: pa.array([spreadsheet.as_text(each[name]) for each in found], pa.string()) for name in TEXTS},
        **{name: pa.array([each[name] for each in found], pa.float32()) for name in NUMBERS},
    }
    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(pa.table(columns), sink)
    storage.write_bytes(storage.join(out, FILE), sink.getvalue().to_pybytes())


def with_pictures(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the first images of `find` with `jpeg` (base64) for the report; unreadable ones are left out."""
    shown = []
    for each in found[:MAX_PICTURES]:
        with contextlib.suppress(ImageError):
            thumbnail = looks.look(stream.read_file(each["uri"])).thumbnail
            shown.append({**each, "jpeg": gallery.jpeg(thumbnail)})
    return shown
