"""Ray Serve with a FastAPI ingress and plain `@serve.batch`, as Ray's documentation shows it.

https://docs.ray.io/en/latest/serve/advanced-guides/dyn-req-batch.html; the model off the event loop, as
https://docs.ray.io/en/latest/serve/advanced-guides/asyncio-best-practices.html has it ("Batching").
"""

import asyncio
import os
from typing import Any

import numpy as np
from fastapi import FastAPI, File
from model import MAX_BATCH_SIZE, Model, answer, decode
from on_ray import run
from ray import serve

app = FastAPI()


@serve.deployment(max_ongoing_requests=1000, ray_actor_options={"num_cpus": os.cpu_count()})
@serve.ingress(app)
class Classifier:
    """The whole application."""

    def __init__(self) -> None:
        self.model = Model()

    @serve.batch(max_batch_size=MAX_BATCH_SIZE, batch_wait_timeout_s=0.01)
    async def classify(self, images: list[np.ndarray]) -> list[np.ndarray]:
        """Returns the probabilities, float32 [classes] each, of images, uint8 [size, size, 3] each."""
        return list(await asyncio.to_thread(lambda: self.model.predict(np.stack(images))))

    @app.post("/predict")
    async def predict(self, file: bytes = File()) -> dict[str, Any]:
        """Classifies an image file."""
        return answer(await self.classify(await asyncio.to_thread(decode, file)))


if __name__ == "__main__":
    run(Classifier.bind())
