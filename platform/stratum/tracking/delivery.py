"""What is logged goes into an outbox: kept in memory and in a file, delivered by a background thread, tried again until it arrives.

The file outlives the process. It is locked while its owner lives, so a file that can be locked is a dead process's, and the next start
delivers it.
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
from typing import IO, TYPE_CHECKING

from stratum.tracking.sending import Item, deliver, is_slow
from stratum.tracking.store import client_for, data_folder, one_line, shown

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)
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
            logger.warning("run %s: %s did not answer; what is missing is delivered at the next start", self.run_id, shown(self.uri))
        return delivered

    def _work(self) -> None:
        """Deliver until closed and empty, or until the time given to close() is over."""
        client, pause = None, FIRST_PAUSE
        while batch := self._next():
            try:
                client = client or client_for(self.uri)
                deliver(client, self.run_id, batch)
            except Exception as error:
                if pause == FIRST_PAUSE:
                    logger.warning(
                        "run %s: %s does not answer (%s); logging goes on and is delivered later",
                        self.run_id,
                        shown(self.uri),
                        one_line(error),
                    )
                if not self._wait(pause):
                    return
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            pause = FIRST_PAUSE
            self._done(batch)

    def _next(self) -> list[Item]:
        """What to deliver now; waits for it. Empty once closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._deadline is not None)
            return [item for item in self._queue if not is_slow(item)] or list(self._queue)[:1]

    def _wait(self, seconds: float) -> bool:
        """Pause between tries; False where the time given to close() is over."""
        with self._changed:
            if self._deadline is None:
                self._changed.wait_for(lambda: self._deadline is not None, seconds)
            else:
                time.sleep(min(seconds, CLOSING_PAUSE))
            return self._deadline is None or time.monotonic() < self._deadline

    def _done(self, sent: Sequence[Item]) -> None:
        """Forget what was delivered; what is in the file still is sent again if this process dies now."""
        gone = {id(item) for item in sent}
        with self._changed:
            self._queue = deque(item for item in self._queue if id(item) not in gone)
            for item in sent:
                if "path" in item:  # its own copy alone: the next one may be on its way into the same folder
                    shutil.rmtree(Path(item["path"]).parent, ignore_errors=True)
            if not self._queue and self._file is not None:
                self._file.truncate(0)
            self._changed.notify_all()


def deliver_leftovers(uri: str, timeout: float) -> int:
    """Deliver what processes that are gone left in this machine's spool for ``uri``; how many files are settled."""
    settled, end, client = 0, time.monotonic() + timeout, None
    for path in sorted(spool_folder(uri).glob("*.jsonl")):
        if time.monotonic() > end:
            break
        opened = _open_if_free(path)
        if opened is None:
            continue
        with opened as file:
            items = _parsed(file)
            try:
                client = client or client_for(uri)
                _deliver_file(client, file, items)
            except Exception as error:
                logger.warning("%s: %s is not delivered yet: %s", shown(uri), path.name, one_line(error))
                continue
            _discard(path)
            settled += 1
    return settled


def _deliver_file(client: "MlflowClient", file: IO[str], items: Sequence[Item]) -> None:
    """Deliver the items of a spool file; what has arrived is taken out of it, so that no end of a run is told twice."""
    quick, slow = [item for item in items if not is_slow(item)], [item for item in items if is_slow(item)]
    if quick:
        deliver(client, quick[0]["run_id"], quick)
        file.seek(0)
        file.truncate()
        file.writelines(json.dumps(item) + "\n" for item in slow)
        file.flush()
    for item in slow:
        deliver(client, item["run_id"], [item])


def _open_if_free(path: Path) -> IO[str] | None:
    """A spool file opened and locked; None where its owner lives, or it is gone."""
    try:
        file = open(path, "r+")  # noqa: SIM115  the lock lives as long as the file is open
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    if path.exists():  # else another process has settled it just now
        return file
    file.close()
    return None


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
