"""Memory that a training step or a prediction frees is kept for the next one."""

import ctypes

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of mallopt, from glibc's malloc.h
KEPT, STEP = 2**31 - 1, 2**26  # bytes: as much as may lie idle, and by how much the heap grows at least

KEEPING = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(KEPT),
    "MALLOC_TOP_PAD_": str(STEP),
}
"""The same as environment of a process that computes in other threads than its first: what glibc has for these is small and given back."""


def keep_freed_memory() -> bool:
    """Tells glibc to keep what is freed; False where the C library is another.

    By default each large tensor is a mapping of its own, which is given back, and cleared by the kernel when it is wanted again: a third of
    the time of LosNet's training step on one CPU. The peak is the same, but the memory stays with the process.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(option, value) for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, KEPT), (M_TOP_PAD, STEP)))


def worker_environment(*, use_gpu: bool) -> dict[str, str]:
    """For Ray's processes that train on CPUs: they compute in another thread than the first, for which mallopt comes too late."""
    return {} if use_gpu else KEEPING
