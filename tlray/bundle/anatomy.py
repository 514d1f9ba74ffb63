"""Says whether figures need the anatomy: what controls reach without it, and what tells the classes of training images.

`tlray.bundle.verdicts` answers its question about controls with these sentences.
"""

from collections.abc import Mapping
from typing import Any

from tlray.bundle.leaks import LeakSearch
from tlray.bundle.wording import bracketed, percent

CONTROLS = {
    "traits_control": "A random forest that sees only how the files were made",
    "neighbour_control": "The label of the most similar training image",
    "permuted_control": "A linear probe that learns shuffled labels",
}
"""Descriptions of the controls, by the names that they have in an audit; see `tlray.trust.findings.find`."""

CONTROLS_ELSEWHERE = {
    **CONTROLS,
    "traits_control": (
        "A random forest that sees only how the files were made, trained and tested on different parts of these images,"
    ),
    "neighbour_control": "The label of the most similar training image that the bundle keeps",
}
"""Descriptions of controls on other data, or files, than the model's own, see `tlray.trust.elsewhere.find`."""

UNMEASURED_ELSEWHERE = {
    "traits_control": "this takes new images of two classes, and of each class images of two patients",
    "neighbour_control": "this takes training images and a novelty score in the bundle, and new images of two classes",
    "permuted_control": "this takes features of the training images, which a bundle does not keep",
}
"""Reasons why a control was not measured on other data."""

IN_TRAINING = (
    "The images that the model was trained on have a shortcut, which it may have learned; {here}. Found in training: "
    "{text}"
)
"""Answer about a shortcut that was found in the training images, where other images are measured."""

HERE = {
    None: "it is not known whether these images have it, too",
    True: "these images have one, too",
    False: "none was found in these images",
}
"""Ends of `IN_TRAINING`, by whether a shortcut was found in the measured images; None: it was not looked for."""


def training_texts(data: Mapping[str, Any]) -> list[str]:
    """Returns a sentence or two for each shortcut of the training images, where other images are measured.

    Args:
        data: See `tlray.bundle.verdicts.about_data`.
    """
    here = HERE[data.get("has_shortcut")]
    return [IN_TRAINING.format(here=here, text=text) for text in data.get("training_shortcuts", ())]


def measured_texts(data: Mapping[str, Any], *, split: str | None = None) -> list[str]:
    """Returns a sentence for each control: how often it is right.

    Args:
        data: See `tlray.bundle.verdicts.about_data`.
        split: The split that is known from the context. The name of another split is in the sentence.
    """
    sentences, names = [], CONTROLS_ELSEWHERE if _is_elsewhere(data) else CONTROLS
    for name, found in data.get("controls", {}).items():
        where = f" of the new {found['split']} images" if found["split"] != split else ""
        as_expected = ", as it should be" if name == "permuted_control" and not found["is_above_chance"] else ""
        about = bracketed(found.get("accuracy_ci95"), beside=f"by chance {percent(found['chance'])}")
        sentences.append(f"{names[name]} is right in {percent(found['accuracy'])}{where}{about}{as_expected}.")
    return sentences


def unmeasured_texts(data: Mapping[str, Any], *, knows_all: bool) -> list[str]:
    """Returns sentences that say which controls were not measured, and why; none if there are no such controls.

    Args:
        data: See `tlray.bundle.verdicts.about_data`.
        knows_all: The model knows all measured images from its training.
    """
    names = data.get("unmeasured", ())
    if not names:
        return []
    if _is_elsewhere(data):
        if knows_all:
            return ["No control was measured, because no measured image is new to the model."]
        return [f"{CONTROLS[name]} was not measured, because {UNMEASURED_ELSEWHERE[name]}." for name in names]
    if len(names) == len(CONTROLS):
        return ["No control was measured, because no test or validation image is new to the model."]
    first, *others = [CONTROLS[name] for name in names]
    told = f"{first}{''.join(f' and {each[0].lower()}{each[1:]}' for each in others)} {'were' if others else 'was'}"
    if "neighbour_control" in names:
        why = "this takes features of a frozen network, which the training did not compute (the recipe probe does)"
    else:
        why = "the images to learn from and to test on have one class only"
    return [f"{told} not measured, because {why}."]


def _is_elsewhere(data: Mapping[str, Any]) -> bool:
    """Tells whether data is that of an evaluation on other files than those of the training, as far as is known."""
    search = data.get("leak_search")
    return search is not None and not LeakSearch(**search).has_own_files
