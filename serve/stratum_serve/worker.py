"""One request from bytes to bytes, inside a model replica: fetch, decode, predict with others, measure or encode.

Knows no Ray, so that the same runs in a test, in a benchmark, and behind a deployment.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from stratum import storage
from stratum.inference.classes import in_windows, window_of
from stratum.registry import fetch_package
from stratum.storage import DeniedError, MissingError, StorageError, TooLargeError
from stratum_models.errors import UserError
from stratum_models.interface import Prediction
from stratum_models.package import Manifest
from stratum_serve.batching import Batcher
from stratum_serve.config import Batching, Limits
from stratum_serve.encode import MEDIA_TYPES, SUFFIXES, encode, summary, to_json
from stratum_serve.engine import Backend, Engine, build_engine
from stratum_serve.imaging import Header, ImageLimits, check_masks, decode, read_header, shrunk
from stratum_serve.measure import measurements
from stratum_serve.options import CommonOptions, ShapeOptions, WindowOptions, check_options
from stratum_serve.outside import Outside
from stratum_serve.problems import Problem
from stratum_serve.results import Found, found_in
from stratum_serve.room import Room

T = TypeVar("T")
RETRY_SECONDS = 5


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
    compared: bool = False  # whether a shadow's answer is compared with this one
    about: Mapping[str, Any] = field(default_factory=dict)  # for the answer's JSON: model and request


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer of a replica."""

    body: bytes
    media_type: str
    suffix: str = ""  # of its name in storage
    timings: Mapping[str, float]  # seconds by step
    summary: Mapping[str, float] = field(default_factory=dict)  # where it is to be compared with another's
    pixels: int
    together: int  # images in its batch


@dataclass(eq=False)
class Clock:
    """The seconds of each step of one request."""

    timings: dict[str, float] = field(default_factory=dict)

    def add(self, step: str, since: float) -> None:
        """The step took from ``since`` until now."""
        self.timings[step] = self.timings.get(step, 0.0) + time.monotonic() - since


@dataclass(frozen=True, eq=False, kw_only=True)
class Picture:
    """An image ``uint8 [3, H, W]`` as it was sent, and as small as it is wanted to be predicted."""

    whole: Tensor
    small: Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class _Wanted:
    """An image ``uint8 [3, H, W]`` to be predicted."""

    engine: Engine
    image: Tensor
    windows: int  # their side; 0: whole
    deadline: float
    gone: threading.Event = field(default_factory=threading.Event)  # set when nobody waits for it any more

    def check(self) -> None:
        """Raises Problem where it need not be gone on with."""
        if self.gone.is_set() or time.monotonic() >= self.deadline:
            raise Problem("deadline", "the deadline passed, or the client left, in the middle of the image")


class Worker:
    """Answers tasks with engines that it is given.

    Args:
        batching: what goes through a network at once.
        threads: of the network, and as many again for decoding and encoding.
        pixels: that are held decoded at once; images of further tasks wait as the bytes that they came as.
    """

    def __init__(self, batching: Batching, threads: int = 1, pixels: int = Limits().pixels) -> None:
        torch.set_num_threads(threads)
        self.compute = ThreadPoolExecutor(1, thread_name_prefix="network")
        self.helpers = ThreadPoolExecutor(max(2, threads), thread_name_prefix="codec")
        self.loader = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._outside = Outside()
        self._room = Room(pixels)
        self._batcher = Batcher[_Wanted, Prediction | Tensor](_predict, self.compute, budget=batching.pixels, most=batching.images)

    @property
    def age(self) -> float:
        """Seconds that the batch that runs has been running."""
        return self._batcher.age

    async def load(self, model_id: str, *, device: str = "cpu", backend: Backend = "torch") -> Engine:
        """The engine of a target's ``model_id``; only warming it takes the network's thread from those that answer. Raises Problem."""
        uri, _, sha256 = model_id.rpartition("#")
        loop = asyncio.get_running_loop()
        try:
            engine = await loop.run_in_executor(
                self.loader, lambda: build_engine(fetch_package(uri, sha256), sha256, device=device, backend=backend)
            )
            await loop.run_in_executor(self.compute, engine.warm)
        except UserError as error:
            raise Problem("model-broken", str(error), RETRY_SECONDS) from error
        return engine

    async def answer(self, engine: Engine, task: Task) -> Answer:
        """The answer to a task. Raises Problem where it cannot be answered."""
        deadline = time.monotonic() + task.seconds
        clock = Clock()
        check_options(task.options, engine.manifest)
        answer = await self._answer(engine, task, deadline, clock)  # what it has seen is let go of before anything is stored
        return await self.delivered(answer, task, deadline, clock)

    async def _answer(self, engine: Engine, task: Task, deadline: float, clock: Clock) -> Answer:
        async with self.picture(engine, task, deadline, clock) as picture:
            prediction, together = await self._predict(engine, picture.small, task, deadline, clock)
            find = partial(_found, clock, picture.whole, prediction, engine, task.options)
            return await self.finish(find, task, clock, together)

    @asynccontextmanager
    async def picture(self, engine: Engine, task: Task, deadline: float, clock: Clock) -> AsyncIterator[Picture]:
        """The task's image, decoded, for as long as there has to be room for it."""
        data = task.source
        if isinstance(data, str):
            since = time.monotonic()
            data = await self._from_outside(deadline, storage.read_once, data, task.largest)
            clock.add("fetch", since)
        header = check_image(data, task, engine.manifest)
        async with self._room.hold(header.width * header.height):
            yield await self.off_loop(self.helpers, _decoded, clock, data, task, engine)

    async def finish(self, find: Callable[[], Found], task: Task, clock: Clock, together: int) -> Answer:
        """What ``find`` makes out, in the format that was asked for; both in one thread, one after the other."""
        return await self.off_loop(self.helpers, lambda: _encoded(clock, find(), task, together))

    async def delivered(self, answer: Answer, task: Task, deadline: float, clock: Clock) -> Answer:
        """The answer, or where it lies once it is stored."""
        if not task.output:
            return answer
        assert isinstance(task.source, str)
        since = time.monotonic()
        uri = storage.join(task.output, storage.name(task.source).rsplit(".", 1)[0] + answer.suffix)
        await self._from_outside(deadline, storage.write_bytes, uri, answer.body)
        clock.add("store", since)
        body = to_json({**task.about, "output": uri, "bytes": len(answer.body), "media_type": answer.media_type})
        return replace(answer, body=body, media_type=MEDIA_TYPES["json"], timings=clock.timings)

    async def _predict(self, engine: Engine, small: Tensor, task: Task, deadline: float, clock: Clock) -> tuple[Prediction | Tensor, int]:
        size = (int(small.shape[-2]), int(small.shape[-1]))
        window = window_of(engine.manifest, task.options.tile if isinstance(task.options, WindowOptions) else None)
        windows = window if engine.manifest.task == "semantic" and in_windows(size, window) else 0
        wanted = _Wanted(engine=engine, image=small, windows=windows, deadline=deadline)
        key = wanted if windows else (id(engine), engine.bucket(small))  # in windows, an image is a batch of its own
        try:
            timed = await self._batcher.submit(key, wanted, weight=size[0] * size[1], deadline=deadline)
        finally:
            wanted.gone.set()
        clock.timings |= {"queue": timed.queued, "infer": timed.ran}
        return timed.result, timed.together

    async def off_loop(self, executor: Executor, function: Callable[..., T], *arguments: Any) -> T:
        """A function in a thread, with what users do wrong as a problem."""
        try:
            return await asyncio.get_running_loop().run_in_executor(executor, function, *arguments)
        except UserError as error:
            raise problem_of(error) from error

    async def _from_outside(self, deadline: float, function: Callable[..., T], *arguments: Any) -> T:
        try:
            return await self._outside.call(deadline - time.monotonic(), function, *arguments)
        except UserError as error:
            raise problem_of(error) from error

    def close(self) -> None:
        """End the threads."""
        self._outside.close()
        for executor in (self.compute, self.helpers, self.loader):
            executor.shutdown(wait=False, cancel_futures=True)


def problem_of(error: UserError) -> Problem:
    """What goes wrong below, by the user's mistake or without it, for the client."""
    if isinstance(error, MissingError):
        return Problem("s3-missing", str(error))
    if isinstance(error, DeniedError):
        return Problem("s3-denied", str(error))
    if isinstance(error, TooLargeError):
        return Problem("too-many-bytes", str(error))
    if isinstance(error, StorageError):  # S3 is away, or this server may not or cannot reach it
        return Problem("unavailable", str(error), RETRY_SECONDS)
    return Problem("bad-option", str(error))


def _predict(items: Sequence[_Wanted]) -> Sequence[Prediction | Tensor]:
    first = items[0]
    if first.windows:
        return [first.engine.in_windows(first.image, first.windows, first.check)]
    return first.engine.predict([one.image for one in items])


def check_image(data: bytes, task: Task, manifest: Manifest) -> Header:
    """What can be told of an image without decoding it. Raises Problem where it cannot be answered."""
    header = read_header(data, task.limits)
    if manifest.task == "instance":
        check_masks(header, task.options.max_size, task.limits)
    return header


def _decoded(clock: Clock, data: bytes, task: Task, engine: Engine) -> Picture:
    since = time.monotonic()
    whole = decode(data, task.limits, engine.depth)
    small = shrunk(whole, task.options.max_size)
    clock.add("decode", since)
    return Picture(whole=whole, small=small)


def _found(clock: Clock, image: Tensor, prediction: Prediction | Tensor, engine: Engine, options: CommonOptions) -> Found:
    since = time.monotonic()
    found = found_in(image, prediction, engine.manifest, options)
    clock.add("post", since)
    return found


def _encoded(clock: Clock, found: Found, task: Task, together: int) -> Answer:
    since = time.monotonic()
    options, media_type, suffix = task.options, MEDIA_TYPES["json"], ".measure.json"
    if isinstance(options, ShapeOptions) and task.kind == "segment":
        media_type, suffix = MEDIA_TYPES[options.format], SUFFIXES[options.format]
        body = encode(found, options.format, options.geometry, task.about)
    else:
        body = to_json({**task.about, **measurements(found, options)})
    clock.add("encode", since)
    height, width = found.size
    return Answer(
        body=body,
        media_type=media_type,
        suffix=suffix,
        timings=clock.timings,
        summary=summary(found) if task.compared else {},
        pixels=height * width,
        together=together,
    )
