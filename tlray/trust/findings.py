"""What an audit of the pictures finds: copies between splits, and traits of the files that tell the classes."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray.bundle.wording import bracketed, decimals, unnamed
from tlray.data import audit, manifest, splits
from tlray.errors import counted
from tlray.trust import controls, copies, shortcuts
from tlray.trust.controls import Control
from tlray.trust.pictures import Pictures
from tlray.trust.shortcuts import Shortcuts, TraitTest


def find(
    table: pa.Table,
    seen: Pictures,
    pooled_BD: np.ndarray | None = None,
    *,
    seed: int,
    call: Callable[[Sequence[Callable[[], Any]]], list[Any]],
) -> dict[str, Any]:
    """Returns the findings of an audit that looks at the pictures and at the files.

    Args:
        table: The images, with splits: `seen.table` as it is, or with those that were cut.
        seen: What was seen in them.
        pooled_BD: Pooled features of the readable images, float16 [images, features]; None: there are none.
        seed: Seed of the folds, forests and permutations.
        call: Calls functions that take seconds each, and returns their results in the same order; see
            `connection.call_in_tasks`.

    Returns:
        Findings that can be written as JSON:

        - `copies`: see `copies.describe`;
        - `shortcuts`: how well the traits of the files tell the classes, and `split_shortcuts`, the splits; each with
          `num_images`, `num_groups`, `num_folds` (0: they were not tested), `left_out`, `together` (the test of all
          traits; null if they were not tested) and `found` (the tests that are shortcuts, the strongest first). A
          test has the fields of `shortcuts.TraitTest` and a `text`. `split_shortcuts` also has `given`: the splits that
          the data gives, not those that tlray has cut;
        - `leaked`: by split, the number of images that the model knows from its training; see `splits.has_leaked`;
        - `neighbours`: by split, the number of other images that are neighbouring slices of one that it learned from,
          of images without a named patient; `neighbour_example`: the ids of two such images, null if there are none;
        - `long_series`: the series that splits or folds do not keep together, see `splits.long_series`: `num_images`
          and `classes`, a list;
        - `traits_control`: see `controls.Control`: how well a forest of the training images' traits predicts the
          classes of the test images (of the validation images if there is no test) that the model does not know from
          its training; with `split`, `num_images` and `is_above_chance`. Null without such images;
        - `neighbour_control`: the same for the label of the most similar training image, and `permuted_control`, for a
          probe on labels without meaning: above chance, it has found a leak. Null without features, too.
    """
    readable = table.filter(table["error_code"].is_null())
    is_labelled = readable["label"].is_valid()
    labelled, traits = readable.filter(is_labelled), seen.traits.filter(is_labelled)
    labels, in_split = labelled["label"].to_pylist(), np.array(labelled["split"].fill_null("").to_pylist(), dtype=str)
    groups = np.array(splits.dividing_groups(labelled), dtype=str)
    independent = np.array(splits.independent_groups(labelled), dtype=str)
    has_leaked = splits.has_leaked(labelled)
    is_neighbour = splits.in_learned_group(splits.unnamed_series(labelled), labelled["split"].to_pylist()) & ~has_leaked
    is_split = in_split != ""
    places = _places(in_split, np.array(labels, dtype=str), ~has_leaked)
    chosen = np.empty(0, int) if places is None else np.concatenate([places.train, places.test])
    find_controls = partial(
        _controls,
        None if places is None else places.split,
        np.arange(len(chosen)) >= (0 if places is None else len(places.train)),
        np.unique(np.array(labels, dtype=str), return_inverse=True)[1][chosen],
        independent[chosen],
        traits=traits.take(chosen),
        pooled_BD=None if pooled_BD is None else pooled_BD[np.flatnonzero(is_labelled)[chosen]],
        seed=seed,
    )
    find_shortcuts = partial(shortcuts.find, traits, labels, groups.tolist(), seed=seed)
    split_traits, split_groups = traits.filter(pa.array(is_split)), groups[is_split].tolist()
    find_split_shortcuts = partial(shortcuts.find, split_traits, in_split[is_split].tolist(), split_groups, seed=seed)
    between_classes, between_splits, found = call([find_shortcuts, find_split_shortcuts, find_controls])
    return {
        "copies": copies.describe(seen.copies, readable),
        "shortcuts": describe_shortcuts(between_classes, "classes"),
        "split_shortcuts": describe_shortcuts(between_splits, "splits") | {"given": _given_splits(seen.table)},
        "leaked": {split: int(has_leaked[in_split == split].sum()) for split in splits.LEARNED_FROM},
        "neighbours": {split: int(is_neighbour[in_split == split].sum()) for split in splits.LEARNED_FROM},
        "neighbour_example": _neighbour_example(labelled, is_neighbour),
        "long_series": _long_series(labelled),
        **found,
    }


def _neighbour_example(labelled: pa.Table, is_neighbour: np.ndarray) -> list[str] | None:
    """Returns the ids of the first neighbour and of an image of its series that the model learned from, or None."""
    if not is_neighbour.any():
        return None
    series, place = splits.unnamed_series(labelled), int(np.argmax(is_neighbour))
    ids, in_split = manifest.column_lists(labelled, "image_id", "split")
    learned_from = splits.LEARNED_FROM[in_split[place]]
    rows = zip(ids, in_split, series, strict=True)
    return [next(name for name, split, each in rows if each == series[place] and split in learned_from), ids[place]]


def _long_series(labelled: pa.Table) -> dict[str, Any]:
    # Folds divide the images that a model learns from, shortcuts and splits all of them.
    learned = labelled.filter(pc.field("split").isin(["train", "valid"]))
    long = [splits.long_series(rows) for rows in (labelled, learned)]
    names = set[str]().union(*long)
    return {
        "num_images": sum(each in names for each in splits.unnamed_series(labelled)),
        "classes": sorted(set[str]().union(*(classes for each in long for classes in each.values()))),
    }


def _given_splits(table: pa.Table) -> list[str]:
    """Returns the splits of readable, labelled images in a table whose missing splits were not cut yet."""
    given = table.filter(pc.field("error_code").is_null() & pc.field("label").is_valid())["split"].unique().to_pylist()
    return [split for split in manifest.SPLITS if split in given]


def describe_shortcuts(found: Shortcuts, noun: str) -> dict[str, Any]:
    """Returns the tests of `shortcuts.find` as `find` gives them.

    Args:
        found: The tests.
        noun: What is told from one another, in the plural.
    """
    return {
        "num_images": found.num_images,
        "num_groups": found.num_groups,
        "num_folds": found.num_folds,
        "left_out": list(found.left_out),
        "together": None if found.together is None else _as_json(found.together, noun),
        "found": [_as_json(test, noun) for test in found.findings],
    }


def _as_json(test: TraitTest, noun: str) -> dict[str, Any]:
    ends = {"balanced_accuracy_ci95": list(test.balanced_accuracy_ci95)}
    return dataclasses.asdict(test) | ends | {"text": test.describe(noun)}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Places:
    """Which images controls learn from, and which they are tested on: int [images] each.

    Attributes:
        train: The training images.
        test: Images of a split that the model does not know from its training.
        split: The name of this split.
    """

    train: np.ndarray
    test: np.ndarray
    split: str


def _places(in_split: np.ndarray, labels: np.ndarray, is_new: np.ndarray) -> _Places | None:
    """Returns the places for controls, of the split test or else of valid; None where controls are not possible."""
    train = np.flatnonzero(in_split == "train")
    for split in ("test", "valid"):
        test = np.flatnonzero((in_split == split) & is_new)
        if len(np.unique(labels)) > 1 and len(train) and len(test):
            return _Places(train=train, test=test, split=split)
    return None


def _controls(
    split: str | None,
    is_test: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    traits: pa.Table,
    pooled_BD: np.ndarray | None,
    seed: int,
) -> dict[str, dict[str, Any] | None]:
    """Returns the controls of `find` by name.

    Args:
        split: The split that they are tested on; None: there are none.
        is_test: Which images they are tested on, bool [images]; they learn from the others.
        labels: Class indices of these images, int [images].
        groups: Their groups, str [images].
        traits: Their traits.
        pooled_BD: Their features.
        seed: See `find`.
    """
    names = ("traits_control", "neighbour_control", "permuted_control")
    if split is None:
        return dict.fromkeys(names)
    train, test = np.flatnonzero(~is_test), np.flatnonzero(is_test)
    test_groups = groups[test].tolist()
    by_traits = controls.by_traits(
        traits.take(train), labels[train], traits.take(test), labels[test], test_groups, seed=seed
    )
    found: dict[str, Control | None] = {**dict.fromkeys(names), "traits_control": by_traits}
    if pooled_BD is not None:
        found["neighbour_control"] = controls.by_neighbour(
            pooled_BD[train], labels[train], pooled_BD[test], labels[test], test_groups, seed=seed
        )
        if len(np.unique(labels)) > 1:
            found["permuted_control"] = controls.by_permuted_labels(
                pooled_BD, labels, groups.tolist(), is_test, seed=seed
            )
    return {name: None if control is None else describe_control(control, split) for name, control in found.items()}


def describe_control(control: Control, split: str) -> dict[str, Any]:
    """Returns a control as `find` gives it.

    Args:
        control: The control.
        split: Name of the split that it was tested on.
    """
    ends = {"accuracy_ci95": list(control.accuracy_ci95)}
    return dataclasses.asdict(control) | ends | {"split": split, "is_above_chance": control.is_above_chance}


def rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns the findings of an audit as lines for people, a name and a text each.

    Args:
        found: The findings of `tlray.data.audit.audit` and `find`; those of an earlier version may lack the latter.
    """
    lines = [("images", f"{found['num_images']}, {found['num_images'] - found['num_readable']} cannot be read")]
    if seen := found.get("copies"):
        lines += [
            ("the same pixels", _groups(seen["identical"])),
            ("copies of a picture", _groups(seen["copies"])),
            ("copies in several splits", _groups(seen["copies"]["across_splits"])),
            ("copies with several labels", _groups(seen["copies"]["conflicting_labels"])),
            ("copies and neighbouring slices", _groups(seen["series"])),
        ]
    lines.append(("patients in several splits", _patients_across(found)))
    if told := found.get("shortcuts"):
        lines.append(("what tells the classes", _families(told, "classes")))
    # An audit of an earlier version does not say which splits the data gives.
    if (told := found.get("split_shortcuts")) and len(told.get("given", ())) > 1:
        lines.append(("what tells the splits", _families(told, "splits")))
    if control := found.get("traits_control"):
        about = bracketed(control.get("accuracy_ci95"), decimals, beside=f"by chance {control['chance']:.3f}")
        right = f"{control['accuracy']:.3f} of {control['num_images']} {control['split']} images"
        lines.append(("told by the files alone", f"{right}{about}"))
    return lines


def _patients_across(found: Mapping[str, Any]) -> str:
    """Returns the number of patients in several splits, with that of the images whose patients are not named."""
    groups = found["groups"]
    num_across = groups["across_splits"]["num_groups"]
    if audit.has_patients(found) is not False:
        return str(num_across)
    if "num_unnamed" not in groups:  # an audit of an earlier version
        return "not known: no patient has several images"
    why = unnamed(groups["num_unnamed"], found["num_readable"])
    return f"{num_across} known; {why}" if num_across else f"not known: {why}"


def _families(told: Mapping[str, Any], noun: str) -> str:
    """Returns the families of traits that tell classes or splits, whose name is `noun`, or why none were tested."""
    if not told["num_folds"]:
        return f"not tested: it takes two {noun}, each with images of two patients"
    return ", ".join(test["family"] for test in told["found"]) or "nothing that is sure"


def _groups(found: Mapping[str, Any]) -> str:
    if not found["num_groups"]:
        return "none"
    return f"{counted(found['num_images'], 'image')} in {counted(found['num_groups'], 'group')}"
