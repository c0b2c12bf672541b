"""A checkpoint: everything that a run needs to go on as if it had never stopped, in four files without a pickle of ours.

``model.safetensors``, ``ema.safetensors`` (where there is an EMA), ``best.safetensors`` (the best evaluated weights so far),
``optimizer.pt`` (loads with ``weights_only``) and ``state.json``, which is written last. Random states are not stored: every epoch seeds
them from the run's seed, the epoch and the rank.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from stratum.training.context import STATE_FILE
from stratum.training.ema import Ema
from stratum_models.interface import SegmentationModel


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best evaluation so far."""

    epoch: int  # counted from 0
    metric: str
    metrics: dict[str, float]

    @property
    def value(self) -> float:
        """The figure that decides."""
        return self.metrics[self.metric]


@dataclass(kw_only=True)
class State:
    """How far a run has come."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished optimiser steps
    best: Best | None = None
    stale: int = 0  # evaluations since the best
    history: list[dict[str, float]] = field(default_factory=list)  # one row an epoch
    train_s: float = 0.0  # training and evaluation, over all attempts
    memory_mb: float = 0.0  # highest of all attempts
    stop_reason: str = ""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "State":
        """The state that ``asdict`` and JSON stored."""
        best = values.pop("best")
        return cls(**values, best=Best(**best) if best else None)


@dataclass(kw_only=True)
class Parts:
    """What changes while a run goes on."""

    model: SegmentationModel
    network: nn.Module  # the model as the context wraps it: its forward gives the loss terms
    optimizer: Optimizer
    scaler: GradScaler
    ema: Ema[SegmentationModel] | None
    best: SegmentationModel  # a copy on the CPU with the best evaluated weights

    @property
    def evaluated(self) -> SegmentationModel:
        """The weights that are evaluated and shipped: the EMA's where there is one."""
        return self.ema.model if self.ema else self.model


def save_checkpoint(folder: Path, parts: Parts, state: State, config: dict[str, Any]) -> Path:
    """Writes a checkpoint into an existing folder; ``state.json`` comes last, so a folder that has it is whole."""
    save_model(parts.model, str(folder / "model.safetensors"))
    save_model(parts.best, str(folder / "best.safetensors"))
    if parts.ema:
        save_model(parts.ema.model, str(folder / "ema.safetensors"))
    others = {
        "optimizer": parts.optimizer.state_dict(),
        "scaler": parts.scaler.state_dict(),
        "ema_updates": parts.ema.updates if parts.ema else 0,
    }
    torch.save(others, folder / "optimizer.pt")
    partial = folder / f"{STATE_FILE}.partial"
    partial.write_text(json.dumps({"state": asdict(state), "config": config}, indent=1))
    partial.replace(folder / STATE_FILE)
    return folder


def load_checkpoint(folder: Path, parts: Parts) -> State:
    """Puts a checkpoint's values into the parts, wherever they are, and returns how far it had come."""
    load_model(parts.model, str(folder / "model.safetensors"))
    load_model(parts.best, str(folder / "best.safetensors"))
    others = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
    parts.optimizer.load_state_dict(others["optimizer"])
    parts.scaler.load_state_dict(others["scaler"])
    if parts.ema:
        load_model(parts.ema.model, str(folder / "ema.safetensors"))
        parts.ema.updates = others["ema_updates"]
    return State.from_dict(json.loads((folder / STATE_FILE).read_text())["state"])
