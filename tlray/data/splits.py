"""Splits of a manifest: what is missing is cut from train, patients and copies of an image kept together."""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tlray.data.manifest import SPLITS, column_lists, labels_by_split, with_column
from tlray.errors import DataError, some


def assign_splits(table: pa.Table, *, seed: int, fraction: float = 0.15) -> pa.Table:
    """Cuts the splits that the data does not give from train, whole groups at a time.

    Given splits are kept, and a null split counts as train. A split counts as given if it has a labelled image. Within
    each label the groups, sorted by the sha256 of `SEED:GROUP_ID`, go first to test and then to valid, each until it
    has `fraction` of the label's images in train and at least one group. A group with several labels goes with its
    commonest one (of equally common ones the first by name). Every label keeps a training group; where both splits
    are missing and a label has two groups, valid gets one and test none. A group with images in a given valid or test
    split is never cut. Unlabelled rows in train follow their group; those without a split stay so. Groups that share an
    image, byte by byte, count as one, or its copies would leak from train to test. The order of rows makes no
    difference.

    Args:
        table: A manifest with unified classes.
        seed: Chooses which groups are cut.
        fraction: Share of a label's training images to cut for each missing split, in (0, 0.5).

    Returns:
        The table with splits for all labelled rows.
    """
    labels, splits, groups, digests = column_lists(table, "label", "split", "group_id", "sha256")
    groups = groups_with_copies(groups, digests)
    splits = [split or ("train" if label else None) for label, split in zip(labels, splits, strict=True)]
    rows = list(zip(labels, splits, groups, strict=True))
    given = {split for label, split, _ in rows if label}
    missing = [split for split in ("test", "valid") if split not in given]
    elsewhere = {group for _, split, group in rows if split in ("valid", "test")}
    label_counts: dict[str, Counter[str]] = defaultdict(Counter)
    for label, split, group in rows:
        if label and split == "train":
            label_counts[group][label] += 1
    cut = _cut_groups(label_counts, elsewhere, missing, seed=seed, fraction=fraction)
    return with_column(
        table, "split", [cut.get(group, split) if split == "train" else split for _, split, group in rows]
    )


def groups_with_copies(groups: Sequence[str], digests: Sequence[str | None]) -> list[str]:
    """Joins groups that share an image.

    Args:
        groups: Each row's group.
        digests: The sha256 of each row's file; None where it is not known.

    Returns:
        Each row's group, groups with byte-identical images joined under the first of their names.
    """
    names, group_of_row = np.unique(np.array(groups, dtype=object).astype(str), return_inverse=True)
    has_digest = np.array([digest is not None for digest in digests], dtype=bool)
    if not has_digest.any():
        return list(groups)
    known = [digest for digest in digests if digest is not None]
    _, digest_of_row = np.unique(np.array(known), return_inverse=True)
    num_nodes = len(names) + int(digest_of_row.max()) + 1
    ends = (group_of_row[has_digest], digest_of_row + len(names))
    links = coo_array((np.ones(len(known), dtype=np.int8), ends), shape=(num_nodes, num_nodes))
    _, component = connected_components(links, directed=False)
    first_name = dict(zip(component[: len(names)][::-1], names[::-1], strict=True))
    return [str(first_name[component[group]]) for group in group_of_row]


def _cut_groups(
    label_counts: Mapping[str, Counter[str]], elsewhere: set[str], missing: Sequence[str], *, seed: int, fraction: float
) -> dict[str, str]:
    """Returns the new split of each group to cut. `label_counts`: for each group in train, its images by label."""
    groups_of: dict[str, list[str]] = defaultdict(list)
    num_train_groups: Counter[str] = Counter()
    for group, counts in label_counts.items():
        groups_of[min(counts, key=lambda label: (-counts[label], label))].append(group)
        num_train_groups.update(counts.keys())
    cut: dict[str, str] = {}
    for label, groups in sorted(groups_of.items()):
        num_images = sum(label_counts[group].total() for group in groups)
        # Rounded first: 0.15 * 340 is a little above 51 in binary.
        num_wanted = max(1, math.ceil(round(fraction * num_images, 6)))
        free = sorted(
            (group for group in groups if group not in elsewhere),
            key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).hexdigest(),
        )
        for index, split in enumerate(missing):
            num_reserved = len(missing) - 1 - index  # one group for each split still to be cut
            num_cut = 0
            for group in free.copy():
                if num_cut >= num_wanted or len(free) <= num_reserved or num_train_groups[label] < 2 + num_reserved:
                    break
                if all(num_train_groups[other] >= 2 for other in label_counts[group]):
                    cut[group] = split
                    free.remove(group)
                    num_cut += label_counts[group].total()
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
            "class, so that one can be cut from train (two groups of a class at least)."
        )
    return classes
