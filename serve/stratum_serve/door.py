"""The door of the application: who is inside, and whether others are let in."""

import asyncio

PAUSE_SECONDS = 0.02


class Door:
    """Counts the requests inside; once it closes, it lets no more in."""

    def __init__(self) -> None:
        self.inside = 0
        self.closing = False

    async def close(self) -> None:
        """Let nobody in any more, and wait until all are out."""
        self.closing = True
        while self.inside:
            await asyncio.sleep(PAUSE_SECONDS)
