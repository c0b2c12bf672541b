"""What takes long or looks at the clock: replicas come and go with the load, overload, killed processes, promotion from training on.

    python tests/soak/endurance.py --package outputs/demo-package --minutes 5 --json endurance.json

Prints its figures, and ends with exit code 1 where a promise is broken.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "serve"))

import httpx
import psutil
from parts import run_parts
from running import ROOT, Load, Running, free_port, running, until
from speed import pictures

from stratum_serve.client import Client
from stratum_serve.client.answers import Retries

PATH = "/v1/models/losnet/segment"


def config(package: Path, **values: Any) -> dict[str, Any]:
    """A server of one model and 1 to 2 replicas of one CPU, which it gives back after seconds."""
    scaling = {"min_replicas": 1, "max_replicas": 2, "cpus": 1, "downscale_delay_s": 10, "target_ongoing_requests": 2}
    return {
        "models": [{"name": "losnet", "package": str(package.absolute())}],
        "scaling": {**scaling, **values.pop("scaling", {})},
        **values,
    }


def load(server: Running, clients: int, image: bytes, refused: set[str] | None = None, path: str = PATH) -> Load:
    """Plain clients, without retries, that wait a little after a refusal, and note in ``refused`` why."""

    def ask(client: httpx.Client) -> httpx.Response:
        answer = client.post(path, content=image)
        if answer.status_code == 429:
            if refused is not None:
                refused.add(answer.json()["detail"])
            time.sleep(0.05)
        return answer

    return Load(ask=ask, url=server.url, clients=clients)


def resident(server: Running) -> float:
    """MiB of all its processes."""
    total = 0
    for process in psutil.Process(server.process.pid).children(recursive=True):
        try:
            total += process.memory_info().rss
        except psutil.Error:
            continue
    return total / 2**20


def up_and_down(package: Path, image: bytes) -> dict[str, Any]:
    """Replicas go from 1 to 2 under load, and back without."""
    with running(free_port(), config(package), {}) as server:
        start = time.monotonic()
        with load(server, 12, image) as busy:
            until(lambda: len(server.replicas("models")) == 2)
            up = time.monotonic() - start
            busy.more(50)
        start = time.monotonic()
        until(lambda: len(server.replicas("models")) == 1)
        found = {"seconds to 2 replicas": round(up, 1), "seconds back to 1": round(time.monotonic() - start, 1)}
        found["statuses"] = busy.statuses()
        assert set(busy.statuses()) == {200}, found
        return found


def at_the_gate(package: Path, image: bytes, minutes: float) -> dict[str, Any]:
    """More requests than the ingress lets in."""
    values = config(package, scaling={"max_replicas": 1}, limits={"in_flight": 8})
    return overload(values, image, minutes, "requests are under way")


def in_the_queue(package: Path, image: bytes, minutes: float) -> dict[str, Any]:
    """More requests than may wait for a model replica, which the ingress lets in."""
    values = config(package, scaling={"max_replicas": 1, "max_ongoing_requests": 2}, limits={"queued": 4})
    return overload(values, image, minutes, "the models have too much to do")


def overload(values: dict[str, Any], image: bytes, minutes: float, refusal: str) -> dict[str, Any]:
    """More than the server takes, for minutes: 429s for one reason, bounded memory, no hung request, quick again afterwards."""
    with running(free_port(), values, {}) as server:
        quiet = _lone(server, image)
        memory = []
        refused: set[str] = set()
        with load(server, 24, image, refused) as busy:
            end = time.monotonic() + 60 * minutes
            while time.monotonic() < end:
                time.sleep(5)
                memory.append(resident(server))
        start = time.monotonic()
        until(lambda: _lone(server, image, 3) < 1.5 * quiet, seconds=30)
        recovered = time.monotonic() - start
    settled, last = memory[len(memory) // 4], memory[-1]
    found = {"minutes": minutes, "statuses": busy.statuses(), "MiB after a quarter": round(settled), "MiB at the end": round(last)}
    found |= {"seconds to recover": round(recovered, 1), "lone ms before": round(1000 * quiet)}
    assert set(busy.statuses()) == {200, 429}, found
    assert {refusal in detail for detail in refused} == {True}, refused
    assert last < 1.1 * settled + 50, found
    assert recovered < 10, found
    return found


def killed(package: Path, image: bytes) -> dict[str, Any]:
    """A model replica and then the ingress are killed under load."""
    with running(free_port(), config(package, scaling={"min_replicas": 2}), {}) as server:
        until(lambda: len(server.replicas("models")) == 2)
        with load(server, 4, image) as plain:
            plain.more(20)
            server.kill(server.replicas("models")[0])
            plain.more(100)
        model = plain.statuses()
        assert set(model) == {200}, model
        with load(server, 4, image) as plain, Client(server.url, retries=Retries(attempts=12)) as ours:
            plain.more(20)
            server.kill(server.replicas("ingress")[0])
            for _ in range(10):
                ours.segment("losnet", image)
            plain.more(100)
        return {
            "model replica killed": model,
            "ingress killed, plain clients": plain.statuses(),
            "ingress killed, our client": "no failure",
        }


def promoted(image: bytes) -> dict[str, Any]:
    """Train, promote, serve; train another and promote it under load: no request fails, and the answers change version."""
    with tempfile.TemporaryDirectory() as folder:
        env = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
        _train(folder, env, "first", "head_convs=2")
        _job(env, "promote", "--model", "ore", "--metric", "cost/params")
        args = {**config(Path()), "models": "ore", "refresh_seconds": 0.5}
        with running(free_port(), args, env) as server, load(server, 4, image, path="/v1/models/ore/segment") as busy:
            busy.more(20)
            _train(folder, env, "second", "head_convs=1")  # fewer parameters, and so the better one
            _job(env, "promote", "--model", "ore", "--metric", "cost/params")
            until(lambda: busy.answers[-1][2] == "2")
            busy.more(20)
    found = {"statuses": busy.statuses(), "versions": sorted({version for _, _, version in busy.answers})}
    assert found == {"statuses": {200: len(busy.answers)}, "versions": ["1", "2"]}, found
    return found


def _train(folder: str, env: dict[str, str], name: str, option: str) -> None:
    tiny = ["--data", "synthetic://ore?images=10&size=64&seed=0", "--model", "losnet_debug", "--size", "64", "--batch", "4"]
    tiny += ["--epochs", "2", "--workers", "0", "--cost-size", "64x64", "--set", option]
    _job(env, "train", *tiny, "--storage", f"{folder}/runs", "--name", name, "--register", "ore")


def _job(env: dict[str, str], name: str, *flags: str) -> None:
    paths = os.pathsep.join(str(ROOT / part) for part in ("platform", "models", "serve"))
    command = [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *flags]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": paths, **env}, check=True, stdout=subprocess.DEVNULL)


def _lone(server: Running, image: bytes, count: int = 10) -> float:
    """The middle one of some latencies, in seconds."""
    times = []
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for _ in range(count):
            start = time.monotonic()
            client.post(PATH, content=image).raise_for_status()
            times.append(time.monotonic() - start)
    return sorted(times)[count // 2]


def main() -> int:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--package", type=Path, default=Path("outputs/demo-package"))
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--parts", default="scaling,overload,queue,killed,promoted")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    image = pictures(1)[0]
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "scaling": lambda: up_and_down(args.package, image),
        "overload": lambda: at_the_gate(args.package, image, args.minutes),
        "queue": lambda: in_the_queue(args.package, image, args.minutes / 5),
        "killed": lambda: killed(args.package, image),
        "promoted": lambda: promoted(image),
    }
    return run_parts(parts, args.parts, args.json)


if __name__ == "__main__":
    sys.exit(main())
