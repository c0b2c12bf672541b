"""Every family's study: its rows can be built, its paper's rows are whole, its search can be drawn."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from stratum.data.frequencies import RULES
from stratum.tuning.space import Grid, ablation_grid, known, parse_tables, sampled_variant, search_space
from stratum.tuning.studies import STUDIES, ImageFacts, Study, find_study
from stratum.tuning.studies.fm_hrnet import NETWORKS as FM_HRNET_NETWORKS
from stratum.tuning.studies.two_stage import PATCH, STAGE2
from stratum_models import losnet
from stratum_models.arsm.paper import PAPER_RESULTS
from stratum_models.catalog import CATALOG, build_model, resolve_config
from stratum_models.errors import UserError
from stratum_models.fm_hrnet import paper as fm_hrnet_paper
from stratum_models.losnet import paper as losnet_paper
from stratum_models.slag_deeplab import paper as slag_paper

ROOT = Path(losnet.__file__).parents[3]
all_studies = pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)


def whole(study: Study, extra: Mapping[str, object] | None = None) -> Grid:
    return ablation_grid(study, tuple(study.tables), extra)


def names_of(grid: Grid, key: str) -> str:
    """The name of what a row's figures come from."""
    runs = [one for v in grid.variants for one in (v, *v.judgements)]
    return next(one.name for one in runs if key in one.rows)


@all_studies
def test_every_row_has_one_run_or_a_reason(study: Study) -> None:
    grid = whole(study)
    counted = Counter(key for v in grid.variants for one in (v, *v.judgements) for key in one.rows)
    assert set(counted.values()) == {1}
    assert counted.keys() | grid.left_out.keys() == {row.key for row in study.rows}
    assert all(grid.left_out.values())
    assert max(Counter(grid.names()).values()) == 1
    assert not any(set(name) & set("/:, ") for name in grid.names())


@all_studies
def test_every_network_is_of_the_studys_task_and_can_be_configured(study: Study) -> None:
    for variant in whole(study, {"input_short": 64}).variants:
        assert CATALOG[variant.preset].task == CATALOG[study.preset].task
        config = vars(resolve_config(variant.preset, variant.overrides))
        assert config["input_short"] == 64
        assert {name: config[name] for name in variant.overrides} == variant.overrides  # in the options' own types
        assert variant.class_weights in ("", *RULES)
        for judgement in variant.judgements:
            assert resolve_config(variant.preset, judgement.overrides) != resolve_config(variant.preset, variant.overrides)


def test_benchmarks_and_sweeps_hold_a_network_against_the_same_row() -> None:
    for model, preset in FM_HRNET_NETWORKS.items():
        setting = CATALOG[preset].setting
        assert CATALOG[preset].paper == fm_hrnet_paper.figures(model)
        assert setting is not None
        assert (setting.classes, setting.size) == (4, (512, 512))


@pytest.mark.parametrize("table", ["backbone", "groups"])
def test_networks_that_no_preset_has_are_built(table: str) -> None:
    # The others are presets, or differ from one by widths and switches that the models' own tests build.
    for variant in ablation_grid(STUDIES["slag"], (table,)).variants:
        with torch.device("meta"):
            model = build_model(variant.preset, num_classes=3, overrides=variant.overrides)
        assert model.predict([torch.rand(3, 64, 64, device="meta")])[0].probabilities.shape == (3, 64, 64)  # type: ignore[union-attr]


@all_studies
def test_a_table_compares_with_one_baseline(study: Study) -> None:
    counted = Counter(row.table for row in study.rows if row.baseline)
    assert counted == dict.fromkeys(study.tables, 1)


@pytest.mark.parametrize(
    ("name", "labels", "left_out"),
    [
        ("losnet", [row.key for row in losnet_paper.PAPER_ROWS], {"t1/PeleeNet"}),
        ("fm_hrnet", [row.key for row in fm_hrnet_paper.PAPER_ROWS], {"t1/FAM-CRFSN"}),
        ("arsm", [f"t1/{result.method}" for result in PAPER_RESULTS], {"t1/Deeplabv3+ HRNetW18"}),
    ],
)
def test_every_row_of_the_paper_is_there(name: str, labels: list[str], left_out: set[str]) -> None:
    study = STUDIES[name]
    assert [row.key for row in study.rows if row.table.isdigit()] == labels
    assert set(whole(study).left_out) == left_out
    assert all(row.paper for row in study.rows if row.table.isdigit())


def test_the_slag_papers_rows_are_there() -> None:
    rows = [row for row in STUDIES["slag"].rows if row.table.isdigit()]
    assert [(int(row.table), row.paper) for row in rows] == [(row.table, row.figures()) for row in slag_paper.PAPER_ROWS]
    config = resolve_config("deeplab_mv2_ema")
    assert resolve_config(rows[2].preset, rows[2].overrides) == config == resolve_config(rows[-1].preset, rows[-1].overrides)


@all_studies
def test_columns_are_called_as_some_paper_calls_them(study: Study) -> None:
    named = {name.rpartition("/")[2] for one in STUDIES.values() for row in one.rows for name in row.paper or {}}
    assert {figure.paper for figure in study.figures if figure.paper} <= named
    figures = {name.rpartition("/")[2] for row in study.rows for name in row.paper or {}}
    assert not figures or study.accuracy.paper in figures


@all_studies
def test_every_choice_of_the_search_can_be_configured(study: Study) -> None:
    assert set(study.choices) <= {field.name for field in fields(CATALOG[study.preset].config)}
    for index in range(max(map(len, study.choices.values()))):
        config = {name: values[index % len(values)] for name, values in study.choices.items()}
        variant = sampled_variant(study, config, "x", study.preset, {"input_short": 64})
        assert vars(resolve_config(study.preset, variant.overrides))["input_short"] == 64
        assert known(study.preset, study.choices).keys() <= variant.overrides.keys()
    domains = search_space(study)
    assert set(domains) == {*study.choices, "learning_rate_factor", *(["class_weights_rule"] if study.class_weights else [])}


def test_a_search_draws_weights_and_keeps_the_studys_defaults() -> None:
    variant = sampled_variant(STUDIES["arsm"], {"width": 32, "class_weights_rule": "median"}, "x", "hrnet_w18_arsm", {})
    assert (variant.class_weights, variant.overrides) == ("median", {"width": 32, "stem_strides": (1, 1)})
    plain = sampled_variant(STUDIES["arsm"], {"class_weights_rule": "none"}, "x", "hrnet_w18_arsm", {}, "inverse")
    assert plain.class_weights == ""


def test_rows_that_describe_one_network_share_a_run() -> None:
    grid = ablation_grid(STUDIES["fm_hrnet"], tuple(STUDIES["fm_hrnet"].tables))
    v4 = grid.get("fm_hrnet_v4")
    assert v4.rows == ("t2/FM-HRNet-V4", "repeats/1,1,1,1", "blocks/4", "last/256", "dsc/1", "aggregation/both")
    assert grid.get("fm_hrnet_v3").rows == ("t2/FM-HRNet-V3", "aggregation/none")
    assert grid.get("fm_hrnet_v2").rows == ("t2/FM-HRNet-V2", "dsc/0")
    assert grid.get("fm_hrnet_v1").rows == ("t1/FM-HRNet-V1", "t2/FM-HRNet-V1")
    assert names_of(grid, "repeats/1,1,4,3") == "repeats-1-1-4-3"


def test_samples_are_judgements_of_one_training() -> None:
    (variant,) = ablation_grid(STUDIES["arsm"], ("samples",)).variants
    assert variant.rows == ("samples/expected",)
    assert [judgement.rows for judgement in variant.judgements] == [("samples/1",), ("samples/10",), ("samples/100",)]
    assert {judgement.overrides["gate"] for judgement in variant.judgements} == {"monte_carlo"}
    assert {"gate", "samples"} <= set(variant.fixed)


def test_two_stages_train_once_what_differs_in_prediction_alone() -> None:
    study = STUDIES["two_stage"]
    grid = ablation_grid(study, tuple(study.tables))
    trained = [v for v in grid.variants if v.preset == "two_stage"]
    assert len(trained) == 12  # patches of three sizes, and each other value of scale, margin, uncertainty and prior
    default = grid.get("t3-all-of-96x96")
    judged = {key for judgement in default.judgements for key in judgement.rows}
    assert {"t3/stage 1 alone", "t3/1/2 of 96x96", "pick/a quarter", "pick/confidence below 0.8"} <= judged
    assert len({names_of(grid, key) for key in ("t3/1/2 of 96x96", "scale/4", "margin/0", "pick/half, as a number", "prior/no")}) == 1
    large = grid.get(names_of(grid, "t3/1/8 of 192x192"))
    assert large.rows == ("t3/1/8 of 192x192", "t3/1/4 of 192x192")  # one patch, both
    assert large.overrides["count"] == 1  # no row asks for the plain evaluation: the first is its own
    assert [judgement.overrides["count"] for judgement in large.judgements] == [2, 3, 4]


def test_two_stages_fit_the_images_and_classes() -> None:
    study = STUDIES["two_stage"]
    assert study.fit is not None
    config = resolve_config(study.preset)
    assert (vars(config)["patch"], vars(config)["stage2"]) == (PATCH, STAGE2)
    small = study.fit(ImageFacts(least=(200, 140), median=(200, 200), classes=5), {})
    grid = whole(small)
    assert list(grid.left_out) == [f"t3/{share} of 192x192" for share in ("1/8", "1/4", "1/2", "3/4", "all")]
    assert "larger than the images, which are 200x140" in grid.left_out["t3/all of 192x192"]
    found = {key: one.overrides for v in grid.variants for one in (v, *v.judgements) for key in one.rows}
    counts = {key: options.get("count") for key, options in found.items()}
    assert [counts[f"t3/{share} of 48x48"] for share in ("1/8", "1/4", "1/2", "3/4", "all")] == [2, 4, 8, 11, 15]  # of 5 x 3
    assert (counts["t3/all of 96x96"], counts["margin/8"], counts["t3/stage 1 alone"]) == (6, 3, 0)
    assert found["pick/confidence below 0.9, half at most"]["cap"] == 3
    assert found["uncertainty/margin max"]["uncertainty"] == "margin"
    assert (small.choices["patch"], small.choices["uncertainty"]) == ((48, 96), ("distance", "entropy", "margin"))
    tiny = study.fit(ImageFacts(least=(64, 64), median=(64, 64), classes=2), {"patch": "32"})
    assert {key.partition("/")[0] for key in whole(tiny, {"patch": "32"}).left_out} == {"t3", "uncertainty"}


def test_the_baselines_are_the_network_of_stage_2() -> None:
    given = {"stage2": "unet_s2:width=16,loss=ce", "stage1": "fm_hrnet_v4"}
    study = STUDIES["two_stage"].fit(None, given)  # type: ignore[misc]
    grid = ablation_grid(study, ("3",), given)
    full, sliding = grid.variants[:2]
    assert (full.preset, full.overrides) == ("unet_s2", {"width": 16, "loss": "ce"})
    assert (sliding.preset, sliding.overrides) == ("sliding", {"stage": "unet_s2:width=16,loss=ce"})
    assert (study.reference, study.reference_options) == ("unet_s2", {"width": "16", "loss": "ce"})
    asked = {**given, "width": "8", "stage": "unet_s2:width=4"}
    grid = ablation_grid(STUDIES["two_stage"].fit(None, asked), ("3",), asked)  # type: ignore[misc]
    assert [v.overrides for v in grid.variants[:2]] == [{"width": 8, "loss": "ce"}, {"stage": "unet_s2:width=4"}]


def test_weights_of_the_classes_are_part_of_the_training() -> None:
    study = STUDIES["arsm"]
    grid = ablation_grid(study, ("temperature", "weights"), class_weights="median")
    assert {v.class_weights for v in grid.variants if v.rows[0].startswith("temperature")} == {"median"}
    assert names_of(grid, "weights/median") == names_of(grid, "temperature/0.1")
    assert grid.get(names_of(grid, "weights/none")).class_weights == ""


def test_options_of_the_sweep_go_where_they_are_known_and_may_change_a_default() -> None:
    grid = ablation_grid(STUDIES["arsm"], ("1",), {"stem_strides": "2,2", "width": 4})
    assert {v.overrides.get("stem_strides") for v in grid.variants} == {(2, 2), None}  # HRFormer has no such option
    plain = ablation_grid(STUDIES["arsm"], ("1",))
    assert {v.overrides.get("stem_strides") for v in plain.variants} == {(1, 1), None}
    # At a quarter of the image HRNet is the preset; at its full resolution it is not.
    assert "t1-HRNetW18" in plain.names()
    assert "hrnet_w18_arsm" in plain.names()


def test_the_papers_tables_are_the_default_and_ours_have_words() -> None:
    study = STUDIES["fm_hrnet"]
    assert parse_tables(study, "paper") == ("1", "2")
    assert parse_tables(study, "repeats,1") == ("1", "repeats")
    assert set(parse_tables(study, "all")) == set(study.tables)
    with pytest.raises(UserError, match="temperature"):
        parse_tables(study, "temperature")


def test_an_unknown_study_lists_those_there_are() -> None:
    with pytest.raises(UserError, match="fm_hrnet"):
        find_study("lostnet")


@all_studies
def test_every_study_has_its_job(study: Study) -> None:
    assert f'sweep_job("{study.name}"' in (ROOT / "jobs" / f"tune_{study.name}.py").read_text()
