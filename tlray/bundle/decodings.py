"""Describes how the images that a bundle learned from were decoded, if this version of tlray decodes otherwise."""

from collections.abc import Mapping

from tlray.bundle.spec import BundleSpec
from tlray.data import decoding

CHANGES: Mapping[int, str] = {
    2: "16-bit TIFFs with WhiteIsZero came out inverted, and 16-bit PNGs with alpha lost the low byte of each pixel",
}
"""Version of `decoding.DECODING` to a description of how versions before it decoded some images."""


def describe_difference(spec: BundleSpec, sha256: str) -> str:
    """Returns a warning if a bundle's images were decoded otherwise than by this version; empty: they were not.

    Args:
        spec: The bundle's description.
        sha256: The bundle's sha256.
    """
    if spec.decoding == decoding.DECODING:
        return ""
    versions = f"(decoding {spec.decoding}, here {decoding.DECODING})"
    if spec.decoding > decoding.DECODING:
        return (
            f"The bundle {sha256[:12]} was made by a later version of tlray, which decodes images otherwise "
            f"{versions}. Use that version."
        )
    changes = "; ".join(text for version, text in CHANGES.items() if version > spec.decoding)
    return (
        f"The bundle {sha256[:12]} was made by an earlier version of tlray, which decoded some images otherwise "
        f"{versions}: {changes}. If it learned from such images, train or export it again."
    )
