"""The repository's shape: what keeps imports working on every Ray worker."""

import importlib.machinery
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
JOBS = sorted(path.stem for path in (ROOT / "jobs").glob("*.py"))


def test_no_package_at_the_root_hides_a_standard_module() -> None:
    assert not {path.parent.name for path in ROOT.glob("*/__init__.py")} & set(sys.stdlib_module_names)


def test_tests_are_no_packages() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_test_files_have_names_of_their_own() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("job", JOBS)
def test_no_job_hides_a_module(job: str) -> None:
    # A job's folder is first on its own sys.path: jobs/ray.py would be what `import ray` finds.
    others = [path for path in sys.path if Path(path or ".").resolve() != ROOT / "jobs"]
    assert importlib.machinery.PathFinder.find_spec(job, others) is None
    assert job not in sys.stdlib_module_names


def test_imports_run_one_way() -> None:
    done = subprocess.run([Path(sys.executable).with_name("lint-imports")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("modules", "forbidden"),
    [
        ("stratum.training.engine stratum.metrics.instance stratum.cost stratum.data.source", "ray"),
        ("stratum_models.catalog stratum_models.package", "ray mlflow boto3 stratum"),
    ],
)
def test_a_fresh_interpreter_loads_only_what_a_layer_may_know(modules: str, forbidden: str) -> None:
    # import-linter reads the source; this also sees what an import pulls in on the way.
    script = f"import sys, {', '.join(modules.split())}; print(*(set({forbidden.split()}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
