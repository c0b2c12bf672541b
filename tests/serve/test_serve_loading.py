"""Loading a model leaves the network's thread to those that answer."""

import asyncio
import threading
from pathlib import Path

import pytest
from serve_tools import picture, png

from stratum_serve.config import Batching
from stratum_serve.engine import Engine, open_package
from stratum_serve.imaging import ImageLimits
from stratum_serve.options import SegmentOptions
from stratum_serve.worker import Task, Worker


def test_a_model_that_loads_slowly_holds_nobody_up(packages: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked, may = threading.Event(), threading.Event()

    def slow(uri: str, sha256: str) -> Path:
        asked.set()
        assert may.wait(60)
        return Path(uri)

    monkeypatch.setattr("stratum_serve.worker.fetch_package", slow)
    task = Task(
        kind="segment",
        source=png(picture()),
        options=SegmentOptions(format="png"),
        seconds=60,
        limits=ImageLimits(pixels=10**6, side=5000),
        largest=10**6,
    )

    async def main() -> Engine:
        worker = Worker(Batching())
        loading = asyncio.create_task(worker.load(f"{packages['slag']}#"))
        await asyncio.to_thread(asked.wait, 60)
        answer = await asyncio.wait_for(worker.answer(open_package(packages["losnet"]), task), 30)
        assert answer.body
        assert not loading.done()
        may.set()
        loaded = await loading
        worker.close()
        return loaded

    assert asyncio.run(main()).manifest.preset == "slag_deeplab_debug"
