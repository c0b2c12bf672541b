"""Between the driver and its workers: lines that workers say come out in the driver, and workers hear when the driver is told to stop.

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
POLL_S = 0.2


class Relay:
    """The workers' end; it travels to wherever they are."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def say(self, line: str) -> None:
        """Says a line in the driver; does not wait until it is read."""
        self._mailbox.put.remote(line)

    def stop_event(self) -> threading.Event:
        """An event of this process that is set once the driver is told to stop."""
        stop = threading.Event()
        threading.Thread(target=self._listen, args=(stop,), name="stop", daemon=True).start()
        return stop

    def _listen(self, stop: threading.Event) -> None:
        try:
            ray.get(self._mailbox.stopped.remote())
            stop.set()
        except ray.exceptions.RayError as error:  # the driver has ended
            logger.debug("nobody will tell this worker to stop: %s", error)


@contextmanager
def relayed(say: Say, stop: threading.Event | None = None) -> Iterator[Relay]:
    """A relay whose lines are said here, in threads of this process, and that passes ``stop`` on.

    Ray can forward what workers print, but with it comes everything that libraries print there.
    """
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}  # a worker's machine may go, and would take the mailbox along
    mailbox: Any = ray.remote(num_cpus=0, label_selector=here)(_Mailbox).remote()
    over = threading.Event()
    threads = [threading.Thread(target=_read_aloud, args=(mailbox, say), name="progress", daemon=True)]
    if stop is not None:
        threads.append(threading.Thread(target=_pass_on, args=(mailbox, stop, over), name="stop", daemon=True))
    for thread in threads:
        thread.start()
    try:
        yield Relay(mailbox)
    finally:
        over.set()
        mailbox.put.remote(None)
        for thread in threads:
            thread.join(5)
        ray.kill(mailbox)


class _Mailbox:
    """An actor that keeps lines until they are read, None ending the reading, and the wish to stop."""

    def __init__(self) -> None:
        self._lines: asyncio.Queue[str | None] = asyncio.Queue()
        self._stop = asyncio.Event()

    async def put(self, line: str | None) -> None:
        """Adds a line."""
        await self._lines.put(line)

    async def take(self) -> str | None:
        """The next line, once there is one."""
        return await self._lines.get()

    async def stop(self) -> None:
        """Tells everyone who waits in :meth:`stopped`."""
        self._stop.set()

    async def stopped(self) -> None:
        """Ends once the workers are to stop."""
        await self._stop.wait()


def _read_aloud(mailbox: Any, say: Say) -> None:
    try:
        while (line := ray.get(mailbox.take.remote())) is not None:
            say(line)
    except ray.exceptions.RayError as error:  # the cluster is going down; progress lines must not end anything
        logger.debug("no more progress lines: %s", error)


def _pass_on(mailbox: Any, stop: threading.Event, over: threading.Event) -> None:
    while not over.is_set():
        if stop.wait(POLL_S):
            mailbox.stop.remote()
            return
