"""The HTTP side of batches and what is submitted for them, with a job server that only takes notes."""

import asyncio
import json
import shlex
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import httpx
import pytest
from ray import job_submission
from ray.job_submission import JobStatus

from serve_app.batches import job_server, jobs
from serve_app.batches.job_server import Job, JobServer
from serve_app.batches.jobs import NUM_THREADS, Batches
from serve_app.errors import RequestError
from serve_app.http.auth import ApiKeys
from serve_app.model.classifier import ModelInfo
from serve_app.model.service import Service
from serve_app.options import Options
from tests.unit.serve_app.application import create_api
from tlray.bundle.spec import BundleSpec
from tlray.files import storage
from tlray.inference import score_state

SPEC = BundleSpec(classes=("a", "b"), image_size_px=8, preprocessing="unit", backbone="b", weights="w")


class Noted:
    """A job server that takes notes; `rival` is what another replica submits at the same moment."""

    def __init__(self):
        self.jobs = {}
        self.commands = {}
        self.stopped = []
        self.has_process = True
        self.rival = None

    def submit(self, command, *, id, metadata):  # noqa: A002
        self.commands[id] = command
        self.add(id, metadata, start_ms=1000 + len(self.jobs))
        if self.rival:
            self.jobs[self.rival.id] = self.rival

    def add(self, id, metadata, status=JobStatus.PENDING, start_ms=0, message=""):  # noqa: A002
        self.jobs[id] = Job(id=id, status=status, start_ms=start_ms, metadata=metadata, message=message)

    def find(self, id):  # noqa: A002
        return self.jobs.get(id)

    def find_all(self):
        return list(self.jobs.values())

    def stop(self, id):  # noqa: A002
        self.stopped.append(id)
        return self.has_process

    def cpus(self):
        return 0.25, 2.0


class Model:
    def __init__(self, number):
        self.info = ModelInfo(
            spec=SPEC, bundle_sha256=f"{number}" * 64, location=f"/bundles/{number}", engine="openvino float32",
            max_batch_size=4,
        )  # fmt: skip

    async def describe(self):
        return self.info


class Endpoint:
    """The endpoint of two versions, and the folders that a client may use."""

    def __init__(self, directory):
        self.input, self.output = directory / "in", directory / "out"
        self.input.mkdir()
        self.output.mkdir()
        self.jobs = Noted()
        self.options = {"input_roots": [str(self.input), "s3://bucket/in"], "output_roots": [str(self.output)]}

    def start(self):
        """Starts the application, anew for each request: nothing is to be lost with it."""
        service = Service(Options(bundle="b", **self.options), {1: Model(1), 2: Model(2)})  # pyright: ignore[reportArgumentType]
        return Batches(service, self.jobs)

    def call(self, method, path="", **request):
        async def send():
            api = create_api(Service(Options(bundle="b"), {}), ApiKeys({}), self.start())
            transport = httpx.ASGITransport(api, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
                return await http.request(method, f"/v1/batches{path}", **request)

        return asyncio.run(send())

    def post(self, **fields):
        body = json.dumps({"input": str(self.input), "output": f"{self.output}/1"} | fields)
        return self.call("POST", content=body, headers={"Content-Type": "application/json"})

    def change(self, name, status, message="", progress=None):
        """Lets Ray get on with a job, and the job with its output."""
        job = self.jobs.jobs[f"tlray-batch-{name}"]
        self.jobs.add(job.id, job.metadata, status=status, message=message)
        if progress:
            (self.output / "1/_state").mkdir(parents=True, exist_ok=True)
            (self.output / "1/_state/progress.json").write_text(json.dumps({"job": job.id, **progress}))


@pytest.fixture
def endpoint(tmp_path):
    return Endpoint(tmp_path)


def test_a_batch_is_submitted(endpoint):
    answer = endpoint.post()
    assert answer.status_code == 202
    batch = answer.json()
    assert batch == {
        "id": batch["id"],
        "state": "pending",
        "progress": None,
        "message": "The job is being started.",
        "input": str(endpoint.input),
        "output": f"{endpoint.output}/1",
        "version": 1,
        "bundle_sha256": "1" * 64,
    }
    assert len(batch["id"]) == 32
    assert endpoint.jobs.commands == {
        f"tlray-batch-{batch['id']}": [
            *(sys.executable, "-m", "tlray", "score", "--resume"),
            *("--bundle", "/bundles/1", "--bundle-sha256", "1" * 64),
            *("--input", str(endpoint.input), "--out", f"{endpoint.output}/1"),
            *("--roots", str(endpoint.input), "s3://bucket/in"),
            *("--engine", "auto", "--precision", "auto"),
        ]
    }


def test_another_version_and_gpus(endpoint):
    endpoint.options |= {"use_gpu": True, "engine": "tensorflow", "precision": "float32"}
    batch = endpoint.post(version=2, input="S3://bucket/in/a%20b/").json()
    (command,) = endpoint.jobs.commands.values()
    assert command[5:12] == [
        "--bundle",
        "/bundles/2",
        "--bundle-sha256",
        "2" * 64,
        "--input",
        "s3://bucket/in/a%20b",
        "--out",
    ]
    assert command[-5:] == ["--use-gpu", "--engine", "tensorflow", "--precision", "float32"]
    assert (batch["version"], batch["bundle_sha256"], batch["input"]) == (2, "2" * 64, "s3://bucket/in/a%20b")
    assert endpoint.post(version=3).status_code == 404


def test_a_batch_is_followed_to_its_end(endpoint):
    name = endpoint.post().json()["id"]

    def state():
        batch = endpoint.call("GET", f"/{name}").json()
        return batch["state"], batch["progress"], batch["message"]

    assert state() == ("pending", None, "The job is being started.")
    endpoint.change(name, JobStatus.RUNNING)
    assert state() == ("pending", None, "The images are being listed.")
    counts = {"done": 0, "failed": 0, "total": 9}
    endpoint.change(name, JobStatus.RUNNING, progress=counts | {"waiting": True})
    assert state() == ("pending", counts, "The model is being loaded, or waits for CPUs: 0.25 of 2 are free.")
    counts = {"done": 4, "failed": 1, "total": 9}
    endpoint.change(name, JobStatus.RUNNING, progress=counts | {"waiting": False})
    assert state() == ("running", counts, None)
    counts = {"done": 9, "failed": 1, "total": 9}
    endpoint.change(name, JobStatus.SUCCEEDED, progress=counts | {"waiting": False})
    assert state() == ("succeeded", counts, None)


def test_the_progress_of_a_batch_is_not_shown_as_that_of_the_next_one(endpoint):
    counts = {"done": 4, "failed": 1, "total": 9, "waiting": False}
    first = endpoint.post().json()["id"]
    endpoint.change(first, JobStatus.STOPPED, progress=counts)
    second = endpoint.post().json()["id"]
    endpoint.change(second, JobStatus.RUNNING)
    assert endpoint.call("GET", f"/{second}").json()["progress"] is None
    endpoint.change(second, JobStatus.RUNNING, progress=counts | {"done": 5})
    assert endpoint.call("GET", f"/{second}").json()["progress"] == {"done": 5, "failed": 1, "total": 9}


def test_progress_that_is_none_is_not_shown(endpoint, caplog):
    name = endpoint.post().json()["id"]
    endpoint.change(name, JobStatus.RUNNING, progress={"done": 1, "failed": 0, "total": 2, "waiting": False})
    assert endpoint.call("GET", f"/{name}").json()["progress"] == {"done": 1, "failed": 0, "total": 2}
    with (endpoint.output / "1/_state/progress.json").open("r+b") as file:
        file.truncate(2**40)
    batch = endpoint.call("GET", f"/{name}").json()
    unreadable = ("running", None, "The progress cannot be read now.")
    assert (batch["state"], batch["progress"], batch["message"]) == unreadable
    assert "The progress of a batch cannot be read: The file has 1,099,511,627,776 bytes" in caplog.text
    endpoint.change(name, JobStatus.RUNNING, progress={"done": 1})
    batch = endpoint.call("GET", f"/{name}").json()
    assert (batch["state"], batch["progress"], batch["message"]) == unreadable
    endpoint.change(name, JobStatus.FAILED)
    batch = endpoint.call("GET", f"/{name}").json()
    assert (batch["state"], batch["progress"]) == ("failed", None)
    assert batch["message"].startswith("The job failed.")


def test_a_client_says_that_all_nodes_see_a_folder(endpoint):
    (endpoint.input / "ä b").mkdir()
    batch = endpoint.post(input=f"FILE://{endpoint.input}/ä%20b/", output=f"file://{endpoint.output}/2").json()
    (command,) = endpoint.jobs.commands.values()
    assert command[command.index("--input") + 1] == f"file://{endpoint.input}/%C3%A4%20b"
    assert command[command.index("--out") + 1] == f"file://{endpoint.output}/2"
    assert (batch["input"], batch["output"]) == (f"{endpoint.input}/ä b", f"{endpoint.output}/2")
    assert storage.open_location(f"file://{endpoint.input}/%C3%A4%20b")[1] == f"{endpoint.input}/ä b"


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ("tlray: '{input}/x.csv' has no uri in row 1.", "'{input}/x.csv' has no uri in row 1."),
        ("Traceback\n  File x\ntlray: The output '{output}/1' is a file.\nbye", "The output '{output}/1' is a file."),
        ("tlray: The bundle '/srv/my bundles/1' has no file m.", "The bundle … has no file m."),
        ("tlray: Not below: '{input}/l.png', '{input}2/x', '/etc/passwd'.", "Not below: '{input}/l.png', …, …."),
        ("tlray: '{input}/a.zip!/1.png' is not {input}/a.zip.", "'{input}/a.zip!/1.png' is not {input}/a.zip."),
        ("tlray: [Errno 28] s3://bucket/tmp/x: full, see /var/log/x.", "[Errno 28] … full, see …"),
        (
            "tlray: --input {input} is a path on this node. Give a URI (s3://, gs://), or file://{input} if all can.",
            "--input {input} is a path on this node. Give a URI (s3://, gs://), or file://{input} if all can.",
        ),
        ("tlray: '{input}/../x' and '{input}/./y'.", "… and '{input}/./y'."),
        ("tlray: 1/2 of a/b.png, and/or c", "1/2 of a/b.png, and/or c"),
        ("", "The job failed. The operator can find its log in Ray under {id}."),
        ("KeyError: '/etc'", "The job failed. The operator can find its log in Ray under {id}."),
        (
            "KeyError: '/etc'\ntlray: this should not have happened; the lines above say where.",
            "The job failed. The operator can find its log in Ray under {id}.",
        ),
    ],
)
def test_a_failed_batch_says_why_and_no_more(endpoint, log, message):
    name = endpoint.post().json()["id"]
    names = {"input": endpoint.input, "output": endpoint.output, "id": f"tlray-batch-{name}"}
    endpoint.change(
        name, JobStatus.FAILED, f"Job entrypoint command failed, last available logs:\n{log.format(**names)}"
    )
    batch = endpoint.call("GET", f"/{name}").json()
    assert (batch["state"], batch["message"]) == ("failed", message.format(**names))


@pytest.mark.parametrize("status", [JobStatus.FAILED, JobStatus.STOPPED, JobStatus.SUCCEEDED])
def test_an_ended_batch_leaves_room_for_the_next(endpoint, status):
    first = endpoint.post().json()["id"]
    busy = endpoint.post()
    assert (busy.status_code, busy.json()["error_code"]) == (409, "output_in_use")
    assert busy.json()["error"] == f"The batch {first} is writing to this output. Wait until it has ended."
    other = endpoint.post(output=f"{endpoint.output}/2")
    assert (other.status_code, other.json()["error_code"], other.headers["Retry-After"]) == (429, "busy", "10")
    endpoint.change(first, status)
    again = endpoint.post()
    assert again.status_code == 202
    assert again.json()["id"] != first


def test_of_two_replicas_the_earlier_one_wins(endpoint):
    rival = Job(id="tlray-batch-x", status=JobStatus.RUNNING, start_ms=1, message="", metadata={"model": "other"})
    endpoint.jobs.rival = rival
    assert endpoint.post().status_code == 429
    assert endpoint.jobs.stopped == list(endpoint.jobs.commands)
    endpoint.jobs.jobs.clear()
    endpoint.jobs.rival = Job(id=rival.id, status=rival.status, start_ms=2000, message="", metadata=rival.metadata)
    assert endpoint.post().status_code == 202
    assert len(endpoint.jobs.stopped) == 1


def test_a_batch_is_cancelled(endpoint):
    name = endpoint.post().json()["id"]
    endpoint.jobs.has_process = False
    early = endpoint.call("DELETE", f"/{name}")
    assert (early.status_code, early.headers["Retry-After"]) == (503, "1")
    endpoint.jobs.has_process = True
    assert endpoint.call("DELETE", f"/{name}").status_code == 202
    assert endpoint.jobs.stopped == [f"tlray-batch-{name}"] * 2
    endpoint.change(name, JobStatus.STOPPED)
    again = endpoint.call("DELETE", f"/{name}")
    assert (again.status_code, again.json()["state"]) == (200, "cancelled")
    assert len(endpoint.jobs.stopped) == 2


def test_batches_are_listed_the_newest_first(endpoint):
    assert endpoint.call("GET").json() == {"batches": []}
    names = []
    for status in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.RUNNING):
        names.insert(0, endpoint.post().json()["id"])
        endpoint.change(names[0], status)
        endpoint.jobs.jobs[f"tlray-batch-{names[0]}"] = replace(
            endpoint.jobs.jobs[f"tlray-batch-{names[0]}"], start_ms=1000 + len(names)
        )
    endpoint.jobs.add("raysubmit_1", {"model": "chest-ct"}, start_ms=9000)
    endpoint.jobs.add(f"tlray-batch-{'b' * 32}", {"model": "another model"}, start_ms=9000)
    listed = endpoint.call("GET").json()["batches"]
    assert listed == [endpoint.call("GET", f"/{name}").json() for name in names]
    assert [batch["state"] for batch in listed] == ["pending", "failed", "succeeded"]
    assert [batch["id"] for batch in endpoint.call("GET", "?limit=2").json()["batches"]] == names[:2]


@pytest.mark.parametrize("limit", ["0", "-1", "101", "many"])
def test_a_list_of_batches_has_an_end(endpoint, limit):
    answer = endpoint.call("GET", f"?limit={limit}")
    assert (answer.status_code, answer.json()["error_code"]) == (422, "invalid_request")


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_other_jobs_are_not_seen(endpoint, method):
    mine, other = "a" * 32, "b" * 32
    endpoint.jobs.add("raysubmit_1", {"model": "chest-ct"})
    endpoint.jobs.add(f"tlray-batch-{other}", {"model": "another model"})
    endpoint.jobs.add(mine, {"model": "chest-ct"})
    for name in ("raysubmit_1", other, mine, "A" * 32, f"{mine}%0a", "c" * 32):
        answer = endpoint.call(method, f"/{name}")
        assert answer.status_code == 404, name
        assert answer.json()["error"].startswith("There is no batch")
    assert endpoint.jobs.stopped == []


def test_only_allowed_folders_are_read_and_written(endpoint, tmp_path):
    (endpoint.input / "link").symlink_to(tmp_path)
    (endpoint.output / "link").symlink_to(tmp_path)
    inside = endpoint.input
    for source in (
        *("in", "/etc/passwd", f"{inside}/../secret", f"{inside}2", f"{inside}/link", f"{inside}/link/*.png", "/"),
        *(f"file://{inside}/%2e%2e/secret", f"{inside}/a.zip!/../../../etc/passwd", f"{inside}/a://etc/passwd", "~/a"),
        *(
            "s3://bucket/other",
            "s3://bucket/in/../other",
            "s3://bucket/in%2f..%2fother",
            "s3://bucket//in",
            "gs://bucket/in",
        ),
        *(
            "s3://bucket?endpoint_override=evil.example/in",
            "s3://k:s@bucket/in",
            "http://bucket/in",
            str(endpoint.output),
        ),
    ):
        answer = endpoint.post(input=source)
        assert (answer.status_code, answer.json()["error_code"]) == (403, "location_not_allowed"), source
        assert answer.json()["error"].startswith("input: ")
    outside = endpoint.output
    for target in (
        f"{outside}/link/1",
        f"{outside}/../1",
        str(outside),
        f"{outside}/",
        f"{outside}2/1",
        "s3://bucket/in/1",
    ):
        answer = endpoint.post(output=target)
        assert (answer.status_code, answer.json()["error_code"]) == (403, "location_not_allowed"), target
        assert answer.json()["error"].startswith("output: ")
    assert endpoint.jobs.jobs == {}


@pytest.mark.parametrize("name", ["input_roots", "output_roots"])
def test_without_roots_nothing_is_allowed(endpoint, name):
    endpoint.options[name] = []
    answer = endpoint.post()
    assert answer.status_code == 403
    assert answer.json()["error"].startswith("Bulk scoring is off: the operator has not set both input_roots and")


def test_input_and_output_lie_apart(endpoint):
    endpoint.options["output_roots"] = [str(endpoint.input.parent), "s3://bucket"]
    inside = f"{endpoint.input}"
    for source, target in (
        *((inside, inside), (inside, f"{inside}/1"), (f"{inside}/a", inside), (f"{inside}/*/b.png", f"{inside}/c")),
        *(
            (f"file://{inside}", f"{inside}/"),
            ("s3://bucket/in/a", "s3://bucket/in/a/b"),
            ("s3://bucket/in/?", "s3://bucket/in/b"),
        ),
        *((f"{inside}/a.zip", f"{inside}/a.zip/1"),),
    ):
        answer = endpoint.post(input=source, output=target)
        assert answer.status_code == 403, (source, target)
        assert "must not contain each other" in answer.json()["error"]
    (endpoint.output / "link").symlink_to(endpoint.input)
    assert "must not contain each other" in endpoint.post(output=f"{endpoint.output}/link/1").json()["error"]
    assert endpoint.post(input=f"{inside}/a", output=f"{inside}/b").status_code == 202


@pytest.mark.parametrize(
    "fields",
    [
        *({"input": 1}, {"input": None}, {"input": ""}, {"input": ["/a"]}, {"output": "/a\n"}, {"output": "/a\0"}),
        *({"input": "/\ud800"}, {"input": "/" + "a" * 4096}, {"version": "1"}, {"version": True}, {"version": 1.0}),
        *({"columns": "uri=path"}, {"overwrite": True}),
    ],
)
def test_a_body_that_is_not_as_described_is_400(endpoint, fields):
    answer = endpoint.post(**fields)
    assert (answer.status_code, answer.json()["error_code"]) == (400, "invalid_request")
    assert endpoint.jobs.jobs == {}


@pytest.mark.parametrize("body", ["", "[]", "{", '{"input": "/a"}', '{"input": NaN, "output": "/b"}'])
def test_a_body_that_is_none_is_400(endpoint, body):
    assert endpoint.call("POST", content=body, headers={"Content-Type": "application/json"}).status_code == 400


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_form_of_another_site_is_refused(endpoint, media_type):
    """The media types that a browser sends across sites without asking."""
    body = json.dumps({"input": str(endpoint.input), "output": f"{endpoint.output}/1"})
    answer = endpoint.call("POST", content=body, headers={"Content-Type": media_type} if media_type else {})
    assert answer.status_code == 415
    assert endpoint.jobs.jobs == {}


def test_a_job_server_that_hangs_is_not_waited_for(endpoint):
    endpoint.options["timeout_s"] = 0.01
    gate = threading.Event()
    endpoint.jobs.find = lambda _: gate.wait()

    async def ask():
        try:
            await endpoint.start().show("a" * 32)
        finally:
            gate.set()

    with pytest.raises(RequestError, match=r"did not answer within 0\.01 s") as caught:
        asyncio.run(ask())
    assert caught.value.status == 504


@pytest.fixture
def hanging(monkeypatch):
    """A storage that hangs until the test ends; gives the outputs whose progress is being read."""
    gate, outputs = threading.Event(), []

    def hang(output):
        outputs.append(output)
        gate.wait()

    monkeypatch.setattr(score_state, "read_progress", hang)
    yield outputs
    gate.set()


def add_running(endpoint, count):
    names = [f"{number:032x}" for number in range(count)]
    for number, name in enumerate(names):
        metadata = {"model": "chest-ct", "version": "1", "bundle_sha256": "1" * 64, "input": "/in"}
        metadata["output"] = f"/out/{number}"
        endpoint.jobs.add(f"tlray-batch-{name}", metadata, status=JobStatus.RUNNING, start_ms=number)
    return names


def test_a_list_waits_once_for_a_storage_that_hangs(endpoint, hanging, monkeypatch):
    endpoint.options["timeout_s"] = 30
    monkeypatch.setattr(jobs, "READING_SHARE", 1 / 30)
    names = add_running(endpoint, 3)
    listed = asyncio.run(endpoint.start().show_all(20))
    assert hanging == ["/out/2"]
    found = [(batch["id"], batch["state"], batch["progress"], batch["message"]) for batch in listed]
    assert found == [(name, "running", None, "The progress cannot be read now.") for name in reversed(names)]


def test_a_storage_that_hangs_stops_neither_a_cancellation_nor_a_new_batch(endpoint, hanging, monkeypatch):
    endpoint.options["timeout_s"] = 30
    monkeypatch.setattr(jobs, "READING_SHARE", 1 / 30)
    names = add_running(endpoint, NUM_THREADS)

    async def ask():
        batches = endpoint.start()
        shown = await asyncio.gather(*map(batches.show, names))
        assert len(hanging) == NUM_THREADS
        is_cancelled, _ = await batches.cancel(names[0])
        for name in names:
            endpoint.change(name, JobStatus.STOPPED)
        body = json.dumps({"input": str(endpoint.input), "output": f"{endpoint.output}/1"})
        return shown, is_cancelled, await batches.create(body.encode())

    shown, is_cancelled, created = asyncio.run(ask())
    assert [batch["message"] for batch in shown] == ["The progress cannot be read now."] * NUM_THREADS
    assert is_cancelled
    assert created["message"] == "The job is being started."


def test_a_new_batch_waits_for_the_one_before_within_its_time_limit(endpoint):
    endpoint.options["timeout_s"] = 0.05

    async def ask():
        batches = endpoint.start()
        async with batches._submitting, asyncio.timeout(60):
            body = json.dumps({"input": str(endpoint.input), "output": f"{endpoint.output}/1"})
            await batches.create(body.encode())

    with pytest.raises(RequestError, match=r"did not answer within 0\.05 s") as caught:
        asyncio.run(ask())
    assert caught.value.status == 504
    assert endpoint.jobs.jobs == {}


@pytest.mark.parametrize(("method", "calls"), [("GET", {"find_all": 14, "cpus": 17}), ("DELETE", {"find": 16})])
def test_a_request_for_batches_has_one_time_limit(endpoint, monkeypatch, method, calls):
    """Each of two calls to the job server takes less than the limit, and both together more."""
    endpoint.options["timeout_s"] = 30
    (name,) = add_running(endpoint, 1)
    progress = {"job": f"tlray-batch-{name}", "done": 0, "failed": 0, "total": 9, "waiting": True}
    monkeypatch.setattr(score_state, "read_progress", lambda _: progress)

    async def ask():
        loop = asyncio.get_running_loop()
        clock, passed = loop.time, [0.0]
        monkeypatch.setattr(loop, "time", lambda: clock() + passed[0])

        def slowly(function, seconds):
            def call(*arguments):
                passed[0] += seconds
                return function(*arguments)

            return call

        for call, seconds in calls.items():
            monkeypatch.setattr(endpoint.jobs, call, slowly(getattr(endpoint.jobs, call), seconds))
        api = create_api(Service(Options(bundle="b"), {}), ApiKeys({}), endpoint.start())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://127.0.0.1") as http:
            return await http.request(method, "/v1/batches" if method == "GET" else f"/v1/batches/{name}")

    answer = asyncio.run(ask())
    assert (answer.status_code, answer.json()["error_code"]) == (504, "timed_out")


# -- the real job server's client


@pytest.fixture
def client(monkeypatch):
    """A client of a job server; gives what is called on it."""
    variables = {"TLRAY_API_KEYS": "secret", "AWS_PROFILE": "p", "TF_CPP_MIN_LOG_LEVEL": "2"}
    context = SimpleNamespace(
        gcs_address="1.2.3.4:5",
        get_session_name=lambda: "session_1",
        runtime_env={"working_dir": "gcs://code.zip", "env_vars": variables},
    )
    found = SimpleNamespace(address=None, submitted=None, session="session_1", error=None)

    def connect(address):
        found.address = address
        if found.error:
            raise found.error
        return SimpleNamespace(
            _do_request=lambda _, path: SimpleNamespace(json=lambda: {"session_name": found.session, "path": path}),
            get_address=lambda: "http://1.2.3.4:8265",
            submit_job=lambda **job: setattr(found, "submitted", job),
            get_job_info=lambda _: (_ for _ in ()).throw(RuntimeError("Request failed with status code 404: no.")),
            stop_job=lambda _: (_ for _ in ()).throw(RuntimeError("Request failed with status code 500: no.")),
        )

    monkeypatch.setattr(job_server.ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(job_submission, "JobSubmissionClient", connect)
    return found


def test_no_shell_sees_anything_and_no_key_is_passed_on(client):
    command = ["python", "--input", "/a b/$(reboot);'`x`\"*", "--out", "/c"]
    JobServer().submit(command, id="tlray-batch-1", metadata={"model": "m"})
    assert client.address == "1.2.3.4:5"
    # Its own Ray's address: Ray would tell it that of any Ray on the machine.
    assert shlex.split(client.submitted["entrypoint"]) == ["env", "RAY_ADDRESS=1.2.3.4:5", *command]
    assert client.submitted["runtime_env"] == {
        "working_dir": "gcs://code.zip",
        "env_vars": {
            "AWS_PROFILE": "p",
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "TLRAY_API_KEYS": "",
            "TLRAY_API_KEYS_FILE": "",
            "TLRAY_ENDPOINT_TOKEN": "",
        },
    }
    assert "secret" not in repr(client.submitted)


def test_a_job_that_is_not_there_is_none(client):  # noqa: ARG001
    assert JobServer().find("tlray-batch-1") is None


@pytest.mark.parametrize("error", [ConnectionError("Failed to connect"), ValueError("no GCS"), None])
def test_without_a_job_server_there_are_no_batches(client, error):
    client.error = error
    client.session = "session_2"  # of another Ray, where this one's would be
    with pytest.raises(RequestError) as caught:
        JobServer().find("tlray-batch-1")
    assert (caught.value.status, caught.value.code, caught.value.retry_after_s) == (503, "no_job_server", 10)


def test_a_job_server_that_fails_is_503(client):  # noqa: ARG001
    with pytest.raises(RequestError) as caught:
        JobServer().stop("tlray-batch-1")
    assert caught.value.status == 503
    assert "status code" not in str(caught.value)
