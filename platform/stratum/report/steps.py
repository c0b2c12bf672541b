"""Where the time of two-stage models goes, as a table."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from stratum_models.two_stage.model import STEPS

OVERHEAD = ("pick", "crop", "merge")  # steps that are no network and no scaling: what the paper fears


def overhead(steps: Mapping[str, float]) -> float:
    """The share of picking, cropping and merging in the time of all steps, 0..1."""
    return sum(steps[step] for step in OVERHEAD) / max(sum(steps.values()), 1e-9)


def step_table(records: Sequence[Mapping[str, Any]]) -> Table:
    """A line for each record with ``stages_ms``, the milliseconds of each step; others are left out."""
    table = Table(title="Steps of the two-stage models: ms, and share of their sum")
    for title in ("model", *STEPS, " + ".join(OVERHEAD)):
        table.add_column(title, justify="left" if title == "model" else "right")
    for record in records:
        steps = record["stages_ms"]
        if steps:
            total = max(sum(steps.values()), 1e-9)
            cells = [f"{steps[step]:.1f} ({steps[step] / total:.0%})" for step in STEPS]
            table.add_row(record["model"], *cells, f"{overhead(steps):.1%}")
    return table
