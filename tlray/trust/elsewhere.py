"""Finds shortcuts in measured images, and controls of them, where the model's training images are not at hand."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from tlray.trust import controls, shortcuts
from tlray.trust.findings import describe_control, describe_shortcuts


def find(
    traits: pa.Table,
    labels: Sequence[str],
    groups: Sequence[str],
    *,
    fold_groups: Sequence[str],
    is_new: np.ndarray,
    nearest: Sequence[str] | None,
    split: str,
    seed: int,
    call: Callable[[Sequence[Callable[[], Any]]], list[Any]],
) -> dict[str, Any]:
    """Returns the findings about measured images of other data than the model's, whose training images are not there.

    Args:
        traits: The traits of the images, from `traits.to_table`.
        labels: The class of each image.
        groups: The group of each image, such as its patient; copies of an image should be in one group. Intervals and
            p-values count them.
        fold_groups: The group of each image that stays whole in the cross-validation, see `splits.dividing_groups`.
        is_new: Which of them the model does not know from its training, bool [images].
        nearest: The label of the most similar training image for each image; None: it is not known.
        split: Name of the measured split, or `all`.
        seed: See `findings.find`.
        call: See `findings.find`.

    Returns:
        Findings as those of `findings.find`. The controls are of the new images, and null where these have fewer than
        two classes: `shortcuts`; `traits_control`, by the forest of all traits that is cross-validated on all these
        images, null if there were no tests of one of their classes; `neighbour_control`, null without `nearest`, too;
        and `permuted_control`, always null, as it takes features of the training images.
    """
    control = partial(_control_of, labels=labels, groups=groups, is_new=is_new, split=split, seed=seed)
    find_shortcuts = partial(shortcuts.find, traits, labels, fold_groups, seed=seed)
    look_up = partial(control, "nearest neighbour", dict(enumerate(nearest or ())))
    found, by_neighbour = call([find_shortcuts, look_up])
    # A control on some of the classes says nothing about an accuracy on all of them.
    is_part = any(label in found.left_out for label, new in zip(labels, is_new.tolist(), strict=True) if new)
    return {
        "shortcuts": describe_shortcuts(found, "classes"),
        "traits_control": None if is_part else control("traits", found.held_out),
        "neighbour_control": by_neighbour,
        "permuted_control": None,
    }


def _control_of(
    name: str,
    predicted: Mapping[int, str],
    *,
    labels: Sequence[str],
    groups: Sequence[str],
    is_new: np.ndarray,
    split: str,
    seed: int,
) -> dict[str, Any] | None:
    """Returns a control, given the predicted classes by the rows of their images; see `find`."""
    rows = [row for row in predicted if is_new[row]]
    true = [labels[row] for row in rows]
    if len(set(true)) < 2:
        return None
    told, grouped = [predicted[row] for row in rows], [groups[row] for row in rows]
    return describe_control(controls.by_predictions(name, told, true, grouped, seed=seed), split)
