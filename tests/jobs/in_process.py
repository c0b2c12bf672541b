"""Jobs run in the process of their test, which saves the seconds that a process of its own takes to import its libraries."""

import importlib
from pathlib import Path
from typing import Any

import pytest

from stratum.cli import run_job


def load_job(name: str) -> Any:
    """The module of a job, such as ``train``."""
    return importlib.import_module(name)


def exit_code(name: str, *argv: str | Path) -> int:
    """A job's exit code."""
    job = load_job(name)
    with pytest.raises(SystemExit) as ended:
        run_job(job.main, job.Args, argv=[str(argument) for argument in argv])
    return int(ended.value.code or 0)
