"""What the flags of every sweeping job mean, without Ray."""

from pathlib import Path
from typing import Any

import pytest
from in_process import exit_code, load_job

from stratum.training.appraise import trained_size
from stratum.tuning.checks import check_sweep
from stratum.tuning.job import split_models, sweep_spec
from stratum.tuning.spec import SweepSpec, load_sweep, save_sweep
from stratum.tuning.studies import STUDIES, ImageFacts
from stratum_models.catalog import preset
from stratum_models.errors import UserError

CELLS = "synthetic://cells?images=8&size=64"
WIDE = "option patch=192: larger than the images, which are 128x128; must be 128 or less"
all_studies = pytest.mark.parametrize("study", STUDIES)


@all_studies
def test_nothing_given_means_the_papers_tables_on_synthetic_data(study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = sweep_spec(study, load_job(f"tune_{study}").Args())
    assert (sweep.study, sweep.tables, sweep.models) == (study, STUDIES[study].paper_tables, ())
    assert sweep.base.data.uri.startswith("synthetic://")
    assert sweep.base.model.preset == STUDIES[study].preset
    assert sweep.extra == ({} if study == "two_stage" else {"input_short": 256})
    assert sweep.register_as


@all_studies
def test_the_embedded_data_suit_the_networks(study: str, tmp_path: Path) -> None:
    side = 384 if study == "two_stage" else 64  # its patches need room
    scene = load_job(f"tune_{study}").Args().data.partition("?")[0]
    args = load_job(f"tune_{study}").Args(data=f"{scene}?images=4&size={side}", size=side, batch=2, storage=str(tmp_path))
    said: list[str] = []
    check_sweep(sweep_spec(study, args), said.append)
    assert not said
    assert not list(tmp_path.iterdir())


@all_studies
def test_models_alone_leave_the_tables_out_and_a_search_has_none(study: str) -> None:
    job = load_job(f"tune_{study}")
    alone = sweep_spec(study, job.Args(models=STUDIES[study].preset))
    assert (alone.tables, alone.models) == ((), (STUDIES[study].preset,))
    searched = sweep_spec(study, job.Args(space="search", trials=3, models=STUDIES[study].preset))
    beside = ["unet_s2", "sliding"] if study == "two_stage" else []
    assert (searched.grid().names(), searched.tables) == ([*beside, STUDIES[study].preset], ())
    assert searched.total == 4 + len(beside)


def test_tables_of_ours_are_named() -> None:
    sweep = sweep_spec("arsm", load_job("tune_arsm").Args(tables="1,temperature", set=("stem_strides=2,2",), class_weights="median"))
    grid = sweep.grid()
    assert sweep.tables == ("1", "temperature")
    assert "temperature-0.5" in grid.names()
    assert {v.class_weights for v in grid.variants} == {"median"}


@pytest.mark.parametrize(("size", "options", "side"), [(128, {"input_scale": 0.5}, 128), (None, {}, 256)])
def test_tiles_have_one_scale_in_every_trial(size: int | None, options: dict[str, object], side: int) -> None:
    sweep = sweep_spec("arsm", load_job("tune_arsm").Args(tile=256, size=size))
    assert sweep.extra == options
    assert (sweep.base.augment.short_sides, sweep.base.augment.scale, sweep.base.augment.crop) == ((), side / 256, side)
    assert trained_size((256, 256), options, sweep.base) == (side, side)


def test_weights_in_numbers_are_an_option_of_the_networks() -> None:
    sweep = sweep_spec("slag", load_job("tune_slag").Args(class_weights="1,4,2.5"))
    grid = sweep.grid()
    assert {v.overrides["class_weights"] for v in grid.variants} == {(1.0, 4.0, 2.5)}
    assert sweep.class_weights == ""


def test_an_option_of_the_network_that_trials_are_timed_beside_may_be_set(tmp_path: Path) -> None:
    stages = ("stage1=unet_s2_debug", "stage2=unet_s2_debug", "width=8")
    args = load_job("tune_two_stage").Args(
        space="search", data="synthetic://vessels?images=4&size=192", batch=2, set=stages, storage=str(tmp_path)
    )
    sweep = sweep_spec("two_stage", args)
    check_sweep(sweep, lambda text: None)
    assert "width" not in sweep.variant({"patch": 48}, "7").overrides


def test_a_sweep_does_not_go_on_with_other_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = load_job("tune_arsm").Args(data=CELLS, models="hrnet_arsm_debug", name="one", batch=2, storage=str(tmp_path))
    save_sweep(sweep_spec("arsm", args), "run", "other")
    assert exit_code("tune_arsm", "--storage", tmp_path, "--resume", "one") == 2
    assert f"{CELLS}: images or labels have changed since {tmp_path}/one was begun: restore them" in capsys.readouterr().err


def test_a_comma_between_models_is_one_before_a_preset() -> None:
    assert split_models("losnet, condinst_mv3:norm=gn,") == ("losnet", "condinst_mv3:norm=gn")
    staged = "two_stage:stage2=unet_s2:width=32,loss=ce+stage1=fm_hrnet_v4:stem_strides=2,2,2,1"
    assert split_models(f"unet_s2,{staged},sliding") == ("unet_s2", staged, "sliding")
    assert split_models("losnet,losnett") == ("losnet,losnett",)


def test_two_stages_are_fitted_to_the_images(tmp_path: Path) -> None:
    def fitted(**changes: Any) -> tuple[SweepSpec, list[str]]:
        given = {"data": "synthetic://vessels?images=4&size=128", "batch": 2, "storage": str(tmp_path), **changes}
        said: list[str] = []
        return check_sweep(sweep_spec("two_stage", load_job("tune_two_stage").Args(**given)), said.append)[0], said

    sweep, said = fitted()
    assert (sweep.cost_size, sweep.facts) == ((128, 128), ImageFacts(least=(128, 128), median=(128, 128), classes=2))
    assert said == [f"t3/{share} of 192x192 is not run: {WIDE}" for share in ("1/8", "1/4", "1/2", "3/4", "all")]
    assert sweep.cost_note == "costs are those of 128x128 pixels, the median size of the validation images"
    assert {row.evaluation["count"] for row in sweep.plan.rows if row.table == "margin"} == {2}
    asked, said = fitted(cost_size="256x256", tables="margin", size=192)
    assert (asked.cost_size, asked.facts and asked.facts.median) == ((256, 256), (192, 192))
    assert [line[:62] for line in said] == ["costs are those of 256x256 pixels, accuracy that of the valida"]
    searched, _ = fitted(space="search")
    assert searched.plan.choices["patch"] == (48, 96)
    save_sweep(searched, None)
    assert load_sweep(searched.folder)[0] == searched
    with pytest.raises(UserError, match=r"too small for a search over patches: .*--models"):
        fitted(space="search", size=40)


@pytest.mark.parametrize(
    ("study", "flags", "words"),
    [
        ("arsm", {"data": CELLS, "tables": "temperature", "set": ("temperature=1",)}, "temperature"),
        ("arsm", {"data": CELLS, "tables": "samples", "set": ("samples=3",)}, "samples"),
        ("arsm", {"data": CELLS, "models": "losnet"}, "losnet"),
        ("arsm", {"data": "synthetic://ore?images=8&size=64"}, "instance"),
        ("fm_hrnet", {"data": CELLS, "tables": "2", "set": ("temperature=1",)}, "temperature"),
        ("fm_hrnet", {"tables": "temperature"}, "repeats"),
        ("slag", {"data": CELLS, "models": "slag_deeplab,slag_deeplab:backbone=resnet5o"}, "resnet5o"),
        ("slag", {"data": CELLS, "class_weights": "1,2", "set": ("class_weights=1,2",)}, "class_weights"),
        ("slag", {"data": CELLS, "models": "slag_deeplab", "class_weights": "1,2"}, "class_weights"),
        ("losnet", {"class_weights": "median"}, "--class-weights"),
        ("two_stage", {"data": CELLS, "space": "search", "set": ("widths=8",)}, "widths"),
        ("two_stage", {"data": CELLS, "tables": "margin"}, "nothing is left to compare: margin/0 is not run: .*larger than the images"),
        ("two_stage", {"data": CELLS, "set": ("stage2=losnet_debug",)}, "two_stage compares semantic models"),
        ("two_stage", {"data": CELLS, "models": "two_stage_debug:count=9"}, "count=9: images of 64x64 hold 4 patches"),
    ],
)
def test_what_cannot_be_swept_is_said(study: str, flags: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        check_sweep(sweep_spec(study, load_job(f"tune_{study}").Args(**flags, size=64, batch=2, storage=str(tmp_path))), lambda text: None)
    assert not list(tmp_path.iterdir())


@all_studies
def test_the_help_names_the_tables(study: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(f"tune_{study}", "--help") == 0
    said = capsys.readouterr().out
    assert all(table in said for table in STUDIES[study].tables)
    assert preset(STUDIES[study].preset).task in said
