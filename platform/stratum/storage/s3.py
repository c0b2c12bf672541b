"""Objects on S3: read on condition, written whole, listed and deleted many at a time."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import botocore.exceptions as aws
from boto3.s3.transfer import TransferConfig

from stratum.storage.client import PART_THREADS, check_time, client, persist
from stratum.storage.errors import MissingError, StorageError, error_code, local_errors, too_large
from stratum.storage.names import split_s3
from stratum.storage.parallel import in_parallel

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef, ListObjectsV2OutputTypeDef

_CHUNK = 1 << 20  # bytes
_DELETE_BATCH = 1000  # keys that S3 takes in one request
_FAN_OUT = 256  # folders listed side by side; with more of them, reading the pages one by one asks less often


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One object of a listing."""

    uri: str
    size: int  # bytes
    etag: str  # changes with the content


def download(uri: str, target: Path, *, known: str | None) -> str:
    """Write an object to ``target``, unless it is still the one with ETag ``known``, and return its ETag.

    Raises:
        StorageError: missing, denied, unreachable, or broken off at every try.
        OSError: where ``target`` cannot be written.
    """
    bucket, key = _object(uri)
    return persist(uri, lambda: _download(bucket, key, target, known))


def _download(bucket: str, key: str, target: Path, known: str | None) -> str:
    try:
        answer = _get(bucket, key, known)
    except aws.ClientError as error:
        if known is not None and error_code(error) in ("304", "NotModified"):
            return known
        raise
    with closing(answer["Body"]) as body, target.open("wb") as file:
        for chunk in body.iter_chunks(_CHUNK):
            file.write(chunk)
    return answer["ETag"]


def read(uri: str, most: int) -> bytes:
    """The content of an object of no more than ``most`` bytes.

    Raises:
        TooLargeError: it has more; no more of it is read.
        StorageError: missing, denied, unreachable, or broken off at every try.
    """
    bucket, key = _object(uri)
    return persist(uri, lambda: _read(uri, bucket, key, most))


def _read(uri: str, bucket: str, key: str, most: int) -> bytes:
    answer = _get(bucket, key, None)
    with closing(answer["Body"]) as body:
        if answer["ContentLength"] > most:
            raise too_large(uri, answer["ContentLength"], most)
        data = bytearray()
        for chunk in body.iter_chunks(_CHUNK):
            check_time(uri)
            data += chunk
    return bytes(data)


def _get(bucket: str, key: str, known: str | None) -> "GetObjectOutputTypeDef":
    if known is None:
        return client().get_object(Bucket=bucket, Key=key)
    return client().get_object(Bucket=bucket, Key=key, IfNoneMatch=known)


def size(uri: str) -> int:
    """The bytes of an object."""
    bucket, key = _object(uri)
    return int(persist(uri, lambda: client().head_object(Bucket=bucket, Key=key))["ContentLength"])


def put(uri: str, data: bytes) -> None:
    """Store an object; it is visible whole or not at all."""
    bucket, key = _object(uri)
    persist(uri, lambda: client().put_object(Bucket=bucket, Key=key, Body=data))


def upload(path: Path, uri: str) -> None:
    """Store a file; large ones in parts side by side, which are thrown away if one of them fails."""
    bucket, key = _object(uri)
    config = TransferConfig(max_concurrency=PART_THREADS)
    with local_errors(path):
        persist(uri, lambda: client().upload_file(str(path), bucket, key, Config=config))


def exists(uri: str) -> bool:
    """Whether there is such an object, or any object under it as a folder."""
    bucket, key = split_s3(uri.rstrip("/"))
    try:
        first = _first_key(uri, bucket, key)
        # The exact key sorts first among all that begin with it, but "a-b" sorts before "a/b".
        return not key or first == key or _first_key(uri, bucket, f"{key}/") is not None
    except MissingError:
        return False


def _first_key(uri: str, bucket: str, prefix: str) -> str | None:
    page = persist(uri, lambda: client().list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1))
    return next((item["Key"] for item in page.get("Contents", [])), None)


def check_bucket(uri: str) -> str:
    """Ask the server for one key under ``uri``, so that wrong names and keys show before the work starts; the bucket's region.

    Raises:
        StorageError: missing bucket, denied, no credentials, unreachable.
    """
    bucket, key = split_s3(uri)
    answer = persist(uri, lambda: client().list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1))
    region = answer["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region", client().meta.region_name)
    return "us-east-1" if region == "aws-global" else region


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
    while frontier:
        found = in_parallel(lambda prefix: persist(uri, lambda: _list_prefix(bucket, prefix)), frontier)
        entries += [entry for part, _ in found for entry in part]
        frontier = [prefix for _, prefixes in found for prefix in prefixes]
    return entries


def _list_prefix(bucket: str, prefix: str) -> tuple[list[Entry], list[str]]:
    """The objects under ``prefix``, or those directly in it and the folders that are left to list."""
    first = client().list_objects_v2(Bucket=bucket, Prefix=prefix)
    if not first.get("IsTruncated"):
        return _entries(bucket, first), []
    pages = list(_pages(bucket, prefix, "/"))
    prefixes = [common["Prefix"] for page in pages for common in page.get("CommonPrefixes", [])]
    if len(prefixes) > _FAN_OUT:
        pages, prefixes = list(_pages(bucket, prefix, "")), []
    return [entry for page in pages for entry in _entries(bucket, page)], prefixes


def _pages(bucket: str, prefix: str, delimiter: str) -> "Iterator[ListObjectsV2OutputTypeDef]":
    yield from client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter=delimiter)


def _entries(bucket: str, page: "ListObjectsV2OutputTypeDef") -> list[Entry]:
    return [Entry(uri=f"s3://{bucket}/{item['Key']}", size=item["Size"], etag=item["ETag"]) for item in page.get("Contents", [])]


def delete(uris: list[str]) -> None:
    """Delete objects of one bucket, a thousand a request; what is not there is no error."""
    in_parallel(_delete_batch, [uris[start : start + _DELETE_BATCH] for start in range(0, len(uris), _DELETE_BATCH)])


def _delete_batch(uris: list[str]) -> None:
    bucket = split_s3(uris[0])[0]
    keys = [split_s3(uri)[1] for uri in uris]
    answer = persist(uris[0], lambda: client().delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key} for key in keys]}))
    for error in answer.get("Errors", []):
        raise StorageError(f"s3://{bucket}/{error.get('Key')}: not deleted: {error.get('Code')}; ask for the right to delete")


def _object(uri: str) -> tuple[str, str]:
    bucket, key = split_s3(uri)
    if not key or key.endswith("/"):
        raise StorageError(f"{uri}: this names a folder, not an object; name a file in it")
    if {".", ".."} & set(key.split("/")):
        raise StorageError(f"{uri}: a key with '.' or '..' in it has no place on a disk; rename the object")
    return bucket, key
