"""Sending items to MLflow: which call each is, and what a refusal means.

Sending an item twice does no harm: MLflow keeps a metric once per key, step, timestamp and value.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stratum.tracking.store import one_line
from stratum_models.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)
Item = dict[str, Any]  # JSON: "op" and what it needs
SLOW_OPS = ("artifact", "package")  # what goes to the artifact store, which may be away, or full, while the tracking store is not
METRICS_PER_CALL = 500  # MLflow takes at most 1000


def is_slow(item: Item) -> bool:
    """Whether the item is a file: these go after all else, so that a failing artifact store does not keep a run from ending."""
    return item["op"] in SLOW_OPS


def deliver(client: "MlflowClient", run_id: str, items: Sequence[Item]) -> None:
    """Send items in order. Raises what MLflow raises where the store is away; what the store refuses for good is named and dropped."""
    for item in _joined(items):
        try:
            _send(client, run_id, item)
        except Exception as error:
            if not _is_refusal(error):
                raise
            if item["op"] == "metrics" and len(item["values"]) > 1:  # one bad name must not take the others with it
                deliver(client, run_id, [{**item, "values": [value], "alone": True} for value in item["values"]])
            else:
                logger.warning("run %s: %s refused by the store: %s", run_id, item["op"], one_line(error))


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
        close_children(client, run_id, item["experiment_id"])
    elif item["op"] == "finish":
        _finish(client, run_id, item)


def _send_file(client: "MlflowClient", run_id: str, path: Path, folder: str | None) -> None:
    if path.is_dir():
        client.log_artifacts(run_id, str(path), f"{folder}/{path.name}" if folder else path.name)
    elif path.exists():
        client.log_artifact(run_id, str(path), folder)


def _send_package(run_id: str, item: Item) -> None:
    from stratum.registry.packages import log_package, verified  # here: the registry stands on the tracking

    folder = Path(item["path"])
    if not folder.exists():
        return
    try:
        verified(folder)
    except UserError as error:
        raise UserError(str(error)) from None  # without its cause, a file that cannot be read: the store is not to blame
    log_package(run_id, folder, item["register_as"], uri=item["uri"])


def _finish(client: "MlflowClient", run_id: str, item: Item) -> None:
    """End a run. A process that is being killed may take that for a failure: what was marked as killed stays so."""
    if item["status"] != "FAILED" or client.get_run(run_id).info.status != "KILLED":
        client.set_terminated(run_id, item["status"], item["end_time"])


def close_children(client: "MlflowClient", run_id: str, experiment_id: str) -> None:
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
    from mlflow.exceptions import MlflowException

    if isinstance(error, UserError):  # of the registry; where it wraps MLflow's, that decides
        return error.__cause__ is None or (isinstance(error.__cause__, MlflowException) and _is_refusal(error.__cause__))
    if not isinstance(error, MlflowException):
        return False
    status = int(error.get_http_status_code())  # type: ignore[no-untyped-call]
    return 400 <= status < 500 and status not in (401, 403, 408, 429)
