"""Calls to a model in other processes or in this one, with retries, and with errors that clients understand."""

import asyncio
import dataclasses
import functools
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from serve_app.errors import RETRY_AFTER_S, QueueClosed, QueueFull, RequestError
from serve_app.model.classifier import Answer, Classifier, Explained, ModelInfo, Pixels

NUM_TRIES = 3
"""Maximum tries of a call if replicas die, shut down or are full. Any replica gives the same answer."""

FRESH_S = 5.0
"""Seconds after a prediction in which the known `ModelInfo` is used: a call for it would wait like an image."""

AWAKE_S = 1.0
"""Seconds after an answer in which Serve is not asked whether there still is a replica."""


class RemoteModel:
    """The replicas of one `Classifier` deployment.

    Args:
        handle: Serve's handle of the deployment.
    """

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle
        self._info: ModelInfo | None = None
        self._answer_s = self._predict_s = -math.inf

    async def describe(self) -> ModelInfo:
        """Returns the description of the loaded model; raises like `predict`.

        With `min_replicas: 0` and no work there is no replica. The first call starts one. Later calls return its answer
        as long as there is no replica, so that readiness checks start none. They also return it for `FRESH_S` after a
        prediction with the same bundle.
        """
        if self._info is not None and (time.monotonic() < self._predict_s + FRESH_S or await self._is_asleep()):
            return self._info
        info = self._info = await self._call("describe")
        return info

    async def predict(self, pixels: Pixels) -> Answer:
        """Returns the predictions for some images.

        Raises:
            RequestError: 503: no replica can take them now.
        """
        return self._noted(await self._call_by_image("predict", pixels))

    async def explain(self, pixels: Pixels, bundle_sha256: str) -> Answer:
        """Returns predictions and overlays for some images, if this bundle is loaded; raises like `predict`."""
        return self._noted(await self._call_by_image("explain", pixels, bundle_sha256))

    def _noted(self, answer: Answer) -> Answer:
        is_same = self._info is not None and answer.bundle_sha256 == self._info.bundle_sha256
        self._predict_s = time.monotonic() if is_same else -math.inf
        return answer

    async def _call_by_image(self, method: str, pixels: Pixels, *arguments: Any) -> Answer:
        """Calls a method once for each image, because Serve chooses, limits and scales replicas by the number of calls.

        The replicas still make batches of the images. If the answers come from different bundles, because the replicas
        exchange theirs one after another, all images are sent once more in a single call, so that one bundle answers.
        """
        tasks = [
            asyncio.ensure_future(self._call(method, dataclasses.replace(pixels, images=[image]), *arguments))
            for image in pixels.images
        ]
        try:
            answers: list[Answer] = await asyncio.gather(*tasks)
        finally:
            for task in tasks:  # if one failed, nobody needs the others
                task.cancel()
        return join(answers) or await self._call(method, pixels, *arguments)

    async def _is_asleep(self) -> bool:
        if time.monotonic() < self._answer_s + AWAKE_S:
            return False
        try:
            status = await asyncio.to_thread(serve.status)
            deployment = status.applications[self._handle.app_name].deployments[self._handle.deployment_name]
        except (KeyError, RayError, RayServeException):
            return False
        # A deployment whose replicas died has none either, but is not healthy.
        return deployment.status == "HEALTHY" and set(deployment.replica_states) <= {"STOPPING"}

    async def _call(self, method: str, *arguments: Any) -> Any:
        for _ in range(NUM_TRIES):
            try:
                answer = await getattr(self._handle, method).remote(*arguments)
            except (RayActorError, QueueClosed, QueueFull):
                continue
            except (BackPressureError, DeploymentUnavailableError):
                break
            else:
                self._answer_s = time.monotonic()
                return answer
        raise _refusal()


class LocalModel:
    """A `Classifier` in this process, with the methods of `RemoteModel`.

    Args:
        classifier: The classifier.
    """

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier

    async def describe(self) -> ModelInfo:
        """Returns the description of the loaded model."""
        return await self._classifier.describe()

    async def predict(self, pixels: Pixels) -> Answer:
        """Returns the predictions for some images.

        Raises:
            RequestError: 503: the queue has no room for them.
        """
        return await self._call(functools.partial(self._classifier.predict, pixels))

    async def explain(self, pixels: Pixels, bundle_sha256: str) -> Answer:
        """Returns predictions and overlays for some images, if this bundle is loaded; raises like `predict`."""
        return await self._call(functools.partial(self._classifier.explain, pixels, bundle_sha256))

    async def _call(self, call: Callable[[], Awaitable[Answer]]) -> Answer:
        for _ in range(NUM_TRIES):
            try:
                return await call()
            except QueueClosed:  # the model has just been replaced by another bundle's
                continue
            except QueueFull:
                break
        raise _refusal()


def join(answers: Sequence[Answer]) -> Answer | None:
    """Returns the answers to several images as one; None if they come from more than one bundle."""
    first = answers[0]
    if any(answer.bundle_sha256 != first.bundle_sha256 for answer in answers):
        return None
    parts = [answer.probabilities for answer in answers if answer.probabilities is not None]
    scores = [answer.ood_scores for answer in answers if answer.ood_scores is not None]
    explained = [answer.explained for answer in answers if answer.explained is not None]
    lookalikes = [answer.lookalikes for answer in answers if answer.lookalikes is not None]
    return Answer(
        bundle_sha256=first.bundle_sha256,
        probabilities=np.concatenate(parts) if parts else None,
        ood_scores=np.concatenate(scores) if len(scores) == len(answers) else None,
        predict_s=max(answer.predict_s for answer in answers),
        explained=_join_explained(explained) if explained else None,
        lookalikes=[found for each in lookalikes for found in each] if len(lookalikes) == len(answers) else None,
    )


def _join_explained(explained: Sequence[Explained]) -> Explained:
    problem = next((each.problem for each in explained if each.problem), "")
    return Explained(overlays=() if problem else [png for each in explained for png in each.overlays], problem=problem)


def _refusal() -> RequestError:
    return RequestError(
        503, "The model has no room for more images now. Try again a little later.", retry_after_s=RETRY_AFTER_S
    )
