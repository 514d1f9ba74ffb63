"""Finds labels that are likely wrong, from what models say about images that they were not trained on.

Import it to have a person look at the images whose labels a classifier doubts most. A suspect label is a question, not
a verdict: a hard image looks the same to the model as a wrong label.
"""

from dataclasses import dataclass

import numpy as np

from tlray.trust.intervals import check_predictions


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """An image whose label is likely wrong.

    Attributes:
        place: Index of the image.
        label: Its given class.
        suggested: The class that the model finds likely.
        label_prob: Probability of the given class, in [0, 1].
        suggested_prob: Probability of the suggested class, in [0, 1].
    """

    place: int
    label: int
    suggested: int
    label_prob: float
    suggested_prob: float


def find(probs_BK: np.ndarray, labels: np.ndarray) -> list[Suspect]:
    """Finds labels that are likely wrong by confident learning (Northcutt, Jiang and Chuang 2021, JAIR 70:1373-1411).

    A class is likely for an image if its probability is at least the mean probability of this class over the images
    with this label. If the likeliest of these classes is another one than the label, the label is suspect.

    Args:
        probs_BK: Probabilities of images that the model was not trained on, floating point [images, K].
        labels: Given classes, int [images], in [0, K).

    Returns:
        The suspects, those first whose label is least probable beside the suggested class.

    Raises:
        DataError: See `check_predictions`.
    """
    check_predictions(labels, probs_BK)
    num_classes = probs_BK.shape[1]
    in_class_BK = labels[:, None] == np.arange(num_classes)
    with np.errstate(invalid="ignore"):  # 0 / 0 of a class without images: NaN, and it is never likely
        mean_K = np.where(in_class_BK, probs_BK, 0).sum(axis=0) / in_class_BK.sum(axis=0)
    likely_BK = np.where(probs_BK >= mean_K, probs_BK, -1.0)
    suggested = likely_BK.argmax(axis=1)
    rows = np.arange(len(labels))
    is_suspect = (likely_BK[rows, suggested] >= 0) & (suggested != labels)
    margin = probs_BK[rows, labels] - probs_BK[rows, suggested]
    places = np.flatnonzero(is_suspect)[np.argsort(margin[is_suspect], kind="stable")]
    return [
        Suspect(
            place=int(place),
            label=int(labels[place]),
            suggested=int(suggested[place]),
            label_prob=float(probs_BK[place, labels[place]]),
            suggested_prob=float(probs_BK[place, suggested[place]]),
        )
        for place in places
    ]
