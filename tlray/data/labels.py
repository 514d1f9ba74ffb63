"""Maps labels to classes: to the same names in all splits, to the classes of a model, or by a class map."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa

from tlray.data.manifest import labels_by_split, normal_form, refuse_repeated, with_column
from tlray.data.tables import read_csv
from tlray.errors import DataError, some
from tlray.files import spreadsheet, storage

_NEGATION = re.compile(r"no|not|without|free|absent|(non|neg).*")
"""Words that turn the meaning of a name around, also as in `nonmalignant` or `neg1`."""

_BEFORE = frozenset({"no", "non", "not", "without"})
"""Those that stand before what they negate, so that alone they name no class."""


def read_class_map(location: str) -> dict[str, str]:
    """Reads a class map and returns the class of each label.

    Args:
        location: A file with a JSON object `{"label": "class"}`, or a CSV file with the columns `name` (the label) and
            `class`.

    Raises:
        DataError: The file cannot be read or has another form.
    """
    try:
        data = storage.read_bytes(location)
    except OSError as error:
        raise DataError(f"Cannot read the class map '{location}': {error}. Check the path.") from error
    if location.lower().endswith(".csv"):
        columns = read_csv(data, location)
        if columns.keys() != {"name", "class"}:
            raise DataError(f"The class map '{location}' must start with the line name,class; it has {some(columns)}.")
        names, of_names = ([cell and spreadsheet.from_text(cell) for cell in columns[key]] for key in ("name", "class"))
        pairs = list(zip(names, of_names, strict=True))
    else:
        try:
            pairs = json.loads(data, object_pairs_hook=lambda items: items)
        except ValueError as error:
            raise DataError(f"The class map '{location}' is neither .csv nor JSON: {error}. Correct it.") from error
    form = f'The class map \'{location}\' must be a JSON object {{"label": "class"}} or CSV lines, without empty values'
    if not isinstance(pairs, list) or not pairs:
        raise DataError(f"{form}; it has no labels.")
    for pair in pairs:
        if not (isinstance(pair, tuple) and all(isinstance(item, str) and item for item in pair)):
            raise DataError(f"{form}; it has {pair!r}.")
    checked = [(normal_form(str(name)), normal_form(str(class_name))) for name, class_name in pairs]
    refuse_repeated((name for name, _ in checked), f"A label in the class map '{location}'")
    return dict(checked)


def unify_classes(table: pa.Table, class_map: Mapping[str, str] | None = None) -> tuple[pa.Table, dict[str, str]]:
    """Gives all splits of a manifest the same class names.

    If one split has all labels of the data, the labels are the classes; other splits may lack some. Otherwise the class
    is the part of a label before the first `_`, provided that one split then has all classes; if no split has, labels
    stay as they are. Two labels of one split must not become the same class. A label with a negation, such as
    `covid_negative`, is never shortened. A null split counts as train. Rows without a label are not changed.

    Args:
        table: A manifest.
        class_map: The class of each label, in place of this rule. It must have every label.

    Returns:
        The relabelled table, and the class of each of the original labels.

    Raises:
        DataError: The rule merges two labels of one split, or one with a negation and another one, or `class_map` lacks
            a label.
    """
    names = labels_by_split(table)
    labels = sorted(set().union(*names.values()))
    if class_map is not None:
        mapping = _look_up(labels, class_map)
    elif not labels or set(labels) in names.values():
        mapping = {label: label for label in labels}
    else:
        mapping = {label: _prefix(label) for label in labels}
        _refuse_merging(mapping, names, "The splits have different class names, and")
        if set(mapping.values()) not in [{mapping[label] for label in split_labels} for split_labels in names.values()]:
            mapping = {label: label for label in labels}  # shorter names would not agree either
        else:
            mapping = _keep_negations(mapping)
    return _relabel(table, mapping), mapping


def match_classes(
    table: pa.Table, classes: Sequence[str], class_map: Mapping[str, str] | None = None
) -> tuple[pa.Table, dict[str, str]]:
    """Maps the labels of a manifest to the classes of a model.

    A label that is a class is kept. Any other label becomes the one class with the same part before the first `_`. A
    label or a class with a negation, such as `covid_negative`, fits the same name only.

    Args:
        table: A manifest.
        classes: The model's classes.
        class_map: The class of each label, in place of this rule. It must have every label.

    Returns:
        The relabelled table, and the class of each of the original labels. Rows without a label are not changed.

    Raises:
        DataError: A label fits no class or several, two labels of one split fit the same class (without a class map),
            or `class_map` lacks a label.
    """
    names = labels_by_split(table)
    labels = sorted(set().union(*names.values()))
    # A bundle from another machine may have class names in another Unicode form.
    class_of = {normal_form(name): name for name in classes}
    if class_map is not None:
        wanted = _look_up(labels, class_map)
        fitting = {label: [class_of[name]] if name in class_of else [] for label, name in wanted.items()}
    else:
        fitting = {
            label: [class_of[label]]
            if label in class_of
            else [class_of[name] for name in class_of if _prefix(name) == _prefix(label)]
            for label in labels
        }
        for label, found in fitting.items():
            if label not in class_of and any(map(_negates, (label, *found))):
                fitting[label] = []
    unfit = [label for label, found in fitting.items() if len(found) != 1]
    if unfit:
        raise DataError(
            f"The labels {some(unfit)} match none, or more than one, of the model's classes: {some(classes)}. "
            "Give a class map (--class-map) from each label to a class."
        )
    mapping = {label: found[0] for label, found in fitting.items()}
    if class_map is None:
        _refuse_merging(mapping, names, f"The model's classes are {some(classes)};")
    return _relabel(table, mapping), mapping


def renamed(mapping: Mapping[str, str]) -> dict[str, str]:
    """Returns the class of each label that has another name than its class, sorted by label.

    Two Unicode forms of a name count as the same name.

    Args:
        mapping: The class of each label.
    """
    return {label: name for label, name in sorted(mapping.items()) if normal_form(name) != normal_form(label)}


def tell(mapping: Mapping[str, str], *, quiet: bool) -> None:
    """Prints the class of each label, if one of them has another name than its class.

    Args:
        mapping: The class of each label.
        quiet: Print nothing.
    """
    if renamed(mapping) and not quiet:
        print("Classes: " + ", ".join(f"{label} -> {name}" for label, name in sorted(mapping.items())))


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Returns a short form of each class name, for captions of pictures.

    It is the part before the first `_`, as in `unify_classes`, or the whole name where another name has the same part,
    or where it has a negation.
    """
    distinct = dict.fromkeys(names)
    num_with = Counter(map(_prefix, distinct))
    return {name: name if num_with[_prefix(name)] > 1 or _negates(name) else _prefix(name) for name in distinct}


def _prefix(label: str) -> str:
    return label.partition("_")[0] or label


def _negates(label: str) -> bool:
    """Tells whether a label means something else than its part before the first `_`, because its words negate."""
    first, _, further = label.casefold().partition("_")
    return bool(further) and (first in _BEFORE or any(map(_NEGATION.fullmatch, re.split(r"[\W_]+", further))))


def _keep_negations(mapping: Mapping[str, str]) -> dict[str, str]:
    """Returns the class of each label, given the short ones. A label with a negation stays as it is.

    Raises:
        DataError: Another label has the same short name, so that the splits have no class names in common.
    """
    num_with = Counter(mapping.values())
    negated = {name for label, name in mapping.items() if _negates(label)}
    unclear = [label for label, name in mapping.items() if name in negated and num_with[name] > 1]
    if unclear:
        raise DataError(
            f"The splits have different class names. The labels {some(unclear)} begin alike, but one with a negation "
            "is never taken for another. Rename the class folders, or give a class map (--class-map) from each label "
            "to a class."
        )
    return {label: label if name in negated else name for label, name in mapping.items()}


def _look_up(labels: Sequence[str], class_map: Mapping[str, str]) -> dict[str, str]:
    missing = [label for label in labels if label not in class_map]
    if missing:
        raise DataError(f"The class map lacks the labels {some(missing)}; it has {some(class_map)}. Add them.")
    return {label: class_map[label] for label in labels}


def _refuse_merging(mapping: Mapping[str, str], names: Mapping[str, set[str]], why: str) -> None:
    """Refuses a mapping that merges two labels of the same split, because they were surely kept apart on purpose."""
    if all(len({mapping[label] for label in labels}) == len(labels) for labels in names.values()):
        return
    listed = "; ".join(f"{split}: {some(labels, limit=20)}" for split, labels in sorted(names.items()))
    raise DataError(
        f"{why} two labels of a split have the same part before the first '_' ({listed}). "
        "Rename the class folders, or give a class map (--class-map) from each label to a class."
    )


def _relabel(table: pa.Table, mapping: Mapping[str, str]) -> pa.Table:
    return with_column(table, "label", [mapping.get(label) for label in table["label"].to_pylist()])
