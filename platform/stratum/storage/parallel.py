"""Many small transfers at once."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")

WORKERS = 16


def in_parallel(work: Callable[[Item], Value], items: Iterable[Item]) -> list[Value]:
    """``[work(item) for item in items]`` on threads, in order. The first error stops what has not begun, and is raised.

    The pool lives for one call: a pool kept for later would be dead in a forked child.
    """
    todo = list(items)
    if len(todo) < 2:
        return [work(item) for item in todo]
    with ThreadPoolExecutor(min(WORKERS, len(todo)), thread_name_prefix="stratum-storage") as pool:
        try:
            return list(pool.map(work, todo))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
