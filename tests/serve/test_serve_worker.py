"""One replica's worker: what it holds, what it loads, what it stops."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from serve_tools import picture, png
from torch import Tensor

from stratum_models.interface import Prediction
from stratum_serve import worker as worker_module
from stratum_serve.config import Batching
from stratum_serve.engine import Engine, open_package
from stratum_serve.imaging import ImageLimits
from stratum_serve.options import SegmentOptions
from stratum_serve.problems import Problem
from stratum_serve.worker import Answer, Task, Worker


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker(Batching(), pixels=2 * 96 * 128)
    yield made
    made.close()


def task(**options: object) -> Task:
    return Task(
        kind="segment",
        source=png(picture()),
        options=SegmentOptions(format="png", **options),  # type: ignore[arg-type]
        seconds=60.0,
        limits=ImageLimits(pixels=10**6, side=5000),
        largest=10**6,
    )


def test_no_more_is_decoded_than_may_be_held(worker: Worker, packages: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_package(packages["losnet"])
    held = most = 0
    decode: Callable[..., object] = worker_module._decoded
    encode: Callable[..., object] = worker_module._encoded

    def decoded(*given: object) -> object:
        nonlocal held, most
        held += 1
        most = max(most, held)
        return decode(*given)

    def encoded(*given: object) -> object:
        nonlocal held
        held -= 1
        return encode(*given)

    monkeypatch.setattr(worker_module, "_decoded", decoded)
    monkeypatch.setattr(worker_module, "_encoded", encoded)

    async def main() -> list[Answer]:
        return await asyncio.gather(*(worker.answer(engine, task()) for _ in range(7)))

    assert len({answer.body for answer in asyncio.run(main())}) == 1
    assert most == 2


def test_a_model_that_loads_slowly_holds_nobody_up(worker: Worker, packages: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked, may = threading.Event(), threading.Event()

    def slow(uri: str, sha256: str) -> Path:
        asked.set()
        assert may.wait(60)
        return Path(uri)

    monkeypatch.setattr(worker_module, "fetch_package", slow)

    async def main() -> Engine:
        loading = asyncio.create_task(worker.load(f"{packages['slag']}#"))
        await asyncio.to_thread(asked.wait, 60)
        answer = await asyncio.wait_for(worker.answer(open_package(packages["losnet"]), task()), 30)
        assert answer.body
        assert not loading.done()
        may.set()
        return await loading

    assert asyncio.run(main()).manifest.preset == "slag_deeplab_debug"


@pytest.mark.parametrize("leaves", [True, False])
def test_an_image_in_windows_is_left_in_the_middle(
    worker: Worker, packages: dict[str, Path], monkeypatch: pytest.MonkeyPatch, leaves: bool
) -> None:
    engine = open_package(packages["slag"])
    predict = engine.model.predict
    begun, may, batches = threading.Event(), threading.Event(), 0

    def slow(images: Sequence[Tensor]) -> Sequence[Prediction]:
        nonlocal batches
        batches += 1
        begun.set()
        assert may.wait(60)
        return predict(images)

    monkeypatch.setattr(engine.model, "predict", slow)
    late = pytest.MonkeyPatch()

    async def main() -> None:
        asked = asyncio.create_task(worker.answer(engine, task(tile=32)))  # 15 windows, 4 a batch
        await asyncio.to_thread(begun.wait, 60)
        if leaves:
            asked.cancel()
            await asyncio.wait([asked])
        else:
            late.setattr(worker_module, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + 100))
        may.set()
        with pytest.raises(asyncio.CancelledError if leaves else Problem):
            await asked
        late.undo()
        await worker.answer(engine, task())  # what comes next has its turn

    asyncio.run(main())
    assert batches == 2
