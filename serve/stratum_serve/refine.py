"""The two stages of a pipeline as two workers: the patches of many requests go through stage 2 together.

Shapes: ``K`` classes, ``H`` and ``W`` the size of an image, ``n`` patches, ``S`` the side of a patch with its margin, ``C`` the channels
that stage 2 sees.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stratum.inference.outputs import to_float
from stratum_models.batching import resize_images
from stratum_models.interface import SemanticPrediction
from stratum_models.two_stage.model import TwoStage
from stratum_models.two_stage.pick import Rule, choose, how_many
from stratum_models.two_stage.scaling import at_size
from stratum_serve.batching import Batcher
from stratum_serve.config import Batching, Limits
from stratum_serve.engine import Engine
from stratum_serve.options import PatchOptions, check_options
from stratum_serve.problems import Problem
from stratum_serve.results import Found, found_in
from stratum_serve.room import Room
from stratum_serve.worker import Answer, Clock, Task, Worker

Patches = NDArray[np.float32]  # [n, C, S, S] to stage 2, [n, K, S, S] back
Refine = Callable[[Patches, float], Awaitable[Patches]]
"""Stage 2, wherever it is: patches and the seconds that are left, to probabilities."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Coarse:
    """What stage 1 says of an image."""

    image: Tensor  # float32 [3, H, W], as stage 2 sees it
    probabilities: Tensor  # [K, H, W]


class StageOne:
    """Decodes, labels small, picks patches, has them refined, puts them back, answers."""

    def __init__(self, worker: Worker, batching: Batching) -> None:
        self._worker = worker
        self._batcher = Batcher[tuple[Engine, Tensor], Coarse](_coarse, worker.compute, budget=4 * batching.pixels, most=batching.images)

    @property
    def age(self) -> float:
        """Seconds that the batch that runs has been running."""
        return self._batcher.age

    async def answer(self, engine: Engine, task: Task, refine: Refine) -> Answer:
        """The answer to a task. Raises Problem where it cannot be answered."""
        deadline = time.monotonic() + task.seconds
        clock = Clock()
        check_options(task.options, engine.manifest)
        answer = await self._answer(engine, task, refine, deadline, clock)
        return await self._worker.delivered(answer, task, deadline, clock)

    async def _answer(self, engine: Engine, task: Task, refine: Refine, deadline: float, clock: Clock) -> Answer:
        async with self._worker.picture(engine, task, deadline, clock) as picture:
            small = picture.small
            weight = int(small.shape[-2] * small.shape[-1])
            timed = await self._batcher.submit((id(engine), engine.bucket(small)), (engine, small), weight=weight, deadline=deadline)
            clock.timings |= {"queue": timed.queued, "infer": timed.ran}
            cells, patches = await self._worker.off_loop(self._worker.helpers, _picked, clock, engine, timed.result, task)
            since = time.monotonic()
            refined = await refine(patches, deadline - since) if len(cells) else patches
            clock.add("refine", since)
            find = partial(_merged, clock, engine, picture.whole, timed.result, cells, refined, task)
            return await self._worker.finish(find, task, clock, timed.together)


class StageTwo:
    """Refines patches, those of all requests that wait together; of their pixels so many are held at once."""

    def __init__(self, worker: Worker, batching: Batching, pixels: int = Limits().pixels) -> None:
        self._room = Room(pixels)
        self._batcher = Batcher[tuple[Engine, Patches], Patches](_refined, worker.compute, budget=batching.patches, most=batching.patches)

    @property
    def age(self) -> float:
        """Seconds that the batch that runs has been running."""
        return self._batcher.age

    async def refine(self, engine: Engine, patches: Patches, seconds: float) -> tuple[Patches, int]:
        """Probabilities of patches, and how many requests shared their batch. Raises Problem."""
        deadline = time.monotonic() + seconds
        key = (id(engine), patches.shape[1:])
        async with self._room.hold(patches.size // patches.shape[1]):
            timed = await self._batcher.submit(key, (engine, patches), weight=len(patches), deadline=deadline)
        return timed.result, timed.together


def pipeline_of(engine: Engine) -> TwoStage:
    """The engine's model, where it has two stages. Raises Problem where it has one."""
    if not isinstance(engine.model, TwoStage):
        raise Problem("unknown-model", f"{engine.manifest.preset} has one stage: ask for it under /v1/models")
    return engine.model


@torch.inference_mode()
def _coarse(items: Sequence[tuple[Engine, Tensor]]) -> list[Coarse]:
    model = pipeline_of(items[0][0])
    images = [to_float(image).to(model.device) for _, image in items]
    resized = resize_images(images, model.config)
    return [
        Coarse(image=image.cpu(), probabilities=at_size(found, *image.shape[-2:]).cpu())
        for image, found in zip(resized, model.coarse(resized), strict=True)
    ]


@torch.inference_mode()
def _picked(clock: Clock, engine: Engine, coarse: Coarse, task: Task) -> tuple[Tensor, Patches]:
    since = time.monotonic()
    model = pipeline_of(engine)
    cells = pick(model, coarse.probabilities, task.options if isinstance(task.options, PatchOptions) else PatchOptions())
    patches = model.cut(coarse.image, coarse.probabilities, cells)
    clock.add("pick", since)
    return cells, patches.contiguous().numpy()


def pick(model: TwoStage, probabilities: Tensor, options: PatchOptions) -> Tensor:
    """The patches of ``[K, H, W]`` to refine, int64 ``[n]``: as the request says, or as the model was configured."""
    config = model.config
    if not model.refines:
        return torch.zeros(0, dtype=torch.int64)
    rule: Rule = config.pick
    if options.patches is not None:
        rule, config = "count", replace(config, count=options.patches, cap=None, image_size=())
    elif options.threshold is not None:
        rule, config = "threshold", replace(config, threshold=options.threshold, image_size=())
    scores = model.scores(probabilities)
    return choose(scores, how_many(scores, rule, count=config.count, share=config.share, threshold=config.threshold, cap=config.cap))


@torch.inference_mode()
def _refined(items: Sequence[tuple[Engine, Patches]]) -> list[Patches]:
    model = pipeline_of(items[0][0])
    patches = torch.from_numpy(np.concatenate([part for _, part in items])).to(
        model.device
    )  # one copy, since those from afar are read-only
    found = model.refine(patches).cpu().numpy()
    ends = np.cumsum([len(part) for _, part in items])[:-1]
    return [np.ascontiguousarray(part) for part in np.split(found, ends)]


@torch.inference_mode()
def _merged(clock: Clock, engine: Engine, image: Tensor, coarse: Coarse, cells: Tensor, refined: Patches, task: Task) -> Found:
    since = time.monotonic()
    model = pipeline_of(engine)
    merged = coarse.probabilities
    if len(cells):
        merged = model.merge(merged, torch.tensor(refined), cells)
    found = found_in(image, SemanticPrediction(probabilities=merged), engine.manifest, task.options)
    grid = model.config.grid(*coarse.image.shape[-2:])
    clock.add("merge", since)
    return replace(found, grid=(grid.rows, grid.columns), refined=tuple(cells.tolist()), patch=grid.side)


async def both_here(one: StageOne, two: StageTwo, engine: Engine, task: Task) -> Answer:
    """Both stages in one process."""

    async def refine(patches: Patches, seconds: float) -> Patches:
        return (await two.refine(engine, patches, seconds))[0]

    return await one.answer(engine, task, refine)
