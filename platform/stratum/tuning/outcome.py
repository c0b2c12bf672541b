"""The end of a sweep: the finalists are timed, and what came out is printed, stored and logged. Nothing here may lose the results."""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from stratum import storage
from stratum.registry.packages import SHA_TAG
from stratum.tracking import Run, RunLogger, client_for, ui_command
from stratum.tuning.finalists import choose_finalists, keep_costs, measured, winner, with_costs
from stratum.tuning.results import comparison, plot_effects, plot_front, problems
from stratum.tuning.spec import SweepSpec
from stratum.tuning.sweep import TrialRow, last_line
from stratum.tuning.two_stage_report import two_stage_plots
from stratum_models.catalog import resolve_config
from stratum_models.package import MANIFEST_FILE, load_manifest
from stratum_models.two_stage.config import TwoStageConfig

Say = Callable[[str], None]
PATIENCE = 10.0  # seconds that the figures of a trial's run may take to be delivered; later, the spool delivers them


def time_finalists(rows: list[TrialRow], sweep: SweepSpec, tracking: str, say: Say = print) -> list[TrialRow]:
    """The rows with time and memory of the finalists, which also go into their packages and MLflow runs; what fails is said."""
    chosen = choose_finalists(rows, sweep) if sweep.timing_rounds else []
    if not chosen:
        return rows
    say(f"timing {len(chosen)} finalists, one call after another")
    try:
        costs = measured(chosen, sweep)
    except Exception as error:  # the trials have their results, which are to be shown
        say(f"not timed: {last_line(error)}")
        return rows
    timed = with_costs(rows, costs)
    try:
        keep_costs(timed, costs)
    except Exception as error:
        say(f"not all costs are in the packages: {last_line(error)}")
    patience = PATIENCE
    for row in chosen:
        if row.run_id and row.name in costs.figures:
            logger = RunLogger(row.run_id, tracking, system_metrics=False)
            logger.log_metrics(costs.figures[row.name], step=0)
            logger.set_tags(costs.tags)
            patience = patience if logger.close(patience) else 0.0
    return timed


def show(rows: Sequence[TrialRow], sweep: SweepSpec, parent: Run, *, partial: bool) -> None:
    """Print, store and log what came out."""
    grid, study = sweep.grid(), sweep.plan
    note = f"\n{sweep.cost_note}\n" if sweep.cost_note else ""
    table = comparison(rows, study, grid) + note
    what = "partial results" if partial else "results"
    print(f"\n{what} of {sweep.name} ({study.accuracy.title} in percent; * is on the Pareto front)\n\n{table}")
    for line in problems(rows, grid):
        print(f"not in the comparison: {line}")
    with tempfile.TemporaryDirectory(prefix="stratum-report-") as folder:
        out = Path(folder) / "report"
        plot_front(rows, study, out / "pareto.png", sweep.name)
        plot_effects(rows, study, out / "effects.png", sweep.name)
        if isinstance(resolve_config(study.preset), TwoStageConfig):
            two_stage_plots(rows, out, sweep.name)
        (out / "table.txt").write_text(table, encoding="utf-8")
        (out / "table.md").write_text(comparison(rows, study, grid, markdown=True) + note, encoding="utf-8")
        (out / "trials.json").write_text(json.dumps([asdict(row) for row in rows], indent=2, default=str), encoding="utf-8")
        storage.upload_tree(out, storage.join(sweep.folder, "report"))
        parent.log_artifact(out)
    best = winner(rows, sweep)
    if best is not None:
        keep_winner(best, sweep, parent, register=not partial)
    print(f"plot: {storage.join(sweep.folder, 'report', 'pareto.png')}")
    print(f"compare the runs with: {ui_command(parent.uri)}", flush=True)


def keep_winner(best: TrialRow, sweep: SweepSpec, parent: Run, *, register: bool) -> None:
    """The winner's figures and package in the sweep's own run, and its package in the registry."""
    parent.log_metrics({name: value for name, value in best.metrics.items() if name.startswith(("val/", "cost/", "sweep/utility"))})
    parent.set_tags({"stratum.winner": best.name})
    name = sweep.register_as if register else ""
    package = storage.fetch_tree(best.package or "")
    parent.log_package(package, name or None)
    if sweep.keep_as:
        storage.upload_tree(package, sweep.keep_as, last=(MANIFEST_FILE,))
    title = sweep.plan.accuracy.title
    print(f"winner: {best.name} (highest {title} less its price in {sweep.plan.tradeoff.words}); package: {best.package}")
    if name:
        found = registered(parent, name, load_manifest(package).weights_sha256)
        later = f"to be registered as models:/{name} once the tracking store has taken it"
        print(f"registered as: models:/{name}/{found}" if found else later)


def registered(parent: Run, name: str, weights_sha256: str) -> str | None:
    """The version of a registered model that holds these weights of the run; None where it is not there yet."""
    if not parent.flush():
        return None
    try:
        versions = client_for(parent.uri).search_model_versions(f"name = '{name}' and run_id = '{parent.run_id}'")
    except Exception:  # the store went away
        return None
    return next((str(version.version) for version in versions if version.tags.get(SHA_TAG) == weights_sha256), None)
