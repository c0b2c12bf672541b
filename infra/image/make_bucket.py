"""Make a bucket where there is none: ``python make_bucket.py NAME``, with S3's address and keys from ``AWS_*``. Waits for the server."""

import sys
import time
from typing import Any

import boto3
import botocore.exceptions as aws

PATIENCE = 120.0  # seconds for the server to come up
OURS = ("BucketAlreadyOwnedByYou", "BucketAlreadyExists")


def make_bucket(client: Any, name: str, patience: float = PATIENCE) -> None:
    """Make the bucket. Raises ClientError where that is refused, ConnectionError where the server stays away."""
    deadline = time.monotonic() + patience
    while True:
        try:
            client.create_bucket(Bucket=name)
            return
        except aws.ClientError as error:
            if error.response["Error"]["Code"] in OURS:
                client.head_bucket(Bucket=name)  # somebody else's is refused here
                return
            raise
        except aws.ConnectionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1.0)


if __name__ == "__main__":
    make_bucket(boto3.client("s3"), sys.argv[1])
