"""The file system that Ray is given for its results."""

import os
from typing import Any
from urllib.parse import urlsplit

import boto3

from stratum.storage import s3
from stratum.storage.files import place
from stratum.storage.names import is_remote, split_s3

_ATTEMPTS = 10  # pyarrow's own 3 end a run of hours at one bad minute of the server


def ray_filesystem(uri: str) -> tuple[Any | None, str]:
    """What Ray's ``storage_filesystem`` and ``storage_path`` want: ``(None, path)``, or pyarrow's S3 and ``bucket/key``.

    The keys stay in the environment: the file system that is sent to the workers holds none.

    Raises:
        StorageError: where the bucket is missing or may not be read.
    """
    uri = place(uri).rstrip("/")
    if not is_remote(uri):
        return None, uri
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

    s3.check_bucket(uri)
    options: dict[str, Any] = {"region": _region(), "retry_strategy": AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS)}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        parts = urlsplit(endpoint)
        options |= {"endpoint_override": parts.netloc, "scheme": parts.scheme}
    return S3FileSystem(connect_timeout=s3.CONNECT_TIMEOUT, request_timeout=s3.READ_TIMEOUT, **options), "/".join(split_s3(uri))


def _region() -> str:
    return boto3.session.Session().region_name or os.environ.get("AWS_REGION") or "us-east-1"
