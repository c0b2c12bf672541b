"""What goes through a network together, and what becomes of those that fail, wait too long, or go away."""

import asyncio
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stratum_serve.batching import Batcher, Timed
from stratum_serve.problems import Problem

LATER = 1e9


def batcher(
    batches: list[list[int]], *, budget: int = 10, most: int = 4, hold: threading.Event | None = None, room: int = 100
) -> Batcher[int, int]:
    def run(items: Sequence[int]) -> list[int]:
        batches.append(list(items))
        if hold is not None:
            hold.wait(10)
        if any(item < 0 for item in items):
            raise ValueError(f"{min(items)} is negative")
        return [item * 2 for item in items]

    return Batcher(run, ThreadPoolExecutor(1), budget=budget, most=most, room=room)


def doubled(results: Sequence[Timed[int] | BaseException]) -> list[object]:
    return [one.result if isinstance(one, Timed) else str(one) for one in results]


def test_what_gathers_while_one_runs_goes_together() -> None:
    batches: list[list[int]] = []
    hold = threading.Event()

    async def main() -> list[Timed[int]]:
        made = batcher(batches, hold=hold)
        tasks = [asyncio.create_task(made.submit("a", 0, weight=1, deadline=LATER))]
        while not batches:
            await asyncio.sleep(0.001)
        tasks += [asyncio.create_task(made.submit("a" if item % 2 else "b", item, weight=1, deadline=LATER)) for item in range(1, 8)]
        await asyncio.sleep(0.01)
        hold.set()
        return await asyncio.gather(*tasks)

    results = asyncio.run(main())
    assert [one.result for one in results] == [0, 2, 4, 6, 8, 10, 12, 14]
    assert batches == [[0], [1, 3, 5, 7], [2, 4, 6]]
    assert [one.together for one in results] == [1, 4, 3, 4, 3, 4, 3, 4]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 14)), min_size=1, max_size=20))
def test_budget_count_and_shape_hold(items: list[tuple[str, int]]) -> None:
    batches: list[list[int]] = []

    async def main() -> list[Timed[int]]:
        made = batcher(batches)
        return await asyncio.gather(*(made.submit(key, index, weight=weight, deadline=LATER) for index, (key, weight) in enumerate(items)))

    results = asyncio.run(main())
    assert [one.result for one in results] == [2 * index for index in range(len(items))]
    for batch in batches:
        assert len({items[index][0] for index in batch}) == 1
        assert len(batch) <= 4
        assert len(batch) == 1 or sum(items[index][1] for index in batch) <= 10
        assert batch == sorted(batch)
    assert [batch[0] for batch in batches] == sorted(batch[0] for batch in batches)  # nobody is overtaken for ever


def test_one_that_fails_fails_alone() -> None:
    batches: list[list[int]] = []

    async def main() -> list[Timed[int] | BaseException]:
        made = batcher(batches)
        return await asyncio.gather(*(made.submit("a", item, weight=1, deadline=LATER) for item in (1, -5, 2)), return_exceptions=True)

    assert doubled(asyncio.run(main())) == [2, "-5 is negative", 4]


def test_those_that_went_away_or_wait_too_long_are_not_computed() -> None:
    batches: list[list[int]] = []
    hold = threading.Event()

    async def main() -> list[Timed[int] | BaseException]:
        made = batcher(batches, hold=hold)
        first = asyncio.create_task(made.submit("a", 1, weight=1, deadline=LATER))
        while not batches:
            await asyncio.sleep(0.001)
        gone = asyncio.create_task(made.submit("a", 2, weight=1, deadline=LATER))
        late = asyncio.create_task(made.submit("a", 3, weight=1, deadline=time.monotonic() - 1))
        last = asyncio.create_task(made.submit("a", 4, weight=1, deadline=LATER))
        await asyncio.sleep(0.01)
        gone.cancel()
        await asyncio.sleep(0)
        hold.set()
        return await asyncio.gather(first, late, last, return_exceptions=True)

    first, late, last = asyncio.run(main())
    assert isinstance(late, Problem)
    assert late.kind == "deadline"
    assert doubled([first, last]) == [2, 8]
    assert batches == [[1], [4]]


def test_there_is_only_so_much_room() -> None:
    hold = threading.Event()
    batches: list[list[int]] = []

    async def main() -> list[Timed[int] | BaseException]:
        made = batcher(batches, hold=hold, room=2, most=1)
        tasks = [asyncio.create_task(made.submit("a", 0, weight=1, deadline=LATER))]
        while not batches:
            await asyncio.sleep(0.001)
        tasks += [asyncio.create_task(made.submit("a", item, weight=1, deadline=LATER)) for item in (1, 2, 3)]
        await asyncio.sleep(0.01)
        hold.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    *good, refused = asyncio.run(main())
    assert doubled(good) == [0, 2, 4]
    assert isinstance(refused, Problem)
    assert (refused.kind, refused.retry_after) == ("overload", 1)


def test_how_long_a_batch_has_been_running() -> None:
    hold = threading.Event()
    batches: list[list[int]] = []

    async def main() -> tuple[float, float, float]:
        made = batcher(batches, hold=hold)
        before = made.age
        task = asyncio.create_task(made.submit("a", 0, weight=1, deadline=LATER))
        while not batches:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.02)
        during = made.age
        hold.set()
        await task
        return before, during, made.age

    before, during, after = asyncio.run(main())
    assert (before, after) == (0.0, 0.0)
    assert during >= 0.02


@pytest.mark.parametrize("weight", [11, 1000])
def test_what_weighs_more_than_the_budget_goes_alone(weight: int) -> None:
    batches: list[list[int]] = []

    async def main() -> list[Timed[int]]:
        made = batcher(batches)
        return await asyncio.gather(*(made.submit("a", item, weight=weight if item == 1 else 1, deadline=LATER) for item in range(3)))

    assert [one.result for one in asyncio.run(main())] == [0, 2, 4]
    assert [1] in batches
