"""Objects on S3, through boto3: one client a process, bounded retries and timeouts, errors that name the URI.

The settings are the usual ones: ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_PROFILE``, ``AWS_DEFAULT_REGION``,
``AWS_ENDPOINT_URL``, ``AWS_MAX_ATTEMPTS``, ``AWS_RETRY_MODE`` (``standard`` or ``adaptive``), ...
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import botocore.exceptions as aws
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

from stratum.storage.errors import BrokenStreamError, MissingError, StorageError, error_code, explain_s3, local_errors, s3_errors
from stratum.storage.names import split_s3
from stratum.storage.parallel import WORKERS, in_parallel

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef, ListObjectsV2OutputTypeDef

CONNECT_TIMEOUT = 5.0  # seconds
READ_TIMEOUT = 60.0  # seconds without a byte
ATTEMPTS = 5
_CHUNK = 1 << 20  # bytes
_FAN_OUT = 256  # folders listed side by side; with more of them, reading the pages one by one asks less often
_BROKEN = (aws.IncompleteReadError, aws.ReadTimeoutError, aws.ResponseStreamingError, aws.ConnectionError, aws.FlexibleChecksumError)

_clients: dict[tuple[int, tuple[tuple[str, str], ...]], "S3Client"] = {}
_lock = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One object of a listing."""

    uri: str
    size: int  # bytes
    etag: str  # changes with the content


def attempts() -> int:
    """How often a request is tried: ``AWS_MAX_ATTEMPTS`` or 5.

    Raises:
        StorageError: where the variable is no positive number.
    """
    value = os.environ.get("AWS_MAX_ATTEMPTS", str(ATTEMPTS))
    if not value.isdigit() or int(value) < 1:
        raise StorageError(f"AWS_MAX_ATTEMPTS is {value!r}; set it to a whole number above 0")
    return int(value)


def client() -> "S3Client":
    """This process's client for the environment as it is now; safe to share between threads and after a fork."""
    key = (os.getpid(), tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith("AWS_"))))
    with _lock:
        if key not in _clients:
            _clients.clear()  # of another process or an older environment
            _clients[key] = boto3.session.Session().client("s3", config=_config())
        return _clients[key]


def _config() -> Config:
    mode = os.environ.get("AWS_RETRY_MODE", "standard")
    if mode not in ("standard", "adaptive"):
        raise StorageError(f"AWS_RETRY_MODE is {mode!r}; set it to standard or adaptive")
    return Config(
        retries={"mode": "adaptive" if mode == "adaptive" else "standard", "total_max_attempts": attempts()},
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
        max_pool_connections=2 * WORKERS,
    )


def _after_fork() -> None:
    # Another thread may have held the lock at the fork; in the child nobody would ever let it go.
    global _lock
    _lock = threading.Lock()
    _clients.clear()


os.register_at_fork(after_in_child=_after_fork)


def download(uri: str, target: Path, *, known: str | None) -> str:
    """Write an object to ``target``, unless it is still the one with ETag ``known``, and return its ETag.

    Raises:
        StorageError: missing, denied, unreachable, or broken off at every try.
    """
    left = attempts()
    while True:
        left -= 1
        try:
            with s3_errors(uri):
                return _download_once(uri, target, known)
        except BrokenStreamError as error:
            # botocore tries again until the headers are there; from then on it is up to us.
            if left == 0:
                raise explain_s3(uri, error.args[0]) from error
            time.sleep(0.2 * (attempts() - left))


def _download_once(uri: str, target: Path, known: str | None) -> str:
    bucket, key = _object(uri)
    try:
        answer = _get(bucket, key, known)
    except aws.ClientError as error:
        if known is not None and error_code(error) in ("304", "NotModified"):
            return known
        raise
    with closing(answer["Body"]) as body, target.open("wb") as file:
        try:
            for chunk in body.iter_chunks(_CHUNK):
                file.write(chunk)
        except _BROKEN as error:
            raise BrokenStreamError(error) from error
    return answer["ETag"]


def _get(bucket: str, key: str, known: str | None) -> "GetObjectOutputTypeDef":
    if known is None:
        return client().get_object(Bucket=bucket, Key=key)
    return client().get_object(Bucket=bucket, Key=key, IfNoneMatch=known)


def put(uri: str, data: bytes) -> None:
    """Store an object; it is visible whole or not at all."""
    bucket, key = _object(uri)
    with s3_errors(uri):
        client().put_object(Bucket=bucket, Key=key, Body=data)


def upload(path: Path, uri: str) -> None:
    """Store a file; large ones in parts side by side, which are thrown away if one of them fails."""
    bucket, key = _object(uri)
    with local_errors(path), s3_errors(uri):
        client().upload_file(str(path), bucket, key, Config=TransferConfig(max_concurrency=4))


def exists(uri: str) -> bool:
    """Whether there is such an object, or any object under it as a folder."""
    bucket, key = split_s3(uri.rstrip("/"))
    try:
        with s3_errors(uri):
            page = client().list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)
            # The exact key sorts first among all that begin with it, but "a-b" sorts before "a/b".
            if not key or any(item["Key"] == key for item in page.get("Contents", [])):
                return True
            return bool(client().list_objects_v2(Bucket=bucket, Prefix=f"{key}/", MaxKeys=1).get("Contents"))
    except MissingError:
        return False


def check_bucket(uri: str) -> None:
    """Ask the server for one key under ``uri``, so that wrong names and keys show before the work starts.

    Raises:
        StorageError: missing bucket, denied, no credentials, unreachable.
    """
    bucket, key = split_s3(uri)
    with s3_errors(uri):
        client().list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)


def listing(uri: str) -> list[Entry]:
    """All objects under a folder, sorted by key, with large folders read in parallel.

    Raises:
        StorageError: where there is no such folder, it is an object, or the server refuses.
    """
    entries = everything(uri)
    if not entries and split_s3(uri)[1]:
        if exists(uri):
            raise StorageError(f"{uri}: this is an object, not a folder; name the folder that holds it")
        raise MissingError(f"{uri}: there is nothing under this name; check it with `aws s3 ls`")
    # Consoles store an empty object "folder/" to show an empty folder.
    return sorted((entry for entry in entries if not entry.uri.endswith("/")), key=lambda entry: entry.uri)


def everything(uri: str) -> list[Entry]:
    """All objects whose key begins with that of ``uri`` and a slash, in no order, the marks of empty folders among them."""
    bucket, key = split_s3(uri.rstrip("/"))
    entries: list[Entry] = []
    frontier = [f"{key}/" if key else ""]
    with s3_errors(uri):
        while frontier:
            found = in_parallel(lambda folder: _list_folder(bucket, folder), frontier)
            entries += [entry for part, _ in found for entry in part]
            frontier = [folder for _, folders in found for folder in folders]
    return entries


def _list_folder(bucket: str, prefix: str) -> tuple[list[Entry], list[str]]:
    """The objects under ``prefix``, or those directly in it and the folders that are left to list."""
    first = client().list_objects_v2(Bucket=bucket, Prefix=prefix)
    if not first.get("IsTruncated"):
        return _entries(bucket, first), []
    pages = list(_pages(bucket, prefix, "/"))
    folders = [common["Prefix"] for page in pages for common in page.get("CommonPrefixes", [])]
    if len(folders) > _FAN_OUT:
        pages, folders = list(_pages(bucket, prefix, "")), []
    return [entry for page in pages for entry in _entries(bucket, page)], folders


def _pages(bucket: str, prefix: str, delimiter: str) -> "Iterator[ListObjectsV2OutputTypeDef]":
    paginator = client().get_paginator("list_objects_v2")
    if delimiter:
        yield from paginator.paginate(Bucket=bucket, Prefix=prefix, Delimiter=delimiter)
    else:
        yield from paginator.paginate(Bucket=bucket, Prefix=prefix)


def _entries(bucket: str, page: "ListObjectsV2OutputTypeDef") -> list[Entry]:
    return [Entry(uri=f"s3://{bucket}/{item['Key']}", size=item["Size"], etag=item["ETag"]) for item in page.get("Contents", [])]


def delete(uris: list[str]) -> None:
    """Delete objects of one bucket, a thousand a request; what is not there is no error."""
    batches = [uris[start : start + 1000] for start in range(0, len(uris), 1000)]
    in_parallel(_delete_batch, batches)


def _delete_batch(uris: list[str]) -> None:
    bucket = split_s3(uris[0])[0]
    with s3_errors(uris[0]):
        answer = client().delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": split_s3(u)[1]} for u in uris], "Quiet": True})
    for error in answer.get("Errors", []):
        raise StorageError(f"s3://{bucket}/{error.get('Key')}: not deleted: {error.get('Code')}; ask for the right to delete")


def _object(uri: str) -> tuple[str, str]:
    bucket, key = split_s3(uri)
    if not key or key.endswith("/"):
        raise StorageError(f"{uri}: this names a folder, not an object; name a file in it")
    if {".", ".."} & set(key.split("/")):
        raise StorageError(f"{uri}: a key with '.' or '..' in it has no place on a disk; rename the object")
    return bucket, key
