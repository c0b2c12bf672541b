"""The training loop in plain PyTorch: the same in a notebook, in a test, and in every worker of Ray Train.

``train`` reads like a table of contents; what its lines do has a name below. Where it runs (alone, as one rank of many) is the context's
to know, and the learning rate, the random numbers and the order of the images are functions of (seed, step or epoch, rank), so a run that
was stopped after an epoch goes on as if nothing had happened. One that is told to stop writes a checkpoint within its epoch and goes on
from that step; only what the network itself draws at random, as dropout does, is then other than it would have been.
"""

import copy
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from stratum.training.checkpoint import Best, Part, Parts, State, load_checkpoint, save_checkpoint
from stratum.training.context import Context
from stratum.training.ema import Ema
from stratum.training.epoch import EpochLoader, train_epoch
from stratum.training.optim import build_optimizer
from stratum.training.progress import Progress, Say, say_nothing
from stratum.training.spec import TrainSpec
from stratum_models.interface import SegmentationModel

Evaluate = Callable[[nn.Module], dict[str, float]]
Log = Callable[[dict[str, float], int], None]  # metrics, number of epochs done


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What came out of a run; plain values, so that it travels between processes."""

    epochs: int
    history: list[dict[str, float]]  # one row an epoch
    metrics: dict[str, float]  # of the weights that are kept, with the run's cost
    best_epoch: int | None  # counted from 0; None where nothing was evaluated, and the last weights are kept
    stop_reason: str
    package: str | None = None  # URI

    @property
    def kept_epoch(self) -> int:
        """The epoch, counted from 1, whose weights are kept."""
        return self.epochs if self.best_epoch is None else self.best_epoch + 1


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
        StoppedError: the context was told to stop; the checkpoint is written.
    """
    torch.manual_seed(spec.seed)
    parts = build_parts(model, spec, context)
    state = resume(parts, context)
    log_again(state, log if context.rank == 0 else None)
    say = say if context.rank == 0 else say_nothing
    say_where(state, say)
    progress = Progress(say, epochs=spec.epochs, first_epoch=state.epoch)
    while state.epoch < spec.epochs and not state.stop_reason:
        begin_epoch(loader, state, spec, context.rank)
        row = train_epoch(parts, loader, state, spec, context, progress, partial(keep_part, parts, state, context, config or {}))
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
    """How far the run has come: the latest checkpoint's state, or a fresh one. Raises UserError where it is damaged."""
    stored = context.latest_checkpoint()
    return load_checkpoint(stored.folder, parts, stored.uri) if stored else State()


def say_where(state: State, say: Say) -> None:
    """Says where a run goes on, unless it begins."""
    if state.epoch or state.part.steps:
        say(f"going on after epoch {state.epoch}" + (f" and {state.part.steps} steps of the next" if state.part.steps else ""))


def log_again(state: State, log: Log | None) -> None:
    """Logs the epochs of earlier attempts: the process may have died between storing an epoch and logging it."""
    for epoch, row in enumerate(state.history, 1):
        if log:
            log(row, epoch)


def begin_epoch(loader: EpochLoader, state: State, spec: TrainSpec, rank: int) -> None:
    """Seeds every source of random numbers, so that an epoch is the same whether or not the run was stopped before it."""
    epoch, done = state.epoch, state.part.steps
    loader.set_epoch(epoch, mosaic=epoch < spec.epochs - spec.mosaic_off_last, start=done * spec.accumulate)
    mixed = int(np.random.SeedSequence([spec.seed, epoch, rank, *([done] if done else [])]).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


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
    state.part = Part()
    state.history.append(row)
    state.train_s += row["train/epoch_s"] + row.get("val/seconds", 0.0)
    state.memory_mb = max(state.memory_mb, row["train/memory_mb"])
    unlearnt = parts.evaluated.unlearnt
    before = state.best.value if state.best and state.best.unlearnt == unlearnt else -math.inf
    value = row.get(best_metric, -math.inf)
    if "val/seconds" in row:
        state.stale = 0 if value > before else state.stale + 1
    improved = best_metric in row and value >= before  # of equals, the longer trained
    if improved:
        scores = {name: score for name, score in row.items() if name.startswith("val/") and name != "val/seconds"}
        state.best = Best(epoch=state.epoch - 1, metric=best_metric, metrics=scores, unlearnt=unlearnt)
        parts.best.load_state_dict(parts.evaluated.state_dict())
    if spec.patience and state.stale >= spec.patience and not unlearnt:
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


def keep_part(parts: Parts, state: State, context: Context, config: dict[str, object]) -> None:
    """Hands a checkpoint from within an epoch to the context."""
    row = {"epoch": float(state.epoch)}
    if context.rank != 0:
        context.report(row, None, best=False)
        return
    with tempfile.TemporaryDirectory(prefix="stratum-checkpoint-") as folder:
        context.report(row, save_checkpoint(Path(folder), parts, state, config), best=False)


def conclude(model: SegmentationModel, parts: Parts, state: State, spec: TrainSpec) -> TrainResult:
    """Leaves the weights that are kept in the model and sums the run up."""
    chosen = parts.best if state.best else parts.evaluated
    model.load_state_dict(chosen.state_dict())
    model.eval()
    metrics = dict(state.best.metrics) if state.best else {}
    return TrainResult(
        epochs=state.epoch,
        history=state.history,
        metrics=metrics | {"cost/train_s": state.train_s, "train/memory_mb": state.memory_mb, **step_time(state, spec)},
        best_epoch=state.best.epoch if state.best else None,
        stop_reason=(state.stop_reason or "all epochs done") + (f"; {model.unlearnt} has not learnt yet" if model.unlearnt else ""),
    )


def step_time(state: State, spec: TrainSpec) -> dict[str, float]:
    """The time of an optimiser step in ms, the median over the epochs, beside whatever else ran on the machine."""
    rates = [row["train/images_per_s"] for row in state.history if row.get("train/images_per_s", 0) > 0]
    return {"train/step_ms": 1000 * spec.batch_size / statistics.median(rates)} if rates else {}
