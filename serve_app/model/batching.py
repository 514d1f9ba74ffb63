"""A queue that makes batches for a model. A free model takes all waiting items at once, so batches grow with the load.

`ray.serve.batch` closes a batch some time after its first item even while the model is busy, and the small batches
then wait for each other. Here a batch is made when the model can take it, so no waiting time has to be chosen.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from serve_app.errors import QueueClosed, QueueFull
from tlray.errors import ConfigError

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Runs a model on items in batches, in the order of their arrival. For the coroutines of one event loop.

    Args:
        run: The model: returns one result for each item of a batch, in their order. It is called in a thread of its
            own, never twice at once. Its errors are raised for all items of the batch.
        max_batch_size: Maximum number of items in a batch.
        max_queue: Maximum number of items that wait for the model; those of the running batch do not count.
        on_batch: Called with the size of each batch before the batch runs.

    Raises:
        ConfigError: A limit is below 1.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], Sequence[Result]],
        *,
        max_batch_size: int,
        max_queue: int,
        on_batch: Callable[[int], None] | None = None,
    ) -> None:
        if max_batch_size < 1 or max_queue < 1:
            raise ConfigError(
                f"max_batch_size and max_queue must be at least 1. Received: {max_batch_size} and {max_queue}"
            )
        self._run = run
        self._max_batch_size = max_batch_size
        self._max_queue = max_queue
        self._on_batch = on_batch
        self._waiting: OrderedDict[asyncio.Future[Result], Item] = OrderedDict()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False

    @property
    def num_waiting(self) -> int:
        """Number of items that wait for the model, without those of the running batch."""
        return len(self._waiting)

    async def submit(self, item: Item) -> Result:
        """Returns the model's result for an item; see `submit_all`."""
        (result,) = await self.submit_all([item])
        return result

    async def submit_all(self, items: Sequence[Item]) -> list[Result]:
        """Returns the model's results for some items, in their order. The items of a cancelled call leave the queue.

        Raises:
            QueueFull: There is no room for all of the items; then none is taken.
            QueueClosed: `close` was called.
            Exception: The error that the model raised.
        """
        if self._is_closed:
            raise QueueClosed("The model is being shut down. Send the request again: another replica will take it.")
        if self.num_waiting + len(items) > self._max_queue:
            raise QueueFull(
                f"{len(items)} more beside the {self.num_waiting} that wait for the model exceed its queue of "
                f"{self._max_queue}. Try again a little later, or with fewer at once."
            )
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in items]
        self._waiting.update(zip(futures, items, strict=True))
        if self._task is None or self._task.done():
            # The task exists only while there is work, so an idle queue belongs to no event loop.
            self._task = loop.create_task(self._work())
        try:
            return await asyncio.gather(*futures)
        finally:
            # After a success this does nothing. After an error or a cancellation, nobody waits for the other results.
            for future in futures:
                future.cancel()
                self._waiting.pop(future, None)

    async def close(self) -> None:
        """Accepts no more items, and returns when all waiting items have been answered."""
        self._is_closed = True
        if self._task is not None and not self._task.done():
            await asyncio.wait([self._task])
        self._executor.shutdown(wait=False)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        batch: dict[asyncio.Future[Result], Item] = {}
        try:
            while batch := self._take():
                try:
                    if self._on_batch is not None:
                        self._on_batch(len(batch))
                    results = await loop.run_in_executor(self._executor, self._run_checked, list(batch.values()))
                except Exception as error:  # any error goes to the callers that wait for this batch
                    for future in batch:
                        if not future.done():
                            future.set_exception(error)
                else:
                    for future, result in zip(batch, results, strict=True):
                        if not future.done():
                            future.set_result(result)
        finally:
            # Anything is left only if this task was cancelled, as asyncio.run does at its end.
            for future in (*batch, *self._waiting):
                future.cancel()
            self._waiting.clear()

    def _take(self) -> dict[asyncio.Future[Result], Item]:
        batch: dict[asyncio.Future[Result], Item] = {}
        while self._waiting and len(batch) < self._max_batch_size:
            future, item = self._waiting.popitem(last=False)
            if not future.done():  # the item of a client that has left costs no model time
                batch[future] = item
        return batch

    def _run_checked(self, items: list[Item]) -> Sequence[Result]:
        try:
            results = self._run(items)
        except StopIteration as error:
            # A future cannot carry StopIteration, so the callers would wait forever.
            raise RuntimeError("The model raised StopIteration.") from error
        if len(results) != len(items):
            raise RuntimeError(f"The model gave {len(results)} results for {len(items)} items.")
        return results
