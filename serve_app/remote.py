"""A model in other processes: what can go wrong on the way to it, as the client is told."""

from collections.abc import Sequence
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from serve_app.classifier import Answer, ModelInfo, Pixels
from serve_app.errors import QueueClosed, QueueFull, RequestError

NUM_TRIES = 3
"""Of a request whose replica died or is being shut down: the same images give the same answer, wherever it is from."""

RETRY_AFTER_S = 1


class RemoteModel:
    """The replicas of one `Classifier`.

    Args:
        handle: Their handle.
    """

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def describe(self) -> ModelInfo:
        """Tells what is loaded; see `predict` for what is raised."""
        return await self._call("describe")

    async def predict(self, pixels: Pixels) -> Answer:
        """Predicts some images.

        Raises:
            RequestError: 503: no replica can take them now.
        """
        return await self._call("predict", pixels)

    async def explain(self, pixels: Pixels, class_indices: Sequence[int]) -> list[bytes] | None:
        """Returns the Grad-CAM overlays of some images for a class each; see `predict` for what is raised."""
        return await self._call("explain", pixels, class_indices)

    async def _call(self, method: str, *arguments: Any) -> Any:
        for _ in range(NUM_TRIES):
            try:
                return await getattr(self._handle, method).remote(*arguments)
            except (RayActorError, QueueClosed):
                continue
            except (BackPressureError, DeploymentUnavailableError, QueueFull):
                break
        raise RequestError(
            503, "The model has no room for more images now. Try again a little later.", retry_after_s=RETRY_AFTER_S
        )
