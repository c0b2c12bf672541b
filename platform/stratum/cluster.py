"""Reaching Ray: the cluster that ``RAY_ADDRESS`` names, or a local one on loopback that ends with the job."""

import json
import logging
import os
import re
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs

from stratum import storage

START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
GCS_PORT = "RAY_GCS_SERVER_PORT"
# RAY_ADDRESS: Tune frees the workers of a stopped trial through Ray's state API, which looks for a cluster by itself; where there is more
# than one on a machine, it finds none unless it is told.
FORWARDED = ("AWS_", "MLFLOW_", "STRATUM_", START_TIMEOUT, "RAY_ADDRESS")  # what workers need of the driver's environment
SECRET = re.compile("KEY|SECRET|PASSWORD|TOKEN")
LOCAL = "STRATUM_LOCAL_RAY"  # "1" in the driver and the workers of a Ray that a job started for itself
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray in the driver of a submitted job
RAYLET = "RAY_RAYLET_PID"  # set by Ray in whatever its nodes start


def ray_is_local() -> bool:
    """Whether Ray is this machine's own, where what is missing never comes; a cluster may grow.

    Workers of a local Ray have a ``RAY_ADDRESS`` too, so that alone does not tell.
    """
    return os.environ.get(LOCAL) == "1" or os.environ.get("RAY_ADDRESS", "local") in ("", "local")


@contextmanager
def ray_cluster(cpus: int | None = None, *, log_to_driver: bool = False, env: Mapping[str, str] | None = None) -> Iterator[None]:
    """Ray, connected. A cluster of this process's own takes ``cpus`` (by default all); its dashboard listens on loopback.

    Its dashboard is on, since Tune frees the workers of a stopped trial through it, and it asks for a token, which is kept in the
    environment so that none is written to the home folder. Where Ray is connected already, as in a notebook, that is used.
    ``log_to_driver`` prints what its workers print; they have the variables of ``env``.
    """
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's default of 15 starves workers beside anything else on the machine
    if not os.environ.get("RAY_ADDRESS") and "ray" not in sys.modules:
        _ask_for_token()
    import ray

    if ray.is_initialized():
        yield
        return
    # A busy or a growing cluster may need minutes for the workers that Ray Train gives up on after one.
    os.environ.setdefault(START_TIMEOUT, "300")
    if os.environ.get("RAY_ADDRESS"):
        ray.init(runtime_env={"env_vars": forwarded_environment(env)}, log_to_driver=log_to_driver, logging_level=logging.WARNING)
        try:
            yield
        finally:
            ray.shutdown()
        return
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # Ray's sockets lie below it, whose paths may have 107 bytes at most
    os.environ[LOCAL] = "1"
    try:
        with _gcs_address() as address:
            ray.init(**_local(folder, cpus), log_to_driver=log_to_driver, runtime_env={"env_vars": {"RAY_ADDRESS": address, **(env or {})}})
        yield
    finally:
        ray.shutdown()
        os.environ.pop(LOCAL, None)
        shutil.rmtree(folder, ignore_errors=True)


def results_folder(given: str) -> str:
    """The URI for results, absolute: what was ``given``, or ``outputs`` here; the folder of a submitted job is thrown away with it."""
    default = platformdirs.user_data_path("stratum") / "runs" if os.environ.get(JOB_CONFIG) else Path("outputs")
    return storage.resolve(given or str(default))


def forwarded_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables to hand to workers, ``more`` among them, without those that a submitted job was given: Ray refuses a name set twice.

    Ray writes what it is handed into its logs and shows it in its dashboard. So secrets are left out where workers have them without that:
    from their node, which is this process's too or has the same, or from the runtime environment of the job. A driver outside the cluster,
    or in a notebook that was connected before its keys were set, must hand them over.
    """
    job = json.loads(os.environ.get(JOB_CONFIG) or "{}")
    known = (job.get("runtime_env") or {}).get("env_vars") or {}
    inside = JOB_CONFIG in os.environ or RAYLET in os.environ or os.environ.get(LOCAL) == "1"
    own = {name: value for name, value in os.environ.items() if name.startswith(FORWARDED) and not (inside and SECRET.search(name))}
    return {name: value for name, value in {**own, **(more or {})}.items() if name not in known}


def _ask_for_token() -> None:
    """Ray reads these when it is imported; set later, its own processes would ask for a token that the driver does not send."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ["RAY_AUTH_MODE"] == "token" and not os.environ.get("RAY_AUTH_TOKEN_PATH"):
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@contextmanager
def _gcs_address() -> Iterator[str]:
    """The address that a cluster started inside will have, so that its workers can be told."""
    import ray.util

    before = os.environ.get(GCS_PORT)
    port = os.environ[GCS_PORT] = str(_free_port())
    try:
        yield f"{ray.util.get_node_ip_address()}:{port}"  # type: ignore[no-untyped-call]
    finally:
        del os.environ[GCS_PORT]
        if before is not None:
            os.environ[GCS_PORT] = before


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _local(folder: str, cpus: int | None) -> dict[str, Any]:
    return {
        "address": "local",
        "num_cpus": cpus,
        "include_dashboard": True,
        "dashboard_host": "127.0.0.1",
        "dashboard_port": _free_port(),
        "logging_level": logging.WARNING,
        "_node_ip_address": "127.0.0.1",
        "_temp_dir": folder,
    }
