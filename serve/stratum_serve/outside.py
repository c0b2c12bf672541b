"""Calls of what lies outside this process, S3 above all, in threads of their own: where it hangs, what needs none of it goes on."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from stratum import storage
from stratum_serve.problems import Problem

T = TypeVar("T")
THREADS = 8
WAIT_SECONDS = 2.0  # for a thread; whoever waits holds a place that others could use
RETRY_SECONDS = 1


class Outside:
    """So many threads, and nobody who waits for one for long."""

    def __init__(self, threads: int = THREADS) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="outside")
        self._free = asyncio.Semaphore(threads)

    async def call(self, seconds: float, function: Callable[..., T], *arguments: Any) -> T:
        """What a function answers whose calls of storage give up after so many seconds.

        Raises:
            Problem: all threads have been busy for a while.
            Exception: whatever the function raises.
        """
        try:
            async with asyncio.timeout(min(WAIT_SECONDS, seconds)):
                await self._free.acquire()
        except TimeoutError as error:
            raise Problem("overload", "S3 is slow, and as many requests as may wait for it: try again later", RETRY_SECONDS) from error
        loop = asyncio.get_running_loop()

        def freed(_: object) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._free.release)

        future = self._threads.submit(_in_time, seconds, function, arguments)
        future.add_done_callback(freed)  # and not where this is cancelled, since the thread goes on
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _in_time(seconds: float, function: Callable[..., T], arguments: tuple[Any, ...]) -> T:
    with storage.within(seconds):
        return function(*arguments)
