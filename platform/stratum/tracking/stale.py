"""Which process owns a run, and closing the runs whose process is gone.

On its own machine a process can be looked for. Elsewhere it cannot, and a pod that is replaced has another host name, so that nobody
would ever close the run of one that was killed: therefore the owner also says every minute that it is alive, and who has been silent for
a quarter of an hour counts as gone. One that was only cut off goes on all the same, and says itself how its run ended.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping

import psutil  # type: ignore[import-untyped]

from stratum.tracking.sending import Item, close_children
from stratum.tracking.store import client_for

logger = logging.getLogger(__name__)
HOST, NAMESPACE, PID, STARTED = "stratum.host", "stratum.pid_namespace", "stratum.pid", "stratum.pid_started"
ALIVE = "stratum.alive"  # seconds since 1970
BEAT_SECONDS, SILENT_SECONDS = 60.0, 900.0
CLOCK_SECONDS = 2.0  # a start time is worked out from the boot time, which moves a little when the clock is set


def owner_tags() -> dict[str, str]:
    """Tags that name this process beyond doubt: numbers of processes are used again, and every container counts its own."""
    pid = os.getpid()
    place = {HOST: socket.gethostname(), NAMESPACE: _pid_namespace()}
    return {**place, PID: str(pid), STARTED: str(psutil.Process(pid).create_time()), ALIVE: f"{time.time():.0f}"}


class Heartbeat(threading.Thread):
    """Says every minute that the process of a run is alive, through the run's outbox."""

    def __init__(self, put: Callable[[Item], None]) -> None:
        super().__init__(name="mlflow-heartbeat", daemon=True)
        self._put, self._stopped = put, threading.Event()

    def run(self) -> None:
        """Say so until stopped."""
        while not self._stopped.wait(BEAT_SECONDS):
            self._put({"op": "tags", "values": {ALIVE: f"{time.time():.0f}"}})

    def stop(self) -> None:
        """End, without waiting."""
        self._stopped.set()


def is_abandoned(tags: Mapping[str, str]) -> bool:
    """Whether the process that these tags name is gone from this machine, or was on another and has been silent for too long."""
    try:
        if tags.get(HOST) != socket.gethostname() or tags.get(NAMESPACE) != _pid_namespace():
            return time.time() - float(tags[ALIVE]) > SILENT_SECONDS
        process = psutil.Process(int(tags[PID]))
        same = abs(process.create_time() - float(tags[STARTED])) < CLOCK_SECONDS
        return not same or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, ValueError, KeyError):
        return False


def close_stale_runs(uri: str) -> list[str]:
    """End as KILLED every RUNNING run of the store whose process is gone, and the runs below it; the ids of the former."""
    client = client_for(uri)
    closed = []
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    token = None
    while experiments:
        page = client.search_runs(experiments, "attributes.status = 'RUNNING'", max_results=1000, page_token=token)
        for run in page:
            if is_abandoned(run.data.tags):
                client.set_terminated(run.info.run_id, "KILLED")
                close_children(client, run.info.run_id, run.info.experiment_id)
                logger.warning("closed run %s (%s): its process is gone", run.info.run_id, run.info.run_name)
                closed.append(run.info.run_id)
        token = page.token
        if not token:
            break
    return closed


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
