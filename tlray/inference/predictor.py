"""Predicts with a bundle in this process: pixels in, probabilities out."""

import numpy as np

from tlray.bundle import store
from tlray.config.training import EngineChoice, PrecisionChoice
from tlray.engines import choice


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

    def predict(self, images_BHWC: np.ndarray) -> np.ndarray:
        """Predicts class probabilities.

        Args:
            images_BHWC: uint8 [batch, size, size, 3], RGB, at the bundle's `image_size_px`.

        Returns:
            float32 [batch, classes], in the bundle's class order.

        Raises:
            ValueError: The images have another dtype or shape.
        """
        size_px = self.bundle.spec.image_size_px
        if images_BHWC.dtype != np.uint8 or images_BHWC.shape[1:] != (size_px, size_px, 3):
            raise ValueError(
                f"The model takes uint8 [batch, {size_px}, {size_px}, 3]. "
                f"Received: {images_BHWC.dtype} {list(images_BHWC.shape)}"
            )
        if not len(images_BHWC):
            return np.zeros((0, len(self.bundle.spec.classes)), dtype=np.float32)
        (probs_BK,) = self._engine.run(images_BHWC)
        return probs_BK
