"""Tables of figures beside the paper's own, as plain text for a terminal or as markdown for a README.

A row is a mapping with

- ``name``: the variant;
- ``metrics``: our figures by their names everywhere (``val/mask_ap50``, ``cost/latency_ms``, ...), AP in 0..1;
- ``paper``: the paper's figures (``mask_ap50`` in percent, ``infer_ms``, ``size_mb``, ...), or None. Those on several data sets are under
  their names (``drosophila/miou``, ``covid/miou``): shown is the set whose classes ours have, or else the first;
- ``group``: rows of one table of the paper stand together under this heading; may be left out;
- ``baseline``: true for the row of the group that the others are compared with; may be left out;
- ``note``: what to say of the variant, such as ``failed: out of memory``; may be left out.

Data and machines are not the paper's, so absolute figures cannot agree; what can is how a choice moves them. Behind a figure that the
paper has too therefore stands, in brackets, its difference to the baseline of the group, ours beside the paper's.
"""

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

from stratum_models.interface import Task

Row = Mapping[str, object]
MISSING = "-"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of a table: what it is called with us and in the paper, and how it is shown.

    ``scale`` turns our unit into the shown one, which is the paper's too.
    """

    title: str
    metric: str
    paper: str | None = None
    scale: float = 1.0
    digits: int = 1

    def ours(self, row: Row) -> float | None:
        """Our figure in the shown unit; None where it is missing or no number."""
        value = _number(row.get("metrics"), self.metric)
        return None if value is None else value * self.scale

    def theirs(self, row: Row) -> float | None:
        """The paper's figure."""
        return _number(row.get("paper"), self.paper) if self.paper else None


# What Tables 1 to 6 of the LosNet paper compare, and what costs are known without a clock.
ABLATION: tuple[Figure, ...] = (
    Figure(title="mask AP50", metric="val/mask_ap50", paper="mask_ap50", scale=100),
    Figure(title="box AP50", metric="val/box_ap50", paper="box_ap50", scale=100),
    Figure(title="infer ms", metric="cost/latency_ms", paper="infer_ms"),
    Figure(title="size MB", metric="cost/size_mb", paper="size_mb"),
    Figure(title="G mult-adds", metric="cost/macs", scale=1e-9, digits=2),
    Figure(title="M params", metric="cost/params", scale=1e-6, digits=2),
)

_COSTS: tuple[Figure, ...] = (
    Figure(title="train ms/iter", metric="cost/train_step_ms", paper="train_ms"),
    Figure(title="train MB", metric="cost/train_memory_mb", paper="train_memory_mb", digits=0),
    Figure(title="infer ms", metric="cost/latency_ms", paper="infer_ms"),
    Figure(title="infer MB", metric="cost/infer_memory_mb", paper="infer_memory_mb", digits=0),
    Figure(title="size MB", metric="cost/size_mb", paper="size_mb"),
)

# The eleven indexes of the LosNet paper (section 4.1.3).
_INSTANCE: tuple[Figure, ...] = (
    Figure(title="box AP", metric="val/box_ap", paper="box_ap", scale=100),
    Figure(title="box AP50", metric="val/box_ap50", paper="box_ap50", scale=100),
    Figure(title="box AP75", metric="val/box_ap75", paper="box_ap75", scale=100),
    Figure(title="mask AP", metric="val/mask_ap", paper="mask_ap", scale=100),
    Figure(title="mask AP50", metric="val/mask_ap50", paper="mask_ap50", scale=100),
    Figure(title="mask AP75", metric="val/mask_ap75", paper="mask_ap75", scale=100),
    *_COSTS,
)

_SEMANTIC: tuple[Figure, ...] = (
    Figure(title="mean IoU", metric="val/miou", paper="miou", scale=100),
    Figure(title="mean pixel accuracy", metric="val/mpa", paper="mpa", scale=100),
    Figure(title="pixel accuracy", metric="val/pa", paper="pa", scale=100),
    Figure(title="Dice", metric="val/dice", scale=100),
    Figure(title="boundary F", metric="val/boundary_f", scale=100),
    *_COSTS,
    Figure(title="G mult-adds", metric="cost/macs", paper="gmacs", scale=1e-9, digits=2),
    Figure(title="M params", metric="cost/params", paper="params_m", scale=1e-6, digits=2),
)

INDEXES: dict[Task, tuple[Figure, ...]] = {"instance": _INSTANCE, "semantic": _SEMANTIC}


def ablation_table(rows: Sequence[Row], *, figures: Sequence[Figure] = ABLATION, markdown: bool = False) -> str:
    """One line per variant: each figure with us and in the paper, with its difference to the group's baseline in brackets.

    Columns that nobody has a figure for are left out; single missing figures, and those that are not numbers, show as a dash.
    """
    rows = _of_like_data(rows)
    columns = [
        (figure, side) for figure in figures for side in ("ours", "paper") if any(_value(figure, side, row) is not None for row in rows)
    ]
    header = ["variant", *(f"{figure.title}, {side}" if figure.paper else figure.title for figure, side in columns)]
    groups = []
    for title, members in _groups(rows):
        baseline = next((row for row in members if row.get("baseline")), None)
        groups.append((title, [[(_name(row), ""), *(_cell(figure, side, row, baseline) for figure, side in columns)] for row in members]))
    widths = [max((len(line[i][1]) for _, lines in groups for line in lines), default=0) for i in range(len(header))]
    if markdown:
        widths = [0] * len(header)
    joined = [
        (title, [[_joined(cell, width) for cell, width in zip(line, widths, strict=True)] for line in lines]) for title, lines in groups
    ]
    return markdown_table(header, joined) if markdown else text_table(header, joined)


def narrow_tables(rows: Sequence[Row], *, figures: Sequence[Figure] = ABLATION, width: int = 120) -> str:
    """:func:`ablation_table` as plain text of at most ``width`` columns: figures that find no room stand in further tables below."""
    rows = _of_like_data(rows)
    known = [figure for figure in figures if any(_value(figure, side, row) is not None for row in rows for side in ("ours", "paper"))]
    tables: list[list[Figure]] = [[]]
    for figure in known:
        if tables[-1] and _width(ablation_table(rows, figures=[*tables[-1], figure])) > width:
            tables.append([])
        tables[-1].append(figure)
    return "\n".join(ablation_table(rows, figures=table) for table in tables)


def index_table(rows: Sequence[Row], figures: Sequence[Figure] = _INSTANCE, *, markdown: bool = False) -> str:
    """The indexes of a task, one line each, with two columns per model: ours and the paper's."""
    rows = _of_like_data(rows)
    header = ["index", *(f"{_name(row)}, {side}" for row in rows for side in ("ours", "paper"))]
    lines = [
        [figure.title, *(_plain(_value(figure, side, row), figure.digits) for row in rows for side in ("ours", "paper"))]
        for figure in figures
    ]
    return markdown_table(header, [("", lines)]) if markdown else text_table(header, [("", lines)])


def text_table(header: Sequence[str], groups: Iterable[tuple[str, Sequence[Sequence[str]]]]) -> str:
    """Aligned plain text: names to the left, figures to the right, each group under its heading. ``"a, b"`` in a header breaks the line."""
    parts = list(groups)
    lines = [line for _, members in parts for line in members]
    heads = [title.rpartition(", ") for title in header]
    tops, bottoms = [head[0] for head in heads], [head[2] for head in heads]
    shown = [tops, bottoms] if any(tops) else [bottoms]
    widths = [max(len(line[column]) for line in [*shown, *lines]) for column in range(len(header))]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    text = [_aligned(line, widths) for line in shown] + [rule]
    for index, (title, members) in enumerate(parts):
        text += ([""] if index and title else []) + ([title] if title else [])
        text += [_aligned(line, widths) for line in members]
    return "\n".join(text) + "\n"


def markdown_table(header: Sequence[str], groups: Iterable[tuple[str, Sequence[Sequence[str]]]]) -> str:
    """A table of GitHub's markdown; a group's heading is a bold line of its own."""
    lines = [list(header), ["---", *["---:"] * (len(header) - 1)]]
    for title, members in groups:
        lines += [[f"**{_escaped(title)}**", *[""] * (len(header) - 1)]] if title else []
        lines += [[_escaped(cell) for cell in line] for line in members]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _of_like_data(rows: Sequence[Row]) -> list[Row]:
    """The rows with a paper's figures from one data set, without its name."""
    measured = {name for row in rows if isinstance(found := row.get("metrics"), Mapping) for name in found}
    return [{**row, "paper": _of_one_set(row["paper"], measured)} if isinstance(row.get("paper"), Mapping) else row for row in rows]


def _of_one_set(figures: object, measured: Set[str]) -> dict[str, object]:
    """Figures of the set with most of the classes in ``measured``, and those of no set."""
    assert isinstance(figures, Mapping)
    sets: dict[str, dict[str, object]] = {}
    for name, value in figures.items():
        data, _, plain = str(name).rpartition("/")
        sets.setdefault(data, {})[plain] = value
    of_none = sets.pop("", {})
    likest = max(sets.values(), key=lambda one: sum(f"val/{name}" in measured for name in one if name.startswith("iou_")), default={})
    return {**of_none, **likest}


def _value(figure: Figure, side: str, row: Row) -> float | None:
    return figure.ours(row) if side == "ours" else figure.theirs(row)


def _width(text: str) -> int:
    return max(map(len, text.splitlines()))


def _groups(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """The rows by heading, headings in the order of their first row."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(str(row.get("group") or ""), []).append(row)
    return list(groups.items())


def _name(row: Row) -> str:
    name, note = str(row.get("name") or MISSING), row.get("note")
    return f"{name} ({note})" if note else name


def _cell(figure: Figure, side: str, row: Row, baseline: Row | None) -> tuple[str, str]:
    """The figure and its difference to the baseline, which is empty where there is nothing to compare."""
    value = _value(figure, side, row)
    text = _plain(value, figure.digits)
    reference = _value(figure, side, baseline) if baseline is not None and baseline is not row and figure.paper else None
    return text, "" if value is None or reference is None else f"({value - reference:+.{figure.digits}f})"


def _joined(cell: tuple[str, str], width: int) -> str:
    """The figure, then its difference in a place of ``width`` characters, so that both line up below each other."""
    text, difference = cell
    return f"{text} {difference:>{width}}" if width else f"{text} {difference}".rstrip()


def _plain(value: float | None, digits: int) -> str:
    return MISSING if value is None else f"{value:.{digits}f}"


def _number(figures: object, name: str | None) -> float | None:
    value = figures.get(name) if isinstance(figures, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    cells = [cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in enumerate(zip(line, widths, strict=True))]
    return "  ".join(cells).rstrip()


def _escaped(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
