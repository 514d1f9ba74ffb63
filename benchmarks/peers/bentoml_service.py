"""BentoML: a service with an adaptively batched API, and one before it that takes files, as its documentation has it.

https://docs.bentoml.com/en/latest/get-started/adaptive-batching.html: "a wrapper Service for single requests".
"""

import asyncio
from pathlib import Path
from typing import Any

import bentoml  # pyright: ignore[reportMissingImports]
import numpy as np
from model import MAX_BATCH_SIZE, Model, answer, decode


@bentoml.service
class Classifier:
    """The model."""

    def __init__(self) -> None:
        self.model = Model()

    # max_latency_ms stays at its default, a minute: what waits longer is refused with 503.
    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH_SIZE)
    def classify(self, images: np.ndarray) -> np.ndarray:
        """Returns the probabilities, float32 [images, classes], of uint8 [images, size, size, 3]."""
        return self.model.predict(images)


@bentoml.service
class Endpoint:
    """What clients see."""

    classifier = bentoml.depends(Classifier)

    @bentoml.api
    async def predict(self, file: Path) -> dict[str, Any]:
        """Classifies an image file."""
        pixels_HWC = await asyncio.to_thread(lambda: decode(file.read_bytes()))
        probs_BK = await self.classifier.to_async.classify(pixels_HWC[None])
        return answer(probs_BK[0])
