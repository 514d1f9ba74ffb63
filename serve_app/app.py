"""The Ray Serve application: `serve run serve_app.app:build bundle=URI`, or `serve deploy serve_app/config.yaml`."""

import math
from typing import Any, cast

from ray import serve
from ray.serve import Application, Deployment
from ray.serve.handle import DeploymentHandle

from serve_app.api import create_api
from serve_app.batches.job_server import JobServer
from serve_app.batches.jobs import Batches
from serve_app.http.auth import ApiKeys
from serve_app.model.classifier import Classifier
from serve_app.model.remote import LocalModel, RemoteModel
from serve_app.model.service import Service
from serve_app.model.shadow import Shadow
from serve_app.options import CPUS_PER_REPLICA, Options
from serve_app.watch.telemetry import Telemetry

MODEL_CPUS, INGRESS_CPUS = 0.25, 0.1
"""CPUs that a replica asks of Ray. Small, so that a bulk-scoring job (1.5 CPUs) still fits beside them on 2 CPUs."""

DELAYS = {"upscale_delay_s": 10.0, "downscale_delay_s": 300.0}
"""A new replica takes seconds to load its model, so one that is there stays for the next burst."""

SHADOW = "shadow"
"""The key and name of what is asked beside the versions of the model."""

MAX_REQUESTS = 10_000
"""Maximum concurrent requests per replica. Far above the images that ingresses hold: these alone refuse.

At a limit of 64, images beyond it waited for up to 25 s in Serve's router, on a replica that was idle (three clients
with 64 images each, Ray 2.60 without HAProxy).
"""


@serve.ingress()
class Ingress:
    """The HTTP side, with the models in this process too if there is but one; see `api`.

    Args:
        options: The application's settings.
        handles: The replicas of each version, and of the `SHADOW` if there is one; none with `one_process`.
    """

    def __init__(self, options: Options, handles: dict[int | str, DeploymentHandle]) -> None:
        self._classifiers: dict[int | str, Classifier] = {}
        if options.one_process:
            settings = _model_settings(options, max_waiting=options.max_queued_images)
            self._classifiers = {
                version: Classifier(bundle, version, **settings) for version, bundle in _bundles(options).items()
            }
        found = {name: RemoteModel(handle) for name, handle in handles.items()} or {
            name: LocalModel(classifier) for name, classifier in self._classifiers.items()
        }
        models = {name: model for name, model in found.items() if isinstance(name, int)}
        telemetry = Telemetry(options.name)
        mirror = Shadow(found[SHADOW], options, telemetry).offer if SHADOW in found else None
        self._version = options.version
        self._service = Service(options, models, telemetry, mirror)
        self._batches = Batches(self._service, JobServer())

    async def reconfigure(self, user_config: dict[str, str]) -> None:
        """With `one_process`: puts another bundle in the main version's place; see `Classifier.reconfigure`."""
        await self._classifiers[self._version].reconfigure(user_config)

    def check_health(self) -> None:
        """See `Classifier.check_health`."""
        for classifier in self._classifiers.values():
            classifier.check_health()

    def __serve_build_asgi_app__(self) -> Any:
        """Called by Serve in the replica."""
        return create_api(self._service, ApiKeys(), self._batches)


def build(options: Options) -> Application:
    """Builds the application, for Serve: an ingress, and a deployment for each version of the model and for the shadow.

    Replicas and autoscaling are defaults, which a config file overrides by the deployments' names.

    Args:
        options: The application's settings.
    """
    model_cpus = MODEL_CPUS if options.use_gpu or options.max_replicas == 1 else CPUS_PER_REPLICA
    # `RemoteModel` sends each image by itself, so that Serve's limits and autoscaling count images. With as many at a
    # time as a batch has places, batches are half full: fast, and soon answered.
    of_model = {
        "ray_actor_options": {"num_cpus": model_cpus, "num_gpus": int(options.use_gpu)},
        "autoscaling_config": _autoscaling(options.max_replicas, target=options.max_batch_size),
    }
    # `requestlog` writes more than Serve does.
    of_ingress = {
        "max_ongoing_requests": MAX_REQUESTS,
        "logging_config": {"encoding": "JSON", "enable_access_log": False},
    }
    if options.one_process:
        return _deployment(Ingress, name="Ingress", **of_model, **of_ingress).bind(options, {})
    models = {
        version: _deployment(
            Classifier,
            name=f"Classifier-{version}",
            max_ongoing_requests=MAX_REQUESTS,
            max_queued_requests=options.max_queued_images,
            logging_config={"enable_access_log": False},
            **of_model,
        ).bind(bundle, version, **_model_settings(options, max_waiting=MAX_REQUESTS))
        for version, bundle in _bundles(options).items()
    }
    # As many as hold for each replica of the model one batch that it predicts and three that wait.
    num_ingresses = math.ceil(4 * options.max_batch_size * options.max_replicas / options.max_queued_images)
    # Serve counts an ingress's requests, not their images. If all are as large as allowed, so many of them fill half of
    # its queue: another ingress comes before one has to refuse.
    target = max(1, options.max_queued_images // (2 * options.max_images_per_request))
    ingress = _deployment(
        Ingress,
        name="Ingress",
        ray_actor_options={"num_cpus": INGRESS_CPUS},
        autoscaling_config=_autoscaling(num_ingresses, target=target),
        **of_ingress,
    )
    return ingress.bind(options, models)


def _bundles(options: Options) -> dict[int | str, str]:
    bundles: dict[int | str, str] = {options.version: options.bundle, **options.other_versions}
    if options.shadow_bundle is not None:
        bundles[SHADOW] = options.shadow_bundle
    return bundles


def _model_settings(options: Options, *, max_waiting: int) -> dict[str, Any]:
    return {
        "max_batch_size": options.max_batch_size,
        "max_waiting": max_waiting,
        "use_gpu": options.use_gpu,
    }


def _autoscaling(max_replicas: int, *, target: int) -> dict[str, float]:
    return {"min_replicas": 1, "max_replicas": max_replicas, "target_ongoing_requests": target, **DELAYS}


def _deployment(cls: Any, **options: Any) -> Deployment:
    return cast("Deployment", serve.deployment(cls, **options))
