import asyncio
import gc
import pickle
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from serve_app.errors import QueueClosed, QueueFull
from serve_app.model.batching import Batcher
from tlray.errors import ConfigError

LIMIT_S = 20.0


class GatedModel:
    """Answers x with 10 x, one batch for each `release`; keeps what it was given."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()
        self._started = threading.Semaphore(0)
        self._gate = threading.Semaphore(0)

    def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        self.threads.add(threading.get_ident())
        self._started.release()
        assert self._gate.acquire(timeout=LIMIT_S)
        if 13 in items:
            raise ValueError("13 is no image")
        return [10 * item for item in items]

    def release(self, num_batches: int = 1) -> None:
        self._gate.release(num_batches)

    async def started(self) -> None:
        """Returns when one more batch runs."""
        assert await asyncio.to_thread(self._started.acquire, timeout=LIMIT_S)


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), LIMIT_S))


async def waiting(batcher: Batcher, number: int) -> None:
    while batcher.num_waiting != number:
        await asyncio.sleep(0)


def start(awaitable: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    return asyncio.get_running_loop().create_task(awaitable)


async def occupy(model: GatedModel, batcher: Batcher) -> asyncio.Task[Any]:
    """Has the model run item 0, so that what comes now must wait."""
    first = start(batcher.submit(0))
    await model.started()
    return first


def test_an_idle_model_runs_one_item_at_once_and_then_takes_all_that_waits_up_to_its_limit():
    model, sizes = GatedModel(), []

    async def main() -> None:
        batcher = Batcher(model, max_batch_size=4, max_queue=100, on_batch=sizes.append)
        tasks = [await occupy(model, batcher)]
        tasks += [start(batcher.submit(item)) for item in range(1, 8)]
        await waiting(batcher, 7)
        model.release()
        await model.started()  # four of the seven run
        assert batcher.num_waiting == 3
        tasks += [start(batcher.submit(item)) for item in (8, 9)]
        await waiting(batcher, 5)
        model.release(3)
        assert await asyncio.gather(*tasks) == [10 * item for item in range(10)]
        assert batcher.num_waiting == 0
        await batcher.close()

    run(main)
    assert model.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9]]
    assert sizes == [1, 4, 4, 1]
    assert len(model.threads) == 1
    assert threading.get_ident() not in model.threads


def test_several_items_stay_together_in_the_queue_and_keep_their_order():
    model = GatedModel()

    async def main() -> None:
        batcher = Batcher(model, max_batch_size=3, max_queue=100)
        first = await occupy(model, batcher)
        two, five, one = (start(batcher.submit_all(items)) for items in ([1, 2], [3, 4, 5, 6, 7], [8]))
        await waiting(batcher, 8)
        model.release(4)
        assert await asyncio.gather(first, two, five, one) == [0, [10, 20], [30, 40, 50, 60, 70], [80]]
        assert await batcher.submit_all([]) == []

    run(main)
    assert model.batches == [[0], [1, 2, 3], [4, 5, 6], [7, 8]]


def test_the_event_loop_is_free_while_the_model_runs():
    model = GatedModel()

    async def main() -> None:
        batcher = Batcher(model, max_batch_size=1, max_queue=1)
        first = await occupy(model, batcher)  # this and what follows would hang
        assert not first.done()
        model.release()
        assert await first == 0

    run(main)


def test_a_full_queue_refuses_at_once_and_takes_all_or_none():
    model = GatedModel()

    async def main() -> None:
        batcher = Batcher(model, max_batch_size=8, max_queue=3)
        tasks = [await occupy(model, batcher), start(batcher.submit_all([1, 2]))]
        await waiting(batcher, 2)
        with pytest.raises(QueueFull, match=r"^2 more beside the 2 that wait .* queue of 3\."):
            await batcher.submit_all([3, 4])
        assert batcher.num_waiting == 2
        tasks.append(start(batcher.submit(5)))
        await waiting(batcher, 3)
        with pytest.raises(QueueFull, match=r"^1 more beside the 3 "):
            await batcher.submit(6)
        model.release(2)
        assert await asyncio.gather(*tasks) == [0, [10, 20], 50]

    run(main)
    assert model.batches == [[0], [1, 2, 5]]


def test_who_has_gone_leaves_the_queue_and_costs_no_model_time():
    model = GatedModel()

    async def main() -> None:
        batcher = Batcher(model, max_batch_size=8, max_queue=5)
        first = await occupy(model, batcher)
        gone, stays, several = start(batcher.submit(1)), start(batcher.submit(2)), start(batcher.submit_all([3, 4, 5]))
        await waiting(batcher, 5)
        gone.cancel()
        several.cancel()
        assert isinstance((await asyncio.gather(gone, return_exceptions=True))[0], asyncio.CancelledError)
        await waiting(batcher, 1)
        later = start(batcher.submit_all([6, 7, 8, 9]))  # there is room again
        await waiting(batcher, 5)
        model.release(2)
        assert await asyncio.gather(first, stays, later) == [0, 20, [60, 70, 80, 90]]
        assert several.cancelled()

    run(main)
    assert model.batches == [[0], [2, 6, 7, 8, 9]]


def test_who_goes_in_the_very_moment_that_a_batch_is_made_is_not_in_it():
    model = GatedModel()

    async def main() -> None:
        batcher = Batcher(model, max_batch_size=8, max_queue=8)
        tasks = [start(batcher.submit(item)) for item in (1, 2, 3)]
        await waiting(batcher, 3)  # the batch is made with the loop's next turn
        tasks[1].cancel()
        model.release()
        assert await asyncio.gather(tasks[0], tasks[2]) == [10, 30]

    run(main)
    assert model.batches == [[1, 3]]


def test_who_goes_while_the_model_runs_disturbs_nobody():
    model = GatedModel()

    async def main() -> None:
        batcher = Batcher(model, max_batch_size=8, max_queue=8)
        first = await occupy(model, batcher)
        gone, stays = start(batcher.submit(1)), start(batcher.submit(2))
        await waiting(batcher, 2)
        model.release()
        await model.started()
        gone.cancel()
        model.release()
        assert await asyncio.gather(first, stays) == [0, 20]
        assert gone.cancelled()
        first = start(batcher.submit(3))
        model.release()
        assert await first == 30

    run(main)
    assert model.batches == [[0], [1, 2], [3]]


def test_an_error_of_the_model_reaches_its_whole_batch_and_nobody_else():
    model = GatedModel()

    async def main() -> None:
        batcher = Batcher(model, max_batch_size=2, max_queue=8)
        first = await occupy(model, batcher)
        tasks = [start(batcher.submit(item)) for item in (12, 13, 14)]
        await waiting(batcher, 3)
        model.release(3)
        answers = await asyncio.gather(first, *tasks, return_exceptions=True)
        assert [answers[0], answers[3]] == [0, 140]
        for answer in answers[1:3]:
            assert isinstance(answer, ValueError)
            assert str(answer) == "13 is no image"
        model.release()
        assert await batcher.submit(15) == 150

    run(main)
    assert model.batches == [[0], [12, 13], [14], [15]]


def test_what_a_failed_call_still_has_in_the_queue_is_not_run():
    model = GatedModel()

    async def main() -> None:
        batcher = Batcher(model, max_batch_size=2, max_queue=8)
        first = await occupy(model, batcher)
        several, last = start(batcher.submit_all([13, 14, 15, 16, 17, 18])), start(batcher.submit(19))
        await waiting(batcher, 7)
        model.release(2)
        with pytest.raises(ValueError, match="13 is no image"):
            await several
        model.release(3)
        assert await asyncio.gather(first, last) == [0, 190]

    run(main)
    assert model.batches == [[0], [13, 14], [15, 16], [19]]  # the third was made before the call could go


@pytest.mark.parametrize(
    ("model", "error"),
    [
        (lambda items: items[1:], "The model gave 0 results for 1 items."),
        (lambda items: [*items, 7], "The model gave 2 results for 1 items."),
        (lambda _: next(iter(())), "The model raised StopIteration."),
    ],
    ids=["too few", "too many", "StopIteration"],
)
def test_wrong_results_are_an_error_and_no_mix_up(model, error):
    async def main() -> None:
        batcher = Batcher(model, max_batch_size=2, max_queue=8)
        for _ in range(2):
            with pytest.raises(RuntimeError, match=f"^{error}$"):
                await batcher.submit(1)

    run(main)


def test_an_error_of_the_callback_is_seen_and_not_the_end():
    sizes: list[int] = []

    def count(size: int) -> None:
        sizes.append(size)
        if len(sizes) == 1:
            raise LookupError("no such metric")

    async def main() -> None:
        batcher = Batcher(lambda items: items, max_batch_size=2, max_queue=8, on_batch=count)
        with pytest.raises(LookupError, match="no such metric"):
            await batcher.submit(1)
        assert await batcher.submit(2) == 2

    run(main)
    assert sizes == [1, 1]


def test_closing_waits_for_what_is_queued_and_takes_nothing_more():
    model = GatedModel()

    async def main() -> None:
        batcher = Batcher(model, max_batch_size=2, max_queue=8)
        tasks = [await occupy(model, batcher)]
        tasks += [start(batcher.submit(item)) for item in (1, 2, 3)]
        await waiting(batcher, 3)
        closing = start(batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(QueueClosed, match="another replica"):
            await batcher.submit(4)
        assert not closing.done()
        model.release(3)
        await closing
        assert [task.done() for task in tasks] == [True] * 4
        assert await asyncio.gather(*tasks) == [0, 10, 20, 30]
        await batcher.close()

    run(main)
    assert model.batches == [[0], [1, 2], [3]]


def test_the_end_of_an_event_loop_leaves_nobody_waiting_and_another_loop_can_follow():
    model = GatedModel()
    batcher = Batcher(model, max_batch_size=1, max_queue=8)
    tasks: list[asyncio.Task[Any]] = []

    async def interrupted() -> None:
        tasks.append(await occupy(model, batcher))
        tasks.extend([start(batcher.submit(1)), start(batcher.submit(2))])
        await waiting(batcher, 2)

    run(interrupted)
    assert [task.cancelled() for task in tasks] == [True] * 3
    assert batcher.num_waiting == 0

    async def main() -> None:
        model.release(2)  # the call of the loop that has ended is still in the model
        assert await batcher.submit(3) == 30
        await batcher.close()

    run(main)
    assert model.batches == [[0], [3]]
    assert len(model.threads) == 1  # never twice at once


def test_a_task_is_not_lost_to_the_garbage_collector():
    model = GatedModel()

    async def main() -> None:
        first = await occupy(model, Batcher(model, max_batch_size=1, max_queue=8))
        gc.collect()
        model.release()
        assert await first == 0

    run(main)


def test_many_clients_at_random_get_their_own_answers():
    sizes: list[int] = []

    def negate(items: list[int]) -> list[int]:
        return [-item for item in items]

    async def client(batcher: Batcher[int, int], number: int) -> None:
        for item in range(20):
            awaitable: Awaitable[int] = batcher.submit(1000 * number + item)
            if (number + item) % 7 == 3:
                task = asyncio.ensure_future(awaitable)
                await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            else:
                assert await awaitable == -(1000 * number + item)

    async def main() -> None:
        batcher = Batcher(negate, max_batch_size=8, max_queue=64, on_batch=sizes.append)
        await asyncio.gather(*(client(batcher, number) for number in range(64)))
        assert batcher.num_waiting == 0

    run(main)
    assert max(sizes) == 8
    assert sum(sizes) >= 64 * 20 * 5 // 7


@pytest.mark.parametrize("limits", [{"max_batch_size": 0, "max_queue": 1}, {"max_batch_size": 1, "max_queue": 0}])
def test_limits_must_let_something_through(limits):
    with pytest.raises(ConfigError, match="must be at least 1"):
        Batcher(len, **limits)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("error", [QueueFull("full"), QueueClosed("closed")], ids=repr)
def test_errors_survive_pickling(error):
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (type(again), again.args) == (type(error), error.args)
