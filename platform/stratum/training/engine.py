"""The training loop in plain PyTorch: the same in a notebook, in a test, and in every worker of Ray Train.

``train`` reads like a table of contents; what its lines do has a name below. Where it runs (alone, as one rank of many) is the context's
to know, and the learning rate, the random numbers and the order of the images are functions of (seed, step or epoch, rank), so a run that
was stopped after an epoch goes on as if nothing had happened.
"""

import copy
import itertools
import math
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from stratum.training.checkpoint import Best, Parts, State, load_checkpoint, save_checkpoint
from stratum.training.context import Context
from stratum.training.ema import Ema
from stratum.training.errors import NonFiniteLossError
from stratum.training.evaluation import Batch
from stratum.training.optim import build_optimizer, set_learning_rate
from stratum.training.progress import Progress, Say, say_nothing
from stratum.training.schedule import learning_rate
from stratum.training.spec import TrainSpec
from stratum_models.interface import SegmentationModel

Evaluate = Callable[[nn.Module], dict[str, float]]
Log = Callable[[dict[str, float], int], None]  # metrics, number of epochs done

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class EpochLoader(Protocol):
    """Batches for one rank, in an order of its own in every epoch; equally many on every rank."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...

    def set_epoch(self, epoch: int, mosaic: bool = True) -> None:
        """Says which epoch the next iteration is, and whether images are put together in it."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What came out of a run; plain values, so that it travels between processes."""

    epochs: int
    history: list[dict[str, float]]  # one row an epoch
    metrics: dict[str, float]  # of the weights that are kept, with the run's cost
    best_epoch: int | None  # counted from 0; None where nothing was evaluated, and the last weights are kept
    stop_reason: str
    package: str | None = None  # URI


class LossModule(nn.Module):
    """Gives ``model.loss`` the name ``forward``, through which DistributedDataParallel works."""

    def __init__(self, model: SegmentationModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *batch: object) -> dict[str, Tensor]:
        """The loss terms of ``(images, targets)``."""
        return self.model.loss(*batch)  # type: ignore[arg-type]


def train(
    model: SegmentationModel,
    loader: EpochLoader,
    evaluate: Evaluate,
    spec: TrainSpec,
    context: Context,
    *,
    best_metric: str,
    log: Log | None = None,
    say: Say = say_nothing,
    config: dict[str, object] | None = None,
) -> TrainResult:
    """Trains a model and leaves the best evaluated weights in it.

    Args:
        model: trained in place, moved to the context's device.
        loader: this rank's batches.
        evaluate: the metrics of a module, the same on every rank.
        spec: how to train.
        context: where this runs; its latest checkpoint, if there is one, is where the run goes on.
        best_metric: the metric whose highest value makes a checkpoint the best.
        log: called on rank 0 after every epoch that is safely stored; after a resume, with the epochs of earlier attempts first.
        say: where progress lines go, on rank 0.
        config: plain values to store in every checkpoint.

    Raises:
        NonFiniteLossError: on every rank at once, naming step, rank and terms.
    """
    torch.manual_seed(spec.seed)
    parts = build_parts(model, spec, context)
    state = resume(parts, context)
    log_again(state, log if context.rank == 0 else None)
    progress = Progress(say if context.rank == 0 else say_nothing, epochs=spec.epochs, first_epoch=state.epoch)
    while state.epoch < spec.epochs and not state.stop_reason:
        begin_epoch(loader, state.epoch, spec, context.rank)
        row = train_epoch(parts, loader, state, spec, context, progress)
        late = out_of_time(state, row, spec, context)
        if late or evaluation_due(state.epoch, spec):
            row |= timed_evaluation(parts, evaluate, context)
        improved = finish_epoch(state, row, parts, spec, best_metric, late=late)
        keep(parts, state, row, spec, context, improved=improved, config=config or {})
        if context.rank == 0 and log:
            log(row, state.epoch)
        progress.epoch(state.epoch - 1, row)
    return conclude(model, parts, state, spec)


def build_parts(model: SegmentationModel, spec: TrainSpec, context: Context) -> Parts:
    """Everything that changes while a run goes on, on the context's device."""
    model.to(context.device)
    if spec.channels_last:
        model.lay_out(torch.channels_last)
    return Parts(
        model=model,
        network=context.wrap(LossModule(model), sync_bn=spec.sync_bn),
        optimizer=build_optimizer(model, spec),
        scaler=GradScaler(context.device.type, enabled=spec.precision == "fp16"),
        ema=Ema(model, spec.ema_decay, spec.ema_tau) if spec.ema_decay else None,
        best=copy.deepcopy(model).to("cpu"),
    )


def resume(parts: Parts, context: Context) -> State:
    """How far the run has come: the latest checkpoint's state, or a fresh one."""
    folder = context.latest_checkpoint()
    return load_checkpoint(folder, parts) if folder else State()


def log_again(state: State, log: Log | None) -> None:
    """Logs the epochs of earlier attempts: the process may have died between storing an epoch and logging it."""
    for epoch, row in enumerate(state.history, 1):
        if log:
            log(row, epoch)


def begin_epoch(loader: EpochLoader, epoch: int, spec: TrainSpec, rank: int) -> None:
    """Seeds every source of random numbers, so that an epoch is the same whether or not the run was stopped before it."""
    loader.set_epoch(epoch, mosaic=epoch < spec.epochs - spec.mosaic_off_last)
    mixed = int(np.random.SeedSequence([spec.seed, epoch, rank]).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


def train_epoch(parts: Parts, loader: EpochLoader, state: State, spec: TrainSpec, context: Context, progress: Progress) -> dict[str, float]:
    """One pass over this rank's batches; the epoch's row of metrics, averaged over all ranks."""
    start = time.monotonic()
    parts.network.train()
    steps = steps_in_epoch(loader, spec.accumulate)
    sums: dict[str, float] = {}
    images = batches = 0
    for done, window in enumerate(windows(loader, spec.accumulate), 1):
        rate = learning_rate(state.step, steps, spec)
        set_learning_rate(parts.optimizer, rate)
        for index, batch in enumerate(window, 1):
            with synchronised(parts.network, last=index == len(window)):
                add(sums, backward(parts, batch, len(window), state.step, spec, context))
            images += len(batch[0]) * context.world_size
        update_weights(parts, spec)
        state.step += 1
        batches += len(window)
        progress.step(state.epoch, done / steps, averaged([sums], batches), images / (time.monotonic() - start))
    seconds = time.monotonic() - start
    terms = averaged(context.gather(sums), batches)
    return {
        "epoch": float(state.epoch + 1),
        "train/loss": sum(terms.values()),
        **{f"train/{name}" if name.startswith("loss") else f"train/loss_{name}": value for name, value in terms.items()},
        "train/lr": rate,
        "train/images_per_s": images / seconds,
        "train/epoch_s": seconds,
        "train/memory_mb": max(context.gather(peak_memory_mb(context.device))),
    }


def windows(loader: EpochLoader, accumulate: int) -> Iterator[list[Batch]]:
    """The batches in groups of ``accumulate``, one group for each optimiser step; what fills no group is left out."""
    batches = iter(loader)
    for _ in range(steps_in_epoch(loader, accumulate)):
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


def evaluation_due(epoch: int, spec: TrainSpec) -> bool:
    """Whether an epoch, counted from 0, ends with an evaluation: every n-th does, and the last."""
    return (epoch + 1) % spec.evaluate_every == 0 or epoch + 1 == spec.epochs


def out_of_time(state: State, row: Mapping[str, float], spec: TrainSpec, context: Context) -> bool:
    """Whether another epoch and the evaluations (this one's, the next one's, the final one) would pass the time budget."""
    if not spec.time_budget_s or state.epoch + 1 == spec.epochs:
        return False
    evaluation = max((old.get("val/seconds", 0.0) for old in state.history), default=0.0)
    needed = state.train_s + 2 * row["train/epoch_s"] + 3 * evaluation
    return context.any(needed > spec.time_budget_s)


def timed_evaluation(parts: Parts, evaluate: Evaluate, context: Context) -> dict[str, float]:
    """The metrics of the weights that would be shipped, and how long they took."""
    start = time.monotonic()
    metrics = evaluate(parts.evaluated)
    return metrics | {"val/seconds": max(context.gather(time.monotonic() - start))}


def finish_epoch(state: State, row: dict[str, float], parts: Parts, spec: TrainSpec, best_metric: str, *, late: bool) -> bool:
    """Counts an epoch, keeps its weights if they are the best so far (then True), and decides whether the run goes on."""
    state.epoch += 1
    state.history.append(row)
    state.train_s += row["train/epoch_s"] + row.get("val/seconds", 0.0)
    state.memory_mb = max(state.memory_mb, row["train/memory_mb"])
    before = state.best.value if state.best else -math.inf
    value = row.get(best_metric, -math.inf)
    if "val/seconds" in row:
        state.stale = 0 if value > before else state.stale + 1
    improved = best_metric in row and value >= before  # of equals, the longer trained
    if improved:
        scores = {name: score for name, score in row.items() if name.startswith("val/") and name != "val/seconds"}
        state.best = Best(epoch=state.epoch - 1, metric=best_metric, metrics=scores)
        parts.best.load_state_dict(parts.evaluated.state_dict())
    if spec.patience and state.stale >= spec.patience:
        state.stop_reason = f"early stopping: {best_metric} did not rise in {state.stale} evaluations"
    elif late:
        state.stop_reason = f"time budget of {spec.time_budget_s:g} s: stopped after {state.epoch} of {spec.epochs} epochs"
    return improved


def keep(
    parts: Parts, state: State, row: dict[str, float], spec: TrainSpec, context: Context, *, improved: bool, config: dict[str, object]
) -> None:
    """Hands the epoch to the context: a checkpoint where one is due, else the metrics alone."""
    last = state.epoch == spec.epochs or bool(state.stop_reason)
    due = improved or last or state.epoch % spec.checkpoint_every == 0
    if not due or context.rank != 0:
        context.report(row, None, best=improved)
        return
    with tempfile.TemporaryDirectory(prefix="stratum-checkpoint-") as folder:
        context.report(row, save_checkpoint(Path(folder), parts, state, config), best=improved)


def conclude(model: nn.Module, parts: Parts, state: State, spec: TrainSpec) -> TrainResult:
    """Leaves the weights that are kept in the model and sums the run up."""
    chosen = parts.best if state.best else parts.evaluated
    model.load_state_dict(chosen.state_dict())
    model.eval()
    metrics = dict(state.best.metrics) if state.best else {}
    return TrainResult(
        epochs=state.epoch,
        history=state.history,
        metrics=metrics | {"cost/train_s": state.train_s, "cost/train_memory_mb": state.memory_mb, **step_time(state, spec)},
        best_epoch=state.best.epoch if state.best else None,
        stop_reason=state.stop_reason or "all epochs done",
    )


def step_time(state: State, spec: TrainSpec) -> dict[str, float]:
    """The time of an optimiser step in ms, the median over the epochs: the paper's training time."""
    rates = [row["train/images_per_s"] for row in state.history if row.get("train/images_per_s", 0) > 0]
    return {"cost/train_step_ms": 1000 * spec.batch_size / statistics.median(rates)} if rates else {}


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
