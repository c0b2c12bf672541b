"""What tests share: real images, a real S3 server, a local Ray, an MLflow store, and an environment without the user's settings."""

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("STRATUM_SHARED") or ROOT.parent / "shared").absolute()
NO_SHARED = "the shared folder is missing"
# Kept between runs: the S3 server is installed once. In the environment, since pytest's own processes do not see the user's folders.
S3_VENV = Path(os.environ.setdefault("STRATUM_TESTS_S3_VENV", str(Path(platformdirs.user_cache_dir("stratum-tests")) / "s3-venv")))
LONG = (
    "test_submit",
    "test_serve_ray",
    "test_training_distributed",
    "test_faults_stop",
    "test_tune_losnet",
    "test_tuning_sweep",
    "test_train",
    "test_predict",
    "test_contract",
)
_scratch = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    """Cut the tests off from the user's stores, keys and clusters; child processes inherit it."""
    scratch = Path(tempfile.mkdtemp(prefix="stratum-tests-"))
    config.stash[_scratch] = scratch
    for name in [name for name in os.environ if name.startswith(("AWS_", "MLFLOW_", "RAY_"))]:
        del os.environ[name]
    os.environ.setdefault("MPLCONFIGDIR", str(Path(platformdirs.user_cache_dir("matplotlib"))))  # its font cache takes seconds to build
    for kind in ("DATA", "CACHE", "STATE"):
        os.environ[f"XDG_{kind}_HOME"] = str(scratch / kind.lower())
    os.environ.update(
        AWS_CONFIG_FILE=str(scratch / "no-aws-config"),
        AWS_SHARED_CREDENTIALS_FILE=str(scratch / "no-aws-credentials"),
        AWS_EC2_METADATA_DISABLED="true",
        MLFLOW_TRACKING_URI=f"sqlite:///{scratch / 'mlflow.db'}",
        MPLBACKEND="Agg",
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN=secrets.token_hex(32),  # in the environment, so that Ray writes none to the home folder
        RAY_USAGE_STATS_ENABLED="0",
        RAY_DEDUP_LOGS="0",
        RAY_TRAIN_ENABLE_PREEMPTION_WATCHER="0",  # a process for each run that asks the cloud whether it wants its machine back
        RAY_worker_niceness="0",  # the default of 15 starves the workers beside anything else that runs on two cores
    )
    # Tiny tensors gain nothing from a second thread, and one thread repeats exactly on any number of cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules that take minutes come first: of two processes, neither is left with one of them at the end."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove what the tests wrote outside their own folders."""
    shutil.rmtree(config.stash[_scratch], ignore_errors=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how much was not tested for want of real data and a real S3 server."""
    skipped = sum(NO_SHARED in str(report.longrepr) for report in terminalreporter.stats.get("skipped", []))
    if skipped:
        terminalreporter.write_line(f"{skipped} tests were skipped because {NO_SHARED}: {SHARED}", yellow=True)


def free_port() -> int:
    """A loopback port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real images and the S3 server, which is no part of the repository."""
    if not (SHARED / "data").is_dir():
        reason = f"{NO_SHARED}: {SHARED}"
        if os.environ.get("CI"):
            pytest.fail(f"{reason}; under CI nothing may be skipped")
        pytest.skip(reason)
    return SHARED


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store in one sqlite file, to copy: making one runs some fifty migrations."""
    from stratum.tracking import client_for

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    client_for(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def mlflow_sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> str:
    """The URI of an empty MLflow store of this test's own, set as ``MLFLOW_TRACKING_URI``."""
    path = shutil.copy(empty_store, tmp_path / "mlflow.db")
    uri = f"sqlite:///{path}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A Ray of two CPUs on loopback. The dashboard is on: Tune frees a stopped trial's workers through it."""
    import ray

    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # Ray puts sockets below it, whose paths may have 107 bytes at most
    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=0,
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        dashboard_port=free_port(),
        object_store_memory=256 * 2**20,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
        _temp_dir=folder,
    )
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class S3Server:
    """A running S3 server and how to reach it."""

    endpoint: str
    env: dict[str, str]

    @contextmanager
    def client(self) -> Iterator[Any]:
        """A client of its own session: boto3's default one keeps the keys of whichever test used it first."""
        import boto3

        client = boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.env["AWS_SECRET_ACCESS_KEY"],
            region_name=self.env["AWS_REGION"],
        )
        with closing(client):
            yield client

    def bucket(self) -> str:
        """The name of a new, empty bucket."""
        name = f"b-{uuid.uuid4().hex[:12]}"
        with self.client() as client:
            client.create_bucket(Bucket=name)
        return name


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """An S3 server on ports and in a folder of this test run: a real one where it is at hand, otherwise moto's."""
    if not (SHARED / "s3").is_dir() and not os.environ.get("CI"):
        yield from _moto()
        return
    folder = Path(tempfile.mkdtemp(prefix="s3-", dir="/tmp"))
    try:
        env = _start_s3(SHARED, folder)
        yield S3Server(endpoint=env["AWS_ENDPOINT_URL"], env=env)
    finally:
        subprocess.run([SHARED / "s3" / "stop-s3.sh", "--purge", folder], check=False, capture_output=True, timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def real_s3(shared: Path) -> None:
    """For tests of signatures, permissions and checksums, which moto does not check."""


@pytest.fixture
def s3_env(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The S3 server, with this process's ``AWS_*`` set to it for the time of the test."""
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)  # it keeps the keys it was made with
    return s3


def _moto() -> Iterator[S3Server]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    keys = {"AWS_ACCESS_KEY_ID": "moto", "AWS_SECRET_ACCESS_KEY": "moto", "AWS_REGION": "us-east-1"}
    yield S3Server(endpoint=endpoint, env={**keys, "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": endpoint})
    server.stop()


def _start_s3(shared: Path, folder: Path, attempts: int = 5) -> dict[str, str]:
    for attempt in range(1, attempts + 1):
        ports = {"S3_PORT": str(free_port()), "S3_BACKEND_PORT": str(_three_free_ports())}
        done = subprocess.run(
            [shared / "s3" / "start-s3.sh", folder],
            env={**os.environ, **ports, "S3_VENV": str(S3_VENV)},
            capture_output=True,
            text=True,
            timeout=580,  # the first of several processes installs it, the others wait
        )
        if done.returncode == 0:
            lines = (line.removeprefix("export ") for line in done.stdout.splitlines() if line.startswith("export "))
            return dict(line.split("=", 1) for line in lines)
        if "port is taken" not in done.stderr or attempt == attempts:  # another process may take a port before the server does
            raise RuntimeError(f"the S3 server did not start:\n{done.stderr}")
    raise AssertionError("unreachable")


def _three_free_ports() -> int:
    """The first of three consecutive free ports."""
    for _ in range(100):
        first = free_port()
        with socket.socket() as second, socket.socket() as third:
            try:
                second.bind(("127.0.0.1", first + 1))
                third.bind(("127.0.0.1", first + 2))
            except (OSError, OverflowError):
                continue
            return first
    raise RuntimeError("no three free ports in a row on 127.0.0.1")
