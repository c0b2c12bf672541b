"""Which process owns a run, and closing the runs whose process is gone."""

import logging
import os
import socket
from collections.abc import Mapping

import psutil  # type: ignore[import-untyped]

from stratum.tracking.store import client_for

logger = logging.getLogger(__name__)
HOST, NAMESPACE, PID, STARTED = "stratum.host", "stratum.pid_namespace", "stratum.pid", "stratum.pid_started"
CLOCK_SECONDS = 2.0  # a start time is worked out from the boot time, which moves a little when the clock is set


def owner_tags() -> dict[str, str]:
    """Tags that name this process beyond doubt: numbers of processes are used again, and every container counts its own."""
    pid = os.getpid()
    return {HOST: socket.gethostname(), NAMESPACE: _pid_namespace(), PID: str(pid), STARTED: str(psutil.Process(pid).create_time())}


def is_abandoned(tags: Mapping[str, str]) -> bool:
    """Whether the process that these tags name was on this machine and is gone. What runs elsewhere is not ours to judge."""
    if tags.get(HOST) != socket.gethostname() or tags.get(NAMESPACE) != _pid_namespace() or PID not in tags:
        return False
    try:
        process = psutil.Process(int(tags[PID]))
        same = abs(process.create_time() - float(tags[STARTED])) < CLOCK_SECONDS
        return not same or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, ValueError, KeyError):
        return False


def close_stale_runs(uri: str) -> list[str]:
    """End as KILLED every RUNNING run of the store whose process on this machine is gone; their ids."""
    client = client_for(uri)
    closed = []
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    query = f"attributes.status = 'RUNNING' and tags.`{HOST}` = '{socket.gethostname()}'"
    token = None
    while experiments:
        page = client.search_runs(experiments, query, max_results=1000, page_token=token)
        for run in page:
            if is_abandoned(run.data.tags):
                client.set_terminated(run.info.run_id, "KILLED")
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
