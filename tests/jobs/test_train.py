"""jobs/train.py from its command line: what it keeps, what it refuses, how it goes on."""

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro
from in_process import exit_code, load_job
from mlflow import MlflowClient

from stratum.data.source import load_data
from stratum.training.run import check
from stratum_models.arsm import paper as arsm_paper
from stratum_models.catalog import build_model
from stratum_models.fm_hrnet import paper as fm_hrnet_paper
from stratum_models.package import Manifest, load_package, save_package
from stratum_models.slag_deeplab import paper as slag_paper

TINY = ["--data", "synthetic://ore?images=10&size=64&seed=0", "--model", "losnet_debug", "--size", "64", "--augment", "none"]
TINY += ["--batch", "4", "--epochs", "2", "--evaluate-every", "1", "--workers", "0", "--cost-size", "64x64"]


NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


def test_a_run_leaves_a_package_figures_and_one_finished_mlflow_run(
    tmp_path: Path, mlflow_sqlite: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code("train", *TINY, "--storage", str(tmp_path), "--name", "first", "--set", "head_convs=2", "--register", "ore") == 0
    printed = capsys.readouterr().out
    assert "epoch 2/2" in printed
    assert "train ms/iter" in printed
    loaded = load_package(tmp_path / "first" / "package")
    assert loaded.manifest.classes == ("ore",)
    assert loaded.manifest.overrides == {"head_convs": 2, "input_short": 64}
    wanted = {"cost/params", "cost/macs", "cost/latency_ms", "cost/infer_memory_mb", "cost/train_s", "cost/train_memory_mb", "cost/size_mb"}
    wanted |= {"cost/train_step_ms"}
    assert wanted <= loaded.manifest.cost.keys()
    assert loaded.manifest.cost_setting["size"] == "64x64"
    assert f"threads {loaded.manifest.cost_setting['threads']}" in printed

    client = MlflowClient(tracking_uri=mlflow_sqlite)
    [found] = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert found.info.status == "FINISHED"
    assert found.data.metrics["val/mask_ap50"] == pytest.approx(loaded.manifest.metrics["val/mask_ap50"])
    assert found.data.params["model.overrides.head_convs"] == "2"
    assert [m.step for m in client.get_metric_history(found.info.run_id, "train/loss")] == [1, 2]
    assert {a.path for a in client.list_artifacts(found.info.run_id, "evaluation")} >= {
        f"evaluation/{name}.png" for name in ("training", "precision_recall", "sizes", "overlays")
    }
    assert len(client.search_model_versions("name='ore'")) == 1

    size_mb = sum(path.stat().st_size for path in (tmp_path / "first" / "package").iterdir()) / 2**20
    assert loaded.manifest.cost["cost/size_mb"] == pytest.approx(size_mb, rel=0.01)

    # The same name is refused, and --resume, without any other flag, finds nothing left to train.
    assert exit_code("train", *TINY, "--storage", str(tmp_path), "--name", "first") == 2
    assert "go on with --resume first" in capsys.readouterr().err
    assert exit_code("train", "--storage", str(tmp_path), "--resume", "first") == 0
    written = tmp_path / "first" / "run.json"
    values = json.loads(written.read_text())
    assert values["data_fingerprint"] == loaded.manifest.data_fingerprint
    written.write_text(json.dumps({**values, "data_fingerprint": "other"}))
    assert exit_code("train", "--storage", str(tmp_path), "--resume", "first") == 2
    assert "images or labels have changed" in capsys.readouterr().err
    assert [m.step for m in client.get_metric_history(found.info.run_id, "train/loss")] == [1, 2]


def test_costs_on_a_cluster_are_those_of_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, asked = load_job("train"), {}
    monkeypatch.setattr("stratum.training.distributed.in_a_task", lambda call, *arguments, **where: asked.update(where))
    spec = job.run_spec(job.Args(data="synthetic://ore?images=10&size=64&seed=0", storage=str(tmp_path), cpus_per_worker=3.0))
    result = job.TrainResult(epochs=1, history=[], metrics={}, best_epoch=0, stop_reason="", package="/package")
    job.measured_costs(result, spec, load_data(spec.data), (64, 64), afar=True)
    assert asked == {"cpus": 3.0, "gpu": False}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "nolos"], "unknown model 'nolos': known are losnet,"),
        (["--set", "heads=1"], "has no option 'heads': known are"),
        (["--set", "head_convs"], "--set 'head_convs': write it as option=value"),
        (["--data", "/nowhere/ore"], "/nowhere/ore"),
        (["--batch", "64"], "batch size 64 is larger than the 8 training images"),
        (["--learning-rate", "0"], "learning_rate is 0.0: it must be above 0"),
        (["--augment", "wild"], "augmentation 'wild' is not known"),
        (["--crop", "4"], "a side of 4 pixels is too small"),
        (["--seed", "-1"], "seed is -1: it must be 0 or more"),
        (["--split-seed", "-1"], "the split seed is -1"),
        (["--workers", "-3"], "--workers -3: give the number"),
        pytest.param(["--gpu"], "--gpu: this machine has no usable GPU", marks=NO_GPU),
        (["--init", "/nowhere/package"], "/nowhere/package"),
        (["--backbone-weights", "/nowhere/weights.safetensors"], "/nowhere/weights.safetensors"),
        (["--resume", "nobody"], "nobody: no run to go on with"),
        (["--storage", "s3://bucket/runs"], "s3://bucket/runs"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    tmp_path: Path, mlflow_sqlite: str, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert exit_code("train", *TINY, "--storage", str(tmp_path / "runs"), *flags) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_tracking_server_that_is_away_ends_the_job_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert exit_code("train", *TINY, "--storage", str(tmp_path / "runs")) == 2
    assert "http://127.0.0.1:9" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_more_workers_than_there_are_cpus_claim_no_name(
    tmp_path: Path, ray_local: None, mlflow_sqlite: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code("train", *TINY, "--storage", str(tmp_path / "runs"), "--workers", "4", "--cpus-per-worker", "9") == 2
    assert "4 workers with 9 CPU each need more than the 2 CPU there are" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_fine_tuning_takes_the_packages_own_model(tmp_path: Path) -> None:
    job = load_job("train")
    own = {"head_convs": 2, "input_short": 96}
    manifest = Manifest(preset="losnet_debug", overrides=own, classes=("ore", "slag"), num_classes=2, task="instance")
    save_package(tmp_path / "package", build_model("losnet_debug", num_classes=2, overrides=own), manifest)
    flags = {"data": "synthetic://ore?images=10&size=64&seed=0", "init": str(tmp_path / "package"), "size": 64, "storage": str(tmp_path)}
    spec = job.run_spec(job.Args(**flags))
    assert (spec.model.preset, spec.model.overrides) == ("losnet_debug", {"head_convs": 2, "input_short": 64})
    lines: list[str] = []
    check(spec, lines.append)
    assert f"tensors taken from {tmp_path / 'package'}; new: " in lines[0]
    assert "head_convs" not in job.run_spec(job.Args(**flags, model="losnet_debug")).model.overrides


@pytest.mark.parametrize("paper", [arsm_paper, fm_hrnet_paper, slag_paper], ids=lambda paper: paper.__name__.split(".")[1])
def test_the_command_in_a_papers_readme_trains_as_the_paper_does(paper: Any) -> None:
    readme = (Path(paper.__file__).parent / "README.md").read_text()
    _, command = readme.partition("## Trained as in the paper")[2].split("```")[:2]
    job = load_job("train")
    spec = job.run_spec(tyro.cli(job.Args, args=shlex.split(command.replace("\\\n", " "))[3:]))
    found = asdict(spec.train) | {"least_learning_rate": spec.train.learning_rate * spec.train.final_factor}
    if paper.TRAINING["optimizer"] == "adam":  # AdamW without weight decay, at one learning rate
        assert (found["optimizer"], found["weight_decay"], found["schedule"]) == ("adamw", 0, "constant")
        found["optimizer"] = "adam"
    assert {name: found[name] for name in paper.TRAINING} == pytest.approx(paper.TRAINING)
    assert (found["warmup_epochs"], found["clip_norm"], found["ema_decay"]) == (0, 0, 0)


def test_crops_of_larger_images() -> None:
    job = load_job("train")
    spec = job.run_spec(job.Args(size=384, crop=256, mosaic=0.2, scale=(0.8, 1.25), channels_last=True))
    assert (spec.augment.short_sides, spec.augment.crop, spec.augment.mosaic, spec.augment.scale_range) == ((384,), 256, 0.2, (0.8, 1.25))
    assert spec.model.overrides["input_short"] == 384
    assert spec.train.channels_last
    whole = job.run_spec(job.Args(size=384, crop=256, augment="none"))
    assert (whole.augment.short_sides, whole.augment.crop) == ((384,), 256)
