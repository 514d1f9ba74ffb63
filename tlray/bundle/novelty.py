"""Scores how foreign an image is to the images that a bundle's model was trained on, by its pooled features.

A classifier's confidence does not tell a photograph from a slice. The score is the part of an image's features that
lies outside of the space which the training images span, after [1]; `tlray.trust.novelty_fit` finds this space. It
needs no training images, so that a bundle stays small.

[1] Wang et al. ViM: out-of-distribution with virtual-logit matching. CVPR 2022, section 3 (the score "Residual").
[2] Arandjelović, Zisserman. Three things everyone should know to improve object retrieval. CVPR 2012, section 3.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tlray.errors import DataError

NOT_FINITE = 5.0
"""Score of an image whose features are not finite numbers: above every other one."""

_TINY = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Novelty:
    """The space that training images span, and the score above which an image is foreign.

    Attributes:
        mean: Mean of the normalized features, float32 [features].
        basis: Principal components, float32 [components, features], each of length 1, rounded to float16.
        threshold: Score above which an image is foreign, in [0, 4].
    """

    mean: np.ndarray
    basis: np.ndarray
    threshold: float

    def score(self, features_BD: np.ndarray) -> np.ndarray:
        """Returns how foreign images are, float32 [images]: the larger, the stranger.

        The score is the squared distance of the normalized features from the space, at most 4. It is `NOT_FINITE` where
        a feature is not a finite number.

        Args:
            features_BD: Pooled features, floating point [images, features].
        """
        return self.place(features_BD)[0]

    def place(self, features_BD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the scores of images, and where they lie in the space.

        Args:
            features_BD: Pooled features, floating point [images, features].

        Returns:
            The scores, see `score`, and the coordinates of the normalized features along the principal components,
            float32 [images, components].
        """
        centred_BD = normalized(features_BD) - self.mean
        inside_BC = centred_BD @ self.basis.T
        outside_B = np.einsum("bd,bd->b", centred_BD, centred_BD) - np.einsum("bc,bc->b", inside_BC, inside_BC)
        scores = np.where(np.isfinite(outside_B), np.maximum(outside_B, 0), NOT_FINITE).astype(np.float32)
        return scores, inside_BC

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns arrays for an .npz file, without pickle and threshold; `from_arrays` reads them."""
        return {"mean": self.mean, "basis": self.basis.astype(np.float16)}


def from_arrays(arrays: Mapping[str, np.ndarray], *, threshold: float) -> Novelty:
    """Returns what was stored by `Novelty.arrays`.

    Args:
        arrays: The arrays.
        threshold: See `Novelty`.

    Raises:
        DataError: An array is missing, or the shapes do not fit.
    """
    missing = {"mean", "basis"} - set(arrays)
    if missing:
        raise DataError(f"The arrays of the novelty score lack {sorted(missing)}. Fit it again.")
    mean, basis = np.asarray(arrays["mean"]), np.asarray(arrays["basis"])
    if basis.ndim != 2 or mean.shape != basis.shape[1:]:
        raise DataError(
            f"The arrays of the novelty score have shapes that do not fit: mean {mean.shape}, basis {basis.shape}. Fit "
            "it again."
        )
    return Novelty(mean=mean.astype(np.float32, copy=False), basis=basis.astype(np.float32), threshold=threshold)


def directions(places_BC: np.ndarray) -> np.ndarray:
    """Returns the places of images scaled to length 1, so that their product is their cosine similarity.

    Args:
        places_BC: Coordinates of the images, floating point [images, components], see `Novelty.place`.

    Returns:
        float32 [images, components]; a place of zeros stays zero.
    """
    places_BC = np.asarray(places_BC, np.float32)
    return places_BC / np.maximum(np.linalg.norm(places_BC, axis=1, keepdims=True), _TINY)


def scores_of(outputs: Sequence[np.ndarray], novelty: Novelty | None) -> np.ndarray:
    """Returns how foreign images are, float32 [images]; NaN where it is not known.

    Args:
        outputs: A model's outputs for them: probabilities [images, classes] and, if it gives them, pooled features.
        novelty: The score of the model's bundle; None: it has none.
    """
    if novelty is None or len(outputs) < 2:
        return np.full(len(outputs[0]), np.nan, np.float32)
    return novelty.score(outputs[1])


def normalized(features_BD: np.ndarray) -> np.ndarray:
    """Returns the signed square roots of features, scaled to length 1 [2], so that a few large ones do not decide all.

    Args:
        features_BD: Pooled features, floating point [images, features].

    Returns:
        float32 [images, features]; not finite where a feature is not.
    """
    features_BD = np.asarray(features_BD, np.float32)
    size_BD = np.abs(features_BD)
    # The squared length of the roots is the sum of the sizes.
    length_B1 = np.sqrt(np.maximum(size_BD.sum(axis=1, keepdims=True), _TINY))
    with np.errstate(invalid="ignore"):  # infinite / infinite; the caller looks for values that are not finite
        return np.copysign(np.sqrt(size_BD), features_BD) / length_B1
