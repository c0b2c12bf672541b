"""Disks that are full: each library has words of its own for that."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stratum_models.errors import UserError

FULL_BYTES = 2**16  # less is left of a disk that is full


@contextmanager
def said_when_full(folder: Path, hint: str) -> Iterator[None]:
    """Turns whatever is raised inside into one line where the folder's disk is full.

    Raises:
        UserError: that line, which ends with the hint; one that is raised inside passes.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not _names_full_disk(error) and shutil.disk_usage(folder).free > FULL_BYTES:
            raise
        raise UserError(f"{folder}: no space is left {hint}") from error


def _names_full_disk(error: BaseException | None) -> bool:
    """Whether it is the system's own error, or was raised because of it; what was half written may be gone by now."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def require_room(folder: Path, needed: int, hint: str) -> None:
    """Raises UserError, with the hint, where a folder's disk has no room for so many bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed + FULL_BYTES:
        raise UserError(f"{folder}: no space is left ({needed / 2**20:.0f} MiB are needed, {free / 2**20:.0f} MiB are free) {hint}")
