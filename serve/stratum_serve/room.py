"""Room for so much at once: what comes later waits, in order."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Room:
    """Holds things whose weight is no more than ``most`` together; what is heavier than that by itself goes in alone."""

    def __init__(self, most: int) -> None:
        self._most, self._inside = most, 0
        self._turn, self._left = asyncio.Lock(), asyncio.Event()

    @asynccontextmanager
    async def hold(self, weight: int) -> AsyncIterator[None]:
        """The context in which something of such a weight is inside; until there is room for it, it waits."""
        async with self._turn:  # whose waiters come one after the other, so that nothing heavy is overtaken for ever
            while self._inside and self._inside + weight > self._most:
                self._left.clear()
                await self._left.wait()
            self._inside += weight
        try:
            yield
        finally:
            self._inside -= weight
            self._left.set()
