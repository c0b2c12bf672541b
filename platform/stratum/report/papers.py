"""Parameters and multiply-adds of presets beside those that their papers print."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from stratum import cost
from stratum_models.catalog import preset


def as_in_paper(name: str) -> dict[str, Any] | None:
    """A preset counted on what its paper counts on: classes, size of the image, options.

    Returns:
        ``input``, ``classes``, ``overrides``, ``params``, ``macs``, and the ``params_deviation`` and ``macs_deviation`` of these
        from the paper's figures in percent, None where it prints none. None for a preset whose paper counts nothing.
    """
    known = preset(name)
    setting = known.setting
    if setting is None:
        return None
    counts = cost.count(name, setting.size, num_classes=setting.classes, overrides=setting.overrides)
    figures = known.paper or {}
    return {
        "input": f"{setting.size[0]}x{setting.size[1]}",
        "classes": setting.classes,
        "overrides": dict(setting.overrides),
        "params": counts.params,
        "macs": counts.macs,
        "params_deviation": _deviation(counts.params / 1e6, figures.get("params_m")),
        "macs_deviation": _deviation(counts.macs / 1e9, figures.get("gmacs")),
    }


def paper_table(records: Sequence[Mapping[str, Any]]) -> Table:
    """The records of ``jobs/benchmark.py``: what was counted as in the paper, or else as recorded, and the paper's."""
    table = Table(title="Counted as in the papers: parameters in millions, multiply-adds in 10^9")
    for title in ("model", "input, classes, options"):
        table.add_column(title)
    for title in ("parameters", "paper", "deviation", "multiply-adds", "paper", "deviation"):
        table.add_column(title, justify="right")
    for record in records:
        table.add_row(record["model"], *_cells(record["as_in_paper"] or record, record["paper"] or {}))
    return table


def _cells(counted: Mapping[str, Any], figures: Mapping[str, float]) -> list[str]:
    chosen = counted.get("overrides", {}).items()
    options = [f"{key}={','.join(map(str, value)) if isinstance(value, tuple) else value}" for key, value in chosen]
    cells = [", ".join([counted["input"], str(counted["classes"]), *options])]
    for ours, key, unit in (("params", "params_m", 1e6), ("macs", "gmacs", 1e9)):
        deviation = counted.get(f"{ours}_deviation")
        cells.append(f"{counted[ours] / unit:.2f}")
        cells += ["-", "-"] if deviation is None else [f"{figures[key]:.2f}", f"{round(deviation, 1) + 0.0:+.1f} %"]
    return cells


def _deviation(ours: float, paper: float | None) -> float | None:
    """In percent of the paper's figure."""
    return None if paper is None else round(100 * (ours / paper - 1), 3)
