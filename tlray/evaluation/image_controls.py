"""Looks for shortcuts in measured images, and measures controls on them, where these are not the model's own files.

An evaluation on other data needs both, to tell whether the measured accuracy takes the anatomy. So does one on other
files with the same ids, such as those of the training with their borders cropped off. In the files that the training
read it has looked already; see `tlray.evaluation.doubts`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray.bundle.lookalikes import KeptImages
from tlray.data import looks
from tlray.evaluation.relations import Relations, joint_directions
from tlray.evaluation.scope import Scope
from tlray.trust import controls, elsewhere

SEED = 0
"""Seed of the folds, forests and permutations, so that a repeated evaluation gives the same figures."""


def find(
    images: Scope,
    seen: pa.Table,
    predicted: pa.Table,
    related: Relations,
    *,
    kept: KeptImages | None,
    classes: Sequence[str],
    split: str,
    call: Callable[[Sequence[Callable[[], Any]]], list[Any]],
) -> dict[str, Any]:
    """Returns shortcuts and controls of the measured images that could be read and scored.

    Args:
        images: The scope.
        seen: What was seen in them, see `relations.look`.
        predicted: Predictions for them, with `PLACES` where the bundle knows them.
        related: Their groups, and which of them the model knows.
        kept: The training images that the bundle keeps; None: it keeps none.
        classes: The bundle's classes.
        split: Name of the measured split, or `all`.
        call: Calls functions that take seconds each, see `connection.call_in_tasks`.

    Returns:
        See `elsewhere.find`. Empty for the files that the model's training read.
    """
    if images.has_own_files:
        return {}
    scored = predicted.filter(pc.field("confidence").is_valid())["image_id"].combine_chunks()
    slim = seen.drop_columns(["thumbnail"])  # memory
    rows = slim.filter(pc.field("error_code").is_null() & pc.field("image_id").isin(scored))
    image_ids, known = rows["image_id"].to_pylist(), related.leaked or frozenset()
    return elsewhere.find(
        looks.traits_of(rows),
        rows["label"].to_pylist(),
        [related.group_of[image_id] for image_id in image_ids],
        fold_groups=[related.fold_group_of[image_id] for image_id in image_ids],
        is_new=np.array([image_id not in known for image_id in image_ids], dtype=bool),
        nearest=_nearest_labels(rows, predicted, kept, classes),
        split=split,
        seed=SEED,
        call=call,
    )


def _nearest_labels(
    rows: pa.Table, predicted: pa.Table, kept: KeptImages | None, classes: Sequence[str]
) -> list[str] | None:
    """Returns the label of the most similar kept training image for each image; None if that cannot be told."""
    joint = None if kept is None else joint_directions(rows, predicted, kept.directions)
    if kept is None or joint is None:
        return None
    nearest = controls.nearest(joint[rows.num_rows :], joint[: rows.num_rows])
    return [classes[int(index)] for index in kept.labels[nearest]]
