"""A server that is told to stop answers every request that it has let in, and says so to all others."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from running import ROOT, free_port, until
from serve_tools import Server

from stratum_serve.worker import Answer, Task

Serving = Callable[..., Server]


class Held:
    """A backend that answers once it may."""

    def __init__(self) -> None:
        self.asked, self.may = threading.Event(), threading.Event()

    async def run(self, model_id: str, task: Task) -> Answer:
        self.asked.set()
        await asyncio.to_thread(self.may.wait, 60)
        return Answer(body=b"{}", media_type="application/json", timings={}, summary={}, pixels=1, together=1)

    async def refine(self, model_id: str, task: Task) -> Answer:
        return await self.run(model_id, task)

    async def load(self, model_id: str, *, pipeline: bool) -> None:
        return None


def test_who_is_inside_is_answered_and_others_are_refused(serving: Serving, packages: dict[str, Path], image: bytes) -> None:
    held = Held()
    server = serving(models=f"losnet={packages['losnet']}", backend=held)
    server.wait()
    answers: list[httpx.Response] = []
    path = "/v1/models/losnet/segment"
    inside = threading.Thread(target=lambda: answers.append(server.http.post(path, content=image)))
    inside.start()
    assert held.asked.wait(60)
    door = server.service.door
    closing = threading.Thread(target=lambda: asyncio.run(door.close()))
    closing.start()
    until(lambda: door.closing)
    for refused in (server.http.post(path, content=image), server.http.get("/v1/models"), server.http.get("/readyz")):
        assert (refused.status_code, refused.json()["type"]) == (503, "urn:stratum:problem:stopping")
        assert refused.headers["Retry-After"]
        assert refused.headers["Connection"] == "close"
    assert server.http.get("/healthz").status_code == 200
    assert closing.is_alive()
    held.may.set()
    inside.join(60)
    closing.join(60)
    assert [answer.status_code for answer in answers] == [200]
    assert not closing.is_alive()


@pytest.fixture
def served(packages: dict[str, Path]) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`make serve` on a port of its own, without anything that the tests set for Ray."""
    folder, port = tempfile.mkdtemp(prefix="ray-", dir="/tmp"), free_port()
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env["PYTHONPATH"] = os.pathsep.join(str(ROOT / part) for part in ("platform", "models", "serve"))
    command = [sys.executable, "-m", "stratum_serve", f"models=slag={packages['slag']}", f"port={port}"]
    log = Path(folder) / "log"
    with log.open("w") as out:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=out, text=True, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        until(lambda: _ready(url, process, log))
        yield url, process
    finally:
        process.kill()
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _ready(url: str, process: subprocess.Popen[str], log: Path) -> bool:
    assert process.poll() is None, log.read_text()[-3000:]
    try:
        return httpx.get(f"{url}/readyz", timeout=10).status_code == 200
    except httpx.TransportError:
        return False


class Caller(threading.Thread):
    """Asks again and again until nobody listens any more.

    Notes each status, 0 for a connection that broke, and whether the server had been told to stop when it asked.
    """

    def __init__(self, url: str, image: bytes, told: threading.Event) -> None:
        super().__init__(daemon=True)
        self.url, self.image, self.told = url, image, told
        self.answers: list[tuple[bool, int]] = []

    def run(self) -> None:
        with httpx.Client(base_url=self.url, timeout=60) as client:
            while True:
                late = self.told.is_set()
                try:
                    answer = client.post("/v1/models/slag/segment?format=png", content=self.image)
                except httpx.ConnectError:
                    return
                except httpx.TransportError:
                    self.answers.append((late, 0))
                else:
                    self.answers.append((late, answer.status_code))


def assert_nobody_else_can_use_its_ray(pid: int) -> None:
    family = psutil.Process(pid).children(recursive=True)
    (dashboard,) = [one.cmdline() for one in family if "dashboard/dashboard.py" in " ".join(one.cmdline())]
    assert "--host=127.0.0.1" in dashboard
    (port,) = [part.removeprefix("--port=") for part in dashboard if part.startswith("--port=")]
    assert httpx.get(f"http://127.0.0.1:{port}/api/jobs/").status_code == 401  # who asks there runs any code
    replicas = [one for one in family if "ServeReplica" in " ".join(one.cmdline())]
    assert replicas
    for one in replicas:
        assert one.nice() == psutil.Process(pid).nice()  # Ray lowers it by 15 unless it is told not to
        assert one.environ()["RAY_AUTH_MODE"] == "token"
        assert len(one.environ()["RAY_AUTH_TOKEN"]) >= 32


@pytest.mark.timeout(300)
def test_sigterm_drains_make_serve(served: tuple[str, subprocess.Popen[str]], image: bytes) -> None:
    url, process = served
    assert_nobody_else_can_use_its_ray(process.pid)
    told = threading.Event()
    callers = [Caller(url, image, told) for _ in range(3)]
    for caller in callers:
        caller.start()
    until(lambda: all(len(caller.answers) >= 3 for caller in callers))
    told.set()
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 0
    for caller in callers:
        caller.join(60)
        assert not caller.is_alive()
        statuses = [status for _, status in caller.answers]
        assert {status for late, status in caller.answers if not late} <= {200, 503}, statuses  # nobody who was let in was left alone
        assert set(statuses) <= {200, 503, 0}, statuses
        assert statuses == sorted(statuses, key=(200, 503, 0).index), statuses
