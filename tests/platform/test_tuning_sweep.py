import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from mlflow import MlflowClient
from optuna.trial import TrialState

from stratum import cost
from stratum.data.source import Dataset, DataSpec, load_data
from stratum.tracking import open_run
from stratum.training import appraise
from stratum.training.spec import ModelSpec, RunSpec, TrainSpec
from stratum.tuning import trial
from stratum.tuning.finalists import _whole_node, choose_finalists, keep_costs, measured, winner, with_costs
from stratum.tuning.outcome import time_finalists
from stratum.tuning.results import comparison, plot_effects, plot_front, problems, report_rows
from stratum.tuning.space import ablation_grid
from stratum.tuning.spec import SweepSpec, load_sweep, save_sweep
from stratum.tuning.studies import STUDIES
from stratum.tuning.sweep import FINISHED, FinishedOnly, TrialRow, concurrency, last_line, run_sweep
from stratum_models.errors import UserError
from stratum_models.package import load_manifest, load_package


def sweep_spec(folder: Path, **changes: Any) -> SweepSpec:
    base = RunSpec(
        data=DataSpec(uri="synthetic://ore?images=8&size=64&seed=0&rocks=6&d50=16"),
        model=ModelSpec(preset="losnet"),
        storage=str(folder),
        experiment="sweeps",
        name="tiny",
        train=TrainSpec(epochs=2, batch_size=2, optimizer="adamw", learning_rate=1e-3, schedule="cosine"),
        max_failures=0,
    )
    values: dict[str, Any] = {"name": "tiny", "base": base, "tables": (), "models": ("losnet_debug", "losnet"), "cost_size": (96, 128)}
    return SweepSpec(**{**values, "timing_rounds": 2, **changes})


def finished(name: str, ap50: float, macs: float, rows: tuple[str, ...] = (), **changes: Any) -> TrialRow:
    metrics = {"val/mask_ap50": ap50, "cost/macs": macs, "cost/size_mb": 9.0, FINISHED: 1.0}
    row = TrialRow(name=name, state="finished", preset="losnet", overrides={}, rows=rows, metrics=metrics, package=f"/{name}/package")
    return replace(row, **changes)


@pytest.mark.timeout(600)
def test_a_sweep_with_a_failing_trial(ray_local: None, mlflow_sqlite: str, tmp_path: Path) -> None:
    sweep = sweep_spec(tmp_path)
    blocked = tmp_path / "tiny" / "trials" / "losnet"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where the trial's folder should be")
    said: list[str] = []
    with open_run("sweeps", "tiny") as parent:
        rows, interrupted = run_sweep(sweep, parent.run_id, parent.uri, say=said.append)
        chosen = choose_finalists(rows, sweep)
        costs = measured(chosen, sweep)
    rows = with_costs(rows, costs)
    keep_costs(rows, costs)
    assert not interrupted
    good, bad = rows
    assert (good.name, good.state, bad.name, bad.state) == ("losnet_debug", "finished", "losnet", "failed")
    assert bad.error
    assert any(f"losnet: failed: {bad.error}" in line for line in said)
    assert any("2 of 2 trials done" in line for line in said)
    check_costs(good)
    client = MlflowClient(mlflow_sqlite)
    children = client.search_runs([client.get_run(parent.run_id).info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.run_id}'")
    assert {run.data.tags["stratum.variant"]: run.info.status for run in children} == {"losnet_debug": "FINISHED", "losnet": "FAILED"}
    run = next(run for run in children if run.info.run_id == good.run_id)
    assert run.data.params["model.overrides.head_convs"] == "1"
    assert run.data.metrics["cost/macs"] == good.metrics["cost/macs"]
    assert [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")] == [1, 2]


@pytest.mark.timeout(900)
def test_a_search_whose_trials_are_evaluated_now_and_then(ray_local: None, mlflow_sqlite: str, tmp_path: Path) -> None:
    sweep = sweep_spec(tmp_path, space="search", trials=1, models=("losnet_debug",), extra={"mask_convs": 1})
    train = replace(sweep.base.train, evaluate_every=2)
    sweep = replace(sweep, base=replace(sweep.base, train=train, model=ModelSpec(preset="losnet_debug")), cost_size=(64, 64))
    with open_run("sweeps", "tiny") as parent:
        rows, _ = run_sweep(sweep, parent.run_id, parent.uri)
    assert [(row.state, row.error) for row in rows] == [("finished", "")] * 2
    assert rows[0].name == "losnet_debug"  # what is named comes first, and is compared with what was drawn
    assert rows[1].name.startswith("trial-")
    assert all({"val/mask_ap50", "sweep/utility", "train/step_ms"} <= set(row.metrics) for row in rows)


@pytest.mark.timeout(900)
def test_a_semantic_network_is_trained_once_and_judged_as_each_row_asks(ray_local: None, mlflow_sqlite: str, tmp_path: Path) -> None:
    tiny = {"width": 4, "stem_strides": (2, 2), "modules": (1, 1, 1), "blocks": 1}
    sweep = sweep_spec(tmp_path, study="arsm", tables=("samples",), models=(), extra=tiny, class_weights="inverse", cost_size=(64, 64))
    data = DataSpec(uri="synthetic://cells?images=8&size=64&seed=0")
    sweep = replace(sweep, base=replace(sweep.base, data=data, train=replace(sweep.base.train, epochs=1)))
    with open_run("sweeps", "tiny") as parent:
        rows, _ = run_sweep(sweep, parent.run_id, parent.uri)
    assert [(row.state, row.error) for row in rows] == [("finished", "")] * 4
    assert [row.rows for row in rows] == [("samples/expected",), ("samples/1",), ("samples/10",), ("samples/100",)]
    assert len({row.metrics["val/miou"] for row in rows}) > 1
    assert all({"sweep/utility", "cost/macs", "val/iou_synapse"} <= set(row.metrics) for row in rows)
    weights = [load_package(Path(str(row.package))).model.state_dict() for row in rows]
    assert all(torch.equal(value, other[name]) for other in weights[1:] for name, value in weights[0].items())
    assert [load_manifest(Path(str(row.package))).overrides.get("samples") for row in rows] == [None, 1, 10, 100]
    assert all(len(load_manifest(Path(str(row.package))).overrides["class_weights"]) == 4 for row in rows)  # type: ignore[arg-type]
    client = MlflowClient(mlflow_sqlite)
    runs = [client.get_run(str(row.run_id)) for row in rows]
    assert {(run.info.status, run.data.tags["stratum.class_weights"]) for run in runs} == {("FINISHED", "inverse")}
    assert [run.data.params["model.overrides.samples"] for run in runs] == ["100", "1", "10", "100"]
    assert {run.data.params["model.overrides.temperature"] for run in runs} == {"0.1"}
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {parent.run_id}


def test_a_trial_reads_its_data_once(mlflow_sqlite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = sweep_spec(tmp_path, models=("losnet_debug",), cost_size=(64, 64))
    sweep = replace(sweep, base=replace(sweep.base, train=replace(sweep.base.train, epochs=1), threads=1))
    loads: list[DataSpec] = []
    rows: list[dict[str, Any]] = []

    def loaded(spec: DataSpec) -> Dataset:
        loads.append(spec)
        return load_data(spec)

    monkeypatch.setattr("stratum.training.run.load_data", loaded)
    monkeypatch.setattr(trial.ray.tune, "report", rows.append)
    with open_run("sweeps", "tiny") as parent:
        trial._run_trial(sweep.variant({"variant": "losnet_debug"}, "1"), {"variant": "losnet_debug"}, sweep, parent.run_id)
    assert loads == [sweep.base.data]
    assert rows[-1]["sweep/finished"] == 1


def test_a_trial_waits_for_a_store_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "store"
    place.write_text("a file where the store's folder should be")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place}/mlflow.db")
    spec = sweep_spec(tmp_path / "out").base
    monkeypatch.setattr(trial, "PAUSES", (0.0,))
    with pytest.raises(UserError, match="tracking store"), trial.patient_run(spec, "tiny/a", {}, "parent"):
        pass
    monkeypatch.setattr(trial, "PAUSES", (0.2,) * 100)
    back = threading.Timer(0.5, place.unlink)
    back.start()
    with trial.patient_run(spec, "tiny/a", {}, "parent") as run:
        assert run.parent_id == "parent"
    back.join()


def test_what_cannot_be_timed_does_not_lose_the_results(
    tmp_path: Path, ray_local: None, mlflow_sqlite: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [finished("lost", 0.5, 7e9, package=str(tmp_path / "nowhere"))]
    assert time_finalists(rows, sweep_spec(tmp_path), mlflow_sqlite) == rows
    assert "not timed: " in capsys.readouterr().out


def test_a_node_for_timing_has_the_gpu() -> None:
    nodes = [{"CPU": 64.0}, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 2.0}]
    assert (_whole_node(nodes, gpu=False), _whole_node(nodes, gpu=True), _whole_node([{}], gpu=False)) == (64.0, 8.0, 1.0)


def check_costs(row: TrialRow) -> None:
    """The winner's figures, also in its package."""
    wanted = {"cost/params", "cost/macs", "cost/size_mb", "cost/latency_ms", "cost/infer_memory_mb", "cost/train_s", "cost/train_memory_mb"}
    assert wanted | {"val/mask_ap50", "val/box_ap", "cost/train_step_ms"} <= set(row.metrics)
    assert row.package
    manifest = load_manifest(Path(row.package))
    assert manifest.cost["cost/latency_ms"] == row.metrics["cost/latency_ms"]
    assert (manifest.cost_setting["size"], manifest.cost_setting.keys()) == ("96x128", {"device", "threads", "size"})
    assert {"train/step_ms", "train/memory_mb"} <= row.metrics.keys()  # beside other trials
    assert not {"train/step_ms", "train/memory_mb"} & manifest.metrics.keys()


def test_optuna_is_told_finished_trials_alone() -> None:
    space = {"x": optuna.distributions.FloatDistribution(0, 1)}
    search = FinishedOnly(space=space, metric=["ap", "macs"], mode=["max", "min"], seed=0)
    for name in "abcd":
        search.suggest(name)
    search.on_trial_complete("a", {"ap": 0.5, "macs": 1.0, FINISHED: 1})
    search.on_trial_complete("b", {"ap": 0.9, "macs": 1.0})  # stopped at an early epoch
    search.on_trial_complete("c", None, error=True)
    search.on_trial_complete("d", {"macs": 1.0, FINISHED: 1}, error=True)
    named = FinishedOnly(space=space, metric=["ap", "macs"], mode=["max", "min"], seed=0, named=["losnet"])
    assert named.suggest("a") == {"variant": "losnet", "x": None}
    assert set(named.suggest("b") or {}) == {"x"}
    for name in "ab":
        named.on_trial_complete(name, {"ap": 0.5, "macs": 1.0, FINISHED: 1})
    assert [trial.state for trial in named._ot_study.trials] == [TrialState.COMPLETE]
    states = [trial.state for trial in search._ot_study.trials]
    assert states == [TrialState.COMPLETE, TrialState.FAIL, TrialState.FAIL, TrialState.FAIL]
    assert [trial.values for trial in search._ot_study.best_trials] == [[0.5, 1.0]]


@pytest.mark.parametrize(
    ("workers", "cpus", "gpu", "resources", "expected"),
    [
        (1, 1.0, False, {"CPU": 2.0}, 2),
        (2, 1.0, False, {"CPU": 7.0}, 3),
        (1, 2.0, False, {"CPU": 1.0}, 1),
        (2, 1.0, True, {"CPU": 64.0, "GPU": 8.0}, 4),
        (1, 1.0, True, {"CPU": 3.0, "GPU": 8.0}, 3),
    ],
)
def test_concurrency_follows_the_cluster(
    tmp_path: Path, workers: int, cpus: float, gpu: bool, resources: dict[str, float], expected: int
) -> None:
    sweep = sweep_spec(tmp_path)
    sweep = replace(sweep, base=replace(sweep.base, num_workers=workers, cpus_per_worker=cpus, use_gpu=gpu))
    assert concurrency(sweep, resources) == expected
    assert concurrency(replace(sweep, max_concurrent=5), resources) == 5


@pytest.mark.parametrize(("address", "resources", "advised"), [("head:6379", {}, 1), ("head:6379", {"CPU": 4.0}, 0), ("", {}, 0)])
def test_a_cluster_that_is_still_to_grow_is_pointed_out(
    address: str, resources: dict[str, float], advised: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    said: list[str] = []
    sweep = sweep_spec(tmp_path)
    concurrency(sweep, resources, said.append)
    assert ["--max-concurrent" in line for line in said] == [True] * advised
    assert concurrency(replace(sweep, max_concurrent=8), {}, said.append) == 8
    assert len(said) == advised


def test_a_sweep_is_stored_and_read_back(tmp_path: Path) -> None:
    sweep = sweep_spec(tmp_path, models=("losnet:head_convs=1",), tables=("2", "4"), extra={"mask_channels": 16})
    save_sweep(sweep, None)
    save_sweep(sweep, "run-1")
    assert load_sweep(sweep.folder) == (sweep, "run-1")
    with pytest.raises(UserError, match="--resume tiny"):
        save_sweep(sweep, None)
    with pytest.raises(UserError, match="no sweep to resume"):
        load_sweep(str(tmp_path / "other"))


def test_a_sweep_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    sweep = sweep_spec(tmp_path, tables=("2", "4"), models=())
    save_sweep(sweep, "run-1")
    path = tmp_path / "tiny" / "sweep.json"
    values = json.loads(path.read_text())
    del values["spec"]["study"], values["spec"]["class_weights"]
    values["spec"] |= {"tables": [2, 4], "tradeoff": {"macs_price": 0.02, "size_price": 0.01}}
    path.write_text(json.dumps(values))
    assert load_sweep(sweep.folder) == (sweep, "run-1")


def test_a_searched_trial_becomes_a_run(tmp_path: Path) -> None:
    sweep = sweep_spec(tmp_path, space="search", extra={"input_short": 64})
    config = {"backbone": "mnasnet_050", "fpn_channels": 64, "norm": "gn", "learning_rate_factor": 2.0}
    run = sweep.run_spec(sweep.variant(config, "7"), config)
    assert run.name == "trial-7"
    assert run.train.learning_rate == pytest.approx(2e-3)
    assert run.model.overrides == {"input_short": 64, "backbone": "mnasnet_050", "fpn_channels": 64, "norm": "gn"}
    assert run.storage == f"{tmp_path}/tiny/trials"


def test_finalists_and_winner(tmp_path: Path) -> None:
    rows = [finished("large", 0.52, 64e9), finished("small", 0.50, 7e9), finished("bad", 0.3, 8e9)]
    rows.append(replace(rows[0], name="lost", state="failed", package=None))
    search, grid = sweep_spec(tmp_path, space="search"), sweep_spec(tmp_path)
    assert [row.name for row in choose_finalists(rows, search)] == ["small", "large"]
    assert [row.name for row in choose_finalists(rows, replace(search, finalists=1))] == ["small"]
    beside = [*rows, finished("losnet", 0.2, 9e9)]
    assert [row.name for row in choose_finalists(beside, search)] == ["losnet", "small", "large"]  # ratios are to the first
    assert [row.name for row in choose_finalists(rows, grid)] == ["large", "small", "bad"]
    assert [row.name for row in choose_finalists(rows, replace(grid, finalists=1))] == ["small"]
    best = winner(rows, grid)
    assert best is not None
    assert best.name == "small"
    assert winner([rows[-1]], grid) is None


def test_finalists_are_timed_a_few_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [appraise.Packaged(name=name, package=name, preset="losnet", overrides={}) for name in "abcde"]
    groups: list[list[str]] = []

    def timed(models: dict[str, object], *_: object, **__: object) -> dict[str, cost.Timing]:
        groups.append(list(models))
        return {name: cost.Timing(latency_ms=float(len(groups)), ratio=1.0) for name in models}

    monkeypatch.setattr(appraise, "timed_model", lambda package: torch.nn.Identity())
    monkeypatch.setattr(appraise, "prepare_for_inference", lambda model: model)
    monkeypatch.setattr(appraise, "_memory", lambda *_: {})
    monkeypatch.setattr(cost, "time_models", timed)
    found = appraise.measure(given, [], sweep_spec(tmp_path).base, (64, 64), 3).figures
    assert groups == [["a", "b", "c", "d"], ["a", "e"]]
    assert [found[name]["cost/latency_ms"] for name in "abcde"] == [1.0, 1.0, 1.0, 1.0, 2.0]


def test_table_and_plot_show_every_row_of_the_paper(tmp_path: Path) -> None:
    study = STUDIES["losnet"]
    grid = ablation_grid(study, ("1", "4"))
    rows = [finished(v.name, 0.4 + 0.01 * i, (1 + i) * 1e9, v.rows) for i, v in enumerate(grid.variants)]
    rows[2] = replace(rows[2], state="failed", metrics={}, error="boom")
    lines = report_rows(rows, study, grid)
    assert len(lines) == 15
    text = comparison(rows, study, grid)
    assert "PeleeNet (not run)" in text
    assert "(failed)" in text
    assert "Table 4" in text
    assert "47.0" in text  # the paper's mask AP50 with two convolutions
    assert max(map(len, text.splitlines())) <= 120
    assert comparison(rows, study, grid, markdown=True).count("\n") > 15
    said = problems(rows, grid)
    assert any("boom" in line for line in said)
    assert any("t1/PeleeNet" in line for line in said)
    path = plot_front(rows, study, tmp_path / "new" / "front.png", "title")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert plot_front([], study, tmp_path / "empty.png", "nothing").exists()


def test_the_effect_of_what_is_varied_is_drawn(tmp_path: Path) -> None:
    study = STUDIES["arsm"]
    grid = ablation_grid(study, ("1", "temperature", "samples"))
    found = {"val/miou": 0.6, "cost/macs": 1e9, "cost/size_mb": 9.0}
    runs = [one for v in grid.variants for one in (v, *v.judgements)]
    rows = [finished(one.name, 0, 1e9, one.rows, metrics={**found, "val/miou": 0.6 + i / 100}) for i, one in enumerate(runs)]
    lines = report_rows(rows, study, grid)
    assert [line["name"] for line in lines if line["group"] == study.tables["samples"]] == ["expected", "1", "10", "100"]
    path = plot_effects(rows, study, tmp_path / "effects.svg", "title")
    assert path is not None
    text = path.read_text()
    for word in (study.tables["temperature"], study.tables["samples"], "0.05", "expected", "mIoU, %"):
        assert f"<!-- {word} -->" in text
    assert "<!-- HRNetW18 -->" not in text  # the paper's tables are no effects
    assert plot_effects(rows[:1], study, tmp_path / "none.png", "title") is None
    assert not (tmp_path / "none.png").exists()


def test_the_reason_is_the_last_line() -> None:
    assert last_line("Traceback\n  at x\nValueError: bad\n\n") == "ValueError: bad"
    assert last_line(ValueError()) == "ValueError"


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "a/b"},
        {"register_as": "a/b"},
        {"trials": 0},
        {"models": ()},
        {"study": "lostnet"},
        {"tables": ("9",)},
        {"class_weights": "x"},
        {"max_concurrent": -1},
        {"space": "random"},
    ],
)
def test_sweeps_that_make_no_sense(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        sweep_spec(tmp_path, **changes)
