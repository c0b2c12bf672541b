"""Log lines as JSON, with the run, trial and rank they belong to, where ``STRATUM_LOG_FORMAT`` is ``json``; plain text otherwise.

    {"time": "2026-01-02T03:04:05.678Z", "level": "info", "logger": "stratum", "message": "epoch 3/40 ...", "run": "first", "rank": 0}

Ray Serve writes its own lines as JSON with ``request_id`` where its configuration says ``logging_config: {encoding: JSON}``.
"""

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime

VARIABLE = "STRATUM_LOG_FORMAT"
_bound: ContextVar[dict[str, object] | None] = ContextVar("stratum_log_fields", default=None)


def as_json() -> bool:
    """Whether lines are to be JSON."""
    return os.environ.get(VARIABLE, "").lower() == "json"


@contextmanager
def log_fields(**fields: object) -> Iterator[None]:
    """Every line of this context, threads that copy it among them, has these fields; None leaves one out."""
    token = _bound.set({**(_bound.get() or {}), **{name: value for name, value in fields.items() if value is not None}})
    try:
        yield
    finally:
        _bound.reset(token)


def line(message: str, level: str = "info", logger: str = "stratum", when: float | None = None, **extra: object) -> str:
    """One line, without its end: the message as it is, or JSON with the fields of this context."""
    if not as_json():
        return message
    moment = datetime.now(UTC) if when is None else datetime.fromtimestamp(when, UTC)
    stamp = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    fields = {"time": stamp, "level": level, "logger": logger, "message": message, **(_bound.get() or {}), **extra}
    return json.dumps(fields, ensure_ascii=False, default=str)


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON; a traceback is one of its fields."""

    def format(self, record: logging.LogRecord) -> str:
        """See :class:`logging.Formatter`."""
        extra = {"error": self.formatException(record.exc_info)} if record.exc_info else {}
        return line(record.getMessage(), record.levelname.lower(), record.name, record.created, **extra)


def set_up_logging() -> None:
    """Send the code's own warnings to stderr as JSON, where that is asked for; a second time does nothing."""
    ours = logging.getLogger("stratum")
    if not as_json() or any(isinstance(handler.formatter, JsonFormatter) for handler in ours.handlers):
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    ours.addHandler(handler)
    ours.propagate = False
