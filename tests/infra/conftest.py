"""A PostgreSQL of the tests' own, from Debian's programs."""

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True, kw_only=True)
class Postgres:
    """A server on loopback, and the variables that its client programs take."""

    env: dict[str, str]

    def database(self) -> str:
        """The name of a new, empty database."""
        name = f"d{secrets.token_hex(6)}"
        subprocess.run(["createdb", name], env=self.env, check=True, capture_output=True, timeout=60)
        return name


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL of this test run's own."""
    programs = _programs()
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    password, port = f"p@ss:/%{secrets.token_hex(8)}", _free_port()
    (folder / "password").write_text(password)
    user = _plain_user(folder)
    server = [*user, str(programs / "pg_ctl"), "--pgdata", str(folder / "data"), "--wait"]
    init = [*user, str(programs / "initdb"), "--username=mlflow", "--auth=scram-sha-256", f"--pwfile={folder / 'password'}", "--no-sync"]
    try:
        subprocess.run([*init, "--encoding=UTF8", "--locale=C", folder / "data"], check=True, capture_output=True, timeout=120, cwd="/tmp")
        options = f"-h 127.0.0.1 -p {port} -k {folder} -c fsync=off"
        start = [*server, "--log", str(folder / "log"), "--options", options, "start"]
        subprocess.run(start, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120, cwd="/tmp")
        path = f"{programs}:{os.environ['PATH']}"
        yield Postgres(
            env={**os.environ, "PATH": path, "PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": "mlflow", "PGPASSWORD": password}
        )
    finally:
        subprocess.run([*server, "--mode=immediate", "stop"], capture_output=True, timeout=60, cwd="/tmp")
        shutil.rmtree(folder, ignore_errors=True)


def _programs() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        reason = "PostgreSQL is not installed: apt-get install postgresql"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found[-1].parent


def _plain_user(folder: Path) -> list[str]:
    """What to put before a command so that it does not run as root, which PostgreSQL refuses."""
    if os.geteuid() != 0:
        return []
    shutil.chown(folder, "postgres", "postgres")
    shutil.chown(folder / "password", "postgres", "postgres")
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
