"""What is held decoded at once is bounded."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from serve_tools import picture, png

from stratum_serve import worker as worker_module
from stratum_serve.config import Batching
from stratum_serve.engine import open_package
from stratum_serve.imaging import ImageLimits
from stratum_serve.options import SegmentOptions
from stratum_serve.room import Room
from stratum_serve.worker import Answer, Task, Worker


def test_only_so_much_is_inside_and_nothing_is_overtaken() -> None:
    order: list[int] = []
    most = 0

    async def main() -> None:
        room, inside = Room(10), 0

        async def enter(number: int, weight: int) -> None:
            nonlocal inside, most
            async with room.hold(weight):
                order.append(number)
                inside += weight
                most = max(most, inside if weight <= 10 else 0)
                assert weight <= 10 or inside == weight
                await asyncio.sleep(0.001)
                inside -= weight

        tasks = [asyncio.create_task(enter(number, weight)) for number, weight in enumerate((4, 4, 9, 1, 30, 2, 5))]
        await asyncio.sleep(0)
        tasks[3].cancel()  # whoever goes away while it waits takes no room
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())
    assert order == [0, 1, 2, 4, 5, 6]
    assert 4 < most <= 10


def test_a_worker_decodes_no_more_than_it_may_hold(packages: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    made, engine = Worker(Batching(), pixels=2 * 96 * 128), open_package(packages["losnet"])
    held = most = 0
    decode: Callable[..., object] = worker_module._decoded
    encode: Callable[..., object] = worker_module._encoded

    def decoded(*given: object) -> object:
        nonlocal held, most
        held += 1
        most = max(most, held)
        return decode(*given)

    def encoded(*given: object) -> object:
        nonlocal held
        held -= 1
        return encode(*given)

    monkeypatch.setattr(worker_module, "_decoded", decoded)
    monkeypatch.setattr(worker_module, "_encoded", encoded)
    task = Task(
        kind="segment",
        source=png(picture()),
        options=SegmentOptions(format="png"),
        seconds=60,
        limits=ImageLimits(pixels=10**6, side=5000),
        largest=10**6,
    )

    async def main() -> list[Answer]:
        return await asyncio.gather(*(made.answer(engine, task) for _ in range(7)))

    answers = asyncio.run(main())
    made.close()
    assert len({answer.body for answer in answers}) == 1
    assert most == 2
