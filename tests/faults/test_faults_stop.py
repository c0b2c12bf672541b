"""Trainings that are told to stop: SIGTERM leaves a checkpoint of the step that was done, Ctrl-C ends at once; both go on later."""

import os
import shutil
import signal
from pathlib import Path

import pytest
from in_process import exit_code, load_job
from runs import losses, only_run, train_flags, training

TRAIN = train_flags(images=40, epochs=3)


@pytest.fixture(scope="module")
def whole(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, float]]:
    """The losses of a run that nobody stops."""
    folder = tmp_path_factory.mktemp("whole")
    tracking = f"sqlite:///{shutil.copy(empty_store, folder / 'mlflow.db')}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", tracking)
        assert exit_code("train", *TRAIN, "--workers", "0", "--storage", folder) == 0
    return losses(tracking)


def test_sigterm_leaves_a_checkpoint_and_the_run_goes_on(whole: list[tuple[int, float]], tmp_path: Path, mlflow_sqlite: str) -> None:
    with training(*TRAIN, "--workers", "0", "--storage", tmp_path) as running:
        running.read_until("epoch 1/3")
        running.process.send_signal(signal.SIGTERM)
        code, errors = running.end()
    assert code == 130, running.said + errors
    assert "told to stop: " in running.said
    assert "--resume one" in running.said
    assert errors == "interrupted\n"
    assert only_run(mlflow_sqlite).info.status == "KILLED"
    assert exit_code("train", "--storage", tmp_path, "--resume", "one") == 0
    assert losses(mlflow_sqlite) == whole
    assert only_run(mlflow_sqlite).info.status == "FINISHED"


def test_sigterm_reaches_the_workers_of_ray(
    whole: list[tuple[int, float]],
    ray_local: None,
    tmp_path: Path,
    mlflow_sqlite: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    job = load_job("train")

    def tell(line: str) -> None:
        print(line, flush=True)
        if "epoch 1/3" in line:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(job, "say", tell)
        assert exit_code("train", *TRAIN, "--workers", "2", "--cpus-per-worker", "0.5", "--storage", tmp_path) == 130
    said = capsys.readouterr()
    assert "told to stop: " in said.out
    assert "--resume one" in said.out
    assert said.err.endswith("interrupted\n")
    assert only_run(mlflow_sqlite).info.status == "KILLED"
    assert exit_code("train", "--storage", tmp_path, "--resume", "one") == 0
    assert [step for step, _ in losses(mlflow_sqlite)] == [1, 2, 3]
    assert [loss for _, loss in losses(mlflow_sqlite)] == pytest.approx([loss for _, loss in whole], rel=0.1)  # BatchNorm sees half a batch
    assert only_run(mlflow_sqlite).info.status == "FINISHED"


def test_ctrl_c_on_ray_ends_at_once(tmp_path: Path, mlflow_sqlite: str) -> None:
    with training(*TRAIN, "--workers", "1", "--storage", tmp_path) as running:
        running.read_until("epoch 1/3")
        running.process.send_signal(signal.SIGINT)
        code, errors = running.end()
    assert code == 130, running.said + errors
    assert "told to stop" not in running.said
    assert "--resume one" in running.said
    assert "Traceback" not in errors
    assert only_run(mlflow_sqlite).info.status == "KILLED"


def test_without_grace_sigterm_ends_at_once(
    tmp_path: Path, mlflow_sqlite: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = load_job("train")

    def tell(line: str) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(job, "say", tell)
    assert exit_code("train", *TRAIN, "--workers", "0", "--grace-s", "0", "--storage", tmp_path) == 130
    assert "told to stop" not in capsys.readouterr().out
    assert only_run(mlflow_sqlite).info.status == "KILLED"
