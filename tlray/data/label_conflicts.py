"""Copies of an image that have different labels, in the findings of an audit: which splits they are in."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tlray.data.manifest import SPLITS

IN_BUNDLE = "in the bundle"
"""Id, in findings, of the pictures of training images that a bundle keeps."""


def conflicts(findings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns what an audit found about copies that have different labels.

    Args:
        findings: See `tlray.data.audit.audit`. Copies that `tlray.trust.copies.describe` describes count, if the
            pictures were looked at; otherwise files with the same bytes. Both may be missing.

    Returns:
        `num_groups`, `num_images` and `examples`, see `tlray.data.audit.audit`; empty if nothing is known.
    """
    found = findings["copies"].get("copies") if findings.get("copies") else findings.get("duplicates")
    return (found or {}).get("conflicting_labels", {})


def by_split(found: Mapping[str, Any]) -> dict[str, int]:
    """Returns split to its number of labelled images in `conflicts`; images without a split are left out.

    All are counted, or where the audit has not counted them those in its examples.
    """
    if "num_by_split" in found:
        return dict(found["num_by_split"])
    return count_by_split([example["images"] for example in found.get("examples", ())])


def count_by_split(groups: Iterable[Sequence[Mapping[str, Any]]]) -> dict[str, int]:
    """Returns split to its number of labelled images in groups of images; those without a split are left out.

    Pictures of training images that a bundle keeps are no images of the data, so they do not count.
    """
    images = (image for group in groups for image in group if image["image_id"] != IN_BUNDLE)
    return dict(Counter(image["split"] for image in images if image.get("split") and image["label"] is not None))


def is_partial(found: Mapping[str, Any]) -> bool:
    """Tells whether `by_split` counts fewer images than there are, because the examples have not all of them."""
    if "num_by_split" in found:
        return False
    return sum(len(example["images"]) for example in found.get("examples", ())) < found.get("num_images", 0)


def place(found: Mapping[str, Any]) -> str:
    """Returns where such copies are, for a sentence, such as ` in train and test`; empty if no split is known."""
    known = sorted(by_split(found), key=lambda split: SPLITS.index(split) if split in SPLITS else len(SPLITS))
    return f" in {' and '.join(known)}" if known else ""
