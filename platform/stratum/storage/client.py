"""One boto3 client a process, and the patience to sit out a server that is away for some seconds.

The settings are the usual ones: ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_PROFILE``, ``AWS_DEFAULT_REGION``,
``AWS_ENDPOINT_URL``, ``AWS_MAX_ATTEMPTS``, ``AWS_RETRY_MODE`` (``standard`` or ``adaptive``), ...
"""

import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
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

_Origin = tuple[int, tuple[tuple[str, str], ...]]  # process and environment
_clients: dict[tuple[_Origin, float], "S3Client"] = {}  # by where they are from, and their timeout
_lock = threading.Lock()
_end: ContextVar[float] = ContextVar("end", default=math.inf)  # by time.monotonic, of the calls inside `within`


def client() -> "S3Client":
    """This process's client for the environment as it is now; safe to share between threads and after a fork."""
    origin = (os.getpid(), tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith("AWS_"))))
    key = (origin, _timeout())
    with _lock:
        if key not in _clients:
            for old in [known for known in _clients if known[0] != origin]:
                del _clients[old]
            _clients[key] = _connect(key[1])
        return _clients[key]


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """The calls inside, on this thread, give up when so many seconds have passed, with `UnreachableError`.

    They may take half as long again where a server goes silent just before the end.
    """
    token = _end.set(min(_end.get(), time.monotonic() + seconds))
    try:
        yield
    finally:
        _end.reset(token)


def check_time(uri: str) -> None:
    """Raises UnreachableError where the time of `within` has passed."""
    if time.monotonic() >= _end.get():
        raise UnreachableError(f"{uri}: the server took longer than there was time; try again later")


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
        check_time(uri)
        try:
            with s3_errors(uri):
                return work()
        except UnreachableError:
            pause = min(0.25 * 2**done, 4.0)
            if done == attempts() or time.monotonic() - begin > PATIENCE or time.monotonic() + pause >= _end.get():
                raise
            time.sleep(pause)
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


def _timeout() -> float:
    """Seconds that a server may be silent: the usual ones, or a power of two so that connecting and waiting fit into what is left."""
    left = _end.get() - time.monotonic()
    return min(READ_TIMEOUT, 2.0 ** math.floor(math.log2(max(left, 0.1) / 2))) if left < math.inf else READ_TIMEOUT


def _connect(timeout: float) -> "S3Client":
    config = _config(timeout)
    try:
        return boto3.session.Session().client("s3", config=config)
    except ValueError as error:
        raise StorageError(f"{one_line(error)}; correct AWS_ENDPOINT_URL, it is like http://127.0.0.1:9000") from error


def _config(timeout: float) -> Config:
    mode = os.environ.get("AWS_RETRY_MODE", "standard")
    if mode not in ("standard", "adaptive"):
        raise StorageError(f"AWS_RETRY_MODE is {mode!r}; set it to standard or adaptive")
    return Config(
        retries={
            "mode": "adaptive" if mode == "adaptive" else "standard",
            "total_max_attempts": attempts() if timeout == READ_TIMEOUT else 1,  # where time is short, each attempt is a round
        },
        connect_timeout=min(CONNECT_TIMEOUT, timeout),
        read_timeout=timeout,
        max_pool_connections=PART_THREADS * WORKERS,
    )


def _after_fork() -> None:
    # Another thread may have held the lock at the fork; in the child nobody would ever let it go.
    global _lock
    _lock = threading.Lock()
    _clients.clear()


os.register_at_fork(after_in_child=_after_fork)
