"""Single files by URI, wherever they are."""

import json
import sys
from pathlib import Path
from typing import Any

from stratum.storage import cache, local, s3
from stratum.storage.errors import StorageError, local_errors, too_large
from stratum.storage.names import is_remote, is_synthetic, resolve


def place(uri: str) -> str:
    """The normal form of a name that can hold files.

    Raises:
        StorageError: for names of other kinds, generated data among them.
    """
    if is_remote(uri):
        return "s3://" + uri[5:]  # otherwise as it is: a listing may name keys that normalising would change
    uri = resolve(uri)
    if is_synthetic(uri):
        raise StorageError(f"{uri}: generated data has no files; name a folder or s3://bucket/key")
    return uri


def exists(uri: str) -> bool:
    """Whether there is a file or a folder of this name; on S3, a folder is there when it holds anything.

    Raises:
        StorageError: where that cannot be found out: denied, no credentials, unreachable.
    """
    uri = place(uri)
    if is_remote(uri):
        return s3.exists(uri)
    with local_errors(uri):
        return Path(uri).exists()


def fetch(uri: str) -> Path:
    """A local file with the content of ``uri``: itself, or the cached copy of an object, which must not be changed.

    Raises:
        StorageError: missing, denied, unreachable, or no file.
    """
    uri = place(uri)
    if is_remote(uri):
        return cache.fetch(uri)
    path = Path(uri)
    if not path.is_file():
        local.read(path)  # raises what is the matter
    return path


def read_bytes(uri: str) -> bytes:
    """The content of a file; an object is fetched only if it has changed since the last time.

    Raises:
        StorageError: missing, denied, unreachable, or no file.
    """
    uri = place(uri)
    return local.read(cache.fetch(uri) if is_remote(uri) else Path(uri))


def size(uri: str) -> int:
    """The bytes that a file has, without reading it.

    Raises:
        StorageError: missing, denied, unreachable, or no file.
    """
    uri = place(uri)
    if is_remote(uri):
        return s3.size(uri)
    with local_errors(uri):
        return Path(uri).stat().st_size


def read_once(uri: str, most: int = sys.maxsize) -> bytes:
    """The content of a file of no more than ``most`` bytes, for those who will not ask for it again: it is not kept in the cache.

    Raises:
        TooLargeError: it has more; no more of it is read.
        StorageError: missing, denied, unreachable, or no file.
    """
    uri = place(uri)
    if is_remote(uri):
        return s3.read(uri, most)
    with local_errors(uri):
        size = Path(uri).stat().st_size
    if size > most:
        raise too_large(uri, size, most)
    return local.read(Path(uri))


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file and its folders; a reader sees the old content or the new, never a part.

    Raises:
        StorageError: denied, unreachable, no space, missing bucket.
    """
    uri = place(uri)
    if is_remote(uri):
        s3.put(uri, data)
    else:
        local.write(Path(uri), data)


def read_json(uri: str) -> Any:
    """The value that a JSON file holds.

    Raises:
        StorageError: where the file cannot be read or is not JSON in UTF-8.
    """
    try:
        return json.loads(read_bytes(uri).decode("utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise StorageError(f"{uri}: not valid JSON ({error}); correct the file or name another one") from error


def write_json(uri: str, value: Any) -> None:
    """Write a value as indented JSON in UTF-8. Values that JSON lacks, NaN among them, are a `ValueError`."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(uri, (text + "\n").encode())
