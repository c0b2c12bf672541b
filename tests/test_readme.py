"""The README's commands are real: jobs exist, their flags too, and what costs little is run."""

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from in_process import exit_code

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
JOBS = sorted(path.name for path in (ROOT / "jobs").glob("*.py"))


def commands() -> list[list[str]]:
    """Every `python jobs/X.py ...` of the README's code blocks, as argument lists."""
    blocks = "\n".join(re.findall(r"^```bash\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)).replace("\\\n", " ")
    return [shlex.split(line[line.index("python jobs/") :], comments=True) for line in blocks.splitlines() if "python jobs/" in line]


def run(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *argv], cwd=ROOT, capture_output=True, text=True, timeout=240)


@cache
def help_of(job: str) -> str:
    """What a job says of itself; in this process, since a new one imports for seconds."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert exit_code(job.removesuffix(".py"), "--help") == 0
    return said.getvalue()


def test_the_first_screen_shows_the_two_commands() -> None:
    first_screen = README.splitlines()[:25]
    for target in ("demo", "test"):
        assert any(line.startswith(f"make {target}") for line in first_screen)
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


def test_the_jobs_table_is_complete() -> None:
    assert sorted(re.findall(r"^\| `jobs/(\w+\.py)`", README, flags=re.MULTILINE)) == JOBS


@pytest.mark.parametrize("job", JOBS)
def test_every_job_explains_itself(job: str) -> None:
    assert "--" in help_of(job)


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_flags_of_the_readme_exist(command: list[str]) -> None:
    job = Path(command[1]).name
    for flag in (part.split("=")[0] for part in command[2:] if part.startswith("--")):
        assert re.search(rf"{flag}\b", help_of(job)), f"{job} has no {flag}"


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_every_model_of_the_catalog_is_named() -> None:
    from stratum_models.catalog import CATALOG

    for name in CATALOG:
        assert name.endswith("_debug") or f"`{name}`" in README, name


def test_the_runtime_environment_holds_the_settings_of_this_shell_and_nothing_else() -> None:
    env = {"PATH": os.environ["PATH"], "AWS_REGION": "eu-1", "MLFLOW_TRACKING_URI": "http://x", "HOME": "/", "SECRET": "s"}
    done = subprocess.run([ROOT / "scripts" / "runtime-env"], env=env, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"env_vars": {"AWS_REGION": "eu-1", "MLFLOW_TRACKING_URI": "http://x"}}


def test_the_embedded_data_is_checked(tmp_path: Path) -> None:
    done = run("jobs/check_data.py", "--data", "synthetic://ore?images=4&size=64&seed=0", "--sheet", tmp_path / "sheet.png")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "sheet.png").stat().st_size > 0


def test_cost_is_measured_without_a_clock(tmp_path: Path) -> None:
    done = run("jobs/benchmark.py", "--models", "losnet,condinst_mv3", "--size", "480x640", "--cost-only", "--json", tmp_path / "cost.json")
    assert done.returncode == 0, done.stderr
    losnet, condinst = json.loads((tmp_path / "cost.json").read_text())
    assert 2.3e6 <= losnet["params"] <= 2.5e6
    assert losnet["macs"] < condinst["macs"]
    promised = "model task input params macs size_bytes latency_ms latency_ratio peak_memory_mb paper"
    assert set(promised.split()) <= losnet.keys()
