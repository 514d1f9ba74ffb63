"""The manifest: one row an image, with its label, split and group. Every later step reads its images from one."""

import codecs
import contextlib
import csv
import hashlib
import io
import json
import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tlray.errors import DataError, some
from tlray.files import storage

SCHEMA = pa.schema([(name, pa.string()) for name in ("image_id", "uri", "label", "split", "group_id", "sha256")])
"""The columns of a manifest. `sha256` is null until the file has been read; later steps append columns of their own."""

SPLITS = ("train", "valid", "test")
"""The values of the column `split`, besides null."""


def normal_form(name: str) -> str:
    """Returns a name in Unicode's composed form (NFC), in which labels, groups and ids are compared.

    macOS and some archives have `e` and an accent where others have `é`.
    """
    return unicodedata.normalize("NFC", name)


def refuse_repeated(values: Iterable[str], what: str) -> None:
    """Raises a DataError about `what` if a value occurs more than once."""
    repeated = [value for value, count in Counter(values).items() if count > 1]
    if repeated:
        raise DataError(
            f"{what} must be unique; {len(repeated)} occur more than once: {some(repeated)}. Remove the repetitions."
        )


def with_column(table: pa.Table, name: str, values: Sequence[str | None]) -> pa.Table:
    """Returns a manifest with other values in one of its columns."""
    return table.set_column(table.schema.get_field_index(name), SCHEMA.field(name), pa.array(values, pa.string()))


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
    labels, splits, groups, digests = _lists(table, "label", "split", "group_id", "sha256")
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


def _lists(table: pa.Table, *names: str) -> list[list]:
    return [table[name].to_pylist() for name in names]


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


def fingerprint(table: pa.Table) -> str:
    """Returns the sha256 that identifies the images and their labels: over the sorted (image_id, sha256, label)."""
    return _fingerprint(table, "image_id", "sha256", "label")


def split_fingerprint(table: pa.Table) -> str:
    """Returns the sha256 that identifies who is in which split: over the sorted (image_id, split)."""
    return _fingerprint(table, "image_id", "split")


def id_fingerprint(table: pa.Table) -> str:
    """Returns the sha256 that identifies a data set by the names of its images: over the sorted image_id.

    It is the same before and after images are read, labels are mapped and splits are cut.
    """
    return _fingerprint(table, "image_id")


def _fingerprint(table: pa.Table, *names: str) -> str:
    lines = sorted(json.dumps(row) for row in zip(*_lists(table, *names), strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def write_manifest(table: pa.Table, location: str) -> None:
    """Writes a manifest, with whatever columns it has beyond `SCHEMA`, as a Parquet file that appears whole."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    storage.write_bytes(location, sink.getvalue().to_pybytes())


def read_manifest(location: str) -> pa.Table:
    """Reads what `write_manifest` wrote.

    Raises:
        DataError: The file is missing, damaged, or has not all columns of `SCHEMA`.
    """
    try:
        table = pq.read_table(pa.BufferReader(storage.read_bytes(location)))
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"Cannot read the manifest '{location}': {error}. Build it again.") from error
    absent = [name for name in SCHEMA.names if name not in table.column_names]
    if absent:
        raise DataError(f"The manifest '{location}' lacks the columns {some(absent)}. Build it again.")
    return table


def read_csv(data: bytes, location: str) -> dict[str, list[str | None]]:
    """Reads columns of strings, null where empty; labels such as `01` stay as they are.

    Values are separated by commas, semicolons or tabs, whichever gives the header the most columns. The text is UTF-8,
    or UTF-16 with a byte order mark (a spreadsheet's "Unicode text"). Empty rows and columns are left out, and so is a
    first column without a name (the index that pandas writes).

    Raises:
        DataError: It is no such file.
    """
    try:
        rows = _split_rows(_decode_text(data))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"'{location}' is no CSV file: {error}. Save it as comma-separated UTF-8.") from error
    header, *rows = rows or [[]]
    named = [index for index, name in enumerate(header) if name]
    refuse_repeated((header[index] for index in named), f"A column of '{location}'")
    num_needed = max(named, default=-1) + 1
    for number, row in enumerate(rows, start=1):
        if len(row) < num_needed or any(row[len(header) :]):
            raise DataError(
                f"'{location}' has {len(row)} values in row {number} (not counting the header), "
                f"but {len(header)} columns. Quote values that contain the separator."
            )
        stray = [index for index in range(1, min(len(row), len(header))) if row[index] and not header[index]]
        if stray:
            raise DataError(
                f"'{location}' has the value '{row[stray[0]]}' in row {number} (not counting the header), in column "
                f"{stray[0] + 1}, which has no name. Name the column, or quote values that contain the separator."
            )
    return {header[index]: [row[index] or None for row in rows] for index in named}


def _decode_text(data: bytes) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    if b"\0" in data[:1024]:
        raise csv.Error("it has null bytes, as UTF-16 without a byte order mark and binary files have")
    return data.decode("utf-8-sig")  # spreadsheets put a byte order mark first


def _split_rows(text: str) -> list[list[str]]:
    """Returns the rows that are not empty, without the spaces around values."""
    found: dict[str, list[str]] = {}
    for separator in ",;\t":
        with contextlib.suppress(csv.Error):  # the reader below raises it again
            found[separator] = next((row for row in _reader(text, separator) if any(row)), [])
    separator = max(found, key=lambda each: len(found[each]), default=",")
    rows = ([value.strip() for value in row] for row in _reader(text, separator))
    return [row for row in rows if any(row)]


def _reader(text: str, separator: str) -> Iterator[list[str]]:
    return csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)


def labels_by_split(table: pa.Table) -> dict[str, set[str]]:
    """Returns the labels of each split that has any; a null split counts as train."""
    names: dict[str, set[str]] = defaultdict(set)
    for pair in table.select(["split", "label"]).group_by(["split", "label"]).aggregate([]).to_pylist():
        if pair["label"] is not None:
            names[pair["split"] or "train"].add(pair["label"])
    return names
