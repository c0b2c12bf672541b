"""Local files, written so that a reader sees the old content or the new, and never a part."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stratum.storage.errors import StorageError, local_errors

PART_PREFIX = ".stratum-part-"  # what a killed writer leaves behind; listings pass over it
_CHUNK = 1 << 20  # bytes


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that takes its place when the block ends well.

    ``durable`` waits for the disk, so that not even a power cut shows an empty file; what can be had again needs no wait.

    Raises:
        StorageError: where the folder or the file cannot be written.
    """
    part = path.parent / f"{PART_PREFIX}{secrets.token_hex(8)}"
    with local_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            if durable:
                _sync(part)
            os.replace(part, path)
            if durable:
                _sync(path.parent)
        finally:
            with suppress(FileNotFoundError):
                part.unlink()


def write(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replace the content of ``path``, making its folders."""
    with replacing(path, durable=durable) as part:
        part.write_bytes(data)


def copy(source: Path, target: Path) -> None:
    """Copy one file; ``target`` changes in one step."""
    if source.absolute() == target.absolute():
        return
    with local_errors(source):
        original = source.open("rb")
    with original, replacing(target) as part, part.open("wb") as copied:
        shutil.copyfileobj(original, copied, _CHUNK)


def read(path: Path) -> bytes:
    """The content of a file."""
    with local_errors(path):
        return path.read_bytes()


def walk(folder: Path) -> list[str]:
    """All files under ``folder``, sorted; linked folders are followed, each once.

    Raises:
        StorageError: where ``folder`` is missing, is no folder, or may not be read.
    """
    if folder.is_file():
        raise StorageError(f"{folder}: this is a file, not a folder; name the folder that holds it")
    seen: set[str] = set()
    files: list[str] = []
    with local_errors(folder):
        for root, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
            real = os.path.realpath(root)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            files += [os.path.join(root, name) for name in names if not name.startswith(PART_PREFIX)]
    return sorted(files)


def remove(path: Path) -> None:
    """Remove a file or a folder with all it holds; nothing happens where there is none."""
    with local_errors(path), suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _raise(error: OSError) -> None:
    raise error
