"""What the flags of every sweeping job mean, without Ray."""

from pathlib import Path
from typing import Any

import pytest
from in_process import exit_code, load_job

from stratum.tuning.checks import check_sweep
from stratum.tuning.finalists import _trained_size as trained_size
from stratum.tuning.job import sweep_spec
from stratum.tuning.studies import STUDIES
from stratum_models.catalog import preset
from stratum_models.errors import UserError

CELLS = "synthetic://cells?images=8&size=64"
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
    searched = sweep_spec(study, job.Args(space="search", trials=3))
    assert (searched.grid(), searched.trials, searched.tables) == (None, 3, ())


def test_tables_of_ours_are_named() -> None:
    sweep = sweep_spec("arsm", load_job("tune_arsm").Args(tables="1,temperature", set=("stem_strides=2,2",), class_weights="median"))
    grid = sweep.grid()
    assert sweep.tables == ("1", "temperature")
    assert grid is not None
    assert "temperature-0.5" in grid.names()
    assert {v.class_weights for v in grid.variants} == {"median"}


@pytest.mark.parametrize(("size", "options", "side"), [(128, {"input_scale": 0.5}, 128), (None, {}, 256)])
def test_tiles_have_one_scale_in_every_trial(size: int | None, options: dict[str, object], side: int) -> None:
    sweep = sweep_spec("arsm", load_job("tune_arsm").Args(tile=256, size=size))
    assert sweep.extra == options
    assert (sweep.base.augment.short_sides, sweep.base.augment.scale, sweep.base.augment.crop) == ((), side / 256, side)
    assert trained_size(sweep) == (side, side)  # of costs that refer to 256x256


def test_weights_in_numbers_are_an_option_of_the_networks() -> None:
    sweep = sweep_spec("slag", load_job("tune_slag").Args(class_weights="1,4,2.5"))
    grid = sweep.grid()
    assert grid is not None
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
        ("two_stage", {"data": CELLS}, "patch=.*larger than the images, which are 64x64"),
        ("two_stage", {"data": CELLS, "space": "search"}, "patch=96: larger than the images"),
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
