"""Connecting to a Ray, as far as it needs no running one."""

import json
import os
import re
import socket
from typing import Any

import pytest
import ray

from tlray.cluster import connection
from tlray.errors import ConfigError, TlrayError


def test_the_name_of_a_job(monkeypatch):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert connection.job_name() is None
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"metadata": {"job_submission_id": "tlray-batch-1"}}')
    assert connection.job_name() == "tlray-batch-1"


@pytest.fixture
def without_ray(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(connection, "LOCAL_RAY_ENVIRONMENT", {})


@pytest.mark.usefixtures("without_ray")
@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "[::1]:{port}", "127.0.0.1:99999999"])
def test_an_address_where_nobody_listens_is_told_at_once(monkeypatch, address):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # bound and not listening: nobody else's either
        address = address.format(port=listener.getsockname()[1])
        monkeypatch.setenv("RAY_ADDRESS", address)
        monkeypatch.setattr(ray, "init", pytest.fail)
        with pytest.raises(ConfigError, match=rf"nobody answers at {re.escape(address)} .* unset RAY_ADDRESS"):
            connection.connect()


@pytest.mark.usefixtures("without_ray")
@pytest.mark.parametrize("address", ["", "auto", "local", "ray://head:10001"])
def test_other_addresses_are_rays_own_matter(monkeypatch, address):
    begun: list[dict[str, Any]] = []
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "init", lambda _, **options: begun.append(options))
    connection.connect()
    assert len(begun) == 1


@pytest.fixture
def begun(monkeypatch) -> list[tuple[dict[str, str], str | None]]:
    """The variables that `ray.init` was given, and whether it may override those of the job."""
    calls: list[tuple[dict[str, str], str | None]] = []

    def init(_: str | None, **options: Any) -> None:
        calls.append((options["runtime_env"]["env_vars"], os.environ.get("RAY_OVERRIDE_JOB_RUNTIME_ENV")))

    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(ray, "init", init)
    return calls


@pytest.mark.usefixtures("without_ray")
@pytest.mark.parametrize(
    ("job", "changes"),
    [
        ({}, {}),
        ({"runtime_env": None}, {}),
        ({"runtime_env": {"working_dir": "gcs://code.zip"}}, {}),
        ({"runtime_env": {"env_vars": {"OTHER": "1"}}}, {}),
        # The job's word counts, but not where nothing would work.
        (
            {"runtime_env": {"env_vars": {"TF_CPP_MIN_LOG_LEVEL": "0", "TF_USE_LEGACY_KERAS": "1"}}},
            {"TF_CPP_MIN_LOG_LEVEL": "0"},
        ),
    ],
)
@pytest.mark.parametrize("before", [None, "0"])
def test_a_job_may_set_variables_that_tlray_sets(monkeypatch, begun, job, changes, before):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    monkeypatch.delenv("RAY_OVERRIDE_JOB_RUNTIME_ENV", raising=False)
    if before is not None:
        monkeypatch.setenv("RAY_OVERRIDE_JOB_RUNTIME_ENV", before)
    connection.connect()
    expected = {"TF_USE_LEGACY_KERAS": "0", "TF_CPP_MIN_LOG_LEVEL": "2", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1"}
    assert begun == [(expected | changes, "1")]
    assert os.environ.get("RAY_OVERRIDE_JOB_RUNTIME_ENV") == before


@pytest.mark.usefixtures("without_ray")
@pytest.mark.parametrize("with_jobs", [False, True])
def test_a_local_rays_processes_inherit_their_variables(monkeypatch, with_jobs):
    """With a runtime_env, the processes that Ray starts at once would stay idle."""
    inherited: list[dict[str, str]] = []

    def init(address: str | None, **options: Any) -> None:
        assert address == "local"
        assert "runtime_env" not in options
        inherited.append(dict(os.environ))

    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "1")
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", init)
    connection.connect(with_jobs=with_jobs)
    (found,) = inherited
    assert found["TF_USE_LEGACY_KERAS"] == "0"
    assert found["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] == "0.1"
    assert ("RAY_API_SERVER_ADDRESS" in found) != with_jobs
    assert os.environ["TF_USE_LEGACY_KERAS"] == "1"
    assert "RAY_API_SERVER_ADDRESS" not in os.environ


@pytest.mark.usefixtures("without_ray")
def test_a_local_ray_that_does_not_start_is_no_traceback(monkeypatch):
    def init(_: str | None, **options: Any) -> None:  # noqa: ARG001
        raise Exception("The current node timed out during startup.")

    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "1")
    expected = r"could not be started on this machine: The current node timed out during startup\. A busy machine"
    with pytest.raises(TlrayError, match=expected):
        connection.connect()
    assert os.environ["TF_USE_LEGACY_KERAS"] == "1"


@pytest.mark.usefixtures("without_ray")
def test_in_a_job_a_local_ray_gets_a_runtime_env(monkeypatch):
    """Ray would give its processes the variables of the job's own one otherwise."""
    begun: list[tuple[dict[str, str], str | None]] = []

    def init(address: str | None, **options: Any) -> None:
        assert address == "local"
        begun.append((options["runtime_env"]["env_vars"], os.environ.get("RAY_OVERRIDE_JOB_RUNTIME_ENV")))

    job = {"runtime_env": {"env_vars": {"TF_USE_LEGACY_KERAS": "1"}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setattr(ray, "init", init)
    connection.connect()
    ((variables, may_override),) = begun
    assert variables["TF_USE_LEGACY_KERAS"] == "0"
    assert "RAY_API_SERVER_ADDRESS" in variables
    assert may_override == "1"
