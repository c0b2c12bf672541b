"""Lines that workers say come out in the driver.

Ray imports this module wherever the mailbox is: it stands alone so that PyTorch is not imported with it, which costs an actor seconds.
"""

import asyncio
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.exceptions

from stratum.training.progress import Say

logger = logging.getLogger(__name__)


@contextmanager
def relayed(say: Say) -> Iterator[Say]:
    """A function to say things with in any worker; they come out in this process.

    Ray can forward what workers print, but with it comes everything that libraries print there.
    """
    mailbox: Any = ray.remote(num_cpus=0)(_Mailbox).remote()
    thread = threading.Thread(target=_read_aloud, args=(mailbox, say), name="progress", daemon=True)
    thread.start()
    try:
        yield _Post(mailbox)
    finally:
        mailbox.put.remote(None)
        thread.join(5)
        ray.kill(mailbox)


class _Mailbox:
    """An actor that keeps lines until they are read; None ends the reading."""

    def __init__(self) -> None:
        self._lines: asyncio.Queue[str | None] = asyncio.Queue()

    async def put(self, line: str | None) -> None:
        """Adds a line."""
        await self._lines.put(line)

    async def take(self) -> str | None:
        """The next line, once there is one."""
        return await self._lines.get()


class _Post:
    """Says a line into a mailbox, from wherever it was sent to."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def __call__(self, line: str) -> None:
        """Does not wait until the line is read."""
        self._mailbox.put.remote(line)


def _read_aloud(mailbox: Any, say: Say) -> None:
    try:
        while (line := ray.get(mailbox.take.remote())) is not None:
            say(line)
    except ray.exceptions.RayError as error:  # the cluster is going down; progress lines must not end anything
        logger.debug("no more progress lines: %s", error)
