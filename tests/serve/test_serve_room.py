"""Room for so much at once, in order."""

import asyncio

from stratum_serve.room import Room


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
