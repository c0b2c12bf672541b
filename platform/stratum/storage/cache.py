"""Objects of S3 on the local disk, one file a version, so that what has not changed is not fetched again.

    <root>/objects/<hash of endpoint and URI>/etag           size and ETag of the version seen last
    <root>/objects/<hash of endpoint and URI>/<hash>/<name>  that version, whole and read-only
    <root>/trees/<hash of endpoint and URI>/<hash>/...       a folder as it was listed, linked to its objects

Files only ever appear whole under their names, and versions stand side by side: processes share the cache without locks.
"""

import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs

from stratum.storage import local, s3
from stratum.storage.client import endpoint
from stratum.storage.errors import StorageError
from stratum.storage.names import name, relative
from stratum.storage.parallel import in_parallel

_KEEP_SECONDS = 24 * 3600  # an older version may still be open in another process


def root() -> Path:
    """Where the cache lies: ``STRATUM_CACHE``, or ``stratum`` in the user's own cache folder."""
    chosen = os.environ.get("STRATUM_CACHE")
    return Path(chosen).expanduser().absolute() if chosen else Path(platformdirs.user_cache_dir("stratum", appauthor=False))


def fetch(uri: str) -> Path:
    """The local copy of an object; the server is asked whether it is still good.

    Raises:
        StorageError: where the object cannot be had or the cache not written.
    """
    return _fetch(uri, None)[0]


def fetch_tree(uri: str) -> Path:
    """The local copy of all objects under a folder, as they stood together in one listing.

    Raises:
        StorageError: where the folder cannot be had, or keeps changing.
    """
    for _ in range(3):
        entries = s3.listing(uri)
        place = root() / "trees" / _hash(endpoint(uri), uri) / _hash(*(f"{entry.uri}\0{entry.etag}" for entry in entries))
        if place.is_dir():
            return place
        fetched = in_parallel(lambda entry: _fetch(entry.uri, entry), entries)
        if all(etag == entry.etag for (_, etag), entry in zip(fetched, entries, strict=True)):
            return _build_tree(place, {relative(e.uri, uri): path for (path, _), e in zip(fetched, entries, strict=True)})
    raise StorageError(f"{uri}: the folder changes while it is read; try again when its writer is done")


def _fetch(uri: str, listed: s3.Entry | None) -> tuple[Path, str]:
    """The copy of an object and its ETag, without asking the server for what it has just ``listed``."""
    folder = root() / "objects" / _hash(endpoint(uri), uri)
    if listed is not None and _is_whole(path := _version(folder, listed.etag, uri), listed.size):
        return path, listed.etag
    known = _known(folder, uri)
    part = folder / f"{local.PART_PREFIX}{secrets.token_hex(8)}"
    with _cache_errors():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            found = s3.download(uri, part, known=known)
            path = _version(folder, found, uri)
            if part.exists():
                _keep(part, path, found)
        finally:
            with suppress(FileNotFoundError):
                part.unlink()
    return path, found


@contextmanager
def _cache_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{root()}: the cache cannot be written ({error.strerror}); set STRATUM_CACHE to another folder") from error


def _keep(part: Path, path: Path, etag: str) -> None:
    """Give a finished download its name, and let go of versions that nobody reads any more."""
    path.parent.mkdir(exist_ok=True)
    part.chmod(0o444)  # trees link to it: a change in place would spoil them all
    os.replace(part, path)
    local.write(path.parent.parent / "etag", f"{path.stat().st_size} {etag}".encode(), durable=False)
    _forget_older(path.parent)


def _forget_older(version: Path) -> None:
    for old in version.parent.iterdir():
        with suppress(FileNotFoundError):  # another process may be doing the same
            if old in (version, version.parent / "etag") or time.time() - old.stat().st_mtime < _KEEP_SECONDS:
                continue
            if old.is_dir():
                shutil.rmtree(old, ignore_errors=True)
            else:
                old.unlink()


def _build_tree(place: Path, files: dict[str, Path]) -> Path:
    part = place.with_name(f"{local.PART_PREFIX}{secrets.token_hex(8)}")
    with _cache_errors():
        try:
            for key, source in files.items():
                target = part / key
                target.parent.mkdir(parents=True, exist_ok=True)
                _link(source, target)
            part.rename(place)
        except OSError:
            if not place.is_dir():  # unless another process was faster
                raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
    _forget_older(place)
    return place


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # not every file system can
        shutil.copyfile(source, target)


def _known(folder: Path, uri: str) -> str | None:
    """The ETag of the copy that is here, if it is here."""
    try:
        size, etag = (folder / "etag").read_text().split(" ", 1)
        return etag if _is_whole(_version(folder, etag, uri), int(size)) else None
    except (OSError, ValueError):
        return None


def _is_whole(path: Path, size: int) -> bool:
    # Nothing here waits for the disk: after a power cut a file may be there and empty.
    return path.is_file() and path.stat().st_size == size


def _version(folder: Path, etag: str, uri: str) -> Path:
    return folder / _hash(etag)[:16] / name(uri)


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:40]
