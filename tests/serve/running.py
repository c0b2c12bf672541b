"""A running server in processes of its own, with a real registry and a real S3."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = Path(__file__).with_name("launch.py")


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server that answers at ``url``."""

    url: str
    metrics: str  # where Ray exports them for Prometheus
    process: subprocess.Popen[str]

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """The processes of a deployment's replicas."""
        return [one for one in self._processes() if f":{deployment}" in _title(one) and "ServeReplica" in _title(one)]

    def actors(self, name: str) -> list[psutil.Process]:
        """The processes of an actor class."""
        return [one for one in self._processes() if _title(one).startswith("ray::") and name in _title(one)]

    def _processes(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def kill(self, process: psutil.Process) -> None:
        """End one of its processes as the kernel would."""
        os.kill(process.pid, signal.SIGKILL)


@contextmanager
def running(port: int, args: Mapping[str, Any], env: Mapping[str, str]) -> Iterator[Running]:
    """A server of such a configuration."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # Ray puts sockets below it, whose paths may have 107 bytes at most
    paths = os.pathsep.join(str(ROOT / part) for part in ("platform", "models", "serve"))
    metrics = free_port()
    command = [sys.executable, str(LAUNCH), str(port), str(metrics), str(folder), json.dumps(args)]
    with (folder / "stderr").open("w") as errors:
        process = subprocess.Popen(
            command,
            env={**os.environ, "RAY_worker_niceness": "0", "PYTHONPATH": paths, **env},  # as `make serve` does
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
    try:
        assert process.stdout is not None
        if not any(line.startswith("UP") for line in process.stdout):
            raise RuntimeError((folder / "stderr").read_text()[-4000:])
        made = Running(url=f"http://127.0.0.1:{port}", metrics=f"http://127.0.0.1:{metrics}", process=process)
        until(lambda: _ready(made.url))
        yield made
    finally:
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.stdin.close() if process.stdin else None
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _, left = psutil.wait_procs(children, timeout=10)
        for one in left:
            one.kill()
        process.stdout.close() if process.stdout else None
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    """A loopback port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(wanted: Callable[[], bool], seconds: float = 120.0, pause: float = 0.1) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not wanted():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(pause)


@dataclass
class Load:
    """Plain clients that ask one after the other, without retries, until they are stopped."""

    ask: Callable[[httpx.Client], httpx.Response]
    url: str
    clients: int = 4
    answers: list[tuple[float, int, str]] = field(default_factory=list)  # when, status (0: the connection broke), version

    def __enter__(self) -> "Load":
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(90)
        assert not any(thread.is_alive() for thread in self._threads), "a request hangs"

    def _run(self) -> None:
        with httpx.Client(base_url=self.url, timeout=60) as client:
            while not self._stop.is_set():
                try:
                    answer = self.ask(client)
                    self.answers.append((time.monotonic(), answer.status_code, answer.headers.get("x-model-version", "")))
                except httpx.TransportError:
                    self.answers.append((time.monotonic(), 0, ""))

    def statuses(self) -> dict[int, int]:
        """How often each status was answered."""
        found = [status for _, status, _ in self.answers]
        return {status: found.count(status) for status in sorted(set(found))}

    def more(self, count: int = 10) -> None:
        """Wait for so many further answers."""
        wanted = len(self.answers) + count
        until(lambda: len(self.answers) >= wanted)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()[:1])
    except psutil.Error:
        return ""


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=10).status_code == 200
    except httpx.TransportError:
        return False
