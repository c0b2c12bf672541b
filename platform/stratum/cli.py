"""How every job reads its command line and ends: exit codes, one-line errors, quiet libraries."""

import inspect
import io
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from datetime import datetime
from typing import NoReturn, TypeVar

import tyro

from stratum import logs
from stratum_models.errors import UserError

Args = TypeVar("Args")

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # what a shell reports after Ctrl-C: 128 + SIGINT


def run_job(main: Callable[[Args], int | None], args_type: type[Args], *, argv: Sequence[str] | None = None) -> NoReturn:
    """Parse the command line into ``args_type``, call ``main`` with it and end the process.

    The first paragraphs of ``main``'s docstring are the text of ``--help``. Exit codes: what ``main`` returns (None is 0), 2 for a bad
    flag or a :class:`UserError` (one line ``error: ...`` on stderr, no traceback), 130 after Ctrl-C or SIGTERM. Anything else is a
    defect and keeps its traceback (exit 1).
    """
    quiet_libraries()
    logs.set_up_logging()
    previous = signal.signal(signal.SIGTERM, _terminated)
    try:
        code = main(_parse(args_type, inspect.getdoc(main) or "", argv))
    except KeyboardInterrupt:
        code = _interrupted()
    except SystemExit as end:
        if end.code != signal.SIGTERM:  # ray.init puts its own SIGTERM handler in the place of ours: it exits with the signal's number
            raise
        code = _interrupted()
    except Exception as error:
        mistake = user_error_in(error)
        if mistake is None:
            raise
        _print_error(mistake)
        code = EXIT_USER_ERROR
    finally:
        signal.signal(signal.SIGTERM, previous)
    sys.exit(code or 0)


def say(line: str) -> None:
    """One line of progress, with the time."""
    print(logs.line(line) if logs.as_json() else f"{datetime.now():%H:%M:%S} {line}", flush=True)


def option_pairs(pairs: Sequence[str]) -> dict[str, str]:
    """What ``--set`` was given, ``("mask_channels=64",)``, as a mapping. Raises UserError for what is no pair."""
    bad = [pair for pair in pairs if "=" not in pair]
    if bad:
        raise UserError(f"--set {bad[0]!r}: write it as option=value, such as mask_channels=64")
    return dict(pair.split("=", 1) for pair in pairs)


def quiet_libraries() -> None:
    """Silence what Ray, MLflow and friends say that no user of a job can act on.

    Environment variables, so that worker processes follow; whatever the user has set wins.
    """
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    if not sys.warnoptions:
        for library in ("ray", "mlflow", "google", "optuna"):
            warnings.filterwarnings("ignore", module=rf"{library}(\.|$)")


def user_error_in(error: BaseException) -> UserError | None:
    """The user's error inside whatever wrapped it on the way here: a chained exception, a Ray task's or a Ray worker's."""
    for inner in _unwrap(error):
        # Ray raises a class that is both RayTaskError and UserError; its text is a remote traceback, its cause the plain error.
        if isinstance(inner, UserError) and not isinstance(getattr(inner, "cause", None), BaseException):
            return inner
    return None


def _unwrap(error: BaseException) -> Iterator[BaseException]:
    queue, seen = [error], set[int]()
    while queue:
        current = queue.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        workers = getattr(current, "worker_failures", None)  # ray.train's WorkerGroupError: rank -> exception
        inner = [current.__cause__, current.__context__, getattr(current, "cause", None)]
        inner.extend(workers.values() if isinstance(workers, dict) else ())
        queue.extend(one for one in inner if isinstance(one, BaseException))


def _parse(args_type: type[Args], description: str, argv: Sequence[str] | None) -> Args:
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.cli(args_type, description=description, args=argv)
    except SystemExit as end:
        # tyro draws a box around an error of __post_init__; a user's error is one line like any other.
        mistake = user_error_in(end)
        if mistake is None:
            sys.stderr.write(said.getvalue())
            raise
        raise mistake from None


def _print_error(error: UserError) -> None:
    print("error:", " ".join(str(error).split()), file=sys.stderr)


def _interrupted() -> int:
    print("interrupted", file=sys.stderr)
    return EXIT_INTERRUPTED


def _terminated(_signal: int, _frame: object) -> NoReturn:
    """SIGTERM ends a job like Ctrl-C does, so that runs are closed and workers stopped."""
    raise KeyboardInterrupt
