"""A client of Ray's job server, which runs batches as jobs and keeps them even if this application ends."""

import logging
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError

from serve_app.errors import RequestError
from serve_app.http.auth import FILE_VARIABLE, KEYS_VARIABLE
from serve_app.http.identity import TOKEN_VARIABLE

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

RETRY_AFTER_S = 10
"""Seconds for the header Retry-After when there is no job server or another batch is running."""

SECRETS = (KEYS_VARIABLE, FILE_VARIABLE, TOKEN_VARIABLE)
"""Environment variables of the endpoint that jobs do not get, because they contain secrets."""

_LOG = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as the job server knows it.

    Attributes:
        id: Submission id of the job.
        status: Ray's status of the job, a value of `ray.job_submission.JobStatus` such as RUNNING.
        start_ms: Time of submission, in milliseconds since the Unix epoch.
        metadata: The metadata that were submitted with the job.
        message: For a failed job, the end of its log, for the operator.
    """

    id: str
    status: str
    start_ms: int
    metadata: Mapping[str, str]
    message: str


class JobServer:
    """The job server of this process's Ray. All methods block, and raise RequestError (503) if it does not answer.

    Each call looks up its address, which may change when the head node is restarted.
    """

    def submit(self, command: Sequence[str], *, id: str, metadata: Mapping[str, str]) -> None:  # noqa: A002
        """Starts a command as a job.

        Args:
            command: The program and its arguments, passed literally: no shell interprets them.
            id: The submission id.
            metadata: Metadata that the job server keeps with the job.
        """
        with _client() as client:
            # Ray's job manager would give the job the address of any Ray that it finds on its machine.
            address = f"RAY_ADDRESS={ray.get_runtime_context().gcs_address}"
            client.submit_job(
                entrypoint=shlex.join(["env", address, *command]),
                submission_id=id,
                metadata=dict(metadata),
                runtime_env=_runtime_env(),
            )

    def find(self, id: str) -> Job | None:  # noqa: A002
        """Returns the job with a submission id; None if there is none."""
        with _client() as client:
            try:
                return _job(client.get_job_info(id))
            except RuntimeError as error:
                if "status code 404" in str(error):
                    return None
                raise

    def find_all(self) -> list[Job]:
        """Returns all jobs that were ever submitted to this Ray."""
        with _client() as client:
            return [_job(details) for details in client.list_jobs() if details.submission_id]

    def stop(self, id: str) -> bool:  # noqa: A002
        """Asks a job to end and returns whether it had a process that could be asked."""
        with _client() as client:
            return client.stop_job(id)

    def cpus(self) -> tuple[float, float]:
        """Returns the number of free CPUs in the cluster, and the number of all its CPUs."""
        return ray.available_resources().get("CPU", 0.0), ray.cluster_resources().get("CPU", 0.0)


def _job(details: Any) -> Job:
    return Job(
        id=details.submission_id,
        status=details.status.value,
        start_ms=details.start_time or 0,
        metadata=details.metadata or {},
        message=details.message or "",
    )


@contextmanager
def _client() -> Iterator["JobSubmissionClient"]:
    # Imported here, so that a replica that starts does not wait for them.
    from ray.job_submission import JobSubmissionClient  # noqa: PLC0415

    from tlray.cluster import ray_internals  # noqa: PLC0415

    context = ray.get_runtime_context()
    try:
        client = JobSubmissionClient(context.gcs_address)
        # A Ray without a dashboard reports the port that it would have used; another Ray's dashboard may listen there.
        session = ray_internals.session_of(client)
        if session != context.get_session_name():
            raise ConnectionError(f"{client.get_address()} is the job server of another Ray, {session}.")
        yield client
    except (OSError, RuntimeError, ValueError, RayError) as error:
        _LOG.error("No job server: %s. Start Ray with its dashboard, as `ray start --head` does.", error)
        raise RequestError(
            503,
            "The cluster's job server, which runs batches, does not answer. Ask the operator; the log says why.",
            "no_job_server",
            RETRY_AFTER_S,
        ) from error


def _runtime_env() -> dict[str, Any]:
    """Returns this replica's runtime environment without `SECRETS`, so that the job runs the same code."""
    own = dict(ray.get_runtime_context().runtime_env)
    # Empty rather than left out, because a job inherits the environment of its node's Ray, which may have them too.
    return own | {"env_vars": own.get("env_vars", {}) | dict.fromkeys(SECRETS, "")}
