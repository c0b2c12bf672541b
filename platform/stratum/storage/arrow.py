"""The file system that Ray is given for its results."""

import os
from typing import Any
from urllib.parse import urlsplit

from stratum.storage import s3
from stratum.storage.client import CONNECT_TIMEOUT, READ_TIMEOUT, endpoint
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

    options: dict[str, Any] = {"region": s3.check_bucket(uri), "retry_strategy": AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS)}
    if bundle := os.environ.get("AWS_CA_BUNDLE"):  # which boto3 reads by itself
        options["tls_ca_file_path"] = bundle
    server = urlsplit(endpoint(uri))
    if ".amazonaws.com" not in server.netloc:
        options |= {"endpoint_override": server.netloc, "scheme": server.scheme}
    filesystem = S3FileSystem(connect_timeout=CONNECT_TIMEOUT, request_timeout=READ_TIMEOUT, **options)
    return filesystem, "/".join(split_s3(uri)).rstrip("/")
