import math
import re

import pytest

from stratum.report.tables import INDEXES, ablation_table, index_table, markdown_table, text_table
from stratum.tuning.studies import STUDIES
from stratum_models.catalog import CATALOG
from stratum_models.losnet.paper import table_rows

ROWS = [
    {
        "name": "GN",
        "group": "Table 5, norm",
        "baseline": True,
        "metrics": {"val/mask_ap50": 0.5, "val/box_ap50": 0.61, "cost/macs": 7.04e9},
        "paper": {"mask_ap50": 47.85, "box_ap50": 61.49, "infer_ms": 35.9},
    },
    {
        "name": "BN",
        "group": "Table 5, norm",
        "metrics": {"val/mask_ap50": 0.523, "val/box_ap50": math.nan, "cost/macs": 7e9},
        "paper": {"mask_ap50": 47.63, "box_ap50": 60.65, "infer_ms": 33.4},
    },
    {"name": "own", "group": "others", "metrics": {"val/mask_ap50": 0.7}, "paper": None},
    {"name": "broken", "group": "others", "note": "failed: out of memory"},
]


def cells(line: str) -> list[str]:
    return re.split(r"\s{2,}", line.strip())


def test_figures_stand_beside_the_papers_with_their_differences() -> None:
    table = ablation_table(ROWS)
    lines = {cells(line)[0]: cells(line) for line in table.splitlines() if line.strip()}
    assert lines["GN"] == ["GN", "50.0", "47.9", "61.0", "61.5", "35.9", "7.04"]
    assert lines["BN"] == ["BN", "52.3 (+2.3)", "47.6 (-0.2)", "-", "60.6 (-0.8)", "33.4 (-2.5)", "7.00"]
    assert lines["own"] == ["own", "70.0", "-", "-", "-", "-", "-"]
    assert lines["broken (failed: out of memory)"][1:] == ["-"] * 6
    assert table.index("Table 5, norm") < table.index("GN") < table.index("BN") < table.index("others") < table.index("own")


def test_columns_without_any_figure_are_left_out_and_the_rest_line_up() -> None:
    table = ablation_table(ROWS)
    assert "size MB" not in table
    assert "M params" not in table
    last = [line.rstrip() for line in table.splitlines() if line.startswith(("GN", "BN"))]
    assert len({len(line) for line in last}) == 1
    assert all(line == line.rstrip() for line in table.splitlines())


@pytest.mark.parametrize(
    ("classes", "column"),
    [
        (("membrane", "synapse", "glia_extracellular"), ["73.6", "49.1"]),
        (("background", "pleural effusion"), ["48.8", "14.6"]),
        (("ore",), ["73.6", "49.1"]),
    ],
)
def test_a_paper_of_two_data_sets_shows_the_one_with_our_classes(classes: tuple[str, ...], column: list[str]) -> None:
    metrics = {"val/miou": 0.5, **{f"val/iou_{name}": 0.25 for name in classes}}
    rows = [{"name": name, "metrics": found, "paper": CATALOG["hrnet_w18_arsm"].paper} for name, found in (("a", metrics), ("not run", {}))]
    table = ablation_table(rows, figures=STUDIES["arsm"].figures)
    assert cells(table.splitlines()[-1])[:-2] == ["not run", "-", column[0], *(["-"] if "ore" not in classes else []), column[1]]
    index = index_table(rows[:1], INDEXES["semantic"])
    assert next(cells(line) for line in index.splitlines() if line.startswith("mean IoU"))[1:] == ["50.0", column[0]]


def test_markdown_is_a_table() -> None:
    lines = ablation_table(ROWS, markdown=True).splitlines()
    assert {line.count("|") for line in lines} == {lines[0].count("|")}
    assert lines[0].startswith("| variant | mask AP50, ours | mask AP50, paper |")
    assert set(lines[1]) <= set("|-: ")
    assert lines[2].startswith("| **Table 5, norm** |")
    assert "| 52.3 (+2.3) | 47.6 (-0.2) |" in lines[4]


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{}],
        [{"name": "x", "metrics": None, "paper": "none"}],
        [{"name": "x", "metrics": {"val/mask_ap50": "n/a"}}],
        [{"name": "x", "metrics": {"val/mask_ap50": math.inf, "cost/macs": True}}],
        [{"name": "x", "baseline": True, "metrics": {}}, {"name": "y", "metrics": {"val/mask_ap50": 1}}],
    ],
)
@pytest.mark.parametrize("markdown", [False, True])
def test_missing_figures_never_break_a_table(rows: list[dict[str, object]], markdown: bool) -> None:
    table = ablation_table(rows, markdown=markdown)
    assert "variant" in table
    assert "nan" not in table
    assert "inf" not in table
    assert len(table.splitlines()) >= 2 + len(rows)


def test_the_papers_own_tables_fit() -> None:
    rows = [{"name": row.label, "group": f"Table {row.table}", "paper": row.figures()} for row in table_rows((1, 2, 3, 4, 5, 6))]
    table = ablation_table(rows)
    assert len([line for line in table.splitlines() if line.startswith("Table ")]) == 6
    assert "MobileNetV3-Small" in table
    assert max(len(line) for line in table.splitlines()) < 140


def test_the_eleven_indexes_stand_in_two_columns_per_model() -> None:
    metrics = {figure.metric: 0.5 for figure in INDEXES["instance"]}
    table = index_table([{"name": name, "metrics": metrics, "paper": CATALOG[name].paper} for name in ("losnet", "condinst_r50")])
    lines = {cells(line)[0]: cells(line)[1:] for line in table.splitlines()[3:]}
    assert len(lines) == 11
    assert lines["mask AP50"] == ["50.0", "46.7", "50.0", "48.7"]
    assert lines["train MB"][1::2] == ["2838", "5385"]
    assert index_table([], markdown=True).count("\n") == 13


def test_plain_tables() -> None:
    groups = [("", [["a", "1"], ["long name", "22"]])]
    assert text_table(["model", "ms"], groups) == "model      ms\n-------------\na           1\nlong name  22\n"
    assert text_table([], []) == "\n\n"
    assert markdown_table(["model", "ms"], [("", [["a|b\nc", "1"]])]) == "| model | ms |\n| --- | ---: |\n| a\\|b c | 1 |\n"


def test_semantic_models_have_indexes_of_their_own() -> None:
    metrics = {"val/miou": 0.7234, "val/boundary_f": 0.5, "cost/params": 14.6e6, "cost/macs": math.nan}
    table = index_table([{"name": "v4", "metrics": metrics, "paper": {"miou": 88.1, "params_m": 14.54}}], INDEXES["semantic"])
    lines = {cells(line)[0]: cells(line)[1:] for line in table.splitlines() if line.strip()}
    assert lines["mean IoU"] == ["72.3", "88.1"]
    assert lines["boundary F"] == ["50.0", "-"]
    assert lines["M params"] == ["14.60", "14.54"]
    assert lines["G mult-adds"] == ["-", "-"]
    assert "mask AP50" not in lines
