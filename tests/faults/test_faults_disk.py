"""A disk that is full: one line, and the last good checkpoint goes on once there is room."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import until
from runs import losses, only_run, train_flags, training

FLAGS = train_flags(images=160, epochs=2)
MOUNT = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of the test's own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.run([*MOUNT, folder], capture_output=True).returncode:
        pytest.skip("only root may mount a small disk, and not everywhere")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path) -> Path:
    """Take what is left of a disk."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(2**16)):
                pass
        except OSError:
            return path
    raise AssertionError("unreachable")


@pytest.mark.parametrize("workers", ["0", pytest.param("1", marks=pytest.mark.soak)])
def test_a_full_disk_ends_with_one_line_and_the_run_goes_on_when_there_is_room(
    disk: Path, tmp_path: Path, mlflow_sqlite: str, workers: str
) -> None:
    noted = disk / "runs" / "one" / "ray" / "checkpoint_manager_snapshot.json"
    with training(*FLAGS, "--workers", workers, "--storage", disk / "runs") as job:
        job.read_until(" left")  # at the end of the first epoch
        if workers == "1":
            until(lambda: "checkpoint_2" in noted.read_text() if noted.exists() else False)  # Ray has the checkpoint in its list
        filler = fill(disk)
        code, errors = job.end()
    assert code == 2, job.said + errors
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert str(disk / "runs" / "one") in errors
    assert "no space is left" in errors
    assert "--resume one" in job.said
    assert only_run(mlflow_sqlite).info.status == "FAILED"
    filler.unlink()
    with training("--storage", disk / "runs", "--resume", "one") as job:
        code, errors = job.end()
    assert code == 0, job.said + errors
    assert "going on after epoch 1" in job.said
    assert [step for step, _ in losses(mlflow_sqlite)] == [1, 2]
    assert only_run(mlflow_sqlite).info.status == "FINISHED"


def test_a_full_folder_for_temporary_files_is_named(
    disk: Path, tmp_path: Path, mlflow_sqlite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(disk))
    with training(*FLAGS, "--workers", "0", "--storage", tmp_path / "runs") as job:
        job.read_until(" left")
        fill(disk)
        code, errors = job.end()
    assert code == 2, job.said + errors
    assert errors.startswith(f"error: {disk}/")
    assert errors.count("\n") == 1
    assert "TMPDIR" in errors
