"""What a sweep shows at its end: tables beside the paper's own figures, and the Pareto front as a plot."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from stratum.report.plots import Candidate, pareto_plot
from stratum.report.tables import ABLATION, Figure, Row, ablation_table, narrow_tables
from stratum.tuning.finalists import front
from stratum.tuning.space import BASELINE_ROWS, Grid
from stratum.tuning.sweep import TrialRow
from stratum_models.catalog import preset
from stratum_models.losnet.paper import PAPER_ROWS, PaperRow

_TITLES = {
    1: "Table 1: backbones",
    2: "Table 2: channels of the FPN, with and without its 3x3 convolutions",
    3: "Table 3: levels P6 and P7",
    4: "Table 4: convolutions of the head",
    5: "Table 5: normalisation",
    6: "Table 6: original and light FPN in LosNet",
}
_COSTS = (
    Figure(title="train ms/iter", metric="cost/train_step_ms", paper="train_ms"),
    Figure(title="train MB", metric="cost/train_memory_mb", paper="train_memory_mb", digits=0),
    Figure(title="infer MB", metric="cost/infer_memory_mb", paper="infer_memory_mb", digits=0),
)
_SHARED = (*ABLATION, *_COSTS)


def comparison(rows: Sequence[TrialRow], grid: Grid | None = None, *, markdown: bool = False) -> str:
    """The trials beside the paper: its rows in its order, each with the trial that stands for it; then the others, best AP50 first.

    ``*`` marks the Pareto front; a trial without a result says what became of it. Plain text has at most 120 columns.
    """
    lines = report_rows(rows, grid)
    return ablation_table(lines, figures=_SHARED, markdown=True) if markdown else narrow_tables(lines, figures=_SHARED)


def report_rows(rows: Sequence[TrialRow], grid: Grid | None = None) -> list[Row]:
    """The rows of :func:`comparison` as ``stratum.report.tables`` takes them."""
    leading = {row.name for row in front(rows)}
    trials = {key: row for row in rows for key in row.rows}
    known = {*trials, *(grid.left_out if grid else ())}
    papers = [paper for paper in PAPER_ROWS if paper.key in known]
    beside = [_paper_line(paper, trials.get(paper.key), leading) for paper in papers]
    ranked = sorted((row for row in rows if not row.rows), key=lambda row: -_finite(row.metrics.get("val/mask_ap50")))
    own = [_line(row.name, row, _preset_figures(row), leading) for row in ranked]
    return [*beside, *({**line, "group": "Beside the tables"} if beside else line for line in own)]


def problems(rows: Sequence[TrialRow], grid: Grid | None) -> list[str]:
    """One line for every trial that gave no result, and for every row of the paper that was left out."""
    failed = [f"{row.name}: {row.state}{': ' + row.error if row.error else ''}" for row in rows if row.state in ("failed", "interrupted")]
    return failed + [f"{key}: not run: {reason}" for key, reason in (grid.left_out.items() if grid else ())]


def plot_front(rows: Sequence[TrialRow], path: Path, title: str) -> Path:
    """Multiply-adds against mask AP50, the size on disk as the area of a bubble; the front is that of all three."""
    finished = [row for row in rows if row.state == "finished"]
    candidates = [
        Candidate(
            name=row.name,
            cost=row.metrics.get("cost/macs", math.nan) / 1e9,
            quality=row.metrics.get("val/mask_ap50", math.nan),
            size_mb=row.metrics.get("cost/size_mb"),
        )
        for row in finished
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    return pareto_plot(candidates, path, title=title, front=[finished.index(row) for row in front(rows)])


def _paper_line(paper: PaperRow, row: TrialRow | None, leading: set[str]) -> Row:
    line = _line(paper.label, row, paper.figures(), leading)
    return {**line, "group": _TITLES[paper.table], "baseline": paper.key in BASELINE_ROWS or paper.key == "t6/original-FPN"}


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
