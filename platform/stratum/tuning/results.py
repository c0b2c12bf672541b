"""What a sweep shows at its end: tables beside the paper's own figures, and the Pareto front as a plot."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from stratum.report.effects import Effect, effects_plot
from stratum.report.plots import Candidate, pareto_plot
from stratum.report.tables import Row, ablation_table, narrow_tables
from stratum.tuning.finalists import front
from stratum.tuning.space import Grid
from stratum.tuning.studies import Study, StudyRow
from stratum.tuning.sweep import TrialRow
from stratum_models.catalog import preset


def comparison(rows: Sequence[TrialRow], study: Study, grid: Grid | None = None, *, markdown: bool = False) -> str:
    """The trials beside the paper: its rows in its order, each with the trial that stands for it; then the others, the most accurate first.

    ``*`` marks the Pareto front; a trial without a result says what became of it. Plain text has at most 120 columns.
    """
    lines = report_rows(rows, study, grid)
    return ablation_table(lines, figures=study.figures, markdown=True) if markdown else narrow_tables(lines, figures=study.figures)


def report_rows(rows: Sequence[TrialRow], study: Study, grid: Grid | None = None) -> list[Row]:
    """The rows of :func:`comparison` as ``stratum.report.tables`` takes them."""
    leading = {row.name for row in front(rows, study)}
    trials = {key: row for row in rows for key in row.rows}
    known = {*trials, *(grid.left_out if grid else ())}
    beside = [_study_line(one, study, trials.get(one.key), leading) for one in study.rows if one.key in known]
    ranked = sorted((row for row in rows if not row.rows), key=lambda row: -_finite(row.metrics.get(study.accuracy.metric)))
    own = [_line(row.name, row, _preset_figures(row), leading) for row in ranked]
    return [*beside, *({**line, "group": "Beside the tables"} if beside else line for line in own)]


def problems(rows: Sequence[TrialRow], grid: Grid | None) -> list[str]:
    """One line for every trial that gave no result, and for every row of the paper that was left out."""
    failed = [f"{row.name}: {row.state}{': ' + row.error if row.error else ''}" for row in rows if row.state in ("failed", "interrupted")]
    return failed + [f"{key}: not run: {reason}" for key, reason in (grid.left_out.items() if grid else ())]


def plot_front(rows: Sequence[TrialRow], study: Study, path: Path, title: str) -> Path:
    """Multiply-adds against accuracy, the size on disk as the area of a bubble; the front is that of all three."""
    finished = [row for row in rows if row.state == "finished"]
    candidates = [
        Candidate(
            name=row.name,
            cost=row.metrics.get("cost/macs", math.nan) / 1e9,
            quality=row.metrics.get(study.accuracy.metric, math.nan),
            size_mb=row.metrics.get("cost/size_mb"),
        )
        for row in finished
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    leading = [finished.index(row) for row in front(rows, study)]
    return pareto_plot(candidates, path, title=title, quality_label=study.accuracy.title, front=leading)


def plot_effects(rows: Sequence[TrialRow], study: Study, path: Path, title: str) -> Path | None:
    """What each table of ours found: accuracy against what it varies. None where no such table has two results."""
    trials = {key: row for row in rows if row.state == "finished" for key in row.rows}
    effects = [_effect(table, study, trials) for table in study.tables if table not in study.paper_tables]
    shown = [effect for effect in effects if len(effect.values) > 1]
    return effects_plot(shown, path, quality_label=study.accuracy.title, title=title) if shown else None


def _effect(table: str, study: Study, trials: Mapping[str, TrialRow]) -> Effect:
    """The accuracies that a table's rows reached, by their labels."""
    found = {
        row.label: trials[row.key].metrics.get(study.accuracy.metric) for row in study.rows if row.table == table and row.key in trials
    }
    values = {label: value for label, value in found.items() if value is not None and math.isfinite(value)}
    return Effect(title=study.tables[table], values=values)


def _study_line(one: StudyRow, study: Study, row: TrialRow | None, leading: set[str]) -> Row:
    return {**_line(one.label, row, one.paper, leading), "group": study.tables[one.table], "baseline": one.baseline}


def _line(label: str, row: TrialRow | None, paper: Mapping[str, float] | None, leading: set[str]) -> dict[str, object]:
    state = row.state if row else "not run"
    return {
        "name": f"{label} *" if row and row.name in leading else label,
        "metrics": row.metrics if row else {},
        "paper": paper,
        "note": "" if state == "finished" else state,
    }


def _finite(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else 0.0


def _preset_figures(row: TrialRow) -> Mapping[str, float] | None:
    """The paper's figures where the trial is a preset as it stands."""
    return preset(row.preset).paper if row.name == row.preset else None
