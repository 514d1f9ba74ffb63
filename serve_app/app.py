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
from serve_app.options import CPUS_PER_REPLICA, MAX_REQUESTS, Options
from serve_app.watch.telemetry import Telemetry

MODEL_CPUS, INGRESS_CPUS = 0.25, 0.1
"""CPUs that a replica requests from Ray. Small, so that a bulk-scoring job (1.5 CPUs) still fits on a 2-CPU machine."""

# Ray 2.60 deprecates `metrics_interval_s`, but has nothing else for it: the variables that will take its place,
# RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S and RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S, have no
# effect yet. With its default, 10 s, a replica is asked for too late. A test fails when it is gone.
DELAYS = {"upscale_delay_s": 2.0, "downscale_delay_s": 300.0, "look_back_period_s": 5.0, "metrics_interval_s": 1.0}
"""Seconds of higher or lower load before Serve adds or removes a replica; seconds over which the load is averaged, and
between two measurements of it.

With OpenVINO a replica starts in two or three seconds, so it is worth asking for one soon; one that is there is kept
for the next burst.
"""

SHADOW = "shadow"
"""Key of the shadow model among the numbered versions, and part of its deployment's name."""


@serve.ingress()
class Ingress:
    """The deployment that answers HTTP requests; see `create_api`. With `one_process` it also holds the models.

    Args:
        options: The application's settings.
        handles: The deployments' handles, by version, or `SHADOW` for the shadow model; empty with `one_process`.
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
        """With `one_process`, replaces the main version's bundle by another one; see `Classifier.reconfigure`."""
        await self._classifiers[self._version].reconfigure(user_config)

    def check_health(self) -> None:
        """Notes that the models in this process have started; see `Classifier.check_health`."""
        for classifier in self._classifiers.values():
            classifier.check_health()

    def __serve_build_asgi_app__(self) -> Any:
        """Returns the ASGI application; Serve calls this in the replica."""
        return create_api(self._service, ApiKeys(), self._batches)


def build(options: Options) -> Application:
    """Returns the application for Serve: an ingress, and a deployment for each model version and for the shadow.

    With `one_process` there is only the ingress. Numbers of replicas and autoscaling are defaults, which a config file
    overrides by the deployments' names.

    Args:
        options: The application's settings.
    """
    # A replica that is being replaced answers what it holds, which may wait `timeout_s` to be read and as long for a
    # new model replica to start. Serve's default of 20 s would end it before, and these requests with a plain 500.
    return application(options, grace_s=2 * options.timeout_s)


def application(options: Options, *, grace_s: float) -> Application:
    """Returns the application, see `build`.

    Args:
        options: The application's settings.
        grace_s: Seconds that a replica which is being replaced or ended has to answer what it holds.
    """
    model_cpus = MODEL_CPUS if options.use_gpu or options.max_replicas == 1 else CPUS_PER_REPLICA
    # `RemoteModel` sends each image by itself, so that Serve's limits and autoscaling count images. With a target of
    # one full batch in progress, batches are half full on average: good throughput, and short waits.
    of_model = {
        "ray_actor_options": {"num_cpus": model_cpus, "num_gpus": int(options.use_gpu)},
        "autoscaling_config": _autoscaling(options.max_replicas, target=options.max_batch_size),
    }
    of_all = {
        "max_ongoing_requests": MAX_REQUESTS,
        "graceful_shutdown_timeout_s": grace_s,
    }
    # `serve_app.http.request_log` logs more than Serve's access log does.
    of_ingress = {
        **of_all,
        "logging_config": {"encoding": "JSON", "enable_access_log": False},
    }
    if options.one_process:
        return _deployment(Ingress, name="Ingress", **of_model, **of_ingress).bind(options, {})
    models = {
        version: _deployment(
            Classifier,
            name=f"Classifier-{version}",
            max_queued_requests=options.max_queued_images,
            logging_config={"enable_access_log": False},
            **of_model,
            **of_all,
        ).bind(bundle, version, **_model_settings(options, max_waiting=MAX_REQUESTS))
        for version, bundle in _bundles(options).items()
    }
    # Enough ingresses to hold four batches for each model replica: one that it predicts and three that wait.
    num_ingresses = math.ceil(4 * options.max_batch_size * options.max_replicas / options.max_queued_images)
    # Serve counts an ingress's requests, not their images: its default policy ignores what a deployment reports by
    # `record_autoscaling_stats`, and other policies need an alpha API (Ray 2.60). This many requests of the largest
    # allowed size fill half of its queue, so another ingress is asked for while this one still has room. Until it is
    # there (`DELAYS`), a burst is refused: clients of bulk requests try again.
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
        "engine": options.engine,
        "precision": options.precision,
        "use_gpu": options.use_gpu,
    }


def _autoscaling(max_replicas: int, *, target: int) -> dict[str, float]:
    return {"min_replicas": 1, "max_replicas": max_replicas, "target_ongoing_requests": target, **DELAYS}


def _deployment(cls: Any, **options: Any) -> Deployment:
    return cast("Deployment", serve.deployment(cls, **options))
