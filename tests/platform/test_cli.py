"""Exit codes and error lines of jobs."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass

import pytest

from stratum.cli import run_job, user_error_in
from stratum_models.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Args:
    """Flags of a job."""

    data: str
    """Where the images are."""
    epochs: int = 3
    """How often."""

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise UserError(f"--epochs must be at least 1,\n got {self.epochs}")


def succeed(args: Args) -> None:
    """A job that reads its flags."""
    print(args.data, args.epochs)


def refuse(args: Args) -> int:
    raise UserError(f"no data at {args.data}: check the path")


def break_down(args: Args) -> int:
    raise RuntimeError("a defect")


def interrupt(args: Args) -> int:
    raise KeyboardInterrupt


def interrupt_under_ray(args: Args) -> int:
    raise SystemExit(int(signal.SIGTERM))  # what the handler of ray.init does


def code_of(*argv: str, main=succeed) -> object:  # type: ignore[no-untyped-def]
    with pytest.raises(SystemExit) as end:
        run_job(main, Args, argv=argv)
    return end.value.code


def test_flags_reach_the_job_and_the_code_is_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of("--data", "x", "--epochs", "5") == 0
    assert capsys.readouterr().out == "x 5\n"


def test_the_code_that_a_job_returns_is_kept() -> None:
    assert code_of("--data", "x", main=lambda args: 1) == 1


def test_help_shows_the_job_and_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of("--help") == 0
    out = capsys.readouterr().out
    assert "A job that reads its flags." in out
    assert "--epochs" in out
    assert "How often." in out


@pytest.mark.parametrize("argv", [("--data", "x", "--epoch", "1"), ("--data", "x", "--epochs", "many"), ()])
def test_a_bad_flag_is_2_and_named(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(*argv) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert "--" in err


@pytest.mark.parametrize(
    ("argv", "main", "line"),
    [
        (("--data", "x", "--epochs", "0"), succeed, "error: --epochs must be at least 1, got 0\n"),
        (("--data", "x"), refuse, "error: no data at x: check the path\n"),
    ],
)
def test_a_users_error_is_one_line_and_2(argv, main, line, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    assert code_of(*argv, main=main) == 2
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("main", [interrupt, interrupt_under_ray])
def test_an_interrupt_is_130(main, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    assert code_of("--data", "x", main=main) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_defect_keeps_its_traceback() -> None:
    with pytest.raises(RuntimeError, match="a defect"):
        run_job(break_down, Args, argv=["--data", "x"])


def test_the_users_error_is_found_inside_what_ray_wraps_around_it() -> None:
    mistake = UserError("bad")
    workers = RuntimeError("a worker failed")
    workers.worker_failures = {0: ValueError("x"), 1: mistake}  # type: ignore[attr-defined]
    controller = RuntimeError("the controller failed")
    controller.__cause__ = workers
    assert user_error_in(controller) is mistake
    assert user_error_in(RuntimeError("other")) is None


def test_sigterm_ends_a_job_like_ctrl_c() -> None:
    script = (
        "import dataclasses, time\n"
        "from stratum.cli import run_job\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Args: pass\n"
        "def main(args):\n"
        "    try:\n"
        "        print('up', flush=True); time.sleep(60)\n"
        "    finally:\n"
        "        print('closed', flush=True)\n"
        "run_job(main, Args)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == "up\n"
        os.kill(job.pid, signal.SIGTERM)
        out, err = job.communicate(timeout=30)
    assert (out, err, job.returncode) == ("closed\n", "interrupted\n", 130)


def test_a_users_error_of_a_ray_task_is_one_line(ray_local: None, capsys: pytest.CaptureFixture[str]) -> None:
    import ray

    @ray.remote
    def task() -> None:
        raise UserError("broken image a.png")

    def main(args: Args) -> None:
        ray.get(task.remote())

    assert code_of("--data", "x", main=main) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: broken image a.png"
