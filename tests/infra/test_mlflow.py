"""MLflow's server as it is deployed, on PostgreSQL and S3, and its backup: a champion that was served before is served after."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from stratum.registry import fetch_package
from stratum.tracking import client_for
from stratum_models.catalog import build_model, preset
from stratum_models.package import Manifest, save_package

ROOT = Path(__file__).resolve().parents[2]
ADMIN = "correct-horse-battery"


@contextmanager
def server(postgres: Any, database: str, artifacts: str, aws: dict[str, str], log: Path) -> Iterator[str]:
    """The script that the containers start, on a free port."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {
        **os.environ, **aws, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MLFLOW_BIND": "127.0.0.1", "MLFLOW_PORT": str(port),
        "MLFLOW_WORKERS": "1", "MLFLOW_DB_HOST": f"127.0.0.1:{postgres.env['PGPORT']}", "MLFLOW_DB_NAME": database,
        "MLFLOW_DB_PASSWORD": postgres.env["PGPASSWORD"], "MLFLOW_ARTIFACTS": artifacts, "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "k" * 32, "TMPDIR": str(log.parent),
    }  # fmt: skip
    with log.open("wb") as file:
        process = subprocess.Popen([ROOT / "infra/mlflow/start"], env=env, stdout=file, stderr=file, cwd=log.parent, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(900):
            assert process.poll() is None, log.read_text()
            if status(f"{address}/health") == 200:
                break
            time.sleep(0.1)
        yield address
    finally:
        end(process)


def end(process: "subprocess.Popen[bytes]") -> None:
    """The server and its workers, where they still run."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(20)
            return
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except OSError:
        return 0


def package(folder: Path) -> Path:
    name = "unet_s2_debug"
    manifest = Manifest(preset=name, classes=("background", "ore"), num_classes=2, task=preset(name).task, data_fingerprint="f")
    save_package(folder, build_model(name, num_classes=2), manifest)
    return folder


def register(client: Any, made: Path) -> None:
    """A run with a figure and a package, which is registered and champion."""
    run = client.create_run(client.create_experiment("backup"))
    client.log_metric(run.info.run_id, "val/miou", 0.5)
    client.log_artifacts(run.info.run_id, str(made), "package")
    client.create_registered_model("kept")
    version = client.create_model_version("kept", f"{run.info.artifact_uri}/package", run.info.run_id)
    client.set_registered_model_alias("kept", "champion", str(version.version))


def test_a_champion_survives_backup_and_restore(postgres: Any, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = postgres.database(), postgres.database()
    artifacts = f"s3://{s3.bucket()}/mlflow"
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)  # clients reach artifacts through the server alone
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", ADMIN)
    made = package(tmp_path / "made")
    with server(postgres, first, artifacts, s3.env, tmp_path / "first.log") as address:
        assert status(f"{address}/api/2.0/mlflow/experiments/search?max_results=1") == 401
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        register(client_for(address), made)
        # No password stands where other users of the machine can read it.
        assert postgres.env["PGPASSWORD"] not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
        running = [command for process in psutil.Process().children(recursive=True) for command in process.cmdline()]
        assert "uvicorn" in running
        assert "mlflow.server.jobs._job_runner" not in running  # which starts seven more
    dump = tmp_path / "backups" / "mlflow.dump"
    assert_ok(backup(postgres, first, dump))
    assert backup(postgres, first, dump).returncode == 2
    assert_ok(restore(postgres, second, dump))
    refused = restore(postgres, second, dump)
    assert (refused.returncode, "--replace" in refused.stderr) == (2, True)
    assert_ok(restore(postgres, second, dump, "--replace"))
    with server(postgres, second, artifacts, s3.env, tmp_path / "second.log") as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cold"))
        fetched = fetch_package("models:/kept@champion")
        assert (fetched / "weights.safetensors").read_bytes() == (made / "weights.safetensors").read_bytes()
        (found,) = client_for(address).search_runs([client_for(address).get_experiment_by_name("backup").experiment_id])
        assert found.data.metrics["val/miou"] == 0.5


def test_a_damaged_backup_is_refused_and_changes_nothing(postgres: Any, tmp_path: Path) -> None:
    database, dump = postgres.database(), tmp_path / "x.dump"
    sql(postgres, database, "create table t (a int); insert into t values (7)")
    assert_ok(backup(postgres, database, dump))
    whole = dump.read_bytes()
    dump.write_bytes(whole[:-20] + b"\0" * 20)
    done = restore(postgres, database, dump, "--replace")
    assert (done.returncode, "damaged" in done.stderr) == (2, True)
    assert sql(postgres, database, "select a from t") == "7"


def test_a_restore_that_breaks_off_changes_nothing(postgres: Any, tmp_path: Path) -> None:
    database, dump = postgres.database(), tmp_path / "x.dump"
    sql(postgres, database, "create table t (a int); insert into t values (7)")
    assert_ok(backup(postgres, database, dump))
    cut = dump.read_bytes()[:-200]
    dump.write_bytes(cut)
    sum_of(dump)
    done = restore(postgres, database, dump, "--replace")
    assert done.returncode == 2
    assert sql(postgres, database, "select a from t") == "7"


def test_an_empty_database_is_no_backup(postgres: Any, tmp_path: Path) -> None:
    done = backup(postgres, postgres.database(), tmp_path / "x.dump")
    assert (done.returncode, "no tables" in done.stderr) == (2, True)
    assert list(tmp_path.iterdir()) == []


def backup(postgres: Any, database: str, file: Path) -> subprocess.CompletedProcess[str]:
    return run(postgres, database, ROOT / "scripts/mlflow-backup", file)


def restore(postgres: Any, database: str, file: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return run(postgres, database, ROOT / "scripts/mlflow-restore", *flags, file)


def sql(postgres: Any, database: str, text: str) -> str:
    return assert_ok(run(postgres, database, "psql", "--no-psqlrc", "-qtAc", text)).stdout.strip()


def run(postgres: Any, database: str, *command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env={**postgres.env, "PGDATABASE": database}, capture_output=True, text=True, timeout=120)


def assert_ok(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert done.returncode == 0, done.stderr
    return done


def sum_of(file: Path) -> None:
    done = subprocess.run(["sha256sum", file.name], cwd=file.parent, capture_output=True, text=True, check=True)
    Path(f"{file}.sha256").write_text(done.stdout)
