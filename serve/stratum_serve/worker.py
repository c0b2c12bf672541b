"""One request from bytes to bytes, inside a model replica: fetch, decode, predict with others, measure or encode.

Knows no Ray, so that the same runs in a test, in a benchmark, and behind a deployment.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from stratum import storage
from stratum.inference.classes import in_windows
from stratum.storage import DeniedError, MissingError, UnreachableError
from stratum_models.errors import UserError
from stratum_models.interface import Prediction
from stratum_serve.batching import Batcher
from stratum_serve.config import Batching
from stratum_serve.encode import MEDIA_TYPES, SUFFIXES, encode, summary, to_json
from stratum_serve.engine import Engine
from stratum_serve.imaging import ImageLimits, decode
from stratum_serve.measure import measurements
from stratum_serve.options import CommonOptions, SegmentOptions, check_options
from stratum_serve.problems import Problem
from stratum_serve.results import Found, found_in, shrunk

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a replica is asked."""

    kind: Literal["segment", "measure"]
    source: bytes | str  # an encoded image, or where it is on S3
    options: CommonOptions
    seconds: float  # that are left
    limits: ImageLimits
    largest: int  # bytes of an image on S3
    output: str = ""  # where on S3 the answer is stored, empty: nowhere
    about: Mapping[str, Any] = field(default_factory=dict)  # for the answer's JSON: model and request


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer of a replica."""

    body: bytes
    media_type: str
    timings: Mapping[str, float]  # seconds by step
    summary: Mapping[str, float]
    pixels: int
    together: int  # images in its batch


@dataclass(eq=False)
class Clock:
    """The seconds of each step of one request."""

    timings: dict[str, float] = field(default_factory=dict)

    def add(self, step: str, since: float) -> None:
        """The step took from ``since`` until now."""
        self.timings[step] = self.timings.get(step, 0.0) + time.monotonic() - since


class Worker:
    """Answers tasks with engines that it is given.

    Args:
        batching: what goes through a network at once.
        threads: of the network, and as many again for decoding and encoding.
    """

    def __init__(self, batching: Batching, threads: int = 1) -> None:
        torch.set_num_threads(threads)
        self._batching = batching
        self.compute = ThreadPoolExecutor(1, thread_name_prefix="network")
        self.helpers = ThreadPoolExecutor(max(2, threads), thread_name_prefix="codec")
        self._batcher = Batcher[tuple[Engine, Tensor], Prediction](_predict, self.compute, budget=batching.pixels, most=batching.images)

    async def answer(self, engine: Engine, task: Task) -> Answer:
        """The answer to a task. Raises Problem where it cannot be answered."""
        deadline = time.monotonic() + task.seconds
        clock = Clock()
        check_options(task.options, engine.manifest)
        image = await self.image(engine, task, clock)
        prediction, together = await self._predict(engine, image, task, deadline, clock)
        found = await self.off_loop(self.helpers, _found, clock, image, prediction, engine, task.options)
        return await self.finish(found, task, clock, together)

    async def image(self, engine: Engine, task: Task, clock: Clock) -> Tensor:
        """The task's image ``uint8 [3, H, W]``."""
        return await self.off_loop(self.helpers, _read, clock, task, engine)

    async def finish(self, found: Found, task: Task, clock: Clock, together: int) -> Answer:
        """The answer in the format that was asked for, on S3 too where that is wanted."""
        return await self.off_loop(self.helpers, _encoded, clock, found, task, together)

    async def _predict(self, engine: Engine, image: Tensor, task: Task, deadline: float, clock: Clock) -> tuple[Prediction | Tensor, int]:
        small = shrunk(image, task.options.max_size)
        window = engine.manifest.tile if task.options.tile is None else task.options.tile
        if engine.manifest.task == "semantic" and in_windows((int(small.shape[-2]), int(small.shape[-1])), window):
            since = time.monotonic()
            found = await asyncio.get_running_loop().run_in_executor(self.compute, engine.in_windows, small, window)
            clock.add("infer", since)
            return found, 1
        weight = int(small.shape[-2] * small.shape[-1])
        timed = await self._batcher.submit((id(engine), engine.bucket(small)), (engine, small), weight=weight, deadline=deadline)
        clock.timings |= {"queue": timed.queued, "infer": timed.ran}
        return timed.result, timed.together

    async def off_loop(self, executor: Executor, function: Callable[..., T], *arguments: Any) -> T:
        """A function in a thread, with what users do wrong as a problem."""
        try:
            return await asyncio.get_running_loop().run_in_executor(executor, function, *arguments)
        except UserError as error:
            raise problem_of(error) from error

    def close(self) -> None:
        """End the threads."""
        self.compute.shutdown(wait=False, cancel_futures=True)
        self.helpers.shutdown(wait=False, cancel_futures=True)


def problem_of(error: UserError) -> Problem:
    """What a mistake below means for the client."""
    if isinstance(error, MissingError):
        return Problem("s3-missing", str(error))
    if isinstance(error, DeniedError):
        return Problem("s3-denied", str(error))
    if isinstance(error, UnreachableError):
        return Problem("unavailable", str(error), 5)
    return Problem("bad-option", str(error))


def _predict(items: Sequence[tuple[Engine, Tensor]]) -> list[Prediction]:
    return items[0][0].predict([image for _, image in items])


def _read(clock: Clock, task: Task, engine: Engine) -> Tensor:
    since = time.monotonic()
    data = task.source
    if isinstance(data, str):
        data = _fetched(data, task.largest)
        clock.add("fetch", since)
        since = time.monotonic()
    image = decode(data, task.limits, engine.depth)
    clock.add("decode", since)
    return image


def _fetched(uri: str, largest: int) -> bytes:
    size = storage.size(uri)
    if size > largest:
        raise Problem("too-many-bytes", f"{uri} has {size} bytes, {largest} are taken: use a smaller file")
    data = storage.read_bytes(uri)
    if len(data) > largest:  # replaced in between
        raise Problem("too-many-bytes", f"{uri} has {len(data)} bytes, {largest} are taken: use a smaller file")
    return data


def _found(clock: Clock, image: Tensor, prediction: Prediction | Tensor, engine: Engine, options: CommonOptions) -> Found:
    since = time.monotonic()
    found = found_in(image, prediction, engine.manifest, options)
    clock.add("post", since)
    return found


def _encoded(clock: Clock, found: Found, task: Task, together: int) -> Answer:
    since = time.monotonic()
    options, media_type, suffix = task.options, MEDIA_TYPES["json"], ".measure.json"
    if isinstance(options, SegmentOptions) and task.kind == "segment":
        media_type, suffix = MEDIA_TYPES[options.format], SUFFIXES[options.format]
        body = encode(found, options.format, options.geometry, task.about)
    else:
        body = to_json({**task.about, **measurements(found, options)})
    clock.add("encode", since)
    height, width = found.size
    answer = Answer(
        body=body, media_type=media_type, timings=clock.timings, summary=summary(found), pixels=height * width, together=together
    )
    return _stored(answer, task, suffix, clock) if task.output else answer


def _stored(answer: Answer, task: Task, suffix: str, clock: Clock) -> Answer:
    """The answer in storage; what goes back says where it is."""
    assert isinstance(task.source, str)
    since = time.monotonic()
    uri = storage.join(task.output, storage.name(task.source).rsplit(".", 1)[0] + suffix)
    storage.write_bytes(uri, answer.body)
    clock.add("store", since)
    body = to_json({**task.about, "output": uri, "bytes": len(answer.body), "media_type": answer.media_type})
    return replace(answer, body=body, media_type=MEDIA_TYPES["json"], timings=clock.timings)
