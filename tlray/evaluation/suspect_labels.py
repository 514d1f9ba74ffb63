"""Lists images whose labels are likely wrong, for a person to check: as a table, and with pictures for a report.

A training has the probabilities of its probes, see `find`. An audit has features only: `check` fits probes on them.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from scipy import special

from tlray.data import looks, splits, stream
from tlray.data.audit import MAX_EXAMPLES
from tlray.errors import ImageError, some
from tlray.files import spreadsheet, storage
from tlray.probe import held_out, regression
from tlray.trust import gallery, suspects
from tlray.trust.groups import in_two_groups

FILE = "suspect_labels.csv"
"""Name of the table in an output directory."""

MAX_PICTURES = 24
"""Maximum number of images that a report shows, the first ones of `find`."""

NUM_FOLDS = 5
"""Number of folds of the probes of `check`: the default of `tlray train`."""

TEXTS, NUMBERS = ("image_id", "split", "label", "suggested"), ("label_prob", "suggested_prob")


def find(rows: pa.Table, labels: np.ndarray, classes: Sequence[str], probs_BK: np.ndarray) -> list[dict[str, Any]]:
    """Returns the images whose labels are likely wrong, first those least probable beside the suggested class.

    Args:
        rows: The images, with `image_id`, `uri` and `split`, with `sha256` if it is known, and `splits.PICTURE` if
            copies were looked for.
        labels: Their class indices, int [images].
        classes: The class names.
        probs_BK: Probabilities from models that were not trained on the image, floating point [images, K].

    Returns:
        For each suspect `image_id`, `uri`, `split`, `label`, `suggested` (the class that is likely), `label_prob` and
        `suggested_prob` (the probabilities of both, in [0, 1]); and `sha256` and `splits.PICTURE` if the rows have
        them.
    """
    names = ("image_id", "uri", "sha256", "split", splits.PICTURE)
    known = rows.select([name for name in names if name in rows.column_names]).to_pylist()
    return [
        known[each.place]
        | {
            "label": classes[each.label],
            "suggested": classes[each.suggested],
            "label_prob": each.label_prob,
            "suggested_prob": each.suggested_prob,
        }
        for each in suspects.find(probs_BK, labels)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """The labels of a data set, checked by probes.

    Attributes:
        num_images: Number of images whose labels were to be checked: those with a label, but for classes that are left
            out.
        suspects: Those whose labels are likely wrong, see `find`; None: the labels could not be checked.
        note: Why they could not be checked, or which classes are left out; otherwise empty.
    """

    num_images: int
    suspects: list[dict[str, Any]] | None = None
    note: str = ""

    def describe(self) -> dict[str, Any]:
        """Returns what an audit says of the labels, a value that can be written as JSON.

        It has `num_images`, `num_suspects` (null: not checked), `note`, and `examples`: the first rows of `FILE`.
        """
        found = self.suspects or []
        return {
            "num_images": self.num_images,
            "num_suspects": None if self.suspects is None else len(found),
            "note": self.note,
            "examples": [{name: each[name] for name in (*TEXTS, *NUMBERS)} for each in found[:MAX_EXAMPLES]],
        }


def check(readable: pa.Table, pooled_BD: np.ndarray, *, memory_bytes: float, seed: int) -> Checked:
    """Looks for labels that are likely wrong, by linear probes that were fitted without the image.

    As in a training, patients, copies of a picture and neighbouring slices are held out together, and all classes count
    alike.

    Args:
        readable: The images that can be read, with `splits.PICTURE`.
        pooled_BD: Their pooled features, floating point [images, features].
        memory_bytes: Memory for fitting the probes, in bytes.
        seed: Seed of the folds.
    """
    places = np.flatnonzero(readable["label"].is_valid())
    names = np.array(readable["label"].take(pa.array(places)).to_pylist(), dtype=str)
    groups = np.array(splits.dividing_groups(readable.take(pa.array(places))), dtype=str)
    is_testable = in_two_groups(*(np.unique(each, return_inverse=True)[1] for each in (names, groups)))
    left_out = some(np.unique(names[~is_testable]).tolist()) if not is_testable.all() else ""
    note = f"classes left out, each of one patient or picture only: {left_out}" if left_out else ""
    rows, groups = readable.take(pa.array(places[is_testable])), groups[is_testable]
    classes, labels = np.unique(names[is_testable], return_inverse=True)
    if len(classes) < 2:
        return Checked(num_images=rows.num_rows, note="it takes two classes, each with images of two patients")
    needed = regression.memory_bytes(rows.num_rows * (NUM_FOLDS - 1) // NUM_FOLDS, pooled_BD.shape[1], len(classes))
    if needed > memory_bytes:
        room = f"probes would take {needed / 1e9:.1f} GB, and there are {memory_bytes / 1e9:.1f} GB"
        remedy = "give fewer images, or a --backbone with fewer features"
        return Checked(num_images=rows.num_rows, note="; ".join(filter(None, (room, remedy, note))))
    logits_BK = held_out.logits(
        pooled_BD[places[is_testable]],
        labels,
        groups,
        num_classes=len(classes),
        balanced=True,
        inverse_penalty=None,
        num_folds=NUM_FOLDS,
        seed=seed,
    )
    if logits_BK is None:
        return Checked(num_images=rows.num_rows, note="patients with several classes leave too few for each class")
    probs_BK = special.softmax(logits_BK.astype(np.float64), axis=1)
    return Checked(num_images=rows.num_rows, suspects=find(rows, labels, classes.tolist(), probs_BK), note=note)


def write(out: str, found: Sequence[Mapping[str, Any]]) -> None:
    """Writes `FILE`, a row for each image of `find`."""
    columns: dict[str, Any] = {
        **{name: pa.array([_as_text(each[name]) for each in found], pa.string()) for name in TEXTS},
        **{name: pa.array([each[name] for each in found], pa.float32()) for name in NUMBERS},
    }
    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(pa.table(columns), sink)
    storage.write_bytes(storage.join(out, FILE), sink.getvalue().to_pybytes())


def _as_text(value: str | None) -> str | None:
    return None if value is None else spreadsheet.as_text(value)


def with_pictures(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the first images of `find` with `jpeg` (base64) for the report.

    Of copies of a picture only the first is shown. Images that cannot be read any more, or have changed, are left out.
    """
    first_of: dict[str, Mapping[str, Any]] = {}
    for each in found:
        first_of.setdefault(each.get(splits.PICTURE) or each["image_id"], each)
    shown = []
    for each in list(first_of.values())[:MAX_PICTURES]:
        with contextlib.suppress(ImageError):
            thumbnail = looks.look(stream.read_file(each["uri"], sha256=each.get("sha256"))).thumbnail
            shown.append({**each, "jpeg": gallery.jpeg(thumbnail)})
    return shown
