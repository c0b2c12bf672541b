"""What is logged goes into an outbox: kept in memory and in a file, delivered by a background thread, tried again until it arrives.

The file outlives the process. It is locked while its owner lives, so a file that can be locked is a dead process's, and the next start
delivers it. Delivering twice does no harm: MLflow keeps a metric once per key, step, timestamp and value.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import threading
import time
import uuid
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from stratum.tracking.store import client_for, data_folder, one_line

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)
Item = dict[str, Any]  # JSON: "op" and what it needs
METRICS_PER_CALL = 500  # MLflow takes at most 1000
FIRST_PAUSE, LONGEST_PAUSE, CLOSING_PAUSE = 0.5, 15.0, 0.5  # seconds between tries


def metric_item(metrics: dict[str, float], step: int) -> Item:
    """Metrics with the time of now, which stays theirs however late they arrive."""
    now = int(time.time() * 1000)
    return {"op": "metrics", "values": [[key, float(value), now, int(step)] for key, value in metrics.items()]}


def spool_folder(uri: str) -> Path:
    """Where undelivered items for one store wait on this machine."""
    return data_folder() / "spool" / hashlib.sha256(uri.encode()).hexdigest()[:16]


class Outbox:
    """The undelivered items of one run in one process. Never raises because of the store; :meth:`close` it at the end."""

    def __init__(self, uri: str, run_id: str) -> None:
        self.uri, self.run_id = uri, run_id
        self._queue: deque[Item] = deque()
        self._changed = threading.Condition()
        self._deadline: float | None = None  # set by close()
        self._path = spool_folder(uri) / f"{run_id}-{os.getpid()}-{uuid.uuid4().hex[:8]}.jsonl"
        self._files = self._path.with_suffix(".files")
        self._file = _open_locked(self._path)
        self._thread = threading.Thread(target=self._work, name=f"mlflow-outbox-{run_id[:8]}", daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        """Queue an item."""
        with self._changed:
            self._queue.append(item)
            if self._file is not None:
                self._file.write(json.dumps({"run_id": self.run_id, **item}) + "\n")
                self._file.flush()
            self._changed.notify_all()

    def put_file(self, path: Path, folder: str) -> None:
        """Queue a copy of a file, or of a whole folder, for ``folder`` among the run's artifacts."""
        self.put({"op": "artifact", "path": str(self._copy(path)), "folder": folder})

    def put_package(self, path: Path, register_as: str | None) -> None:
        """Queue a copy of a model package, to be stored with the run and registered."""
        self.put({"op": "package", "path": str(self._copy(path)), "register_as": register_as, "uri": self.uri})

    def _copy(self, path: Path) -> Path:
        """A copy beside the spool file: what is queued must not change or go away before it is delivered."""
        copy = self._files / uuid.uuid4().hex[:8] / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, copy)
        else:
            shutil.copyfile(path, copy)
        return copy

    def flush(self, timeout: float) -> bool:
        """Wait until all is delivered; False where ``timeout`` seconds were not enough."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._queue, timeout)

    def close(self, timeout: float) -> bool:
        """Deliver what can be in ``timeout`` seconds; the rest stays in the spool for the next start."""
        with self._changed:
            self._deadline = time.monotonic() + timeout
            self._changed.notify_all()
        self._thread.join(timeout + 1)
        with self._changed:
            delivered = not self._queue
            if self._file is not None:
                if delivered:
                    _discard(self._path)
                self._file.close()
                self._file = None
        if not delivered:
            logger.warning("run %s: %s did not answer; what is missing is delivered at the next start", self.run_id, self.uri)
        return delivered

    def _work(self) -> None:
        client, pause = None, FIRST_PAUSE
        while batch := self._next():
            try:
                client = client or client_for(self.uri)
                deliver(client, self.run_id, batch)
            except Exception as error:
                if pause == FIRST_PAUSE:
                    logger.warning(
                        "run %s: %s does not answer (%s); logging goes on and is delivered later", self.run_id, self.uri, one_line(error)
                    )
                if not self._wait(pause):
                    return
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            pause = FIRST_PAUSE
            self._done(len(batch))

    def _next(self) -> list[Item]:
        """What to deliver now; waits for it. Empty once closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._deadline is not None)
            return list(self._queue)

    def _wait(self, seconds: float) -> bool:
        """Pause between tries; False where the time given to close() is over."""
        with self._changed:
            if self._deadline is None:
                self._changed.wait_for(lambda: self._deadline is not None, seconds)
            else:
                time.sleep(min(seconds, CLOSING_PAUSE))
            return self._deadline is None or time.monotonic() < self._deadline

    def _done(self, count: int) -> None:
        with self._changed:
            for _ in range(count):
                item = self._queue.popleft()
                if "path" in item:  # its own copy alone: the next one may be on its way into the same folder
                    shutil.rmtree(Path(item["path"]).parent, ignore_errors=True)
            if not self._queue and self._file is not None:
                self._file.truncate(0)
            self._changed.notify_all()


def deliver(client: "MlflowClient", run_id: str, items: Sequence[Item]) -> None:
    """Send items in order. Raises what MLflow raises where the store is away; what the store refuses for good is named and dropped."""
    from mlflow.exceptions import MlflowException

    for item in _joined(items):
        try:
            _send(client, run_id, item)
        except MlflowException as error:
            if not _is_refusal(error):
                raise
            if item["op"] == "metrics" and len(item["values"]) > 1:  # one bad name must not take the others with it
                deliver(client, run_id, [{**item, "values": [value], "alone": True} for value in item["values"]])
            else:
                logger.warning("run %s: %s refused by the store: %s", run_id, item["op"], one_line(error))


def deliver_leftovers(uri: str, timeout: float) -> int:
    """Deliver what processes that are gone left in this machine's spool for ``uri``; how many files are settled."""
    settled, end, client = 0, time.monotonic() + timeout, None
    for path in sorted(spool_folder(uri).glob("*.jsonl")):
        if time.monotonic() > end:
            break
        with open(path, "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue  # its owner lives
            file.seek(0)
            items = _parsed(file)
            try:
                if items:
                    client = client or client_for(uri)
                    deliver(client, items[0]["run_id"], items)
            except Exception as error:
                logger.warning("%s: %s is not delivered yet: %s", uri, path.name, one_line(error))
                break
            _discard(path)
            settled += 1
    return settled


def _send(client: "MlflowClient", run_id: str, item: Item) -> None:
    from mlflow.entities import Metric, Param, RunTag

    if item["op"] == "metrics":
        client.log_batch(run_id, metrics=[Metric(*value) for value in item["values"]], synchronous=True)
    elif item["op"] == "params":
        pairs = list(item["values"].items())
        for start in range(0, len(pairs), 100):  # MLflow takes at most 100
            client.log_batch(run_id, params=[Param(*pair) for pair in pairs[start : start + 100]], synchronous=True)
    elif item["op"] == "tags":
        client.log_batch(run_id, tags=[RunTag(*pair) for pair in item["values"].items()], synchronous=True)
    elif item["op"] == "artifact":
        _send_file(client, run_id, Path(item["path"]), item["folder"] or None)
    elif item["op"] == "package":
        _send_package(run_id, item)
    elif item["op"] == "close_children":
        _close_children(client, run_id, item["experiment_id"])
    elif item["op"] == "finish":
        client.set_terminated(run_id, item["status"], item["end_time"])


def _send_file(client: "MlflowClient", run_id: str, path: Path, folder: str | None) -> None:
    if path.is_dir():
        client.log_artifacts(run_id, str(path), f"{folder}/{path.name}" if folder else path.name)
    elif path.exists():
        client.log_artifact(run_id, str(path), folder)


def _send_package(run_id: str, item: Item) -> None:
    from stratum.registry.packages import log_package  # here: the registry stands on the tracking

    if Path(item["path"]).exists():
        log_package(run_id, Path(item["path"]), item["register_as"], uri=item["uri"])


def _close_children(client: "MlflowClient", run_id: str, experiment_id: str) -> None:
    """End as KILLED what still runs below a run that has ended: a trial that a scheduler stopped had no chance to say so."""
    query = f"tags.`mlflow.parentRunId` = '{run_id}' and attributes.status = 'RUNNING'"
    for child in client.search_runs([experiment_id], query, max_results=1000):
        client.set_terminated(child.info.run_id, "KILLED")


def _joined(items: Sequence[Item]) -> list[Item]:
    """Neighbouring metrics in one call."""
    joined: list[Item] = []
    for item in items:
        last = joined[-1] if joined else None
        both_metrics = last is not None and item["op"] == last["op"] == "metrics" and "alone" not in item
        if last is not None and both_metrics and len(last["values"]) + len(item["values"]) <= METRICS_PER_CALL:
            joined[-1] = {**last, "values": last["values"] + item["values"]}
        else:
            joined.append(item)
    return joined


def _is_refusal(error: Exception) -> bool:
    """Whether trying again is no use: the request itself is wrong. Missing rights may come back."""
    status = int(getattr(error, "get_http_status_code", lambda: 500)())
    return 400 <= status < 500 and status not in (401, 403, 408, 429)


def _open_locked(path: Path) -> IO[str] | None:
    """A new spool file, locked before it gets the name that others look for; None where nothing can be written there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        hidden = path.with_suffix(".new")
        file = open(hidden, "a")  # noqa: SIM115  the lock lives as long as the file is open
        fcntl.flock(file, fcntl.LOCK_EX)
        hidden.rename(path)
    except OSError as error:
        logger.warning("%s: cannot be written (%s): what is logged is kept in memory only", path.parent, error.strerror)
        return None
    return file


def _parsed(file: IO[str]) -> list[Item]:
    items = []
    for line in file:
        try:
            items.append(json.loads(line))
        except ValueError:  # the line in which the process was killed
            break
    return items


def _discard(path: Path) -> None:
    path.unlink(missing_ok=True)
    shutil.rmtree(path.with_suffix(".files"), ignore_errors=True)
