"""Collects what speaks against the figures of a comparison of two bundles, the gravest first."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

from tlray.bundle import leaks
from tlray.bundle.leaks import LeakSearch
from tlray.bundle.spec import BundleSpec
from tlray.errors import counted
from tlray.evaluation.paired import SIDES, Paired
from tlray.evaluation.relations import Relations

TRAINED_ON_SHORTCUT = (
    "The images that {} learned from have a shortcut, which a model may rely on; it is not known whether these images "
    "have it, too. Found in training: {}"
)
"""Warning about a shortcut that is known of the training images only, where other images are compared."""

OTHER_FILES = (
    "The images have the ids of those that {} trained and measured on, but not all of their files are those that the "
    "training read. Images that a bundle learned from are known by their ids, and copies of them by its pictures."
)
"""Warning where the files of a bundle's own data set have changed since its training."""


def is_leak_free(paired: Paired, related: Mapping[str, Relations]) -> bool | None:
    """Tells whether all compared images are new to both bundles, as far as was found; None: it cannot be told.

    Args:
        paired: The compared images.
        related: For each of `SIDES` what is known of the images.
    """
    if paired.knows_all:
        return False
    return None if any(map(_is_blind, related.values())) else True


def find(paired: Paired, related: Mapping[str, Relations], specs: Mapping[str, BundleSpec]) -> list[str]:
    """Returns warnings.

    The gravest is that no image is new to both bundles, or that it cannot be told which are. Shortcuts in the data
    follow, and those in other data, or files, that a bundle was trained on, then neighbouring slices, what else the
    trainings found, and what was left out.

    Args:
        paired: The compared images.
        related: For each of `SIDES` what is known of the images.
        specs: For each of `SIDES` the description of its bundle.
    """
    searches = {side: LeakSearch(**each.findings["leak_search"]) for side, each in related.items()}
    changed = [side for side, each in searches.items() if each.has_own_files is False]
    shortcuts = [
        *_told_by({side: spec.shortcuts for side, spec in specs.items() if searches[side].has_own_files}),
        *_learned({side: spec.shortcuts for side, spec in specs.items() if not searches[side].has_own_files}),
        *([OTHER_FILES.format(_who_was(changed))] if changed else []),
    ]
    failures = failure_warnings(paired.num_by_error)
    if paired.knows_all:
        none_is_new = (
            "None of the images is new to both bundles, so the figures do not show which one is better. Known from "
            f"training, of {counted(paired.num_scored, 'image')}: {paired.describe_known()}."
        )
        return [none_is_new, *shortcuts, *failures]
    doubts = {side: text for side in SIDES if (text := _doubt(side, paired, related[side]))}
    blind = [text for side, text in doubts.items() if _is_blind(related[side])]
    near = [text for side, text in doubts.items() if not _is_blind(related[side])]
    own = {side: spec for side, spec in specs.items() if searches[side].is_own and side not in changed}
    found = _told_by({side: spec.leaks for side, spec in own.items()})
    return [*blind, *shortcuts, *near, *found, *_left_out(paired), *failures]


def _is_blind(related: Relations) -> bool:
    """Tells whether there is no telling which of the images the bundle knows."""
    return related.leaked is None or LeakSearch(**related.findings["leak_search"]).is_blind


def _doubt(side: str, paired: Paired, related: Relations) -> str | None:
    """Returns a warning that a bundle may know compared images from its training; None if nothing speaks for it."""
    compared = set(paired.tables[side]["image_id"].to_pylist())
    # `leak_free` says that there are figures of new images.
    metrics = {"num_images": paired.num_scored, "num_leaked": paired.num_known[side], "leak_free": True}
    search = LeakSearch(**related.findings["leak_search"])
    told = leaks.answer("images", metrics, num_near=len(related.near & compared), search=search)
    return f"Has the {side} seen these images before? {told[0]}" if told is not None and told[1] else None


def _left_out(paired: Paired) -> list[str]:
    if not paired.num_left_out:
        return []
    return [
        f"Left out, because a bundle knows them from its training: {paired.num_left_out} of "
        f"{counted(paired.num_scored, 'image')} ({paired.describe_known()})."
    ]


def _told_by(texts_of: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """Yields what trainings found in the data, each text once, with the bundles that tell it."""
    for text in dict.fromkeys(itertools.chain.from_iterable(texts_of.values())):
        sides = [side for side, texts in texts_of.items() if text in texts]
        who = _who_was(sides)
        yield f"{who[0].upper()}{who[1:]} trained on this data, and the training found: {text}"


def _who_was(sides: Sequence[str]) -> str:
    """Returns `both bundles were`, or `the SIDE was` for one of them."""
    return "both bundles were" if len(sides) == len(SIDES) else f"the {sides[0]} was"


def _learned(texts_of: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """Yields the shortcuts in other data that bundles were trained on, each once, with the bundles that tell it."""
    for text in dict.fromkeys(itertools.chain.from_iterable(texts_of.values())):
        sides = [side for side, texts in texts_of.items() if text in texts]
        who = "both bundles" if len(sides) == len(SIDES) else f"the {sides[0]}"
        yield TRAINED_ON_SHORTCUT.format(who, text)


def failure_warnings(num_by_error: Mapping[str, int]) -> list[str]:
    """Returns a warning that counts the images that were left out, by error code; none if no image was."""
    if not num_by_error:
        return []
    codes = ", ".join(f"{code}: {count}" for code, count in num_by_error.items())
    images = counted(sum(num_by_error.values()), "image")
    return [f"Left out, because not both bundles could score them: {images} ({codes})."]
