"""One epoch of training: batches to gradients to steps, on any number of ranks."""

import itertools
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from stratum.training.checkpoint import Parts, State
from stratum.training.context import Context, Notice
from stratum.training.errors import NonFiniteLossError, StoppedError
from stratum.training.evaluation import Batch
from stratum.training.optim import set_learning_rate
from stratum.training.progress import Progress
from stratum.training.schedule import learning_rate
from stratum.training.spec import TrainSpec

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class EpochLoader(Protocol):
    """Batches for one rank, in an order of its own in every epoch; equally many on every rank."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...

    def set_epoch(self, epoch: int, mosaic: bool = True, start: int = 0) -> None:
        """Says which epoch the next iteration is, whether images are put together in it, and at which batch it starts."""


def train_epoch(
    parts: Parts, loader: EpochLoader, state: State, spec: TrainSpec, context: Context, progress: Progress, save: Callable[[], None]
) -> dict[str, float]:
    """One pass over this rank's batches; the epoch's row of metrics, averaged over all ranks.

    ``save`` writes a checkpoint in the middle of it, where the context asks for one.

    Raises:
        StoppedError: the run was told to stop, and has saved.
    """
    part = state.part
    start = time.monotonic() - part.seconds
    parts.network.train()
    steps = steps_in_epoch(loader, spec.accumulate)
    tell_progress(parts, state.step, steps * spec.epochs)
    rate = learning_rate(state.step, steps, spec)
    for window in windows(loader, spec.accumulate, part.steps):
        heed(context, state, steps, save)
        rate = learning_rate(state.step, steps, spec)
        set_learning_rate(parts.optimizer, rate)
        for index, batch in enumerate(window, 1):
            with synchronised(parts.network, last=index == len(window)):
                add(part.sums, backward(parts, batch, len(window), state.step, spec, context))
            part.images += len(batch[0]) * context.world_size
        update_weights(parts, spec)
        state.step += 1
        part.steps += 1
        tell_progress(parts, state.step, steps * spec.epochs)
        part.seconds = time.monotonic() - start
        progress.step(state.epoch, part.steps / steps, averaged([part.sums], part.steps * spec.accumulate), part.images / part.seconds)
    seconds, images = time.monotonic() - start, part.images
    terms = averaged(context.gather(part.sums), steps * spec.accumulate)
    return {
        "epoch": float(state.epoch + 1),
        "train/loss": sum(terms.values()),
        **{f"train/{name}" if name.startswith("loss") else f"train/loss_{name}": value for name, value in terms.items()},
        "train/lr": rate,
        "train/images_per_s": images / seconds,
        "train/epoch_s": seconds,
        "train/memory_mb": max(context.gather(peak_memory_mb(context.device))),
    }


def tell_progress(parts: Parts, step: int, steps: int) -> None:
    """Tells the model, and its averaged twin, how much of training is done: what follows a schedule is the same in both, not averaged."""
    for model in (parts.model, parts.evaluated):
        model.set_progress(step / steps)


def heed(context: Context, state: State, steps: int, save: Callable[[], None]) -> None:
    """Saves, and stops every rank, between two steps of an epoch where that is wanted; the ranks then go on from the mean of their sums."""
    notice = context.notice()
    if notice is Notice.NONE:
        return
    state.part.sums = averaged(context.gather(state.part.sums), 1)
    save()
    if notice is Notice.STOP:
        raise StoppedError(state.epoch, state.part.steps / steps)


def windows(loader: EpochLoader, accumulate: int, done: int = 0) -> Iterator[list[Batch]]:
    """The batches in groups of ``accumulate``, one group for each optimiser step that is not ``done``; what fills no group is left out."""
    batches = iter(loader)
    for _ in range(done, steps_in_epoch(loader, accumulate)):
        yield list(itertools.islice(batches, accumulate))


def steps_in_epoch(loader: EpochLoader, accumulate: int) -> int:
    """Optimiser steps of an epoch."""
    return len(loader) // accumulate


def synchronised(network: nn.Module, *, last: bool) -> AbstractContextManager[object]:
    """Averages gradients over the ranks only at the last part of a step."""
    silent = getattr(network, "no_sync", None)
    return nullcontext() if last or silent is None else silent()


def backward(parts: Parts, batch: Batch, window: int, step: int, spec: TrainSpec, context: Context) -> dict[str, float]:
    """Adds a batch's gradients, as its share of a window, and returns its loss terms."""
    device = context.device
    images = [image.to(device, non_blocking=True) for image in batch[0]]
    targets = [target.to(device) for target in batch[1]]
    with torch.autocast(device.type, _DTYPES[spec.precision], enabled=spec.precision != "fp32"):
        terms: dict[str, Tensor] = parts.network(images, targets)
        total = torch.stack([term.float() for term in terms.values()]).sum()
    values = dict(zip(terms, torch.stack([t.detach().float() for t in terms.values()]).tolist(), strict=True))
    require_finite(values, step, context)
    parts.scaler.scale(total / window).backward()  # type: ignore[no-untyped-call]
    return values


def require_finite(terms: Mapping[str, float], step: int, context: Context) -> None:
    """Stops every rank where the loss of any is not finite; otherwise the rest would wait for the lost one for ever."""
    if not context.any(not np.isfinite(list(terms.values())).all()):
        return
    everyone = context.gather(dict(terms))
    rank = next(r for r, found in enumerate(everyone) if not np.isfinite(list(found.values())).all())
    raise NonFiniteLossError(step, rank, everyone[rank])


def update_weights(parts: Parts, spec: TrainSpec) -> None:
    """One optimiser step, with clipping, and the EMA's after it."""
    if spec.clip_norm:
        parts.scaler.unscale_(parts.optimizer)
        nn.utils.clip_grad_norm_(parts.model.parameters(), spec.clip_norm)
    parts.scaler.step(parts.optimizer)
    parts.scaler.update()
    parts.optimizer.zero_grad(set_to_none=True)
    if parts.ema:
        parts.ema.update(parts.model)


def add(sums: dict[str, float], terms: Mapping[str, float]) -> None:
    """Adds the terms of a batch to their sums."""
    for name, value in terms.items():
        sums[name] = sums.get(name, 0.0) + value


def averaged(sums: list[dict[str, float]], batches: int) -> dict[str, float]:
    """The mean of each term over the ranks' batches."""
    return {name: sum(rank.get(name, 0.0) for rank in sums) / (batches * len(sums)) for name in sums[0]}


def peak_memory_mb(device: torch.device) -> float:
    """The highest memory in use so far: of the GPU where there is one, else resident memory of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
