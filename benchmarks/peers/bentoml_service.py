"""BentoML with an adaptively batched API, https://docs.bentoml.com/en/latest/get-started/adaptive-batching.html .

A client sends a list of one file and gets a list of one answer. BentoML's other way, a service for single files that
calls a batched one by `bentoml.depends`, closes the connections between the two after 100 requests and answers 500
under load (1.4.40, https://github.com/bentoml/BentoML/issues/5540).
"""

from pathlib import Path
from typing import Any

import bentoml  # pyright: ignore[reportMissingImports]
import numpy as np
from model import MAX_BATCH_SIZE, Model, answer, decode


@bentoml.service
class Endpoint:
    """The model."""

    def __init__(self) -> None:
        self.model = Model()

    # max_latency_ms stays at its default, a minute: what waits longer is refused with 503.
    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH_SIZE)
    def predict(self, file: list[Path]) -> list[dict[str, Any]]:
        """Classifies image files."""
        probs_BK = self.model.predict(np.stack([decode(each.read_bytes()) for each in file]))
        return [answer(probs_K) for probs_K in probs_BK]
