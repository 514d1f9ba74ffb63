"""Warnings about what an audit found, for people; each has a remedy.

Each function takes the findings of `tlray.trust.findings.find`, in which those of an earlier version may lack some;
`intensity_warnings` takes those of a training.
"""

from collections.abc import Mapping
from typing import Any

from tlray.bundle.wording import bracketed, decimals, percent
from tlray.errors import some
from tlray.trust import shortcuts

AUDIT = "tlray audit --data DATA --out OUT"
"""Command that looks for traits of the files that tell the classes."""


def series_warnings(found: Mapping[str, Any]) -> list[str]:
    """Returns a warning if splits or folds divide slices that may be of one patient, with a remedy; otherwise none."""
    long = found.get("long_series")
    if long is None or not long["num_images"]:
        return []
    classes = some(long["classes"])
    return [
        f"{long['num_images']} images look like neighbouring slices of one series, or of a few, with more than half of "
        f"a class ({classes}). Splits and folds that tlray cuts divide them, because nothing would be left to divide "
        "otherwise. If they are slices of one patient, the metrics are too good. Name the patients: one folder for "
        "each, or the column group_id of a table."
    ]


def intensity_warnings(found: Mapping[str, Any]) -> list[str]:
    """Returns a warning if 16-bit images set the intensity range that are not trained on, with a remedy; else none.

    Args:
        found: The findings of a training: `untrained_16_bit`, see `tlray.data.intensity.count_untrained`, and
            `intensity_range`.
    """
    untrained = found.get("untrained_16_bit")
    if not untrained:
        return []
    low, high = found["intensity_range"]
    counts = ", ".join(f"{split}: {number}" for split, number in untrained.items())
    return [
        f"No training image has 16 bits, but others have ({counts}), so that the pixel values that become 0 and 255 "
        f"were found in these: {low:g} and {high:g}. Give --intensity-range LO,HI, or put some of them into train."
    ]


def leak_warnings(found: Mapping[str, Any]) -> list[str]:
    """Returns a warning if labels without meaning can be predicted for test images, with a remedy; otherwise none."""
    control = found.get("permuted_control")
    if control is None or not control["is_above_chance"]:
        return []
    about = bracketed(control.get("accuracy_ci95"), beside=f"by chance {percent(control['chance'])}")
    return [
        f"Labels that were exchanged at random between patients can still be predicted for {control['split']} images: "
        f"{percent(control['accuracy'])} right{about}. Training images must be related to them in a way that is not "
        "known here, such as patients without a name. Give patients (`group_id`), and cut the splits by them."
    ]


_TRAITS = {
    "size": "the picture size",
    "file": "the file format and its bytes",
    "grey levels": "the extreme grey levels",
    "borders": "the borders",
    "corners": "the corners",
    "colour": "the colour",
    shortcuts.ALL: "traits of the files (size, format, grey levels, borders, corners, colour)",
}
"""Names for people of what a test of `shortcuts` sees."""


def shortcut_warnings(found: Mapping[str, Any]) -> list[str]:
    """Returns a warning if the findings of `find` have traits that tell the classes; otherwise none.

    It ends with a remedy and with the command that checks the images anew.
    """
    best = _strongest(found.get("shortcuts", {}))
    if best is None:
        return []
    told = "Classes can be told" if best["told"] is None else f"'{best['told']}' can be told from the other classes"
    return [
        f"{told} without looking at the anatomy: {_reach(best)}. A model can learn this in place of the disease, and "
        "then fails on images from elsewhere. Get the images of all classes from the same sources, and save them in "
        f"the same way; this tells whether it has helped: `{AUDIT}`"
    ]


def split_warnings(found: Mapping[str, Any]) -> list[str]:
    """Returns a warning if the findings of `find` have traits that tell the splits, with a remedy; otherwise none."""
    best = _strongest(found.get("split_shortcuts", {}))
    if best is None:
        return []
    told = "The splits" if best["told"] is None else f"The split '{best['told']}' and the others"
    return [
        f"{told} differ in how their files were made, so training and test images may be from different sources: "
        f"{_reach(best)}. Cut the splits from all sources alike, unless this is what you want to test."
    ]


def _strongest(found: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Returns the test that tells most above chance: of a family that is a shortcut, or of all traits together."""
    told = found.get("found", [])
    if not told:
        return None
    together = found.get("together")
    return max([*told, *([together] if together and together["trait"] else [])], key=_margin)


def _margin(test: Mapping[str, Any]) -> float:
    """Returns the balanced accuracy above chance as a share of the possible, see `shortcuts.TraitTest.margin`."""
    return (test["balanced_accuracy"] - test["chance"]) / (1 - test["chance"])


def _reach(test: Mapping[str, Any]) -> str:
    """Returns how well a test tells by which traits, such as "the corners alone reach a balanced accuracy of 0.74"."""
    verb = "reaches" if test["family"] in ("size", "colour") else "reach"
    about = bracketed(test.get("balanced_accuracy_ci95"), _hundredths, beside=f"by guessing {test['chance']:.2f}")
    return f"{_TRAITS[test['family']]} alone {verb} a balanced accuracy of {test['balanced_accuracy']:.2f}{about}"


def _hundredths(value: float) -> str:
    return decimals(value, 2)
