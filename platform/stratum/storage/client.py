"""One boto3 client a process, and the patience to sit out a server that is away for some seconds.

The settings are the usual ones: ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_PROFILE``, ``AWS_DEFAULT_REGION``,
``AWS_ENDPOINT_URL``, ``AWS_MAX_ATTEMPTS``, ``AWS_RETRY_MODE`` (``standard`` or ``adaptive``), ...
"""

import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import boto3
from botocore.config import Config

from stratum.storage.errors import StorageError, UnreachableError, one_line, s3_errors
from stratum.storage.parallel import WORKERS

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

Value = TypeVar("Value")

CONNECT_TIMEOUT = 5.0  # seconds
READ_TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 5
PATIENCE = 30.0  # seconds after which no new round of attempts begins
PART_THREADS = 4  # of one large upload

_clients: dict[tuple[int, tuple[tuple[str, str], ...]], "S3Client"] = {}
_lock = threading.Lock()


def client() -> "S3Client":
    """This process's client for the environment as it is now; safe to share between threads and after a fork."""
    key = (os.getpid(), tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith("AWS_"))))
    with _lock:
        if key not in _clients:
            _clients.clear()  # of another process or an older environment
            _clients[key] = _connect()
        return _clients[key]


def endpoint(uri: str) -> str:
    """The address of the server that ``uri`` is asked from."""
    with s3_errors(uri):
        return client().meta.endpoint_url


def persist(uri: str, work: Callable[[], Value]) -> Value:
    """``work()``, begun again after a pause while the server cannot be reached or breaks off.

    botocore's own attempts follow each other within half a second, and all threads draw on one purse of 35: enough for a
    lost packet, too little for a server that restarts. And once the headers of an answer are there, botocore tries no more.

    Raises:
        StorageError: about ``uri``; `UnreachableError` when all rounds failed.
    """
    begin = time.monotonic()
    for done in range(1, attempts() + 1):
        try:
            with s3_errors(uri):
                return work()
        except UnreachableError:
            if done == attempts() or time.monotonic() - begin > PATIENCE:
                raise
            time.sleep(min(0.25 * 2**done, 4.0))
    raise AssertionError("unreachable")


def attempts() -> int:
    """How often a request is tried in a round, and how many rounds there are: ``AWS_MAX_ATTEMPTS`` or 5.

    Raises:
        StorageError: where the variable is no positive number.
    """
    value = os.environ.get("AWS_MAX_ATTEMPTS", str(ATTEMPTS))
    if not value.isdecimal() or int(value) < 1:
        raise StorageError(f"AWS_MAX_ATTEMPTS is {value!r}; set it to a whole number above 0")
    return int(value)


def _connect() -> "S3Client":
    config = _config()
    try:
        return boto3.session.Session().client("s3", config=config)
    except ValueError as error:
        raise StorageError(f"{one_line(error)}; correct AWS_ENDPOINT_URL, it is like http://127.0.0.1:9000") from error


def _config() -> Config:
    mode = os.environ.get("AWS_RETRY_MODE", "standard")
    if mode not in ("standard", "adaptive"):
        raise StorageError(f"AWS_RETRY_MODE is {mode!r}; set it to standard or adaptive")
    return Config(
        retries={"mode": "adaptive" if mode == "adaptive" else "standard", "total_max_attempts": attempts()},
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
        max_pool_connections=PART_THREADS * WORKERS,
    )


def _after_fork() -> None:
    # Another thread may have held the lock at the fork; in the child nobody would ever let it go.
    global _lock
    _lock = threading.Lock()
    _clients.clear()


os.register_at_fork(after_in_child=_after_fork)
