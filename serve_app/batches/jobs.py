"""Batches: bulk scoring as jobs that outlive the endpoint. The job server keeps their list, not this process."""

import asyncio
import logging
import re
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

from serve_app.batches.job_server import RETRY_AFTER_S, Job
from serve_app.batches.order import Order, forbidden, parse
from serve_app.errors import RequestError
from serve_app.model.classifier import ModelInfo
from serve_app.model.service import Service
from tlray.errors import ConfigError
from tlray.files import roots, storage
from tlray.inference import score_state

T = TypeVar("T")

PREFIX = "tlray-batch-"
"""Start of the submission ids of batches."""

NUM_THREADS = 4
"""Number of threads for calls to the job server, for reading progress, and for checking locations: each has as many."""

READING_SHARE = 0.5
"""Share of `timeout_s` after which a request reads no more progress, so that it is answered even if storage hangs."""

_LOG = logging.getLogger("ray.serve")

_ENDED = {"SUCCEEDED": "succeeded", "FAILED": "failed", "STOPPED": "cancelled"}

_PATH = re.compile(r"'((?:\w[\w+.-]*://|/)[^']*)'|(?<![\w./])(\w[\w+.-]*://[^\s'\",]*|/[^\s'\",]+)")
"""Pattern of a path or URI in a message; only one between apostrophes may contain spaces."""


class Jobs(Protocol):
    """The methods that `Batches` needs of a job server; see `JobServer`."""

    def submit(self, command: Sequence[str], *, id: str, metadata: Mapping[str, str]) -> None:  # noqa: A002
        """Starts a command as a job; see `JobServer.submit`."""
        ...

    def find(self, id: str) -> Job | None:  # noqa: A002
        """Returns the job with a submission id; None if there is none."""
        ...

    def find_all(self) -> list[Job]:
        """Returns all jobs that were ever submitted."""
        ...

    def stop(self, id: str) -> bool:  # noqa: A002
        """Asks a job to end and returns whether it had a process that could be asked."""
        ...

    def cpus(self) -> tuple[float, float]:
        """Returns the number of free CPUs in the cluster, and the number of all its CPUs."""
        ...


class Batches:
    """Starts, lists and cancels the batches of one model. All such objects, in any process, see the same batches.

    Args:
        service: Has the model's versions and the operator's settings.
        jobs: The job server that runs the batches.
    """

    def __init__(self, service: Service, jobs: Jobs) -> None:
        self._service = service
        self._jobs = jobs
        self._options = service.options
        self._input_roots = service.options.input_roots
        self._output_roots = service.options.output_roots
        self._submitting = asyncio.Lock()
        # Separate threads, so that nothing else waits for one while the job server or a storage hangs.
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="batches")
        self._readers = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="batches-progress")
        self._checkers = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="batches-locations")

    async def create(self, body: bytes) -> dict[str, Any]:
        """Starts a batch, or resumes one that failed or was cancelled. Only one batch runs at a time.

        Args:
            body: JSON object with `input`, `output` and, unless the main version is wanted, `version`.

        Returns:
            The state of the batch, as `show` returns it.

        Raises:
            RequestError: 400: the body is wrong; 403: a location is not allowed; 404: there is no such version; 409:
                a batch is writing to this output; 429: another one is running; 503: there is no job server, or no model
                answers; 504: it was not done in time. A batch that is being submitted at that moment may start all the
                same; see `show_all`.
        """
        order = parse(body)
        until_s = asyncio.get_running_loop().time() + self._options.timeout_s
        async with self._limit(until_s):
            await self._run(self._checkers, self._check_locations, order)
        version = self._service.number(order.version)
        try:
            async with asyncio.timeout_at(until_s):
                info = await self._service.model_info(version)
        except TimeoutError:
            raise RequestError(503, "No model has answered in time.", retry_after_s=RETRY_AFTER_S) from None
        async with self._limit(until_s):
            return await self._start(order, version, info)

    async def _start(self, order: Order, version: int, info: ModelInfo) -> dict[str, Any]:
        name = uuid.uuid4().hex
        command = [sys.executable, "-m", "tlray", "score", "--resume"]
        command += ["--bundle", info.location, "--bundle-sha256", info.bundle_sha256]
        command += ["--input", order.input_uri, "--out", order.output_uri, "--roots", *self._input_roots]
        command += ["--use-gpu"] if self._options.use_gpu else []
        command += ["--engine", self._options.engine, "--precision", self._options.precision]
        metadata = {
            "model": self._options.name,
            "version": str(version),
            "bundle_sha256": info.bundle_sha256,
            "input": order.input,
            "output": order.output,
        }
        async with self._submitting:
            await self._ask(self._submit, command, name, metadata)
        return await self._describe(await self._find(name), None)

    async def show(self, name: str) -> dict[str, Any]:
        """Returns the state and progress of a batch.

        Args:
            name: Id of the batch.

        Returns:
            `id`, `state` (pending, running, succeeded, failed, cancelled), `progress` (`done`, `failed`, `total`, or
            None if it is not known), `message` (what a pending batch waits for, why a batch failed, or that the
            progress cannot be read), `input`, `output`, `version`, `bundle_sha256`.

        Raises:
            RequestError: 404: there is no such batch; 503: there is no job server; 504: it does not answer in time.
        """
        async with self._limit():
            return await self._show(name, self._reading_end_s())

    async def _show(self, name: str, until_s: float) -> dict[str, Any]:
        job = await self._find(name)
        return await self._describe(job, *await self._progress(job, until_s))

    async def show_all(self, limit: int) -> list[dict[str, Any]]:
        """Returns the state and progress of this model's batches, as `show` does, the newest first.

        If the storage is slow, the later ones have no progress, and say so.

        Args:
            limit: Maximum number of batches.

        Raises:
            RequestError: 503: there is no job server; 504: it does not answer in time.
        """
        async with self._limit():
            until_s = self._reading_end_s()
            jobs = await self._ask(self._jobs.find_all)
            ours = [each for each in jobs if each.id.startswith(PREFIX) and self._is_ours(each)]
            newest = sorted(ours, key=lambda job: (job.start_ms, job.id), reverse=True)[:limit]
            # One after another, because other requests need the few threads too.
            return [await self._describe(job, *await self._progress(job, until_s)) for job in newest]

    def _is_ours(self, job: Job) -> bool:
        return job.metadata.get("model") == self._options.name

    def _reading_end_s(self) -> float:
        return asyncio.get_running_loop().time() + READING_SHARE * self._options.timeout_s

    async def _progress(self, job: Job, until_s: float) -> tuple[dict[str, Any] | None, bool]:
        """Returns what `_read_progress` does, and whether it could be read until then (by the event loop's clock)."""
        if job.status == "PENDING":
            return None, True  # it has not run yet
        if asyncio.get_running_loop().time() >= until_s:
            return None, False
        try:
            async with asyncio.timeout_at(until_s):
                return await self._run(self._readers, _read_progress, job), True
        except (OSError, ValueError) as error:  # among them TimeoutError, without a text
            _LOG.error("The progress of a batch cannot be read: %s", str(error) or "The storage does not answer.")
            return None, False

    async def _describe(self, job: Job, progress: Mapping[str, Any] | None, is_readable: bool = True) -> dict[str, Any]:
        """Returns what `show` returns. `progress` is None if it is not written yet, or if it is not readable."""
        state, message = _ENDED.get(job.status, "running"), None
        if state == "failed":
            message = failure(job)
        elif not is_readable:
            message = "The progress cannot be read now."
        elif state == "running" and (progress is None or progress["waiting"]):
            state, message = "pending", await self._ask(self._what_is_missing, job, progress)
        return {
            "id": job.id.removeprefix(PREFIX),
            "state": state,
            "progress": progress and {count: progress[count] for count in ("done", "failed", "total")},
            "message": message,
            "input": job.metadata["input"],
            "output": job.metadata["output"],
            "version": int(job.metadata["version"]),
            "bundle_sha256": job.metadata["bundle_sha256"],
        }

    async def cancel(self, name: str) -> tuple[bool, dict[str, Any]]:
        """Cancels a batch, which then ends within seconds. The rows that it has written stay.

        Returns:
            Whether there was anything to cancel: False if the batch had ended already. And what `show` returns.

        Raises:
            RequestError: 404: there is no such batch; 503: there is no job server, or the job is just being started;
                504: the job server does not answer in time.
        """
        async with self._limit():
            until_s = self._reading_end_s()
            return await self._cancel(name), await self._show(name, until_s)

    async def _cancel(self, name: str) -> bool:
        if (await self._find(name)).status in _ENDED:
            return False
        if await self._ask(self._jobs.stop, PREFIX + name):
            return True
        if (await self._find(name)).status in _ENDED:
            return False
        raise RequestError(503, "The batch is still being started. Cancel it a little later.", None, retry_after_s=1)

    async def _find(self, name: str) -> Job:
        if re.fullmatch(r"[0-9a-f]{32}", name):
            job = await self._ask(self._jobs.find, PREFIX + name)
            if job is not None and self._is_ours(job):
                return job
        raise RequestError(404, f"There is no batch {name[:100]!r}.")

    @asynccontextmanager
    async def _limit(self, until_s: float | None = None) -> AsyncIterator[None]:
        """Ends a request with RequestError (504) at a time of the event loop; None: `timeout_s` from now."""
        try:
            async with asyncio.timeout_at(until_s or asyncio.get_running_loop().time() + self._options.timeout_s):
                yield
        except TimeoutError:
            raise RequestError(
                504, f"The job server or the storage did not answer within {self._options.timeout_s:g} s."
            ) from None

    async def _ask(self, function: Callable[..., T], *arguments: Any) -> T:
        """Calls a function that asks the job server."""
        return await self._run(self._threads, function, *arguments)

    async def _run(self, threads: ThreadPoolExecutor, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(threads, function, *arguments)

    def _check_locations(self, order: Order) -> None:
        if not self._input_roots or not self._output_roots:
            raise forbidden("Bulk scoring is off: the operator has not set both input_roots and output_roots.")
        _check_allowed("input", order.input, self._input_roots)
        _check_allowed("output", order.output, self._output_roots)
        if storage.split_member(order.output)[1] is not None:
            raise forbidden("output: batches cannot write into a zip archive. Give a folder.")
        where = roots.resolve(order.output)
        if where in map(roots.resolve, self._output_roots):
            raise forbidden(
                "output: a batch cannot write directly into one of the output_roots. Give a folder below it."
            )
        source = roots.resolve(_without_wildcards(order.input))
        if roots.is_below(where, source) or roots.is_below(source, where):
            raise forbidden("output: input and output must not contain each other. Give a folder elsewhere.")

    def _submit(self, command: Sequence[str], name: str, metadata: Mapping[str, str]) -> None:
        """Submits a batch unless another one runs: in one thread, which goes on to the end if nobody waits any more."""
        self._refuse_if_busy(metadata["output"])
        self._jobs.submit(command, id=PREFIX + name, metadata=metadata)
        try:  # another replica may have submitted a batch at the same moment: the earlier one stays
            self._refuse_if_busy(metadata["output"], name)
        except RequestError:
            self._jobs.stop(PREFIX + name)
            raise

    def _refuse_if_busy(self, output: str, name: str | None = None) -> None:
        """Raises RequestError (409, 429) if another batch is running. `name` is this one's id, if submitted already."""
        living = [job for job in self._jobs.find_all() if job.id.startswith(PREFIX) and job.status not in _ENDED]
        first = min(living, key=lambda job: (job.start_ms, job.id), default=None)
        if first is None or first.id == f"{PREFIX}{name}":
            return
        if first.metadata.get("output") == output and self._is_ours(first):
            raise RequestError(
                409,
                f"The batch {first.id.removeprefix(PREFIX)} is writing to this output. Wait until it has ended.",
                "output_in_use",
            )
        # Each batch fills the cluster with its models; two at once could leave each other no CPU for reading images.
        raise RequestError(429, "Another batch is running. Try again when it has ended.", "busy", RETRY_AFTER_S)

    def _what_is_missing(self, job: Job, progress: Mapping[str, Any] | None) -> str:
        if job.status == "PENDING":
            return "The job is being started."
        if progress is None:
            return "The images are being listed."
        num_free, num_all = self._jobs.cpus()
        return f"The model is being loaded, or waits for CPUs: {num_free:g} of {num_all:g} are free."


def _check_allowed(what: str, location: str, allowed: Sequence[str]) -> None:
    if roots.outside([location], allowed):
        raise forbidden(f"{what}: '{location}' does not lie below a folder that the operator allows ({what}_roots).")


def _without_wildcards(location: str) -> str:
    """Returns the folder above the first wildcard of a glob; a location without wildcards as it is."""
    return re.split(r"/[^/]*[*?\[]", location, maxsplit=1)[0] or "/"


def _read_progress(job: Job) -> dict[str, Any] | None:
    """Returns the progress that this batch has written to its output; None: nothing yet.

    The output may still have the progress of an earlier batch that this one resumes.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file has no progress.
    """
    progress = score_state.read_progress(job.metadata["output"])
    return progress if progress is not None and progress.get("job") == job.id else None


def failure(job: Job) -> str:
    """Returns why a batch failed, for the client: without a traceback, and only with paths that the client gave."""
    said = [line for line in job.message.splitlines() if line.startswith("tlray: ")]
    if not said or said[-1].startswith("tlray: this should not have happened"):
        return f"The job failed. The operator can find its log in Ray under {job.id}."
    given = [job.metadata["output"], _without_wildcards(job.metadata["input"])]

    def hide(found: re.Match[str]) -> str:
        path = storage.split_member(found[1] or found[2])[0].rstrip(".:;)")
        if re.fullmatch(r"\w[\w+.-]*://", path):  # a scheme alone, which a message names in its advice
            return found[0]
        try:
            path = roots.normalize(path)
        except ConfigError:
            return "…"
        return found[0] if any(roots.is_below(path, each) for each in given) else "…"

    return _PATH.sub(hide, said[-1].removeprefix("tlray: "))
