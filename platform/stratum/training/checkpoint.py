"""A checkpoint: everything that a run needs to go on as if it had never stopped, in four files without a pickle of ours.

``model.safetensors``, ``ema.safetensors`` (where there is an EMA), ``best.safetensors`` (the best evaluated weights so far),
``optimizer.pt`` (loads with ``weights_only``) and ``state.json``, which is written last and holds the hashes of all, its own content's too.
Random states are not stored: every epoch seeds them from the run's seed, the epoch and the rank.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from stratum.disk import said_when_full
from stratum.training.context import STATE_FILE
from stratum.training.ema import Ema
from stratum_models.errors import UserError
from stratum_models.interface import SegmentationModel


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best evaluation so far."""

    epoch: int  # counted from 0
    metric: str
    metrics: dict[str, float]
    unlearnt: str = ""  # what had not begun to learn

    @property
    def value(self) -> float:
        """The figure that decides."""
        return self.metrics[self.metric]


@dataclass(kw_only=True)
class Part:
    """What is done of the epoch that goes on."""

    steps: int = 0  # optimiser steps
    images: int = 0  # over all ranks
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)  # of the loss terms of this rank's batches


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
    part: Part = field(default_factory=Part)  # beyond the finished epochs

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "State":
        """The state that ``asdict`` and JSON stored."""
        best, part = values.pop("best"), values.pop("part", {})
        return cls(**values, best=Best(**best) if best else None, part=Part(**part))


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
    """Writes a checkpoint into an existing folder; ``state.json`` comes last, so a folder that has it is whole.

    Raises:
        UserError: the disk is full.
    """
    with said_when_full(folder, "for a checkpoint: free some, or set TMPDIR; then go on with --resume"):
        return _save(folder, parts, state, config)


def _save(folder: Path, parts: Parts, state: State, config: dict[str, Any]) -> Path:
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
    files = {path.name: _file_hash(path) for path in sorted(folder.iterdir())}
    content = {"state": asdict(state), "config": config, "files": files}
    partial = folder / f"{STATE_FILE}.partial"
    partial.write_text(json.dumps({**content, "sha256": _hash(content)}, indent=1))
    partial.replace(folder / STATE_FILE)
    return folder


def load_checkpoint(folder: Path, parts: Parts, source: str = "") -> State:
    """Puts a checkpoint's values into the parts, wherever they are, and returns how far it had come.

    Raises:
        UserError: a file is missing, was cut short or changed; it is named as one of ``source``, by default the folder. The parts are then
            as they were.
    """
    state = _checked(folder, source or str(folder))
    load_model(parts.model, str(folder / "model.safetensors"))
    load_model(parts.best, str(folder / "best.safetensors"))
    others = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
    parts.optimizer.load_state_dict(others["optimizer"])
    parts.scaler.load_state_dict(others["scaler"])
    if parts.ema:
        load_model(parts.ema.model, str(folder / "ema.safetensors"))
        parts.ema.updates = others["ema_updates"]
    return state


def _checked(folder: Path, source: str) -> State:
    """The state of a checkpoint all of whose files are as they were written."""
    try:
        content = json.loads((folder / STATE_FILE).read_bytes())
        if content.pop("sha256") != _hash(content):
            raise ValueError("its content does not have its hash")
        files: dict[str, str] = content["files"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(source, STATE_FILE, " ".join(str(error).split())) from error
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise _damaged(source, name, "missing")
        if (found := _file_hash(path)) != expected:
            raise _damaged(source, name, f"sha256 {found[:12]}..., {STATE_FILE} says {expected[:12]}...")
    return State.from_dict(content["state"])


def _damaged(source: str, name: str, reason: str) -> UserError:
    return UserError(f"{source}/{name}: damaged ({reason}): put a good copy of the checkpoint there, or start a run of another name")


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash(content: dict[str, Any]) -> str:
    # As JSON would give it back: tuples are lists then.
    return hashlib.sha256(json.dumps(json.loads(json.dumps(content)), sort_keys=True).encode()).hexdigest()
