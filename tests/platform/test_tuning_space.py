from collections import Counter

import pytest

from stratum.tuning.space import ablation_grid, own_variant, parse_tables, sampled_variant
from stratum.tuning.studies.losnet import BACKBONES, BASELINE, BASELINE_ROWS, LOSNET
from stratum_models.catalog import CATALOG, resolve_config
from stratum_models.errors import UserError
from stratum_models.losnet.paper import PAPER_RESULTS, PAPER_ROWS, table_rows

TABLES = ("1", "2", "3", "4", "5", "6")


def test_every_row_of_the_paper_has_exactly_one_variant() -> None:
    grid = ablation_grid(LOSNET, TABLES)
    counted = Counter(key for variant in grid.variants for key in variant.rows)
    assert set(counted.values()) == {1}
    assert set(counted) | set(grid.left_out) == {row.key for row in PAPER_ROWS}
    assert set(grid.left_out) == {"t1/PeleeNet"}


def test_rows_of_the_same_network_share_a_run() -> None:
    grid = ablation_grid(LOSNET, TABLES)
    resolved = [resolve_config(v.preset, v.overrides) for v in grid.variants]
    assert len(set(map(str, resolved))) == len(grid.variants) == 24
    assert grid.get("baseline").rows == BASELINE_ROWS
    assert len({v.name for v in grid.variants}) == 24


@pytest.mark.parametrize("table", range(1, 7))
def test_a_table_alone_has_its_rows(table: int) -> None:
    grid = ablation_grid(LOSNET, (str(table),))
    keys = {key for v in grid.variants for key in v.rows} | set(grid.left_out)
    assert keys == {row.key for row in table_rows((table,))}


def test_a_table_varies_what_the_paper_varied() -> None:
    def varied(table: int) -> set[str]:
        networks = [resolve_config(v.preset, v.overrides) for v in ablation_grid(LOSNET, (str(table),)).variants]
        return {name for name in BASELINE if len({getattr(n, name) for n in networks}) > 1}

    assert varied(1) == {"backbone"}
    assert varied(2) == {"fpn_channels", "fpn_convs"}
    assert varied(3) == {"extra_levels"}
    assert varied(4) == {"head_convs"}
    assert varied(5) == {"norm"}
    assert varied(6) == {"fpn_channels", "fpn_convs", "extra_levels"}


def test_the_baseline_is_the_preset_and_the_light_fpn_is_losnet() -> None:
    grid = ablation_grid(LOSNET, TABLES)
    assert resolve_config("condinst_mv3", BASELINE) == resolve_config("condinst_mv3", {})
    assert resolve_config("losnet", grid.get("t6-light-FPN").overrides) == resolve_config("losnet", {})


def test_extra_overrides_go_everywhere_but_do_not_undo_a_row() -> None:
    grid = ablation_grid(LOSNET, ("2",), {"mask_channels": 16, "fpn_channels": 8})
    assert {v.overrides["mask_channels"] for v in grid.variants} == {16}
    assert {v.overrides["fpn_channels"] for v in grid.variants} == {64, 96, 128, 256}


def test_backbones_of_table_1() -> None:
    assert list(BACKBONES) == [row.label for row in table_rows((1,))]


@pytest.mark.parametrize(("text", "tables"), [("all", TABLES), ("paper", TABLES), ("2,4", ("2", "4")), (" 4, 2,2", ("2", "4"))])
def test_tables_are_parsed(text: str, tables: tuple[str, ...]) -> None:
    assert parse_tables(LOSNET, text) == tables


@pytest.mark.parametrize("text", ["", "7", "two", "2;4"])
def test_unknown_tables_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--tables"):
        parse_tables(LOSNET, text)


def test_a_sample_of_the_search_is_a_network() -> None:
    config = {name: values[0] for name, values in LOSNET.choices.items()}
    variant = sampled_variant(LOSNET, {**config, "learning_rate_factor": 1.0}, "x", "losnet", {"mask_convs": "1"})
    assert variant.overrides == {**config, "mask_convs": 1}


def test_the_papers_tables_are_whole() -> None:
    assert Counter(row.table for row in PAPER_ROWS) == {1: 11, 2: 8, 3: 2, 4: 4, 5: 2, 6: 2}
    assert len(PAPER_RESULTS) == 21
    assert len({row.key for row in PAPER_ROWS}) == len(PAPER_ROWS)
    shared = [row for row in PAPER_ROWS if row.key in BASELINE_ROWS]
    assert len({(row.box_ap50, row.mask_ap50, row.infer_ms, row.size_mb) for row in shared}) == 1


def test_presets_have_their_figures() -> None:
    for name, preset in CATALOG.items():
        assert name.endswith("_debug") <= (preset.paper is None), name
    assert CATALOG["losnet"].paper is not None
    assert CATALOG["losnet"].paper["mask_ap50"] == 46.7
    assert CATALOG["losnet"].paper["infer_ms"] == 25.2


def test_models_of_ones_own() -> None:
    plain, changed = own_variant("mask_rcnn_r50", {"input_short": 64, "norm": "gn"}), own_variant("losnet:head_convs=1+fpn_convs=yes")
    assert (plain.name, plain.overrides) == ("mask_rcnn_r50", {"input_short": 64})  # Mask R-CNN has no such norm
    assert (changed.name, changed.preset) == ("losnet-head_convs=1-fpn_convs=yes", "losnet")
    staged = own_variant("two_stage:stage2=unet_s2:width=32,loss=ce+prior=yes")
    assert (staged.name, staged.overrides) == (
        "two_stage-stage2=unet_s2-width=32-loss=ce-prior=yes",
        {"stage2": "unet_s2:width=32,loss=ce", "prior": True},
    )
    assert changed.overrides == {"head_convs": 1, "fpn_convs": True}


@pytest.mark.parametrize("entry", ["losnett", "losnet:depth=3", "losnet:head_convs", "losnet:head_convs=9"])
def test_models_that_cannot_be_built(entry: str) -> None:
    with pytest.raises(UserError, match=r"(?i)losnet"):
        own_variant(entry)
