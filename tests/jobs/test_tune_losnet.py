"""The sweep's command: Ctrl-C, resume, bad input, each in a process of its own with a local Ray."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from in_process import exit_code, load_job
from mlflow import MlflowClient

from stratum.tuning.job import sweep_spec
from stratum_models.package import load_manifest

ROOT = Path(__file__).resolve().parents[2]
DATA = "synthetic://ore?images=8&size=64&seed=0&rocks=6&d50=16"
TINY = ["--models", "losnet_debug", "--data", DATA, "--epochs", "12", "--size", "64", "--batch", "2", "--evaluate-every", "1"]
TINY += ["--cost-size", "64x96", "--timing-rounds", "2", "--experiment", "cli", "--keep", "best"]


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    """The job in a session of its own, its output unbuffered; Ray takes its authentication from the environment."""
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(ROOT / root) for root in ("platform", "models", "serve")),
        "PYTHONUNBUFFERED": "1",
    }
    command = [sys.executable, str(ROOT / "jobs/tune_losnet.py"), *map(str, arguments)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def end(process: subprocess.Popen[str]) -> None:
    """No process is left behind, whatever the test found."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def interrupted(process: subprocess.Popen[str], word: str) -> tuple[str, str]:
    """What the job said; it gets one SIGINT when ``word`` appears."""
    errors: list[str] = []
    assert process.stdout is not None
    assert process.stderr is not None
    reader = threading.Thread(target=lambda: errors.extend(process.stderr or ()), daemon=True)
    reader.start()
    said = []
    for line in process.stdout:
        said.append(line)
        if word in line:
            process.send_signal(signal.SIGINT)
            word = "\0"
    process.wait(120)
    reader.join(30)
    return "".join(said), "".join(errors)


def runs(uri: str) -> list[Any]:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("cli")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


@pytest.mark.timeout(900)
def test_ctrl_c_ends_cleanly_and_the_sweep_resumes(tmp_path: Path, mlflow_sqlite: str) -> None:
    process = start(*TINY, "--storage", tmp_path / "out", "--name", "one")
    try:
        said, errors = interrupted(process, "epoch 1,")
    finally:
        end(process)
    assert process.returncode == 130, said + errors
    assert "partial results of one" in said
    assert "--resume one" in said
    assert "Traceback" not in errors
    assert [run.info.status for run in runs(mlflow_sqlite)] == ["KILLED", "KILLED"]

    again = start("--storage", tmp_path / "out", "--resume", "one")
    try:
        said, errors = again.communicate(timeout=500)
    finally:
        end(again)
    assert again.returncode == 0, said + errors
    assert "registered as: models:/losnet/1" in said
    assert (tmp_path / "out/one/report/pareto.png").exists()
    assert load_manifest(tmp_path / "out/best").weights_sha256
    parent, child = sorted(runs(mlflow_sqlite), key=lambda run: "mlflow.parentRunId" in run.data.tags)
    assert (parent.info.status, child.info.status) == ("FINISHED", "FINISHED")
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.data.metrics["cost/latency_ms"] == child.data.metrics["cost/latency_ms"]
    history = MlflowClient(mlflow_sqlite).get_metric_history(child.info.run_id, "epoch")
    assert [metric.step for metric in history] == list(range(1, 13))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--models", "losnett"], "losnett"),
        (["--tables", "9"], "--tables"),
        (["--data", "nowhere"], "nowhere"),
        (["--data", DATA, "--models", "losnet_debug", "--batch", "64"], "batch"),
        (["--data", DATA, "--models", "losnet_debug", "--set", "head_convs"], "--set"),
        (["--data", DATA, "--models", "losnet_debug,losnet_debug"], "losnet_debug"),
        (["--data", DATA, "--models", "losnet_debug", "--set", "bogus=1"], "bogus"),
        (["--data", DATA, "--models", "losnet_debug,losnet:backbone=resnet5o"], "resnet5o"),
        (["--data", DATA, "--space", "search", "--set", "bogus=1"], "bogus"),
        (["--data", DATA, "--space", "search", "--set", "norm=gn"], "norm"),
        (["--data", DATA, "--tables", "2", "--set", "fpn_channels=64"], "fpn_channels"),
        (["--data", DATA, "--models", "losnet_debug", "--register", "a/b"], "a/b"),
        (["--resume", "nothing"], "nothing"),
    ],
)
def test_bad_input_ends_with_one_line_and_writes_nothing(
    arguments: list[str], words: str, tmp_path: Path, mlflow_sqlite: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = exit_code("tune_losnet", *arguments, "--storage", tmp_path / "out")
    errors = capsys.readouterr().err
    assert code == 2, errors
    assert words in errors
    assert len(errors.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_s3_without_credentials_leaves_no_store_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    code = exit_code("tune_losnet", "--data", DATA, "--models", "losnet_debug", "--batch", "2", "--storage", "s3://bucket/runs")
    errors = capsys.readouterr().err
    assert code == 2, errors
    assert "s3://bucket/runs" in errors
    assert not (tmp_path / "mlflow.db").exists()


def test_the_demo_fills_in_what_is_not_given() -> None:
    job = load_job("tune_losnet")
    filled = job.with_demo(job.Args(demo=True, epochs=3))
    assert (filled.epochs, filled.tables, filled.size) == (3, job.DEMO["tables"], job.DEMO["size"])
    assert job.with_demo(job.Args()) == job.Args()
    assert all(getattr(filled, name) == value for name, value in job.DEMO.items() if name != "epochs")


@pytest.mark.parametrize("name", ["tune_losnet", "train"])
def test_results_of_a_submitted_job_do_not_go_into_its_folder(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    job = load_job(name)

    def place(**flags: str) -> str:
        if name == "train":
            return str(job.run_spec(job.Args(**flags)).storage)
        return str(sweep_spec("losnet", job.Args(**flags)).base.storage)

    monkeypatch.chdir(tmp_path)
    assert place() == str(tmp_path / "outputs")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert not place().startswith(str(tmp_path))
    assert place(storage="s3://bucket/runs") == "s3://bucket/runs"


def test_the_papers_augmentation_is_judged_at_the_papers_size() -> None:
    job = load_job("tune_losnet")
    paper = sweep_spec("losnet", job.Args(augment="paper")).extra
    assert (paper["input_short"], paper["input_long"]) == (480, 640)
    assert sweep_spec("losnet", job.Args(size=320)).extra == {"input_short": 320}
