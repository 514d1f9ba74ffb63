"""The application's settings, its defaults as Serve gets them, and that config.yaml says the same."""

import re
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from pydantic import ValidationError
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ServeDeploySchema

import serve_app
from serve_app.app import DELAYS, build
from serve_app.options import MAX_REQUESTS, Options

TEXT = (Path(serve_app.__file__).parent / "config.yaml").read_text()
CONFIG = yaml.safe_load(TEXT)
(APPLICATION,) = CONFIG["applications"]
DEPLOYMENTS = {deployment["name"]: deployment for deployment in APPLICATION["deployments"]}


def deployments(**options: Any) -> dict[str, Any]:
    """The deployments of an application, by name."""
    ingress = build(Options(bundle="/b", **options))._bound_deployment
    _, models = cast("tuple[Any, dict[int, Any]]", ingress.init_args)
    bound = [application._bound_deployment for application in models.values()]
    return {deployment.name: deployment for deployment in (ingress, *bound)}


@pytest.mark.parametrize("name", ["input_roots", "output_roots"])
@pytest.mark.parametrize("root", ["data/images", "s3://bucket/../other", "3://bucket"])
def test_roots_that_mean_nothing_clear_are_refused(name, root):
    with pytest.raises(ValidationError, match=re.escape(f"'{root}'")):
        Options.model_validate({"bundle": "/b", name: ["/data", root]})


def test_roots_have_one_spelling():
    options = Options(
        bundle="/b", input_roots=["/data/./images/", "file:///data/a%20b"], output_roots=["S3://bucket/k/"]
    )
    assert options.input_roots == ["/data/images", "/data/a b"]
    assert options.output_roots == ["s3://bucket/k"]


@pytest.mark.parametrize("others", [{2: "/old"}, {0: "/old"}, {3: "/a", -1: "/b"}])
def test_no_version_takes_the_main_ones_place(others):
    with pytest.raises(ValidationError, match="must be 1 or more and differ from version 2"):
        Options(bundle="/new", version=2, other_versions=others)


def test_arguments_of_serve_run_are_text():
    options = Options.model_validate({"bundle": "/b", "max_replicas": "2", "use_gpu": "true", "timeout_s": "2.5"})
    assert (options.max_replicas, options.use_gpu, options.timeout_s) == (2, True, 2.5)
    with pytest.raises(ValidationError, match="max_replica\n"):
        Options.model_validate({"bundle": "/b", "max_replica": "2"})


@pytest.mark.parametrize("number", [0, MAX_REQUESTS + 1])
def test_an_ingress_holds_no_more_images_than_serve_gives_to_a_replica(number):
    with pytest.raises(ValidationError, match="max_queued_images"):
        Options(bundle="/b", max_queued_images=number)


def test_in_one_process_there_is_one_deployment_with_what_a_model_needs():
    (found,) = deployments(one_process=True, use_gpu=True).values()
    assert found.name == "Ingress"
    assert found.ray_actor_options["num_gpus"] == 1
    assert found.max_ongoing_requests == deployments()["Ingress"].max_ongoing_requests
    scaling = found._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 1)


def test_one_process_does_not_scale():
    """Serve would count its requests, of up to 64 images each."""
    with pytest.raises(ValidationError, match="With one_process, max_replicas must be 1"):
        Options(bundle="/b", one_process=True, max_replicas=2)


@pytest.mark.parametrize(
    ("options", "cpus_and_gpus", "max_ingresses"),
    [
        ({}, (0.25, 0), 1),  # all cores are its own, and bulk scoring finds 1.5 of 2 CPUs
        ({"max_replicas": 2}, (4, 0), 1),  # 2 replicas have 2 * 4 * 32 images, as many as one ingress holds
        ({"max_replicas": 3}, (4, 0), 2),
        ({"max_replicas": 2, "use_gpu": True}, (0.25, 1), 1),
        ({"max_replicas": 3, "max_batch_size": 64}, (4, 0), 3),
        ({"max_replicas": 3, "max_queued_images": 64}, (4, 0), 6),
    ],
)
def test_replicas_have_what_they_need(options, cpus_and_gpus, max_ingresses):
    found = deployments(**options)
    model = found["Classifier-1"]
    assert (model.ray_actor_options["num_cpus"], model.ray_actor_options["num_gpus"]) == cpus_and_gpus
    scaling = model._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (1, options.get("max_replicas", 1))
    assert found["Ingress"]._deployment_config.autoscaling_config.max_replicas == max_ingresses


@pytest.mark.parametrize(
    ("options", "target"),
    [
        ({}, 2),  # two of 64 images are half of 256
        ({"max_images_per_request": 8}, 16),
        ({"max_images_per_request": 1}, 128),
        ({"max_images_per_request": 256}, 1),
        ({"max_queued_images": 1024}, 8),
    ],
)
def test_another_ingress_is_asked_for_when_the_largest_requests_fill_half_a_queue(options, target):
    scaling = deployments(max_replicas=3, **options)["Ingress"]._deployment_config.autoscaling_config
    assert scaling.target_ongoing_requests == target


@pytest.mark.parametrize("options", [{}, {"one_process": True}, {"timeout_s": 120.0}, {"other_versions": {2: "/c"}}])
def test_a_replica_that_is_replaced_has_time_for_all_that_it_holds(options):
    """Its requests may wait as long as `timeout_s` for a model to load; ended before, they would get a plain 500."""
    for deployment in deployments(**options).values():
        timeout_s = options.get("timeout_s", 30.0)
        assert deployment._deployment_config.graceful_shutdown_timeout_s == 2 * timeout_s


def test_the_config_file_is_valid_and_complete():
    ServeDeploySchema.model_validate(CONFIG)
    options = Options.model_validate(APPLICATION["args"])
    shown = set(re.findall(r"^ {6}(?:# )?(\w+): ", TEXT, re.MULTILINE))
    # In a config file autoscaling_config has its place.
    assert set(Options.model_fields) - shown == {"max_replicas"}
    examples = {"bundle", "input_roots", "output_roots"}
    default = Options(bundle="/b")
    assert options.model_dump(exclude=examples) == default.model_dump(exclude=examples)
    assert APPLICATION["import_path"] == f"{build.__module__}:{build.__name__}"


def test_the_config_file_has_the_deployments_and_limits_of_the_code():
    options = Options.model_validate(APPLICATION["args"])
    found = deployments()
    assert set(DEPLOYMENTS) == set(found)
    for name, deployment in found.items():
        assert DEPLOYMENTS[name]["max_ongoing_requests"] == deployment.max_ongoing_requests
        grace_s = deployment._deployment_config.graceful_shutdown_timeout_s
        assert DEPLOYMENTS[name]["graceful_shutdown_timeout_s"] == grace_s > options.timeout_s
        ours = deployment._deployment_config.autoscaling_config.model_dump()
        written = DEPLOYMENTS[name]["autoscaling_config"]
        assert set(written) == {
            *("min_replicas", "max_replicas", "target_ongoing_requests", "upscale_delay_s", "downscale_delay_s"),
            *("look_back_period_s", "metrics_interval_s"),
        }
        assert {key: ours[key] for key in written if key != "max_replicas"} == {
            key: value for key, value in written.items() if key != "max_replicas"
        }
    model, ingress = DEPLOYMENTS["Classifier-1"], DEPLOYMENTS["Ingress"]
    # One replica of the model takes all that the replicas of Ingress hold, while others are still being started.
    num_held = ingress["autoscaling_config"]["max_replicas"] * options.max_queued_images
    assert model["max_ongoing_requests"] > num_held
    assert found["Classifier-1"].init_kwargs["max_waiting"] > num_held
    assert model["max_queued_requests"] == options.max_queued_images
    assert model["autoscaling_config"]["target_ongoing_requests"] == options.max_batch_size
    num_images = ingress["autoscaling_config"]["target_ongoing_requests"] * options.max_images_per_request
    assert num_images == options.max_queued_images / 2
    num_images = 4 * model["autoscaling_config"]["max_replicas"] * options.max_batch_size
    assert ingress["autoscaling_config"]["max_replicas"] * options.max_queued_images >= num_images
    assert CONFIG["http_options"]["request_timeout_s"] > options.timeout_s
    assert CONFIG["http_options"]["host"] == "127.0.0.1"


def test_serve_still_takes_the_seconds_between_measurements_of_the_load():
    """Without them it measures each 10 s, and an endpoint that is too busy waits so long for another replica."""
    variables = [f"RAY_SERVE_{each}_AUTOSCALING_METRIC_PUSH_INTERVAL_S" for each in ("REPLICA", "HANDLE")]
    hint = (
        "Ray has removed `metrics_interval_s`. Delete it from `DELAYS` in serve_app/app.py and from config.yaml, and "
        f"add {' and '.join(variables)}, each 1, to SERVE_ENVIRONMENT in serve_app/environment.py and to config.yaml."
    )
    assert "metrics_interval_s" in AutoscalingConfig.model_fields, hint
    with pytest.warns(DeprecationWarning, match="metrics_interval_s") as warned:
        assert AutoscalingConfig(metrics_interval_s=DELAYS["metrics_interval_s"]).metrics_interval_s == 1
    for variable in variables:
        assert variable in str(warned[0].message)
        for name in ("app.py", "config.yaml"):
            assert variable in (Path(serve_app.__file__).parent / name).read_text()


def test_the_config_file_names_the_environment_of_serve():
    from serve_app.environment import SERVE_ENVIRONMENT

    assert SERVE_ENVIRONMENT
    assert all(f"#   {name}={value}:" in TEXT for name, value in SERVE_ENVIRONMENT.items())
