"""Sweeps as submitted jobs: a real Ray head with token authentication, on local files, and on S3 with a tracking server."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
pytestmark = pytest.mark.timeout(900)  # a head, a tracking server and a sweep on two cores
# One epoch of each trial: as little as a sweep can be, all the way to the report.
SWEEP = ["--experiment", "submitted", "--epochs", "1", "--size", "64", "--augment", "none", "--evaluate-every", "1"]
SWEEP += ["--cost-size", "64x64", "--register", "none", "--timing-rounds"]
ORE = ["jobs/tune_losnet.py", "--batch", "32", "--classes", "roca+glomero=ore"]
TWO_STAGES = ["jobs/tune_two_stage.py", "--batch", "8"]
CURVE = {"dice_patches.png", "macs_patches.png", "dice_time.png", "pareto.png"}
CELLS = ["jobs/tune_arsm.py", "--batch", "4", "--class-weights", "median"]


@dataclass(frozen=True)
class Head:
    """A running Ray head and the environment that reaches it."""

    address: str
    env: Mapping[str, str]


class HeadLost(RuntimeError):
    """A server ended before it was ready."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: list[str], env: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own; the whole group is ended afterwards, and nothing else."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=dict(env), cwd=log.parent, stdout=out, stderr=out, start_new_session=True)
        try:
            yield process
        finally:
            process.terminate()  # `ray start --block` ends what it started
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


def wait_for(url: str, headers: Mapping[str, str], process: subprocess.Popen[bytes], log: Path, patience: float = 120) -> None:
    last: object = None
    give_up = time.monotonic() + patience
    while time.monotonic() < give_up:
        check_alive(process, log)
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=dict(headers)), timeout=5) as answer:
                answer.read()
            return
        except OSError as error:
            last = error
            time.sleep(0.2)
    raise AssertionError(f"no answer from {url} after {patience} s ({last}):\n{log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with ExitStack() as stack:
        for attempt in range(3):
            try:
                yield stack.enter_context(ray_head(tmp_path_factory.mktemp("head")))
                return
            except HeadLost:  # on a busy machine a part of Ray may give up waiting for another while it starts
                if attempt == 2:
                    raise


@contextmanager
def ray_head(logs: Path) -> Iterator[Head]:
    """`ray start --head` in the foreground, on free ports, with token authentication."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # short: Ray puts sockets below it
    token, dashboard = secrets.token_hex(32), free_port()
    env = {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": "platform:models:serve",  # relative, as on a cluster: a job runs the checkout that was submitted
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # nobody waits for what still runs at the end
    }
    ports = {"dashboard-port": dashboard}
    ports.update({name: free_port() for name in ("port", "ray-client-server-port", "dashboard-agent-listen-port")})
    command = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2", "--num-gpus=0", "--disable-usage-stats"]
    command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}", f"--object-store-memory={256 * 2**20}"]
    command += [f"--{name}={port}" for name, port in ports.items()]
    log = logs / "head.log"
    address = f"http://127.0.0.1:{dashboard}"
    try:
        with running(command, env, log) as process:
            wait_for(f"{address}/api/version", {"Authorization": f"Bearer {token}"}, process, log)
            wait_until_it_blocks(process, log)
            yield Head(address=address, env={**env, "RAY_ADDRESS": address})
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def wait_until_it_blocks(process: subprocess.Popen[bytes], log: Path) -> None:
    """Until `ray start` has looked once at the parts that it started: it gives up where one of them is gone."""
    while "will now block" not in log.read_text():
        check_alive(process, log)
        time.sleep(0.2)
    time.sleep(2.0)
    check_alive(process, log)


def check_alive(process: subprocess.Popen[bytes], log: Path) -> None:
    if process.poll() is not None:
        raise HeadLost(log.read_text()[-3000:])


def submit(head: Head, arguments: list[str], env_vars: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """`ray job submit` as the README shows it."""
    runtime_env = json.dumps({"env_vars": dict(env_vars)})
    command = [str(BIN / "ray"), "job", "submit", "--working-dir", ".", "--runtime-env-json", runtime_env, "--", "python", *arguments]
    try:
        return subprocess.run(command, cwd=ROOT, env=dict(head.env), capture_output=True, text=True, timeout=600)
    except subprocess.TimeoutExpired as late:
        raise AssertionError(f"the job did not end; so far it said:\n{(late.stdout or b'').decode()[-5000:]}") from None


@contextmanager
def tracking_server(folder: Path, empty_store: Path) -> Iterator[str]:
    """An `mlflow server` on sqlite, which keeps the artifacts."""
    port, store = free_port(), shutil.copy(empty_store, folder / "server.db")
    command = [str(BIN / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{store}", "--artifacts-destination", str(folder / "artifacts")]
    log = folder / "server.log"
    with running(command, {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}, log) as process:
        wait_for(f"http://127.0.0.1:{port}/health", {}, process, log)
        yield f"http://127.0.0.1:{port}"


def runs_of(uri: str, experiment: str) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return list(client.search_runs([found.experiment_id]))


def check_runs(uri: str, experiment: str, *, trials: int, metric: str = "val/mask_ap50") -> None:
    """One parent and its trials, all finished, with the metric that they are compared by."""
    runs = runs_of(uri, experiment)
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert (len(runs), len(children)) == (trials + 1, trials)
    assert len({run.data.tags["mlflow.parentRunId"] for run in children}) == 1
    assert all(metric in run.data.metrics for run in children)


def test_a_request_without_the_token_is_refused(head: Head) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{head.address}/api/jobs/", timeout=10)
    refused.value.close()
    assert refused.value.code in (401, 403)
    assert submit(Head(head.address, {**head.env, "RAY_AUTH_TOKEN": "wrong" * 8}), ["-c", "pass"], {}).returncode != 0


def check_curve(tracking: str, *, children: int) -> list[Any]:
    """The runs below a finished sweep, whose own run shows its figures."""
    from mlflow import MlflowClient

    found = runs_of(tracking, "submitted")
    assert {run.info.status for run in found} == {"FINISHED"}
    (parent,) = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    shown = {Path(artifact.path).name for artifact in MlflowClient(tracking).list_artifacts(parent.info.run_id, "report")}
    assert shown >= CURVE
    assert len(found) == 1 + children
    return [run for run in found if run is not parent]


def test_a_sweep_on_local_files(head: Head, shared: Path, mlflow_sqlite: str, tmp_path: Path) -> None:
    sweep = [*TWO_STAGES, *SWEEP, "0", "--models", "two_stage_debug:count=2", "--name", "local"]
    sweep += ["--data", str(shared / "data" / "drive" / "train"), "--storage", str(tmp_path / "runs")]
    done = submit(head, sweep, {"MLFLOW_TRACKING_URI": mlflow_sqlite})
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    check_curve(mlflow_sqlite, children=2)  # stage 1 and the trial
    assert {path.name for path in (tmp_path / "runs" / "local" / "report").iterdir()} >= CURVE
    assert "winner: " in done.stdout


@pytest.mark.soak
def test_two_stages_on_local_files_beside_both_baselines(head: Head, shared: Path, mlflow_sqlite: str, tmp_path: Path) -> None:
    sweep = [*TWO_STAGES, *SWEEP, "1", "--models", "unet_s2_debug,sliding_debug,two_stage_debug:count=2", "--name", "two"]
    sweep += ["--data", str(shared / "data" / "drive" / "train"), "--storage", str(tmp_path / "runs")]
    done = submit(head, sweep, {"MLFLOW_TRACKING_URI": mlflow_sqlite})
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    trials = [run for run in check_curve(mlflow_sqlite, children=4) if "stratum.groundwork" not in run.data.tags]
    assert all({"cost/latency_ms", "val/foreground_dice"} <= set(run.data.metrics) for run in trials)
    rows = json.loads((tmp_path / "runs" / "two" / "report" / "trials.json").read_text())
    assert [row["preset"] for row in rows if row["metrics"]["cost/latency_ms"] > 0] == ["unet_s2_debug", "sliding_debug", "two_stage_debug"]


@pytest.mark.soak
def test_two_stages_on_s3_show_their_curve(head: Head, shared: Path, s3: Any, s3_env: Any, mlflow_sqlite: str) -> None:
    from stratum import storage

    data, runs = f"s3://{s3.bucket()}/drive", f"s3://{s3.bucket()}/runs"
    storage.upload_tree(shared / "data" / "drive" / "train", f"{data}/train")
    storage.write_bytes(f"{data}/classes.json", (shared / "data" / "drive" / "classes.json").read_bytes())
    sweep = [*TWO_STAGES, *SWEEP, "0", "--models", "two_stage_debug:count=2", "--data", data, "--storage", runs, "--name", "two"]
    done = submit(head, sweep, {**s3.env, "MLFLOW_TRACKING_URI": mlflow_sqlite})
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    check_curve(mlflow_sqlite, children=2)  # stage 1 and the trial
    assert all(storage.exists(f"{runs}/two/report/{name}") for name in CURVE)


@pytest.mark.soak
def test_a_sweep_over_cells(head: Head, shared: Path, mlflow_sqlite: str, tmp_path: Path) -> None:
    sweep = [*CELLS, *SWEEP, "0", "--models", "hrnet_arsm_debug", "--name", "cells"]
    sweep += ["--data", str(shared / "data" / "sstem"), "--storage", str(tmp_path / "runs")]
    done = submit(head, sweep, {"MLFLOW_TRACKING_URI": mlflow_sqlite})
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    check_runs(mlflow_sqlite, "submitted", trials=1, metric="val/iou_synapse")


def test_a_sweep_on_s3_with_a_tracking_server(head: Head, shared: Path, s3: Any, s3_env: Any, empty_store: Path, tmp_path: Path) -> None:
    from stratum import storage

    data, runs = f"s3://{s3.bucket()}/ore", f"s3://{s3.bucket()}/runs"
    storage.upload_tree(shared / "data" / "ore_belt", data)
    with tracking_server(tmp_path, empty_store) as tracking:
        sweep = [*ORE, *SWEEP, "0", "--models", "losnet_debug", "--data", data, "--storage", runs, "--name", "remote"]
        done = submit(head, sweep, {**s3.env, "MLFLOW_TRACKING_URI": tracking})
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
        check_runs(tracking, "submitted", trials=1)
    assert storage.exists(f"{runs}/remote/report/pareto.png")
    assert [uri for uri in storage.list_files(runs) if uri.endswith("package/weights.safetensors")]
