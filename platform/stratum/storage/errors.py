"""What can go wrong with a URI, told in one line: which URI, what happened, and what to do about it."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

import boto3.exceptions
import botocore.exceptions as aws

from stratum_models.errors import UserError


class StorageError(UserError):
    """A URI that cannot be read or written: the message names the URI, the cause and the fix."""


class MissingError(StorageError):
    """There is no such file, folder, object or bucket."""


class DeniedError(StorageError):
    """The server knows who asks, or does not, and refuses."""


class TooLargeError(StorageError):
    """The file has more bytes than the caller takes."""


class UnreachableError(StorageError):
    """The server is away, overloaded, or breaks off: the same call may succeed later."""


_MISSING = {
    "NoSuchBucket": "the bucket does not exist; create it or correct its name",
    "NoSuchKey": "there is no such object; check the key with `aws s3 ls`",
    "404": "there is no such object or bucket; check the name with `aws s3 ls`",
}
_REFUSED = {
    "AccessDenied": "access denied; ask for the right to do this, or use other keys",
    "403": "access denied; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ask for the right to do this",
    "SignatureDoesNotMatch": "the secret key is wrong; correct AWS_SECRET_ACCESS_KEY",
    "InvalidAccessKeyId": "the access key is unknown to the server; correct AWS_ACCESS_KEY_ID",
    "ExpiredToken": "the session token has expired; log in again",
    "InvalidToken": "the session token is not valid; log in again",
    "RequestTimeTooSkewed": "this machine's clock is wrong; set it",
    "PermanentRedirect": "the bucket is in another region; set AWS_DEFAULT_REGION",
    "AuthorizationHeaderMalformed": "the request is signed for another region; set AWS_DEFAULT_REGION",
    "EntityTooLarge": "the object is too large for this server",
    "QuotaExceeded": "the quota is used up; free some space",
}
_DENIED = {"AccessDenied", "403", "SignatureDoesNotMatch", "InvalidAccessKeyId", "ExpiredToken", "InvalidToken"}
_AWAY = {"SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "500", "502", "503", "504"}
_AWAY_ERRORS = (aws.ConnectionError, aws.HTTPClientError, aws.IncompleteReadError, aws.FlexibleChecksumError)
_SET_CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
_LOCAL = {
    errno.ENOENT: "there is no such file or folder; check the path",
    errno.EACCES: "permission denied; change the file's permissions or choose another path",
    errno.EPERM: "the operation is not permitted; choose another path",
    errno.EROFS: "the file system is read-only; choose another path",
    errno.ENOTDIR: "a part of the path is a file, not a folder; check the path",
    errno.EEXIST: "a part of the path is a file, not a folder; check the path",
    errno.EISDIR: "this is a folder, not a file; name a file in it",
    errno.ENOSPC: "no space is left on the device; free some or choose another path",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another path",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}


@contextmanager
def s3_errors(uri: str) -> Iterator[None]:
    """Turn whatever boto3 raises into a `StorageError` about ``uri``."""
    try:
        yield
    except (aws.ClientError, aws.BotoCoreError, boto3.exceptions.Boto3Error) as error:
        raise explain_s3(uri, error) from error


@contextmanager
def local_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an `OSError` into a `StorageError` about ``path``."""
    try:
        yield
    except OSError as error:
        reason = _LOCAL.get(error.errno or 0, error.strerror or str(error))
        kind = MissingError if error.errno in (errno.ENOENT, errno.ENOTDIR) else StorageError
        raise kind(f"{os.fspath(path)}: {reason}") from error


def explain_s3(uri: str, error: Exception) -> StorageError:
    """The one line that says what ``error`` means for ``uri``."""
    if isinstance(error, boto3.exceptions.S3UploadFailedError) and isinstance(error.__context__, aws.ClientError):
        error = error.__context__
    if isinstance(error, aws.ClientError):
        return _explain_answer(uri, error)
    if isinstance(error, _AWAY_ERRORS) and not isinstance(error, aws.SSLError):
        return UnreachableError(
            f"{uri}: the server cannot be reached, or breaks off, at every try ({one_line(error)}); check AWS_ENDPOINT_URL and the network"
        )
    return StorageError(f"{uri}: {_explain_failure(error)}")


def too_large(uri: str, size: int, most: int) -> TooLargeError:
    """The error for a file with more bytes than are taken."""
    return TooLargeError(f"{uri} has {size} bytes, {most} are taken: use a smaller file")


def error_code(error: aws.ClientError) -> str:
    """The server's own name for what it refused, e.g. ``NoSuchKey`` or ``404``."""
    return str(error.response.get("Error", {}).get("Code", ""))


def _explain_answer(uri: str, error: aws.ClientError) -> StorageError:
    code = error_code(error)
    if code in _MISSING:
        return MissingError(f"{uri}: {_MISSING[code]}")
    if code in _REFUSED:
        kind = DeniedError if code in _DENIED else StorageError
        return kind(f"{uri}: {_REFUSED[code]}")
    if code in _AWAY:
        return UnreachableError(f"{uri}: the server failed at every try ({one_line(error)}); try again later")
    return StorageError(f"{uri}: the server refused ({one_line(error)})")


def _explain_failure(error: Exception) -> str:
    if isinstance(error, aws.NoCredentialsError):
        return f"no credentials found; {_SET_CREDENTIALS}"
    if isinstance(error, (aws.PartialCredentialsError, aws.CredentialRetrievalError)):
        return f"{one_line(error)}; {_SET_CREDENTIALS}"
    if isinstance(error, aws.ProfileNotFound):
        return f"{one_line(error)}; correct AWS_PROFILE"
    if isinstance(error, aws.SSLError):
        return f"no trusted connection ({one_line(error)}); check the certificate, or set AWS_CA_BUNDLE"
    return one_line(error)


def one_line(error: Exception) -> str:
    """The message of ``error`` without line breaks."""
    return " ".join(str(error).split())
