"""Predicts with a bundle in this process: pixels in, probabilities out."""

from dataclasses import dataclass

import numpy as np

from tlray.bundle import store
from tlray.config.training import EngineChoice, PrecisionChoice
from tlray.engines import choice


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scores:
    """Probabilities and other scores that a model gives images; `tlray.bundle.judgement.judge` judges them.

    Attributes:
        probs_BK: Class probabilities, float32 [images, classes], in the bundle's class order.
        ood_scores: How foreign the images are, see `tlray.bundle.novelty`, float32 [images]; NaN where the bundle does
            not know.
        places_BC: Where the images lie in the space that the training images span, float32 [images, components], see
            `Novelty.place`; None where the bundle does not know.
    """

    probs_BK: np.ndarray
    ood_scores: np.ndarray
    places_BC: np.ndarray | None = None


class Predictor:
    """A loaded bundle that predicts class probabilities.

    Args:
        location: The bundle's directory, a path or URI. Its checksums are verified.
        engine: What runs the model; auto: OpenVINO on CPUs, TensorFlow on GPUs.
        precision: Numbers that the model computes with; auto: see `choice.choose`.
        num_threads: Threads to compute with; None: all CPUs. With TensorFlow only the first Predictor of a process
            sets it.
        use_gpu: Predict on the visible GPU; otherwise no GPU is used.
        batch_size: Number of images in most calls of `predict`. 1 is best for calls with a few images: each of them
            ends as soon as possible. The size of larger batches is best for them: more images are predicted a second.

    Attributes:
        bundle: The verified bundle.
        kind: The engine and precision that predict.
        novelty: Tells images that are unlike those of training; None: the bundle has no such score.

    Raises:
        BundleError: The bundle cannot be used.
        ConfigError: This machine or this bundle does not have the engine or the precision.
    """

    def __init__(
        self,
        location: str,
        *,
        engine: EngineChoice = "auto",
        precision: PrecisionChoice = "auto",
        num_threads: int | None = None,
        use_gpu: bool = False,
        batch_size: int = 1,
    ) -> None:
        self.bundle = store.load(location)
        self.kind = choice.for_bundle(self.bundle, engine, precision, use_gpu=use_gpu)
        self._engine = choice.load(
            self.bundle, self.kind, num_threads=num_threads, use_gpu=use_gpu, batch_size=batch_size
        )
        self.novelty = self.bundle.novelty()

    def predict(self, images_BHWC: np.ndarray) -> np.ndarray:
        """Predicts class probabilities.

        Args:
            images_BHWC: uint8 [batch, size, size, 3], RGB, at the bundle's `image_size_px`.

        Returns:
            float32 [batch, classes], in the bundle's class order.

        Raises:
            ValueError: The images have another dtype or shape.
        """
        return self.score(images_BHWC).probs_BK

    def score(self, images_BHWC: np.ndarray) -> Scores:
        """Predicts class probabilities, and scores how foreign the images are; takes and raises what `predict` does."""
        size_px = self.bundle.spec.image_size_px
        if images_BHWC.dtype != np.uint8 or images_BHWC.shape[1:] != (size_px, size_px, 3):
            raise ValueError(
                f"The model takes uint8 [batch, {size_px}, {size_px}, 3]. "
                f"Received: {images_BHWC.dtype} {list(images_BHWC.shape)}"
            )
        if not len(images_BHWC):
            none = np.zeros((0, len(self.bundle.spec.classes)), np.float32)
            return Scores(probs_BK=none, ood_scores=np.zeros(0, np.float32))
        probs_BK, *features = self._engine.run(images_BHWC)
        if self.novelty is None or not features:
            return Scores(probs_BK=probs_BK, ood_scores=np.full(len(probs_BK), np.nan, np.float32))
        ood_scores, places_BC = self.novelty.place(features[0])
        return Scores(probs_BK=probs_BK, ood_scores=ood_scores, places_BC=places_BC)
