"""Says whether a model knows the images that it is measured on, and how far its figures are too good because of that.

`tlray.bundle.verdicts` answers its question about leaks with these sentences; the report and the model card take from
here how they speak of the figures of all images.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

IMAGES, PICTURES, NOTHING = "images", "pictures", "nothing"
"""Values of `LeakSearch.among`. Copies of training images are searched among the training images themselves, among the
pictures that the bundle keeps of them, or not at all."""

COPY_OR_PATIENT = "a copy, or another image of its patient, among those that the model learned from"
"""End of the sentence "The model knows an image that has ...", for data whose patients may be named."""

NAME_PATIENTS = "Name the patients: one folder for each, or the column group_id of a table."
OTHER_PATIENTS = "Measure it on images of other patients."
"""Remedies where the model may know measured images: the first for its own data, the second for other data, because a
bundle does not name its patients."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeakSearch:
    """A search of an evaluation for images that the model knows from its training.

    Attributes:
        among: What the measured images were compared with: `IMAGES`, `PICTURES` or `NOTHING`.
        num_compared: Number of images or pictures that they were compared with.
        num_pictures: Number of pictures that the training images show, see `KeptImages`; None: it is not known.
        is_own: The images have the ids of those that the model was trained and measured on.
        knows_splits: It is known which of these the model learned from, so that their patients are known, too.
        has_own_files: Their files are those that the training read, too; see `tlray.evaluation.scope.Scope`.
    """

    among: str
    num_compared: int = 0
    num_pictures: int | None = None
    is_own: bool = False
    knows_splits: bool = False
    has_own_files: bool | None = None

    @property
    def is_whole(self) -> bool:
        """Each image that the model learned from was there to be compared with, or a picture of it."""
        return self.among == IMAGES or (self.among == PICTURES and self.num_compared == self.num_pictures)

    @property
    def is_blind(self) -> bool:
        """Some of the measured images may be those that the model learned from, and nothing tells which.

        Pictures of all training images do not help: the validation images, which chose the model, are not among them.
        """
        return self.is_own and not self.knows_splits

    @property
    def relation(self) -> str:
        """Returns the end of the sentence "The model knows an image that has ...", for this search."""
        if not self.knows_splits:
            return "a copy among the training images"
        return COPY_OR_PATIENT if self.among != NOTHING else COPY_OR_PATIENT.replace("a copy, or ", "")

    def describe(self) -> str:
        """Returns what the images were compared with, and what therefore cannot be found: one to three sentences."""
        if self.among == IMAGES:
            return f"They were compared with the {self.num_compared} images that it learned from."
        if self.among == NOTHING:
            texts = ["The bundle keeps no pictures of its training images, so copies of them cannot be found."]
        elif self.is_whole:
            texts = [f"They were compared with pictures of all training images ({self.num_compared} in the bundle)."]
        elif self.num_pictures is None:
            texts = [
                f"They were compared with the {self.num_compared} training pictures in the bundle: if these are not "
                "all, copies of the others are not found."
            ]
        else:
            texts = [
                f"They were compared with the {self.num_compared} of {self.num_pictures} training pictures that the "
                "bundle keeps: copies of the others are not found."
            ]
        if self.among == PICTURES and not self.knows_splits:
            texts.append("Other images of the same patients are not found.")
        if self.is_blind:
            unknown = "which of them chose it, as its validation images" if self.is_whole else "on which"
            texts.append(
                f"The model was trained on images with these ids, and it is not known {unknown}: give the "
                "manifest.parquet of its run as --data."
            )
        return " ".join(texts)


def answer(
    images: str, metrics: Mapping[str, Any], *, num_near: int = 0, search: LeakSearch | None = None
) -> tuple[str, bool] | None:
    """Answers whether a model has seen the images that it was measured on.

    Args:
        images: Their name in a sentence, such as `test images`.
        metrics: Their metrics; `num_leaked` and `leak_free` may be missing, see
            `tlray.evaluation.measurement.with_leak_free`.
        num_near: Number of the images that look like neighbouring slices of images that the model learned from, and
            that may be of their patients: in the model's own data, images without a named patient.
        search: How known images were searched for; None: all images that the model learned from were there.

    Returns:
        Sentences, and whether they are a reason for doubt. None: nothing is known.
    """
    num_leaked, how = metrics.get("num_leaked"), "" if search is None else f" {search.describe()}"
    if num_leaked is None:
        return None if search is None else (f"Not known.{how}", search.is_blind)
    relation = COPY_OR_PATIENT if search is None else search.relation
    if knows_all(metrics):
        return f"Yes: each of the {images} has {relation}. {OTHER_PATIENTS}", True
    known = (
        f"{num_leaked} of the {metrics.get('num_images', 0)} {images}: each has {relation}. The figures are without "
        f"them.{how}"
        if num_leaked
        else f"None of the {images} is known to have {relation}.{how}"
    )
    if not num_near:
        return known, search is not None and search.is_blind
    remedy = NAME_PATIENTS if search is None or search.knows_splits else OTHER_PATIENTS
    return (
        f"{known} But {num_near} {'of the others' if num_leaked else 'of them'} look like slices of the same series as "
        f"images that it learned from, perhaps of the same patients, so the figures are probably too good. {remedy}"
    ), True


def knows_all(metrics: Mapping[str, Any]) -> bool:
    """Tells whether a model knows all images of a split from its training.

    Args:
        metrics: The metrics of the split, see `tlray.evaluation.measurement.with_leak_free`.
    """
    return bool(metrics.get("num_leaked")) and metrics.get("leak_free") is None


def are_too_good(metrics: Mapping[str, Any]) -> bool:
    """Tells whether a model is more often right on all images of a split than on those that are new to it.

    Args:
        metrics: The metrics of the split, see `tlray.evaluation.measurement.with_leak_free`. False where new images
            were not measured by themselves: then the figures of all may be too good, and nothing shows that they are.
    """
    new = metrics.get("leak_free")
    return bool(new and new["accuracy"] < metrics["accuracy"])


def verb(metrics_of: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns `are` if some figures of all images are too good as measured, otherwise `may be`.

    Args:
        metrics_of: Split to its metrics.
    """
    return "are" if any(map(are_too_good, metrics_of.values())) else "may be"
