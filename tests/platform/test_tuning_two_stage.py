"""The sweep over two stages: what its trials share, what it draws, and one that runs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from stratum import cost
from stratum.data.source import DataSpec
from stratum.report.curves import Series, curves_plot
from stratum.report.plots import Candidate
from stratum.tracking import open_run
from stratum.training.spec import ModelSpec, RunSpec, TrainSpec
from stratum.tuning import two_stage_report
from stratum.tuning.groundwork import groundwork_epochs, groundwork_of
from stratum.tuning.preparation import all_groundwork, lay_groundwork
from stratum.tuning.reporting import TIME, EpochRows
from stratum.tuning.space import ablation_grid, own_variant
from stratum.tuning.spec import SweepSpec
from stratum.tuning.studies import STUDIES
from stratum.tuning.studies.study import RELATIVE_TIME
from stratum.tuning.sweep import TrialRow, run_sweep
from stratum.tuning.two_stage_report import kind_of, two_stage_plots
from stratum_models.package import load_package

TINY = {"stage1": "unet_s2_debug", "stage2": "unet_s2_debug", "patch_batch": 16}


def sweep_spec(folder: Path, **changes: Any) -> SweepSpec:
    base = RunSpec(
        data=DataSpec(uri="synthetic://vessels?images=6&size=128&seed=0"),
        model=ModelSpec(preset="two_stage"),
        storage=str(folder),
        experiment="sweeps",
        name="tiny",
        train=TrainSpec(epochs=1, batch_size=4, optimizer="adamw", learning_rate=1e-3, schedule="constant"),
        max_failures=0,
    )
    values: dict[str, Any] = {
        "name": "tiny",
        "base": base,
        "study": "two_stage",
        "tables": ("blend",),
        "extra": TINY,
        "cost_size": (128, 128),
    }
    return SweepSpec(**{**values, "timing_rounds": 2, **changes})


def test_trials_share_the_stage_1_that_would_come_out_the_same() -> None:
    same = ["two_stage:patch=48", "two_stage:margin=8+uncertainty=entropy", "two_stage:prior=yes+stage2=fm_hrnet_v4"]
    found = [groundwork_of(own_variant(entry)) for entry in same]
    assert len({one.name for one in found if one}) == 1
    assert {tuple(one.overrides.items()) for one in found if one} == {(("stage1_share", 1.0),)}
    other = [
        groundwork_of(own_variant(entry)) for entry in (same[0], "two_stage:scale=2", "two_stage:stage1=unet_r18", "two_stage:loss=ce")
    ]
    assert len({one.name for one in other if one}) == 4
    weighted = groundwork_of(own_variant(same[0], class_weights="median"))
    assert weighted is not None
    assert weighted.name != found[0].name  # type: ignore[union-attr]
    for entry in ("unet_s2", "sliding", "two_stage:stage1_share=0.5", "two_stage:freeze_stage1=no"):
        assert groundwork_of(own_variant(entry)) is None
    assert [groundwork_epochs(epochs) for epochs in (1, 10, 1000)] == [1, 2, 200]


def test_a_trial_starts_from_what_is_shared_and_trains_stage_2_alone(tmp_path: Path) -> None:
    sweep = sweep_spec(tmp_path)
    grid = sweep.grid()
    (shared,) = all_groundwork(sweep)
    (variant,) = grid.variants
    spec = sweep.run_spec(variant, {})
    assert spec.model.init == f"{tmp_path}/tiny/shared/{shared.name}/package"
    assert spec.model.overrides == {**TINY, "margin": 16, "count": 8, "stage1_share": 0.0}
    first = sweep.groundwork_spec(shared)
    assert (first.storage, first.name) == (f"{tmp_path}/tiny/shared", shared.name)
    assert first.model.overrides == {"stage1": "unet_s2_debug", "stage1_share": 1.0}


def test_a_search_shares_the_stages_that_it_may_draw(tmp_path: Path) -> None:
    sweep = sweep_spec(tmp_path, space="search", tables=())
    found = all_groundwork(sweep)
    assert [one.overrides["scale"] for one in found] == list(STUDIES["two_stage"].choices["scale"])
    drawn = {"scale": 4.0, "patch": 48, "margin": 8, "pick": "share", "learning_rate_factor": 2.0}
    spec = sweep.run_spec(sweep.variant(drawn, "7"), drawn)
    assert spec.model.init == f"{tmp_path}/tiny/shared/{found[1].name}/package"
    assert [goal.metric for goal in sweep.plan.objectives] == ["val/foreground_dice", "cost/macs", RELATIVE_TIME]
    assert [(v.name, v.rows) for v in sweep.grid().variants] == [
        ("unet_s2_debug", ("t3/full resolution",)),
        ("t3-sliding-window", ("t3/sliding window",)),
    ]
    named = {"variant": "t3-sliding-window", "learning_rate_factor": None}
    spec = sweep.run_spec(sweep.variant(named, "8"), named)
    assert (spec.name, spec.model.init, spec.train.learning_rate) == ("t3-sliding-window", None, 1e-3)


@pytest.mark.timeout(600)
def test_a_sweep_trains_stage_1_once(ray_local: None, mlflow_sqlite: str, tmp_path: Path) -> None:
    sweep = sweep_spec(tmp_path, extra={**TINY, "pick": "threshold", "threshold": 0.9})
    said: list[str] = []
    with open_run("sweeps", "tiny") as parent:
        lay_groundwork(sweep, parent.run_id, parent.uri, said.append)
        rows, _ = run_sweep(sweep, parent.run_id, parent.uri)
        lay_groundwork(sweep, parent.run_id, parent.uri, said.append)  # as a resumed sweep does
    assert sum("trained once" in line for line in said) == 1
    assert [(row.state, row.error, row.rows) for row in rows] == [("finished", "", ("blend/hard",)), ("finished", "", ("blend/blended",))]
    assert all({"val/foreground_dice", "cost/macs", RELATIVE_TIME} <= set(row.metrics) for row in rows)
    for row in rows:
        most, least = (cost.count(row.preset, (128, 128), num_classes=2, overrides={**row.overrides, "cap": cap}).macs for cap in (4, 0))
        assert row.metrics["cost/macs"] == least + (most - least) / 4 * row.metrics["val/patches"]
    (shared,) = all_groundwork(sweep)
    first = load_package(tmp_path / "tiny" / "shared" / shared.name / "package").model.state_dict()
    trained, judged = (load_package(Path(str(row.package))) for row in rows)
    state = trained.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in first.items() if name.startswith("stage1."))
    assert not all(torch.equal(value, state[name]) for name, value in first.items() if name.startswith("stage2."))
    assert (bool(first["refines"]), bool(state["refines"])) == (False, True)
    assert all(torch.equal(value, judged.model.state_dict()[name]) for name, value in state.items())
    assert (trained.manifest.overrides.get("blend"), judged.manifest.overrides["blend"]) == (None, True)
    client = MlflowClient(mlflow_sqlite)
    children = client.search_runs([client.get_run(parent.run_id).info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.run_id}'")
    assert [run.info.status for run in children] == ["FINISHED"] * 3
    assert sum("stratum.groundwork" in run.data.tags for run in children) == 1


def rows_of(*tables: str) -> list[TrialRow]:
    """A finished trial for each row of some tables, with figures that its options determine."""
    grid = ablation_grid(STUDIES["two_stage"], tables)
    rows = []
    for variant in grid.variants:
        for one in (variant, *variant.judgements):
            count = int(str(one.overrides.get("count", 16)))
            metrics = {"val/foreground_dice": 0.7 + count / 1000, "cost/macs": (1 + count) * 1e9, RELATIVE_TIME: 0.1 + count / 100}
            rows.append(
                TrialRow(name=one.name, state="finished", preset=variant.preset, overrides=one.overrides, rows=one.rows, metrics=metrics)
            )
    return rows


def test_figures_3_and_4_have_a_line_for_each_size_of_a_patch(tmp_path: Path) -> None:
    rows = rows_of("3", "scale", "pick")
    assert {kind_of(row) for row in rows} == {"full resolution", "sliding window", "stage 1 alone", "two stages"}
    drawn = two_stage_plots(rows, tmp_path, "title")
    assert [path.name for path in drawn] == ["dice_patches.png", "macs_patches.png", "dice_time.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    failed = [replace(row, state="failed", metrics={}) for row in rows]
    assert all(path.exists() for path in two_stage_plots(failed, tmp_path / "empty", "title"))


def test_all_trials_are_on_the_curve_by_a_clock_that_all_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str, list[float]]] = []

    def plot(candidates: list[Candidate], path: Path, *, cost_label: str, **_: object) -> Path:
        drawn.append((cost_label, [candidate.cost for candidate in candidates]))
        return path

    monkeypatch.setattr(two_stage_report, "pareto_plot", plot)
    rows = rows_of("scale")
    timed = [replace(row, metrics={**row.metrics, "cost/latency_ms": 7.0}) for row in rows]
    two_stage_plots(timed, tmp_path, "title")
    two_stage_plots([*timed[:2], rows[2]], tmp_path, "title")
    assert drawn == [
        ("time of a prediction, ms", [7.0] * 3),
        ("time of a prediction, relative to full resolution", [row.metrics[RELATIVE_TIME] for row in rows]),
    ]


def test_what_a_threshold_picks_is_what_it_costs() -> None:
    rows = EpochRows(fixed={"cost/macs": 9e9}, study="two_stage", epochs=3, threshold_macs=(1e9, 5e8))
    judged = {"epoch": 1, "val/foreground_dice": 0.7, "val/patches": 2.5}
    assert rows({"epoch": 1})["cost/macs"] == 9e9
    assert rows(judged)["cost/macs"] == 2.25e9
    assert replace(rows, threshold_macs=None)(judged)["cost/macs"] == 9e9
    assert (TIME in rows(judged), TIME in replace(rows, epochs=0)(judged)) == (True, False)
    assert cost.threshold_macs("two_stage_debug", (96, 96), num_classes=2, overrides={}) is None
    assert cost.threshold_macs("unet_s2", (96, 96), num_classes=2, overrides={}) is None
    plan = STUDIES["two_stage"]
    slow, quick = ({"val/foreground_dice": 0.7, "cost/macs": 1e9, RELATIVE_TIME: time} for time in (0.4, 0.2))
    assert plan.utility(quick) - plan.utility(slow) == pytest.approx(0.004)


def test_curves_are_drawn_through_what_is_known(tmp_path: Path) -> None:
    series = [Series(name="48x48", points=[(8, 71.0), (16, float("nan")), (32, 73.0)]), Series(name="none", points=[])]
    path = curves_plot(series, {"full": 74.0, "lost": float("nan")}, tmp_path / "a.svg", x_label="patches", y_label="Dice, %", title="t")
    text = path.read_text()
    for word in ("48x48", "full: 74", "patches", "Dice, %", "8", "32"):
        assert f"<!-- {word} -->" in text
    assert "<!-- 16 -->" not in text
    assert "lost" not in text
