"""A real MLflow server that goes away and comes back."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

START_SECONDS = 150  # importing MLflow twice takes a while on a busy machine


class Server:
    """A real MLflow server that can be stopped and started again on the same port and store."""

    def __init__(self, folder: Path, port: int) -> None:
        self.uri, self._folder, self._port = f"http://127.0.0.1:{port}", folder, port
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port), "--workers", "1"]
        command += [
            "--backend-store-uri",
            f"sqlite:///{self._folder}/server.db",
            "--artifacts-destination",
            str(self._folder / "artifacts"),
        ]
        with open(self._folder / "server.log", "ab") as log:
            environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self._folder, env=environment)
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise TimeoutError((self._folder / "server.log").read_text()[-2000:])

    def stop(self) -> None:
        """Kill it with all of its processes."""
        if self._process is None:
            return
        family = [*psutil.Process(self._process.pid).children(recursive=True), psutil.Process(self._process.pid)]
        for process in family:
            process.kill()
        self._process.wait(30)
        psutil.wait_procs(family[:-1], 30)
        self._process = None


@contextmanager
def running_server(folder: Path) -> Iterator[Server]:
    """A server on a free port whose store and artifacts lie in a folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        server = Server(folder, probe.getsockname()[1])
    try:
        server.start()
        yield server
    finally:
        server.stop()
