"""The benchmarks' load generator: its arithmetic, by hand, and what it counts, by a server that counts too."""

import asyncio
import itertools
from collections import Counter

import aiohttp
import numpy as np
import pytest
from aiohttp import web

from benchmarks import load, overload, serving_results
from benchmarks.load import Record, Settings


def test_latency_counts_from_when_a_request_was_due_and_throughput_by_when_it_was_answered():
    records = [
        Record(0.9, 0.9, 1.1, 200),  # due before, answered in time
        Record(1.0, 1.2, 1.5, 200),
        Record(1.5, 1.5, 2.0, 429),
        Record(2.0, 2.1, 2.1, "timed_out"),
        Record(2.9, 2.9, 3.9, 200),  # due in time, answered after
        Record(3.0, 3.0, 3.1, 200),  # after
    ]
    found = load.summarize(records, start_s=1.0, end_s=3.0)
    assert found["images_per_s"] == pytest.approx(2 / 2)
    assert found["num_answered"] == 4
    assert found["num_requests"] == 4
    assert found["outcomes"] == {"200": 2, "429": 1, "timed_out": 1}
    assert found["latency_ms"] == pytest.approx({"p50": 750, "p95": 975, "p99": 995, "mean": 750, "max": 1000})
    assert found["late_sending_p99_ms"] == pytest.approx(np.percentile([200, 0, 100, 0], 99))


def test_a_load_without_answers_has_no_latency():
    found = load.summarize([Record(1.0, 1.0, 1.1, 503)], start_s=0.0, end_s=2.0)
    assert (found["images_per_s"], found["latency_ms"]) == (0, None)


def test_arrivals_are_a_poisson_process():
    times = load.arrival_times(50.0, 1000.0, np.random.default_rng(1))
    assert times == load.arrival_times(50.0, 1000.0, np.random.default_rng(1))
    gaps = np.diff([0.0, *times])
    assert gaps.min() > 0
    assert times[-1] < 1000
    assert len(times) == pytest.approx(50_000, abs=5 * 50_000**0.5)
    # Of exponentially distributed gaps mean and standard deviation are the same.
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.02)


def test_settings_want_one_kind_of_load():
    with pytest.raises(ValueError, match="either"):
        Settings(url="", images="")
    with pytest.raises(ValueError, match="either"):
        Settings(url="", images="", clients=1, rate_per_s=1.0)


@pytest.mark.parametrize("kind", [{"clients": 3}, {"rate_per_s": 50.0}])
def test_every_outcome_is_counted(tmp_path, kind):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/one.jpg").write_bytes(b"one")
    given: Counter[str] = Counter()
    received: set[bytes] = set()
    plan = itertools.cycle(["200", "429", "disconnected"])

    async def answer(request: web.Request) -> web.Response:
        form = await request.post()
        received.add(form["file"].file.read())  # pyright: ignore[reportAttributeAccessIssue]
        outcome = next(plan)
        given[outcome] += 1
        if outcome == "disconnected":
            assert request.transport is not None
            request.transport.abort()
        return web.Response(status=200 if outcome == "disconnected" else int(outcome))

    async def run():
        application = web.Application()
        application.router.add_post("/predict", answer)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        settings = Settings(
            url=f"http://127.0.0.1:{port}/predict",
            images=str(tmp_path / "images"),
            warmup_s=0.0,
            duration_s=0.5,
            records=str(tmp_path / "records.csv"),
            **kind,
        )
        try:
            return await load.measure(settings)
        finally:
            await runner.cleanup()

    found = asyncio.run(run())
    assert received == {b"one"}
    assert found["outcomes"] == dict(given)
    assert set(given) == {"200", "429", "disconnected"}
    rows = (tmp_path / "records.csv").read_text().splitlines()
    assert Counter(row.rpartition(",")[2] for row in rows[1:]) == given


def test_what_takes_too_long_has_timed_out(tmp_path):
    (tmp_path / "one.jpg").write_bytes(b"one")

    async def run():
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()  # until the client has gone
            writer.close()

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        settings = Settings(url=url, images=str(tmp_path), clients=1, warmup_s=0.0, duration_s=0.1, timeout_s=0.2)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=settings.timeout_s)) as session:
            one = load.Load(settings, session)
            await one.run()
        server.close()
        return one.records

    assert [record.outcome for record in asyncio.run(run())] == ["timed_out"]


def test_growth_of_memory_is_that_of_a_straight_line_through_the_last_two_thirds():
    start = [(float(second), 1000 * second) for second in range(30)]
    assert overload.growth([*start, *((float(second), 100_000) for second in range(30, 90))]) == pytest.approx(0)
    rising = [*start, *((float(second), 100_000 + 100 * (second - 30)) for second in range(30, 90))]
    assert overload.growth(rising) == pytest.approx(5900 / 102_950)


def measured(rate: float, p99: float, p50: float) -> dict:
    one = {
        "images_per_s": rate,
        "latency_ms": {"p50": p50, "p95": p99, "p99": p99},
        "outcomes": {"200": 3, "429": 1},
        "num_answered": 100,
        "server_cpu_s": 5.0,
        "server_cpu_s_by_part": {"HAProxy": 1.0, "main process": 4.0, "child 1": 0.001},
        "own_cpus": 0.2,
    }
    loads = {each.name: one for each in serving_results.LOADS}
    return {"loads": loads, "memory_bytes": 2**30, "running_before": 0.5}


def test_goals_are_of_medians_beside_the_best_peer():
    bare = {"images_per_s": 50.0, "single_ms": 30.0, "decode_ms": 4.0}
    rounds = [
        {
            **dict.fromkeys(serving_results.ENGINES, bare),
            "tlray": measured(rate, 900, 33.0),
            "serve_batch": measured(20, 100, 10),  # no peer of another project
            "litserve_openvino": measured(40, 800, 32),
            "litserve": measured(20, 2000, 60),
            "fastapi": measured(22, 1000, 36),
        }
        for rate in (44, 45, 10)
    ]
    figures = serving_results.Figures(rounds)
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")][2:]
        for line in serving_results.goals(figures, [*rounds[0]])
    ]
    assert rows == [
        ["**0.88**", "yes"],  # 44 of 50
        ["**1.10**", "yes"],  # 44 of 40
        ["**2.00**", "yes"],  # 44 of FastAPI's 22
        ["**0.90**", "yes"],
        ["**0.92**", "yes"],  # 33 of 36
    ]
    assert figures.refused("tlray", serving_results.SATURATED) == "429: 25%"


ABOUT = {
    "date": "2026-11-30",
    "command": "python benchmarks/serving.py",
    "systems": {"tlray": "with its defaults"},
    "sent": {"num_images": 200, "jpeg_quality": 90, "warmup_s": 5.0, "duration_s": 15.0, "timeout_s": 60.0},
    "machine": {"cpu": "a CPU", "num_cores": 2, "memory_gib": 8.0},
    "load_1_min": {"before": 0.1, "after": 2.0},
    "model": "InceptionV3",
    "versions": {"python": "3.11"},
}


def page(*rounds: dict) -> str:
    bare = {"images_per_s": 50.0, "single_ms": 30.0, "decode_ms": 4.0, "precision": "float32", "running_before": 0.0}
    found = [{**dict.fromkeys(serving_results.ENGINES, bare), "tlray": each} for each in rounds]
    return serving_results.to_markdown(ABOUT, {"rate_per_s": 50.0, "rounds": found})


def test_the_page_has_the_cpu_time_an_image_by_process_the_busiest_first():
    second = measured(44, 900, 33.0)
    idle = {**second["loads"]["1 client"], "num_answered": 0, "server_cpu_s_by_part": {"HAProxy": 1.0}}
    second["loads"] = {name: idle if name == "1 client" else one for name, one in second["loads"].items()}
    table = page(second).partition("## CPU ms an image, by process")[2].split("\n\n")[1].splitlines()
    assert table[2:] == [
        "| tlray | main process | - | 40.0 | 40.0 | 40.0 | 40.0 |",  # 4 s for 100 images; none for the first load
        "| tlray | HAProxy | - | 10.0 | 10.0 | 10.0 | 10.0 |",
    ]


def test_a_round_beside_other_work_is_named_at_the_top():
    first, second = measured(44, 900, 33.0), {**measured(44, 900, 33.0), "running_before": 1.1}
    assert "Disturbed" not in page(first)
    shown = page(first, second)
    warning = "**Disturbed by other work: tlray in round 2 (1.1).** In brackets: tasks"
    assert warning in shown.partition("| goal: tlray")[0]
