"""Items of many requests through a network together: what has the same shape, up to a budget, the longest waiting first.

Nothing waits for company: a batch is what has gathered while the one before it ran. An item whose request was given up, or whose deadline
has passed, is not computed. Where a batch fails, its items run once more one by one, so that only the one to blame fails.
"""

import asyncio
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, TypeVar

from stratum_serve.problems import Problem

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Timed(Generic[Result]):
    """A result, how long it waited for its batch, how long the batch ran, in seconds, and how many items it had."""

    result: Result
    queued: float
    ran: float
    together: int


@dataclass(eq=False, kw_only=True)
class _Waiting(Generic[Item, Result]):
    key: Hashable
    item: Item
    weight: int
    deadline: float  # by time.monotonic
    since: float
    future: "asyncio.Future[Timed[Result]]"


class Batcher(Generic[Item, Result]):
    """Runs ``run(items)`` in an executor, one batch at a time.

    Args:
        run: a batch of items with the same key to as many results, in order; it is called with one item where a batch has failed.
        executor: where it runs; of one thread, so that a network's threads are not shared.
        budget: the most weight of a batch; an item that weighs more goes alone.
        most: the most items of a batch.
        room: the most items that wait; further ones are refused.
    """

    def __init__(
        self, run: Callable[[Sequence[Item]], Sequence[Result]], executor: Executor, *, budget: int, most: int = 64, room: int = 1024
    ) -> None:
        self._run, self._executor = run, executor
        self._budget, self._most, self._room = budget, most, room
        self._waiting: list[_Waiting[Item, Result]] = []
        self._task: asyncio.Task[None] | None = None
        self._began: float | None = None  # by time.monotonic, the batch that runs

    async def submit(self, key: Hashable, item: Item, *, weight: int, deadline: float) -> Timed[Result]:
        """The result for an item, with those of the same ``key`` that wait.

        Raises:
            Problem: there is no room, or the deadline passed before the item's turn.
            Exception: whatever ``run`` raises for this item.
        """
        if len(self._waiting) >= self._room:
            raise Problem("overload", f"{self._room} requests wait already: try again later", 1)
        loop = asyncio.get_running_loop()
        one = _Waiting[Item, Result](
            key=key, item=item, weight=weight, deadline=deadline, since=time.monotonic(), future=loop.create_future()
        )
        self._waiting.append(one)
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._work())
        return await one.future

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def age(self) -> float:
        """For how many seconds the batch that runs has been running; 0 where none does."""
        began = self._began
        return 0.0 if began is None else time.monotonic() - began

    async def _work(self) -> None:
        while batch := self._next():
            await self._compute(batch)

    def _next(self) -> list[_Waiting[Item, Result]]:
        """The next batch, taken out of those that wait; empty where nothing waits."""
        now = time.monotonic()
        for one in self._waiting:
            if not one.future.done() and one.deadline <= now:
                one.future.set_exception(Problem("deadline", "the deadline passed while the request waited for its turn"))
        self._waiting = [one for one in self._waiting if not one.future.done()]  # cancelled ones have gone, too
        batch: list[_Waiting[Item, Result]] = []
        weight = 0
        for one in self._waiting:
            if batch and (one.key != batch[0].key or weight + one.weight > self._budget):
                continue
            batch.append(one)
            weight += one.weight
            if len(batch) >= self._most:
                break
        taken = {id(one) for one in batch}
        self._waiting = [one for one in self._waiting if id(one) not in taken]
        return batch

    async def _compute(self, batch: Sequence[_Waiting[Item, Result]]) -> None:
        start = time.monotonic()
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._executor, self._timed, [one.item for one in batch])
        except Exception as error:
            if len(batch) == 1:
                self._fail(batch[0], error)
                return
            for one in batch:
                if not one.future.done():
                    await self._compute([one])
            return
        ran = time.monotonic() - start
        for one, result in zip(batch, results, strict=True):
            if not one.future.done():
                one.future.set_result(Timed(result=result, queued=start - one.since, ran=ran, together=len(batch)))

    def _timed(self, items: Sequence[Item]) -> Sequence[Result]:
        self._began = time.monotonic()
        try:
            return self._run(items)
        finally:
            self._began = None

    @staticmethod
    def _fail(one: _Waiting[Item, Result], error: Exception) -> None:
        if not one.future.done():
            one.future.set_exception(error)
