"""Runs as the driver sees them: opened once, always ended.

One parent run a sweep, one child a trial, one run a plain training.
"""

import getpass
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from stratum.tracking.delivery import Outbox, deliver_leftovers, metric_item
from stratum.tracking.logger import RunLogger
from stratum.tracking.stale import Heartbeat, close_stale_runs, owner_tags
from stratum.tracking.store import check_reachable, client_for, experiment_id, one_line_errors, tracking_uri

logger = logging.getLogger(__name__)
Status = Literal["FINISHED", "FAILED", "KILLED"]
FINISH_SECONDS = 30.0
LEFTOVER_SECONDS = 20.0
KILLED_CODES = (signal.SIGTERM, 128 + signal.SIGTERM, 128 + signal.SIGINT)  # Ray's handler exits with the bare number


class Run:
    """An open run. What it logs is delivered in the background, in order, and survives a server that goes away."""

    def __init__(self, run_id: str, uri: str, experiment: str, parent_id: str | None, started_ms: int) -> None:
        self.run_id, self.uri, self.experiment_id, self.parent_id, self.started_ms = run_id, uri, experiment, parent_id, started_ms
        self.status: Status | None = None
        self._left = False
        self._outbox = Outbox(uri, run_id)
        self._heartbeat = Heartbeat(self._outbox.put)
        self._heartbeat.start()

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log numbers by name, such as ``val/mask_ap50``."""
        self._outbox.put(metric_item(dict(metrics), step))

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log parameters, nested ones flat under dotted names; one that has another value already keeps it."""
        self._outbox.put({"op": "params", "values": flatten(params)})

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Set tags."""
        self._outbox.put({"op": "tags", "values": {key: str(value) for key, value in tags.items()}})

    def log_artifact(self, path: Path | str, folder: str = "") -> None:
        """Store a copy of a file, or of a folder, among the run's artifacts."""
        self._outbox.put_file(Path(path), folder)

    def log_package(self, folder: Path, register_as: str | None = None) -> None:
        """Store a model package with the run and register it, now or when the server is back; see ``stratum.registry.log_package``."""
        self._outbox.put_package(folder, register_as)

    def logger(self, *, system_metrics: bool = True) -> RunLogger:
        """What a worker needs to log into this run."""
        return RunLogger(self.run_id, self.uri, system_metrics=system_metrics, started_ms=self.started_ms)

    def flush(self, timeout: float = FINISH_SECONDS) -> bool:
        """Wait until all is delivered; False where it is not within ``timeout`` seconds."""
        return self._outbox.flush(timeout)

    def leave(self, timeout: float = FINISH_SECONDS) -> None:
        """Deliver what there is, and leave it to another process to say how the run ended."""
        self._left = True
        self._heartbeat.stop()
        self._outbox.close(timeout)

    def finish(self, status: Status = "FINISHED", timeout: float = FINISH_SECONDS) -> None:
        """End the run, once, and with it what is still open below it."""
        if self.status is not None or self._left:
            return
        self.status = status
        self._heartbeat.stop()
        if self.parent_id is None:
            self._outbox.put({"op": "close_children", "experiment_id": self.experiment_id})
        self._outbox.put({"op": "finish", "status": status, "end_time": int(time.time() * 1000)})
        if self._outbox.close(timeout) and self.parent_id is None:
            deliver_leftovers(self.uri, timeout)  # of workers that were killed


@contextmanager
def open_run(
    experiment: str,
    name: str,
    params: Mapping[str, object] | None = None,
    tags: Mapping[str, object] | None = None,
    parent_id: str | None = None,
    *,
    resume_id: str | None = None,
) -> Iterator[Run]:
    """A run that ends FINISHED, or FAILED at an exception, or KILLED at Ctrl-C and SIGTERM.

    ``params`` may be nested mappings and dataclasses; they become flat dotted names. ``parent_id`` makes it a child. ``resume_id``
    opens that run again instead of a new one. A run without a parent first delivers and closes what dead processes left behind.
    Raises UserError, within seconds, where the store cannot be reached.
    """
    uri = tracking_uri()
    check_reachable(uri)
    with one_line_errors(uri):
        if parent_id is None:
            deliver_leftovers(uri, LEFTOVER_SECONDS)
            close_stale_runs(uri)
        run = _start(uri, experiment, name, params or {}, tags or {}, parent_id, resume_id)
    try:
        with _sigterm_exits():
            yield run
    except BaseException as error:
        run.finish(_status_after(error))
        raise
    run.finish("FINISHED")


def flatten(values: Any, prefix: str = "") -> dict[str, str]:
    """Nested mappings and dataclasses as ``{"data.uri": "...", "train.epochs": "3"}``."""
    if is_dataclass(values) and not isinstance(values, type):
        values = asdict(values)
    if not isinstance(values, Mapping):
        return {prefix: str(values)}
    flat: dict[str, str] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _start(
    uri: str,
    experiment: str,
    name: str,
    params: Mapping[str, object],
    tags: Mapping[str, object],
    parent_id: str | None,
    resume_id: str | None,
) -> Run:
    client = client_for(uri)
    all_tags = {**_source_tags(), **owner_tags(), **{key: str(value) for key, value in tags.items()}}
    if parent_id is not None:
        all_tags["mlflow.parentRunId"] = parent_id
    if resume_id is None:
        info = client.create_run(experiment_id(client, uri, experiment), tags=all_tags, run_name=name).info
    else:
        for key, value in all_tags.items():  # before it runs: with its old owner another process would close it
            client.set_tag(resume_id, key, value)
        client.update_run(resume_id, status="RUNNING")
        info = client.get_run(resume_id).info
    run = Run(info.run_id, uri, info.experiment_id, parent_id, info.start_time)
    if params:
        run.log_params(params)
    return run


def _source_tags() -> dict[str, str]:
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user may have no name
        user = str(os.getuid())
    return {"mlflow.user": user, "mlflow.source.name": os.path.basename(sys.argv[0]), "mlflow.source.type": "LOCAL"}


def _status_after(error: BaseException) -> Status:
    if isinstance(error, SystemExit):
        if error.code in (0, None):
            return "FINISHED"
        return "KILLED" if error.code in KILLED_CODES else "FAILED"
    return "KILLED" if isinstance(error, KeyboardInterrupt | GeneratorExit) else "FAILED"


@contextmanager
def _sigterm_exits() -> Iterator[None]:
    """SIGTERM as SystemExit while a run is open, where nobody else handles it: `ray job stop` sends it."""
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, _exit_on_signal)
    try:
        yield
    finally:
        if ours and signal.getsignal(signal.SIGTERM) is _exit_on_signal:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit_on_signal(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
