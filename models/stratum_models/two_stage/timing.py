"""Where the time of a pipeline goes."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch


class Timed(Protocol):
    """Gives a context for a named step."""

    def __call__(self, step: str) -> AbstractContextManager[None]:
        """The context in which the step runs."""


def untimed(step: str) -> AbstractContextManager[None]:
    """Measures nothing."""
    return nullcontext()


class Stopwatch:
    """Adds up the seconds of each step, those of a GPU's work included.

    Args:
        device: where the work is done.
        now: the clock in seconds: ``time.perf_counter``, or ``time.thread_time`` for one thread's own time on a busy machine.
    """

    def __init__(self, device: torch.device, now: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = {}
        self._device, self._now = device, now

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        """The context in which the step runs."""
        start = self._now()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.seconds[step] = self.seconds.get(step, 0.0) + self._now() - start
