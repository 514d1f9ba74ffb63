"""Assigns missing splits of a manifest, with each patient's images, and copies and neighbours of one, in one split."""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tlray.data.manifest import SPLITS, column_lists, labels_by_split, with_column
from tlray.errors import DataError, some

PICTURE = "picture"
"""Name of the column with the picture that an image shows: the id of the first of its copies. It is null for images
that cannot be read; a table whose copies were not looked for does not have it."""

PIXELS, SERIES = "pixels", "series"
"""Names of two more such columns: the id of the first image with the same pixels, and that of the first one of the
copies and neighbouring slices that an image is connected with."""

ALIKE = "alike: "
"""The first letters of the name of a group whose images look alike, but whose patients are not named. `tlray audit
--fix` makes such groups."""

MAX_SERIES_SHARE = 0.5
"""Largest share of the images of a class that a series may have and be kept together in a division. Where all slices
look alike, neighbours of neighbours can be of many patients. Without longer series each class has two groups at least.
"""

LARGE = 2
"""A group that has more than this many times the images that are wanted for a split, and as many times those of a mean
group, is moved only if the others do not suffice."""

MAX_MOVED = 2
"""A split takes at most this many times its fraction of the groups of a label that are not `LARGE`. Otherwise the large
groups, which stay in train, would make all the others go."""


def assign_splits(table: pa.Table, *, seed: int, fraction: float = 0.15) -> pa.Table:
    """Fills missing splits by moving whole groups from train to them, and returns the table with the new splits.

    A split is missing if it has no labelled image. Given splits are kept, and a labelled image without one gets train.
    For each label its groups, sorted by the sha256 of `SEED:GROUP_ID`, go first to test and then to valid, each until
    it has `fraction` of the label's images in train and at least one group, see `MAX_MOVED`. `LARGE` groups, and series
    that a given valid or test split parts, come last. A group with a patient or picture in a given valid or test split
    is never moved. A group with several labels counts for its most common one (if equal, the first by name). Every
    label keeps a training group; if both splits are missing and a label has two groups, valid gets one and test none.
    Unlabelled rows in train follow their group; those without a split keep none. Groups that share a picture or a
    series count as one, because they would leak from train to test otherwise; see `dividing_groups`. The order of rows
    makes no difference.

    Args:
        table: A manifest with unified classes.
        seed: Seed of the choice of groups.
        fraction: Share of a label's training images to move to each missing split, in (0, 0.5).

    Returns:
        The table with splits for all labelled rows.
    """
    labels, splits = column_lists(table, "label", "split")
    groups, known = dividing_groups(table), image_groups(table)
    splits = [split or ("train" if label else None) for label, split in zip(labels, splits, strict=True)]
    rows = list(zip(labels, splits, groups, strict=True))
    missing_splits = missing(table)
    # Given splits may part a series: what is near one of them is moved last, and never with a copy or patient there.
    near = {group for _, split, group in rows if split in ("valid", "test")}
    held = {each for (_, split, _), each in zip(rows, known, strict=True) if split in ("valid", "test")}
    elsewhere = {
        group for (_, split, group), each in zip(rows, known, strict=True) if split == "train" and each in held
    }
    label_counts: dict[str, Counter[str]] = defaultdict(Counter)
    for label, split, group in rows:
        if label and split == "train":
            label_counts[group][label] += 1
    cut = _cut_groups(label_counts, elsewhere, near, missing_splits, seed=seed, fraction=fraction)
    return with_column(
        table, "split", [cut.get(group, split) if split == "train" else split for _, split, group in rows]
    )


def missing(table: pa.Table) -> list[str]:
    """Returns the splits that `assign_splits` fills, in its order; none if the table has no labels."""
    labels, splits = column_lists(table, "label", "split")
    given = {split for label, split in zip(labels, splits, strict=True) if label}
    return [split for split in ("test", "valid") if split not in given] if any(labels) else []


def image_groups(table: pa.Table) -> list[str]:
    """Returns the group of each image: its patient, joined with all patients that have a copy of one of the images.

    A model that has learned from one image of a group knows the others.

    Args:
        table: A manifest. Copies have the same `PICTURE`, or, if the table does not have it, the same sha256.

    Returns:
        The group of each row; groups that share a picture are merged and have the first of their names.
    """
    groups, pictures = column_lists(table, "group_id", PICTURE if PICTURE in table.column_names else "sha256")
    return _merged(groups, pictures)


def independent_groups(table: pa.Table) -> list[str]:
    """Returns the group of each image as `image_groups` does, joined with the neighbouring slices of its images, too.

    Images of a group are not independent: they count as one in an interval. Neighbours are joined where their patients
    are not named. They are likely slices of one patient, but it is not sure: they are kept together, not left out.

    Args:
        table: A manifest. Slices of a series have the same `SERIES`; without this column, series count for nothing.

    Returns:
        The group of each row; groups that share a series are merged and have the first of their names.
    """
    return _merged(image_groups(table), unnamed_series(table))


def dividing_groups(table: pa.Table) -> list[str]:
    """Returns the groups that stay whole where images are divided into splits or folds.

    These are the groups of `independent_groups`, but the series of `long_series` count for nothing.

    Args:
        table: See `independent_groups`.
    """
    long = long_series(table)
    return _merged(image_groups(table), [None if each in long else each for each in unnamed_series(table)])


def long_series(table: pa.Table) -> dict[str, set[str]]:
    """Returns the series with more than `MAX_SERIES_SHARE` of the images of a class, and these classes of each.

    Args:
        table: See `independent_groups`.
    """
    labels, series = table["label"].to_pylist(), unnamed_series(table)
    num_images = Counter(label for label in labels if label)
    counts = Counter((each, label) for each, label in zip(series, labels, strict=True) if each is not None and label)
    found: dict[str, set[str]] = defaultdict(set)
    for (each, label), count in counts.items():
        if count > MAX_SERIES_SHARE * num_images[label]:
            found[each].add(label)
    return dict(found)


def unnamed_series(table: pa.Table) -> list[str | None]:
    """Returns the series of each image; None where it is not known, or the patient is named.

    Args:
        table: See `independent_groups`.
    """
    if SERIES not in table.column_names:
        return [None] * len(table)
    series = table[SERIES].to_pylist()
    return [
        None if is_named else each for is_named, each in zip(has_named_patient(table).tolist(), series, strict=True)
    ]


def has_named_patient(table: pa.Table) -> np.ndarray:
    """Tells which images have a named patient: a group that is neither the image's own id nor one of `ALIKE`.

    Args:
        table: A manifest.

    Returns:
        bool [images].
    """
    ids, groups = column_lists(table, "image_id", "group_id")
    return np.array(
        [group != image_id and not group.startswith(ALIKE) for image_id, group in zip(ids, groups, strict=True)],
        dtype=bool,
    )


LEARNED_FROM: Mapping[str, tuple[str, ...]] = {"valid": ("train",), "test": ("train", "valid")}
"""The splits that a model has seen before it is measured on one; the validation images choose the model."""


def has_leaked(table: pa.Table) -> np.ndarray:
    """Tells which images of valid and test are not independent of what the model learned from.

    Args:
        table: A manifest with splits.

    Returns:
        bool [images]: true if the image's group (see `image_groups`) has images in a split of `LEARNED_FROM`.
    """
    return in_learned_group(image_groups(table), table["split"].to_pylist())


def in_learned_group(groups: Sequence[Any], splits: Sequence[str | None]) -> np.ndarray:
    """Tells which images of valid and test are in a group with images that the model learned from.

    Args:
        groups: The group of each image, of values that can be hashed; None: it is in no group.
        splits: The split of each image.

    Returns:
        bool [images]: true if the group has images in a split of `LEARNED_FROM`.
    """
    splits_of: dict[Any, set[str | None]] = defaultdict(set)
    for group, split in zip(groups, splits, strict=True):
        splits_of[group].add(split)
    return np.array(
        [
            group is not None and not splits_of[group].isdisjoint(LEARNED_FROM.get(split or "", ()))
            for group, split in zip(groups, splits, strict=True)
        ],
        dtype=bool,
    )


def _merged(groups: Sequence[str], pictures: Sequence[str | None]) -> list[str]:
    names, group_of_row = np.unique(np.array(groups, dtype=object).astype(str), return_inverse=True)
    has_picture = np.array([picture is not None for picture in pictures], dtype=bool)
    if not has_picture.any():
        return list(groups)
    known = [picture for picture in pictures if picture is not None]
    _, picture_of_row = np.unique(np.array(known), return_inverse=True)
    num_nodes = len(names) + int(picture_of_row.max()) + 1
    ends = (group_of_row[has_picture], picture_of_row + len(names))
    links = coo_array((np.ones(len(known), dtype=np.int8), ends), shape=(num_nodes, num_nodes))
    _, component = connected_components(links, directed=False)
    first_name = dict(zip(component[: len(names)][::-1], names[::-1], strict=True))
    return [str(first_name[component[group]]) for group in group_of_row]


def _cut_groups(
    label_counts: Mapping[str, Counter[str]],
    elsewhere: set[str],
    near: set[str],
    missing: Sequence[str],
    *,
    seed: int,
    fraction: float,
) -> dict[str, str]:
    """Returns the new split of each group that is moved.

    Args:
        label_counts: For each group in train, its number of training images by label.
        elsewhere: Groups with a patient or picture in a given valid or test split, which are not moved.
        near: Groups with images in a given valid or test split, which are moved only if the others do not suffice.
        missing: The splits to fill, in this order.
        seed: See `assign_splits`.
        fraction: See `assign_splits`.
    """
    groups_of: dict[str, list[str]] = defaultdict(list)
    num_train_groups: Counter[str] = Counter()
    for group, counts in label_counts.items():
        groups_of[min(counts, key=lambda label: (-counts[label], label))].append(group)
        num_train_groups.update(counts.keys())
    cut: dict[str, str] = {}
    for label, groups in sorted(groups_of.items()):
        num_images = sum(label_counts[group].total() for group in groups)
        # Round first, because 0.15 * 340 is slightly above 51 in binary floating point.
        num_wanted = max(1, math.ceil(round(fraction * num_images, 6)))
        too_large = LARGE * max(num_wanted, num_images / len(groups))
        free = sorted(
            (group for group in groups if group not in elsewhere),
            key=lambda group: (
                group in near,
                label_counts[group].total() > too_large,
                hashlib.sha256(f"{seed}:{group}".encode()).hexdigest(),
            ),
        )
        num_small = sum(label_counts[group].total() <= too_large for group in groups)
        max_moved = max(1, math.ceil(round(MAX_MOVED * fraction * num_small, 6)))
        for index, split in enumerate(missing):
            num_reserved = len(missing) - 1 - index  # one group for each split still to be filled
            num_cut = num_moved = 0
            for group in free.copy():
                is_full = num_cut >= num_wanted or num_moved >= max_moved
                if is_full or len(free) <= num_reserved or num_train_groups[label] < 2 + num_reserved:
                    break
                if all(num_train_groups[other] >= 2 for other in label_counts[group]):
                    cut[group] = split
                    free.remove(group)
                    num_cut += label_counts[group].total()
                    num_moved += 1
                    num_train_groups.subtract(label_counts[group].keys())
    return cut


def check_trainable(table: pa.Table) -> list[str]:
    """Checks that a classifier can be trained on a manifest with splits.

    Args:
        table: A manifest of readable images, after `unify_classes` and `assign_splits`.

    Returns:
        The classes, sorted.

    Raises:
        DataError: There are fewer than two classes, one has no training image, or there is no validation image.
    """
    names = labels_by_split(table)
    classes = sorted(set().union(*names.values()))
    if len(classes) < 2:
        raise DataError(
            f"Training needs at least two classes; the readable images have {some(classes) or 'no labels'}. Use class "
            "folders (ROOT/CLASS/*, no images beside them) or a manifest with a column 'label'."
        )
    lacking = [label for label in classes if label not in names.get("train", ())]
    if lacking:
        listed = ", ".join(f"'{label}' (in {', '.join(s for s in SPLITS if label in names[s])})" for label in lacking)
        raise DataError(
            f"There is no readable training image of {listed}. Add some, or take those classes out of the other splits."
        )
    if "valid" not in names:
        raise DataError(
            "There is no readable, labelled validation image. Add a 'valid' split, or more images or patients for a "
            "class, so that one can be cut from train (at least two groups of a class)."
        )
    return classes
