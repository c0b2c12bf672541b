"""Which checkpoints of old runs may go: champions, the best of each sweep, what is young and what still runs stay whole.

Only checkpoints go. What was run (``run.json``), its package and its MLflow run stay, so that a pruned run can be served and compared, but
not gone on with.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stratum import storage
from stratum.metrics.names import BEST_METRIC
from stratum.storage import local, s3
from stratum.tracking.store import check_reachable, client_for, one_line_errors, tracking_uri
from stratum_models.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

CHECKPOINTS = ("checkpoints", "ray")  # folders of a run: those of a process alone, and Ray Train's
RUN_FILE = "run.json"
SWEEP_TAG, WINNER_TAG, VARIANT_TAG, PARENT_TAG = "stratum.sweep", "stratum.winner", "stratum.variant", "mlflow.parentRunId"
DAY_MS = 24 * 3600 * 1000
UNKNOWN = "MLflow does not know its run"


@dataclass(frozen=True, kw_only=True)
class Known:
    """What MLflow knows of a run."""

    run_id: str
    status: str
    ended_ms: int  # 0 where it has not ended
    sweep: str  # the sweep's name and its run; empty outside sweeps
    accuracy: float | None
    aliases: tuple[str, ...]  # of the registered versions made from it
    winner: bool = False  # of its sweep
    sweeping: bool = False  # its sweep goes on


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A run with checkpoints, their bytes, and why they stay; an empty reason: they may go."""

    folder: str
    size: int
    reason: str


def decide(runs: Mapping[str, str | None], known: Mapping[str, Known], *, days: float, now_ms: int) -> dict[str, str]:
    """For each run's folder, why its checkpoints stay, or an empty text.

    Args:
        runs: the MLflow run of each folder.
        known: what MLflow knows, by its run's id; of every trial of a sweep, also of those whose folder is not among ``runs``.
        days: younger runs stay, counted from their end.
        now_ms: the time, in milliseconds since 1970.
    """
    best = best_of_sweeps(known.values())
    return {folder: _reason(known.get(run_id or ""), best, days, now_ms) for folder, run_id in runs.items()}


def best_of_sweeps(runs: Iterable[Known]) -> dict[str, str]:
    """The id of the run with the highest accuracy in each sweep; of equals, the one that ended first."""
    best: dict[str, Known] = {}
    for run in sorted((run for run in runs if run.sweep and run.accuracy is not None), key=lambda run: (run.ended_ms, run.run_id)):
        held = best.get(run.sweep)
        if held is None or (run.accuracy or 0.0) > (held.accuracy or 0.0):
            best[run.sweep] = run
    return {sweep: run.run_id for sweep, run in best.items()}


def _reason(run: Known | None, best: Mapping[str, str], days: float, now_ms: int) -> str:
    if run is None:
        return UNKNOWN
    if run.aliases:
        return f"is {', '.join(run.aliases)}"
    if run.winner:
        return f"winner of sweep {run.sweep.partition('/')[0]}"
    if best.get(run.sweep) == run.run_id:
        return f"best of sweep {run.sweep.partition('/')[0]}"
    if run.sweeping:
        return f"sweep {run.sweep.partition('/')[0]} goes on"
    if run.status not in ("FINISHED", "FAILED", "KILLED") or not run.ended_ms:
        return f"is {run.status.lower()}"
    age = (now_ms - run.ended_ms) / DAY_MS
    return f"ended {age:.1f} days ago" if age < days else ""


def prune(root: str, *, days: float, now_ms: int, delete: bool, each: Callable[[Verdict], None]) -> int:
    """Judge every run with checkpoints under ``root``, tell ``each``, and remove what may go where ``delete`` says so; the bytes of that.

    A run is looked up once more before its checkpoints are removed: it may have been resumed meanwhile.

    Raises:
        UserError: storage or tracking cannot be read; nothing is removed then.
    """
    if days < 0:
        raise UserError(f"--days {days:g}: give 0 or more")
    root, uri = storage.resolve(root), tracking_uri()
    check_reachable(uri)
    folders = _checkpoint_folders(root)
    with one_line_errors(uri):
        client = client_for(uri)
        runs = {folder: storage.read_json(storage.join(folder, RUN_FILE)).get("run_id") for folder in folders}
        known = _known(client, [run_id for run_id in runs.values() if run_id])
        freed = 0
        for folder, reason in sorted(decide(runs, known, days=days, now_ms=now_ms).items()):
            if delete and not reason and client.get_run(str(runs[folder])).info.status == "RUNNING":
                reason = "is running again"
            each(Verdict(folder=folder, size=folders[folder], reason=reason))
            if reason:
                continue
            freed += folders[folder]
            if delete:
                for name in CHECKPOINTS:
                    storage.remove_tree(storage.join(folder, name))
    return freed


def _checkpoint_folders(root: str) -> dict[str, int]:
    """The runs under a folder that have checkpoints, with the bytes of these."""
    sizes = _sizes(root)
    runs = {uri.removesuffix(f"/{RUN_FILE}") for uri in sizes if uri.endswith(f"/{RUN_FILE}")}
    found: dict[str, int] = {}
    for uri, size in sizes.items():
        for name in CHECKPOINTS:
            folder, middle, _ = uri.partition(f"/{name}/")
            if middle and folder in runs:
                found[folder] = found.get(folder, 0) + size
                break
    return found


def _sizes(root: str) -> dict[str, int]:
    """Every file under a folder, with its bytes."""
    if storage.is_remote(root):
        return {entry.uri: entry.size for entry in s3.listing(root)}
    return {path: Path(path).stat().st_size for path in local.walk(Path(root))}


def _known(client: "MlflowClient", run_ids: Sequence[str]) -> dict[str, Known]:
    """What MLflow knows of these runs, and of all other trials of their sweeps."""
    aliases = _aliases(client)
    known: dict[str, Known] = {}
    for run_id in run_ids:
        run = None if run_id in known else _run(client, run_id)
        if run is None:
            continue
        parent = _run(client, run.data.tags[PARENT_TAG]) if PARENT_TAG in run.data.tags else None
        for one in _siblings(client, run, parent.info.run_id) if parent else [run]:
            known[one.info.run_id] = _describe(one, parent, aliases)
    return known


def _run(client: "MlflowClient", run_id: str) -> "Run | None":
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _siblings(client: "MlflowClient", run: "Run", parent: str) -> "list[Run]":
    found, token = [run], None
    while True:
        page = client.search_runs([run.info.experiment_id], f"tags.`{PARENT_TAG}` = '{parent}'", page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _describe(run: "Run", parent: "Run | None", aliases: Mapping[str, tuple[str, ...]]) -> Known:
    """A sweep registers its winner from its own run: the winning trial then has the aliases of that version."""
    tags, metrics = run.data.tags, run.data.metrics
    accuracies = [metrics[name] for name in BEST_METRIC.values() if name in metrics]
    winner = parent is not None and VARIANT_TAG in tags and parent.data.tags.get(WINNER_TAG) == tags[VARIANT_TAG]
    return Known(
        run_id=run.info.run_id,
        status=run.info.status,
        ended_ms=run.info.end_time or 0,
        sweep=f"{tags[SWEEP_TAG]}/{tags.get(PARENT_TAG, '')}" if SWEEP_TAG in tags else "",
        accuracy=accuracies[0] if accuracies else None,
        aliases=aliases.get(run.info.run_id, ()) + (aliases.get(parent.info.run_id, ()) if parent and winner else ()),
        winner=winner,
        sweeping=parent is not None and parent.info.status == "RUNNING",
    )


def _aliases(client: "MlflowClient") -> dict[str, tuple[str, ...]]:
    """For each run that a registered version with an alias comes from, ``name@alias``."""
    found: dict[str, tuple[str, ...]] = {}
    token = None
    while True:
        page = client.search_registered_models(page_token=token)
        for model in page:
            for alias, version in model.aliases.items():
                run_id = client.get_model_version(model.name, str(version)).run_id
                if run_id:
                    found[run_id] = (*found.get(run_id, ()), f"{model.name}@{alias}")
        token = page.token
        if not token:
            return found
