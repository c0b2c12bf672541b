"""Docs, manifests and code say the same: images, ports, versions, settings, files."""

import ast
import re
import shutil
import subprocess
import tomllib
from functools import cache
from pathlib import Path

import pytest
import ray

ROOT = Path(__file__).resolve().parents[2]
DOCS = (ROOT / "docs" / "operations.md").read_text()
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
SETTING = re.compile(r"\b(?:(?:STRATUM|AWS|MLFLOW|RAY|OMP|TORCH)_[A-Z0-9_]+|PG[A-Z]{4,})\b")
FOREIGN = ("AWS_", "MLFLOW_", "RAY_", "OMP_")  # of Ray, MLflow, botocore: read by them, not by this code
# What nobody is to set: the code, Ray or Kubernetes does so for itself.
INTERNAL = {
    "STRATUM_LOCAL_RAY", "STRATUM_CONFIGURATION", "RAY_GCS_SERVER_PORT", "RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_RAYLET_PID", "RAY_HEAD_IP",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "RAY_AIR_NEW_OUTPUT", "MLFLOW_AUTH_CONFIG_PATH", "MLFLOW_BACKEND_STORE_URI", "PGDATA",
    "MLFLOW_DISABLE_TELEMETRY", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "MLFLOW_LOGGING_LEVEL", "AWS_WEB_IDENTITY_TOKEN",
}  # fmt: skip
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
SOAK = re.compile(r"`(tests/soak/\w+\.py) --parts (\w+)`")
TESTS_ONLY = {"STRATUM_SHARED", "STRATUM_TESTS_S3_VENV"}


def files(*folders: str) -> dict[str, str]:
    """Tracked and new files under folders, with their text."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names = [name for name in listed.stdout.splitlines() if (ROOT / name).is_file() and not name.endswith((".png", ".js"))]
    return {name: (ROOT / name).read_text() for name in names}


INFRA, CODE = files("infra", "scripts"), files("platform", "models", "serve", "jobs")


def settings(texts: dict[str, str]) -> set[str]:
    return {name.removesuffix("_FILE").rstrip("_") for text in texts.values() for name in SETTING.findall(text)} - TESTS_ONLY


def test_every_setting_of_the_docs_exists_and_the_reverse() -> None:
    documented = settings(files("docs", "README.md"))
    used = settings(INFRA) | settings(CODE)
    generic = {name for name in used | documented if name.startswith("STRATUM_SERVE")}  # made of the fields of ServeConfig
    assert {name for name in documented - generic if name.startswith("STRATUM_")} <= used
    assert used - generic - INTERNAL <= documented
    assert used >= INTERNAL


def test_foreign_settings_of_the_docs_are_known_to_their_libraries() -> None:
    import botocore
    import mlflow

    known = CODE | INFRA
    for package, ending in ((ray, "*.py"), (mlflow, "environment_variables.py"), (botocore, "*.py")):
        known |= {str(path): path.read_text(errors="replace") for path in Path(package.__file__).parent.rglob(ending) if _small(path)}
    text = "\n".join(known.values())
    names = {name for name in settings(files("docs", "README.md")) if name.startswith(FOREIGN)}
    assert [name for name in sorted(names) if not re.search(rf"\b(AWS_)?{name.removeprefix('AWS_')}(_FILE)?\b", text, re.IGNORECASE)] == []


def _small(path: Path) -> bool:
    return path.stat().st_size < 400_000 and "/rllib/" not in str(path)


def test_one_version_everywhere() -> None:
    found = {tag for text in [*INFRA.values(), DOCS] for tag in re.findall(r"\bstratum:(\d+\.\d+\.\d+)", text)}
    assert found == {VERSION}
    assert {tag for text in INFRA.values() for tag in re.findall(r"newTag: (\S+?)[},\s]", text)} == {VERSION}
    assert {found for text in INFRA.values() for found in re.findall(r"rayVersion: (\S+)", text)} == {ray.__version__}


def test_one_tag_for_each_image() -> None:
    tags: dict[str, set[str]] = {}
    for text in INFRA.values():
        for name, tag in re.findall(r"image: ([\w./-]+):([\w.-]+)", text):
            tags.setdefault(name, set()).add(tag)
    assert {name: found for name, found in tags.items() if len(found) > 1} == {}
    assert len(tags) >= 5


PORTS = {
    "GCS": (r"--port=(\d+)", {"6379", "5432"}), "dashboard": (r"dashboard-port[=: \"]+(\d+)", {"8265"}),
    "metrics": (r"metrics-export-port[=: \"]+(\d+)", {"8080"}), "MLflow": (r"http://mlflow:(\d+)", {"5000"}),
    "S3": (r"http://s3:(\d+)", {"9000"}), "Serve": (r"http_options: \{host: 0\.0\.0\.0, port: (\d+)", {"8000"}),
}  # fmt: skip


@pytest.mark.parametrize("name", PORTS)
def test_each_service_has_one_port(name: str) -> None:
    pattern, ports = PORTS[name]
    found = {port for text in INFRA.values() for port in re.findall(pattern, text)}
    assert found
    assert found <= ports
    assert name == "GCS" or len(found) == 1
    exposed = (ROOT / "infra/Dockerfile").read_text()
    assert name in ("S3",) or found & set(re.findall(r"\d+", exposed.split("EXPOSE")[1].splitlines()[0]))


def test_paths_of_the_docs_exist() -> None:
    for path in re.findall(r"\b((?:infra|scripts|jobs|tests|docs)/[\w./-]+\w)", DOCS):
        if path != "infra/compose/secrets" and not path.startswith("infra/image"):
            assert (ROOT / path).exists(), path
    for target in re.findall(r"\bmake ([a-z-]+)\b", "\n".join(re.findall(r"```bash\n(.*?)```", DOCS, re.DOTALL))):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target


def survived() -> list[str]:
    """The rows of the table of faults."""
    lines = DOCS.split("## What it survives")[1].split("\n## ")[0].splitlines()
    return [line for line in lines if line.startswith("| ")][1:]


@pytest.mark.parametrize("row", survived(), ids=lambda row: row.split("|")[1].strip())
def test_every_fault_that_is_survived_has_a_test(row: str) -> None:
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert len(cells) == 5
    assert all(cells)
    shown, soaked = TEST.findall(cells[4]), SOAK.findall(cells[4])
    assert len(shown) + len(soaked) == cells[4].count("`tests/") > 0
    for path, name in shown:
        assert name in functions(path), f"{path} has no {name}"
    for path, part in soaked:
        assert f'"{part}": lambda' in (ROOT / path).read_text(), f"{path} has no part {part}"


@cache
def functions(path: str) -> set[str]:
    return {node.name for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, ast.FunctionDef)}


def test_every_block_of_commands_is_run_by_a_test_or_says_why_not() -> None:
    blocks = re.findall(r"^```bash\n.*?^```\n\n(.*?)\n\n", DOCS, re.DOTALL | re.MULTILINE)
    assert len(blocks) == DOCS.count("```bash\n") >= 8
    for after in blocks:
        shown = TEST.findall(after)
        assert shown, after
        assert after.startswith(("Run by `", "Not run: ", "`make ")), after
        assert all(name in functions(path) for path, name in shown), after


def test_jobs_that_ask_mlflow_get_its_password() -> None:
    # `exec` goes past the image's entry point, which reads the secrets; what is submitted to Ray has the node's environment.
    commands = re.findall(r"compose exec head (.*)", DOCS)
    assert commands
    assert all(command.startswith(("ray job submit", "/app/infra/image/entrypoint ")) for command in commands)


def test_secrets_that_manifests_want_are_made_in_the_docs() -> None:
    wanted = {
        name for text in INFRA.values() for name in re.findall(r"(?:secretKeyRef: \{name|secretName|secretRef: \{name): ([\w-]+)", text)
    }
    assert wanted == set(re.findall(r"create secret (?:generic|tls) ([\w-]+)", DOCS))
    for name, key in {pair for text in INFRA.values() for pair in re.findall(r"secretKeyRef: \{name: ([\w-]+), key: ([\w-]+)\}", text)}:
        block = re.search(rf"create secret generic {name} (.*?)\n(?:kubectl|```)", DOCS, re.DOTALL)
        assert block is not None
        assert f"={key}=" in block[1] or f"-literal={key}=" in block[1], (name, key)


def test_secrets_and_backups_that_the_docs_make_are_not_uploaded_with_a_job(tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

    named = set(re.findall(r"scripts/(?:secrets|mlflow-backup) ([\w./-]+)", DOCS)) | {"infra/compose/secrets", "secrets", "backups/x.dump"}
    shutil.copy(ROOT / ".gitignore", tmp_path)
    excludes = get_excludes_from_ignore_files(tmp_path, include_gitignore=True)
    for name in named:
        path = tmp_path / name if "." in Path(name).name else tmp_path / name / "ray_token"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        folders = [path, *path.parents[: len(path.relative_to(tmp_path).parts) - 1]]
        assert any(exclude(one) for exclude in excludes for one in folders), name
        assert subprocess.run(["git", "check-ignore", "-q", path.relative_to(tmp_path)], cwd=ROOT).returncode == 0, name
    assert not any(exclude(tmp_path / "jobs" / "train.py") for exclude in excludes)


def test_no_secret_and_no_path_of_a_machine_is_in_the_files() -> None:
    for name, text in INFRA.items():
        assert not re.search(r"/(home/(?!stratum)|root/|work/)", text), name
        assert not re.search(r"AKIA[A-Z0-9]{16}|BEGIN [A-Z ]*PRIVATE KEY", text), name


@pytest.mark.parametrize("script", sorted(name for name, text in INFRA.items() if text.startswith("#!")))
def test_scripts_parse_and_may_be_run(script: str) -> None:
    path = ROOT / script
    assert path.stat().st_mode & 0o111, script
    first = path.read_text().splitlines()[0]
    if "python" in first:
        compile(path.read_text(), script, "exec")
    else:
        subprocess.run([first.split()[-1].removeprefix("#!"), "-n", path], check=True, timeout=60)
