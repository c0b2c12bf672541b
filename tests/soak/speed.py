"""Throughput and latency of the server beside the same model without one, and beside LitServe.

    python tests/soak/speed.py --package outputs/demo-package --json speed.json

Every contender decodes the same 640x480 JPEGs, runs the same prepared network with the same threads, and encodes the same JSON. The rounds
alternate, so that what else the machine does meets all of them; the figure is the median of the rounds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "serve"))

import httpx
import psutil
import torch
from running import ROOT, free_port, running, until

from stratum.data.synthetic import draw_sample, parse_uri
from stratum.inference.outputs import jpeg
from stratum_serve.config import Batching
from stratum_serve.encode import encode
from stratum_serve.engine import Engine, open_package
from stratum_serve.imaging import ImageLimits, decode
from stratum_serve.options import SegmentOptions
from stratum_serve.results import found_in

LIMITS = ImageLimits(pixels=10**8, side=20_000)
SCENES = "synthetic://ore?images=16&size=640&seed=3"
ABOUT: dict[str, Any] = {"request_id": "x", "model": {}}


def answer(engine: Engine, data: bytes) -> bytes:
    """The same steps as the server's, one after the other."""
    options = SegmentOptions()
    image = decode(data, LIMITS, engine.depth)
    (prediction,) = engine.predict([image])
    return encode(found_in(image, prediction, engine.manifest, options), "json", "rle", ABOUT)


def pictures(count: int = 16) -> list[bytes]:
    """JPEGs of 640x480 pixels."""
    spec = parse_uri(SCENES)
    return [jpeg(draw_sample(spec, index)[0].image[:, :480, :640]) for index in range(count)]


def alone(engine: Engine, images: list[bytes], seconds: float) -> dict[str, float]:
    """One process, one image after the other."""
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        answer(engine, images[len(times) % len(images)])
        times.append(time.perf_counter() - start)
    return {"images_per_s": len(times) / sum(times), "median_ms": 1000 * statistics.median(times)}


def asked(url: str, path: str, images: list[bytes], clients: int, seconds: float) -> dict[str, float]:
    """So many clients that ask one after the other; a lone one first, for the latency."""

    def run(end: float, place: int) -> list[float]:
        times = []
        with httpx.Client(base_url=url, timeout=60) as client:
            while time.perf_counter() < end:
                start = time.perf_counter()
                client.post(
                    path, content=images[(place + len(times)) % len(images)], headers={"Content-Type": "image/jpeg"}
                ).raise_for_status()
                times.append(time.perf_counter() - start)
        return times

    if clients == 1:
        return {"median_ms": 1000 * statistics.median(run(time.perf_counter() + seconds, 0)[2:])}
    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        parts = list(pool.map(lambda place: run(start + seconds, place), range(clients)))
    times = [one for part in parts for one in part]
    spent = time.perf_counter() - start
    return {"images_per_s": len(times) / spent, "median_ms": 1000 * statistics.median(times)}


@contextmanager
def litserve(package: Path, threads: int) -> Iterator[str]:
    """LitServe with the same function, in processes of its own."""
    port = free_port()
    command = [sys.executable, str(Path(__file__).with_name("litserver.py")), str(port), str(package), str(threads)]
    paths = os.pathsep.join(str(ROOT / part) for part in ("platform", "models", "serve"))
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        until(lambda: _healthy(url))
        yield url
    finally:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for one in family:
            one.kill()
        psutil.wait_procs(family, timeout=30)
        process.wait(30)


def _healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def rounds(contenders: dict[str, Callable[[], dict[str, float]]], count: int) -> dict[str, dict[str, Any]]:
    """The medians of alternating rounds, and all of them."""
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for _ in range(count):
        for name, contender in contenders.items():
            seen[name].append(contender())
            print(name, {key: round(value, 2) for key, value in seen[name][-1].items()}, flush=True)
    return {
        name: {key: statistics.median(one[key] for one in found) for key in found[0]} | {"rounds": found} for name, found in seen.items()
    }


def compare(package: Path, threads: int, seconds: float, count: int, images_together: int) -> dict[str, Any]:
    """The server, the same model alone, and LitServe."""
    torch.set_num_threads(threads)
    engine, images = open_package(package), pictures()
    args = {
        "models": [{"name": "losnet", "package": str(package.absolute())}],
        "scaling": {"min_replicas": 1, "max_replicas": 1, "cpus": threads, "max_ongoing_requests": 32},
        "batching": Batching(images=images_together).model_dump(),
    }
    path = "/v1/models/losnet/segment"
    with running(free_port(), args, {}) as server, litserve(package, threads) as other:
        asked(server.url, path, images, 8, 3)
        asked(other, "/predict", images, 8, 3)
        return rounds(
            {
                "alone": lambda: alone(engine, images, seconds),
                "served, 8 clients": lambda: asked(server.url, path, images, 8, seconds),
                "litserve, 8 clients": lambda: asked(other, "/predict", images, 8, seconds),
                "served, lone": lambda: asked(server.url, path, images, 1, seconds),
                "litserve, lone": lambda: asked(other, "/predict", images, 1, seconds),
            },
            count,
        )


def refined(package: Path, seconds: float, count: int, patches: int | None) -> dict[str, Any]:
    """The two-stage pipeline with the patches of many requests together, and with each request's alone."""
    images = pictures()
    shared = {
        "scaling": {"cpus": 0.1, "max_replicas": 1},
        "stage1": {"cpus": 1, "max_replicas": 1},
        "stage2": {"cpus": 0.9, "max_replicas": 1},
    }
    base = {"models": [{"name": "pipeline", "package": str(package.absolute())}], **shared}
    together, apart = ({**base, "batching": {"patches": most}} for most in (128, 1))
    path = "/v1/refine/pipeline/segment?format=png" + (f"&patches={patches}" if patches else "")
    found: dict[str, Any] = {}
    for name, args in (("patches together", together), ("patches apart", apart)):
        with running(free_port(), args, {}) as server:
            asked(server.url, path, images, 8, 3)
            found |= rounds({name: lambda server=server: asked(server.url, path, images, 8, seconds)}, count)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--package", type=Path, default=Path("outputs/demo-package"))
    parser.add_argument("--pipeline", type=Path, default=None, help="a two-stage package, to measure what batching across requests gains")
    parser.add_argument("--patches", type=int, default=None, help="of each request to the pipeline; by default those of its rule")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--together", type=int, default=Batching().images, help="images in a batch, at most")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    found = (
        refined(args.pipeline, args.seconds, args.rounds, args.patches)
        if args.pipeline
        else compare(args.package, args.threads, args.seconds, args.rounds, args.together)
    )
    print(json.dumps({name: {key: value for key, value in one.items() if key != "rounds"} for name, one in found.items()}, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
