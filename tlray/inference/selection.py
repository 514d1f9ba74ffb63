"""Selects the images to label next from scored ones, and turns the selection into a table, counts and notes.

`tlray.inference.suggest` uses it; nothing here needs Ray or a model.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tlray.bundle.spec import BundleSpec
from tlray.data import audit
from tlray.errors import DataError, counted
from tlray.files import spreadsheet
from tlray.trust import suggestions
from tlray.trust.suggestions import Seen

BY_UNCERTAINTY = (
    "The bundle has no novelty score, so the images were chosen by their uncertainty alone: some may be much alike, or "
    "unlike the training images. Bundles of `tlray train` have the score if there were enough images."
)
"""Note about a selection for which the places of the images were not known."""


Find = Callable[[Sequence[int]], Seen]
"""A function that looks at images, given by their indices, and tells which are copies."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scored:
    """Predictions for images, and where the images lie.

    Attributes:
        predictions: A row for each image, see `predictions.prediction_schema`.
        places_BC: Where the images lie in the space that the training images span, floating point [images, components],
            see `Novelty.place`; NaN for images that could not be scored. None: the bundle has no novelty score.
    """

    predictions: pa.Table
    places_BC: np.ndarray | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Selection:
    """The images that were selected from scored ones.

    Attributes:
        rows: Their predictions, the most wanted image first, see `predictions.prediction_schema`. At least one.
        probs_BK: Their class probabilities, float32 [images, K].
        num_by_error: Number of images that could not be scored, by error code.
        num_scored: Number of images that could be scored.
        num_foreign: Number of scored images that are unlike the training images. None of them was selected.
        num_known: Number of images that were left out as copies of training images, of those whose pictures were looked
            at; None: the bundle has no pictures to compare them with.
        is_diverse: True if images that differ were preferred; false if the places of the images were not known.
    """

    rows: pa.Table
    probs_BK: np.ndarray
    num_by_error: dict[str, int]
    num_scored: int
    num_foreign: int
    num_known: int | None
    is_diverse: bool

    @property
    def num_unsure(self) -> int:
        """Number of the selected images of which the model is not sure, see `suggestions.SURE`."""
        return int(suggestions.is_unsure(self.probs_BK).sum())


def select(
    scored: Scored,
    spec: BundleSpec,
    *,
    count: int,
    search: Callable[[pa.ChunkedArray, np.ndarray | None], Find] | None = None,
) -> Selection:
    """Selects images to label; see `suggestions.choose`.

    Args:
        scored: The images to select from.
        spec: The description of the bundle that scored them.
        count: Number of images that are wanted, positive.
        search: Returns a function that finds copies among the scored images, given their uris and places (see
            `Scored`; None: they are not known), in the same order. None: copies are told by their places alone.

    Raises:
        DataError: No image could be scored, or all are unlike the training images or copies of them.
    """
    is_scored = scored.predictions["error_code"].is_null()
    rows = scored.predictions.filter(is_scored)
    if not rows.num_rows:
        why = audit.explain_failures(scored.predictions)
        raise DataError(f"None of the {scored.predictions.num_rows} images without a label could be scored, {why}")
    probs_BK = np.column_stack([rows[f"p_{name}"].to_numpy() for name in spec.classes])
    ood_scores = rows["ood_score"].fill_null(math.nan).to_numpy()
    limit = spec.limits.max_ood_score
    num_foreign = int(suggestions.is_foreign(ood_scores, limit).sum())
    if num_foreign == rows.num_rows:
        raise DataError(
            f"All {num_foreign} images that could be scored are unlike the training images of the bundle (their "
            f"ood_score is above {limit:.3g}), so none is suggested. Give images of the same kind."
        )
    places_BC = None
    # All scores are NaN if the bundle has a novelty score but its model gives no features for it.
    if scored.places_BC is not None and not np.isnan(ood_scores).all():
        places_BC = scored.places_BC[is_scored.to_numpy()]
    images = (probs_BK, ood_scores, limit, places_BC)
    shortlist = functools.partial(suggestions.shortlist, *images)
    num_compared = suggestions.SHORTLIST * count
    seen = _look(shortlist, search(rows["uri"], places_BC), num_compared) if search else suggestions.NOTHING
    chosen = suggestions.choose(*images, count=count, seen=seen)
    if not chosen:
        raise DataError(
            f"All {rows.num_rows - num_foreign} images that could be scored and are like the training images of the "
            "bundle are copies of them, so none is suggested. Give other images."
        )
    codes = scored.predictions["error_code"].drop_null().to_pylist()
    return Selection(
        rows=rows.take(pa.array(chosen, pa.int64())),
        probs_BK=probs_BK[chosen],
        num_by_error=dict(Counter(codes)),
        num_scored=rows.num_rows,
        num_foreign=num_foreign,
        num_known=None if seen.known is None else len(seen.known),
        is_diverse=places_BC is not None,
    )


def _look(shortlist: Callable[..., list[int]], find: Find, num_wanted: int) -> Seen:
    """Looks at the shortlist and lists anew without the copies, until all images on the list have been looked at.

    So only few images are read. If many are copies, ever more are looked at in a turn: twice as many as before if all
    are.

    Args:
        shortlist: `suggestions.shortlist`, without `num_wanted` and `seen`.
        find: See `Find`.
        num_wanted: Number of images on the list.
    """
    seen, looked_at = suggestions.NOTHING, set[int]()
    while True:
        listed = shortlist(num_wanted=max(num_wanted, len(looked_at)), seen=seen)
        if looked_at.issuperset(listed[:num_wanted]):
            return seen
        looked_at.update(listed)
        seen = find(sorted(looked_at))


def csv_table(selection: Selection, classes: Sequence[str]) -> pa.Table:
    """Returns a row for each selected image, for people who fill in the labels.

    It is a manifest, too, with absolute uris. No text is one that a spreadsheet takes for a formula.

    Columns: `rank` (from 1), `image_id`, `uri`, `label` (null, to be filled in), `predicted_label`, `confidence` and
    `uncertainty` (float32, in [0, 1]), `second_label` (the second most probable class), and `group_id` (the patient;
    null where none is known).

    Args:
        selection: The selected images.
        classes: The K class names in the order of the model's outputs, at least two.
    """
    rows = selection.rows
    second = np.argsort(-selection.probs_BK, axis=1, kind="stable")[:, 1]
    ids, groups = rows["image_id"].to_pylist(), rows["group_id"].to_pylist()
    columns: dict[str, Any] = {
        "rank": np.arange(1, rows.num_rows + 1),
        "image_id": _to_safe_texts(ids),
        "uri": rows["uri"],  # starts with a slash or a scheme, so it is never taken for a formula
        "label": pa.nulls(rows.num_rows, pa.string()),
        "predicted_label": _to_safe_texts(rows["predicted_label"].to_pylist()),
        "confidence": rows["confidence"],
        "uncertainty": suggestions.uncertainty(selection.probs_BK),
        "second_label": _to_safe_texts([str(classes[k]) for k in second.tolist()]),
        # An image without a patient has its own id as its group.
        "group_id": _to_safe_texts([None if group == own else group for group, own in zip(groups, ids, strict=True)]),
    }
    return pa.table(columns)


def _to_safe_texts(texts: Sequence[str | None]) -> pa.Array:
    return pa.array([None if text is None else spreadsheet.as_text(text) for text in texts], pa.string())


def summarize(selection: Selection, spec: BundleSpec) -> dict[str, Any]:
    """Returns the counts of a selection.

    Returns:
        Only str, int, float, bool, None, list and dict:

        - `num_scored`, `num_by_error`, `num_foreign`, `num_known`, `is_diverse`: see `Selection`;
        - `num_suggested`: number of selected images;
        - `num_unsure`: number of these of which the model is not sure, see `suggestions.SURE`;
        - `uncertainty_range`: the lowest and the highest uncertainty of the selected images, each in [0, 1];
        - `max_ood_score`: the score above which an image is unlike the training images; None: it is not known;
        - `copy_distance`: see `suggestions.COPY_DISTANCE`.
    """
    found = suggestions.uncertainty(selection.probs_BK)
    return {
        "num_scored": selection.num_scored,
        "num_by_error": selection.num_by_error,
        "num_foreign": selection.num_foreign,
        "num_known": selection.num_known,
        "num_suggested": selection.rows.num_rows,
        "num_unsure": selection.num_unsure,
        "is_diverse": selection.is_diverse,
        "uncertainty_range": [float(found.min()), float(found.max())],
        "max_ood_score": spec.limits.max_ood_score,
        "copy_distance": suggestions.COPY_DISTANCE,
    }


def notes_on(selection: Selection, *, count: int, max_shown: int) -> tuple[str, ...]:
    """Returns remarks for people on what is special about a selection; none if nothing is.

    Args:
        selection: The selected images.
        count: Number of images that were wanted.
        max_shown: Maximum number of images on the contact sheet.
    """
    notes = [] if selection.is_diverse else [BY_UNCERTAINTY]
    num_selected = selection.rows.num_rows
    if num_selected < count:
        num_known = selection.num_known or 0
        num_copies = selection.num_scored - selection.num_foreign - num_known - num_selected
        others = [
            f"{number} {'is a copy' if number == 1 else 'are copies'} of {what}"
            for number, what in ((num_copies, "these"), (num_known, "training images"))
            if number
        ]
        why = f"of the others {' and '.join(others)}" if others else "there are no more to choose from"
        are = "is" if num_selected == 1 else "are"
        notes.append(f"Only {counted(num_selected, 'image')} {are} suggested, not {count}: {why}.")
    num_sure = num_selected - selection.num_unsure
    if num_sure:
        notes.append(
            f"The model is sure of {num_sure} of these {num_selected} images (confidence of {suggestions.SURE:g} or "
            "more). Their labels would help little: leave them out, or give more images to choose from."
        )
    if num_selected > max_shown:
        notes.append(f"The contact sheet shows the first {max_shown} images.")
    return tuple(notes)
