"""The names of things: absolute local paths and ``s3://bucket/key``, always as plain strings."""

import os
import posixpath
import re
from urllib.parse import unquote, urlsplit

from stratum.storage.errors import StorageError

# "s3:/bucket" is what pathlib makes of "s3://bucket", so one slash is enough to be taken for a scheme.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")


def is_remote(uri: str) -> bool:
    """Whether ``uri`` names something on S3."""
    return uri[:5].lower() == "s3://"


def is_synthetic(uri: str) -> bool:
    """Whether ``uri`` describes generated data, which has no place in storage."""
    return uri.startswith("synthetic://")


def resolve(uri: str | os.PathLike[str]) -> str:
    """The one normal form of a name: an absolute local path, ``s3://bucket/key``, or ``synthetic://...`` unchanged.

    ``~`` and ``file://`` are accepted, ``.`` and ``..`` are worked out, and no slash is left at the end.
    Symbolic links stay as they are.

    Raises:
        StorageError: for an empty name, another scheme, or a key that leaves its bucket.
    """
    uri = os.fspath(uri)
    if not uri or "\0" in uri:
        raise StorageError(f"{uri!r} is not a name; give a local path or s3://bucket/key")
    if is_synthetic(uri):
        return uri
    if is_remote(uri):
        return _resolve_s3(uri)
    if match := _SCHEME.match(uri):
        return _resolve_file(uri, match[1])
    return _absolute(uri)


def split_s3(uri: str) -> tuple[str, str]:
    """Bucket and key of an ``s3://`` URI; the key is empty for the bucket itself.

    Raises:
        StorageError: where the bucket is missing or no valid name.
    """
    bucket, _, key = uri[5:].partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise StorageError(f"{uri}: {bucket!r} is not the name of a bucket; write s3://bucket/key")
    return bucket, key


def join(uri: str, *parts: str) -> str:
    """``uri`` followed by ``parts``, in normal form. ``..`` works; a part that is itself absolute is refused.

    Raises:
        StorageError: for an absolute part, or one that leaves the bucket.
    """
    base = resolve(uri)
    if is_synthetic(base):
        raise StorageError(f"{base}: generated data has no files; name a folder or s3://bucket/key")
    for part in parts:
        if part.startswith("/") or _URL.match(part):
            raise StorageError(f"{part!r} is absolute and cannot lie under {base}; give a relative name")
    tail = [part for part in parts if part]
    return resolve("/".join([base.rstrip("/"), *tail])) if tail else base


def name(uri: str) -> str:
    """The last part of a name: ``image.png`` of ``s3://bucket/images/image.png``; empty for a whole bucket."""
    return split_s3(uri.rstrip("/"))[1].rpartition("/")[2] if is_remote(uri) else os.path.basename(uri.rstrip("/"))


def suffix(uri: str) -> str:
    """The lower-case ending with its dot: ``.png`` of ``s3://bucket/Image.PNG``; empty where there is none."""
    return posixpath.splitext(name(uri))[1].lower()


def parent(uri: str) -> str:
    """The folder that holds ``uri``; a bucket and the root are their own parents."""
    uri = resolve(uri)
    if not is_remote(uri):
        return os.path.dirname(uri)
    bucket, key = split_s3(uri)
    return f"s3://{bucket}/{posixpath.dirname(key)}".rstrip("/")


def relative(uri: str, folder: str) -> str:
    """``uri`` as seen from ``folder``, with forward slashes: ``a/b.png``.

    Raises:
        StorageError: where ``uri`` does not lie under ``folder``.
    """
    start = folder.rstrip("/") + "/"
    if not uri.startswith(start):
        raise StorageError(f"{uri} does not lie under {folder}; name a file of that folder")
    return uri[len(start) :]


def _resolve_s3(uri: str) -> str:
    bucket, key = split_s3(uri)
    path = posixpath.normpath(key.strip("/"))
    if path == ".." or path.startswith("../"):
        raise StorageError(f"{uri}: the key leaves its bucket; take out a '..'")
    return f"s3://{bucket}" if path == "." else f"s3://{bucket}/{path}"


def _resolve_file(uri: str, scheme: str) -> str:
    scheme = scheme.lower()
    if scheme == "file":
        parts = urlsplit(uri)
        if parts.netloc not in ("", "localhost"):
            raise StorageError(f"{uri}: a file on another machine ({parts.netloc}) cannot be read; write file:///path")
        return _absolute(unquote(parts.path))
    if scheme == "s3":
        raise StorageError(f"{uri}: one slash is missing; write s3://bucket/key")
    raise StorageError(f"{uri}: {scheme}: is not supported; give a local path, s3://bucket/key or synthetic://ore")


def _absolute(path: str) -> str:
    path = os.path.abspath(os.path.expanduser(path))
    return "/" + path.lstrip("/")  # POSIX lets "//x" stand for something else; nobody means that
